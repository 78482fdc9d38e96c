"""Kinds of base weights by rule: what the rule makes of qfloat8's parts is what was recorded, where it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from estimator import rebuilt_profile
from estimator.errors import CannotTell
from estimator.program import Program
from estimator.programs import Profile, load_profile

SCALARS = 256  # bytes
STEPS = ("checkpointed/one", "checkpointed/many", "full/one", "full/many")
CORES = [
    (arch, f"step.core/{kind}/{how}")
    for arch, hows in (("zimage", STEPS), ("flux2-dev", STEPS[:1]), ("flux1-dev", STEPS[2:3]))
    for kind in rebuilt_profile.KINDS for how in hows
]  # fmt: skip
OTHERS = [
    *(("zimage", f"text/{kind}/plain/{count}") for kind in rebuilt_profile.KINDS for count in ("one", "many")),
    ("zimage", "preview/float8/cfg/encoded"), ("zimage", "preview/uint4/plain/cached"), ("flux2-dev", "text/uint4/plain/one"),
    *((arch, f"text/{kind}/graph/one") for arch in ("zimage", "flux1-dev", "flux2-dev") for kind in rebuilt_profile.KINDS),
    *(("flux1-dev", f"text/{kind}/plain/many") for kind in rebuilt_profile.KINDS),
]  # fmt: skip


def without(arch: str, kind: str) -> Profile:
    """The profile as if no step, preview or text had been recorded in that kind of weights."""
    known = load_profile(arch)
    gone = tuple(f"{part}/{kind}/" for part in ("step.core", "preview", "text"))
    parts = {key: part for key, part in known.data["parts"].items() if not key.startswith(gone)}
    return Profile(arch, {**known.data, "parts": parts}, known.folder)


def outline(program: Program) -> dict[str, Any]:
    """What a program does to the allocator, but for the order in which tensors go between two births."""
    own, born = len(program.names) - program.imports, np.cumsum(program.events == 0)
    freed = {str(program.names[k]): int(at) for k, at in zip(program.tensor_of_event.tolist(), born, strict=True) if k >= own}
    used = {name: program.coefficients[:, n].tolist() for n, name in enumerate(program.features) if program.coefficients[:, n].any()}
    return {"sizes": used, "deaths": program.deaths.tolist(), "names": program.names, "imports": freed}


@pytest.mark.parametrize(("arch", "key"), CORES + OTHERS)
def test_a_part_by_rule_is_the_recorded_one(arch: str, key: str) -> None:
    made, recorded = without(arch, key.split("/")[1]).program(key), load_profile(arch).recorded(key)
    assert outline(made) == outline(recorded)


@pytest.mark.parametrize(("arch", "key"), [CORES[2], CORES[7], CORES[11], OTHERS[0], OTHERS[7], OTHERS[9], OTHERS[14]])
def test_so_is_where_it_uses_its_layers(arch: str, key: str) -> None:
    known = load_profile(arch)
    component = rebuilt_profile.components_of(known, key)[0]
    names = known.data["layers"]
    recorded = rebuilt_profile.calls(known, key, component, names)
    made = rebuilt_profile.calls(without(arch, key.split("/")[1]), key, component, names)
    assert recorded is not None
    assert made is not None
    assert len(recorded)
    assert made.tolist() == recorded.tolist()


@pytest.mark.parametrize("key", ["step.core/uint4/full/many", "text/uint4/graph/one", "step.core/uint3/checkpointed/one"])
def test_uint4_is_made_of_float8_too(key: str) -> None:
    """As of Qwen-Image-Edit 2511, of which nobody saw where qfloat8 uses its layers."""
    known = without("zimage", "uint4")
    parts = {each: part for each, part in known.data["parts"].items() if "/qfloat8/" not in each}
    profile = replace(known, data={**known.data, "parts": parts})
    assert outline(profile.program(key)) == outline(load_profile("zimage").program(key))
    assert rebuilt_profile.base_key(load_profile("qwen-image-edit-2511"), "preview/uint4/cfg/cached") == "preview/float8/cfg/cached"


@pytest.mark.parametrize("kind", ["float8", "uint4"])
@pytest.mark.parametrize("arch", ["flux1-schnell", "flux2-klein-4b", "wan21-14b", "zimage"])
def test_an_adapter_comes_and_goes_for_previews_alike_in_all_quantised_kinds(arch: str, kind: str) -> None:
    known = load_profile(arch)
    keys = [key for key in known.data["parts"] if key.startswith((f"sample.enter/{kind}/", f"sample.leave/{kind}/"))]
    assert len(keys) == 8 or (arch, kind) == ("wan21-14b", "float8")
    for key in keys:
        recorded, base = known.recorded(key), known.recorded(key.replace(f"/{kind}/", "/qfloat8/"))
        assert (recorded.events.tolist(), recorded.names) == (base.events.tolist(), base.names), key
        first, second = (program.sizes({"r": 16}) for program in (recorded, base))
        assert first[first > SCALARS].tolist() == second[second > SCALARS].tolist(), key


@pytest.mark.parametrize("way", ["cfg", "plain"])
def test_a_preview_that_begins_with_a_picture_is_made_as_any_other(way: str) -> None:
    """What its layers make of weights is as much as in a preview that does not: all of both are used as often."""
    profile = load_profile("wan22-5b")
    keys = [f"{name}/{{}}/{way}" for name in ("preview", "preview.begun")]
    further = [len(profile.program(key.format("float8")).names) - len(profile.program(key.format("qfloat8")).names) for key in keys]
    assert further[0] == further[1] < 0


def test_loading_with_low_vram_is_that_without_where_both_are_alike() -> None:
    known = load_profile("zimage")
    keys = [f"load.{part}/uint4/low_vram" for part in ("transformer", "rest")]
    profile = replace(known, data={**known.data, "parts": {key: part for key, part in known.data["parts"].items() if key not in keys}})
    for key in keys:
        assert outline(profile.program(key)) == outline(known.recorded(key))
    flux = load_profile("flux1-dev")  # with low_vram its transformer is quantised where it is
    parts = {key: part for key, part in flux.data["parts"].items() if key != keys[0]}
    assert rebuilt_profile.base_key(replace(flux, data={**flux.data, "parts": parts}), keys[0]) is None


@pytest.mark.parametrize("arch", ["hidream", "zimage-l2p", "chroma-radiance", "omnigen2"])
def test_what_was_recorded_as_far_as_loading_has_all_the_rest(arch: str) -> None:
    """Each part of qfloat8's that uses layers or goes with them, padded pictures and the text encoders' among them."""
    profile = load_profile(arch)
    recorded = [key for key in profile.data["parts"] if "/qfloat8/" in key and key.startswith(("step", "preview", "text", "sample"))]
    made = [key.replace("/qfloat8/", "/float8/") for key in recorded]
    assert {key.split("/")[0] for key in made} >= {"step.core", "preview", "sample.enter"}
    assert all(len(profile.program(key).names) <= len(profile.program(was).names) for key, was in zip(made, recorded, strict=True))


@pytest.mark.parametrize("arch", ["hidream", "wan22-5b", "omnigen2"])
def test_unquantised_all_but_merged_previews_is_by_rule(arch: str) -> None:
    """In which no layer's weight is rebuilt, and so fewer tensors are made than in qfloat8, before the adapter is trained and behind it."""
    profile = load_profile(arch)
    recorded = [key for key in profile.data["parts"] if "/qfloat8/" in key]
    ruled = [key for key in recorded if key.startswith(("step.core", "text"))]
    assert ruled
    assert all(rebuilt_profile.base_key(profile, key.replace("/qfloat8/", "/bf16/")) == key for key in ruled)
    for key in (key for key in recorded if key.startswith("preview")):
        merged = [profile.recorded(f"{key.replace('/qfloat8/', '/bf16/')}/{when}") for when in ("first", "later")]
        assert all(len(one.names) < len(profile.recorded(key).names) for one in merged), key


def test_a_batch_is_made_of_a_kind_that_copies_gradients_that_come_in_pieces() -> None:
    """Radiance in float8: one copy in each double block's backward pass, of the second layer's gradient, as recorded in uint4."""
    profile = load_profile("chroma-radiance")
    assert rebuilt_profile.base_key(profile, "step.core/float8/checkpointed/one") == "step.core/qfloat8/checkpointed/one"
    assert rebuilt_profile.base_key(profile, "step.core/float8/checkpointed/many") == "step.core/uint4/checkpointed/many"
    made, quantos = (profile.program(f"step.core/{kind}/checkpointed/many") for kind in ("float8", "qfloat8"))
    copy = "transformer.double_blocks.7.img_mlp.2|backward ViewBackward0"
    copies = [[one.moments[row] for row in one.labels].count(copy) for one in (made, quantos)]
    assert copies == [1, 0]


def test_a_weight_that_is_asked_for_its_type_is_made_anew_in_uint4_alone() -> None:
    """Chroma's and Radiance's Approximator: in batches of float8 and bf16, which are made of uint4's, such tensors are gone."""
    profile, asked = load_profile("chroma-radiance"), "transformer.distilled_guidance_layer|forward"
    found = {}
    for kind in ("uint4", "float8", "bf16"):
        one = profile.program(f"step.core/{kind}/checkpointed/many")
        found[kind] = [size for size, row in zip(one.constants.tolist(), one.labels, strict=False) if one.moments[row] == asked]
    assert found["uint4"][:5] == [327_680, 655_360, 10_240, 1_310_720, 655_360]  # codes, weight, zero points; in fp32, and back
    assert found["float8"] == found["bf16"] == found["uint4"][5:]


def test_what_is_recorded_is_taken_as_it_is() -> None:
    key = "step.core/uint4/full/one"
    assert rebuilt_profile.base_key(load_profile("zimage"), key) is None
    assert rebuilt_profile.base_key(without("zimage", "uint4"), key) == "step.core/qfloat8/full/one"


@pytest.mark.parametrize(
    "key", ["preview/bf16/cfg/encoded/later", "sample.enter/bf16/none/first", "load.text/float8", "step.head/cached/cached/one"]
)
def test_no_rule_makes_merged_previews_or_loading(key: str) -> None:
    assert rebuilt_profile.base_key(without("zimage", key.split("/")[1]), key) is None


def test_kinds_whose_layers_nobody_saw_are_refused() -> None:
    known = without("zimage", "uint4")
    places = {key: table for key, table in known.data["places"].items() if key != "transformer/uint4"}
    with pytest.raises(CannotTell, match=r"step\.core/uint4/full/one"):
        replace(known, data={**known.data, "places": places}).program("step.core/uint4/full/one")


def test_derived_kinds_follow_from_those_by_rule() -> None:
    key = "step.core/uint3/full/one"
    assert outline(without("zimage", "uint4").program(key)) == outline(load_profile("zimage").program(key))


def test_peaks_are_those_of_the_recorded_kind() -> None:
    """Rows of a part by rule are added up from its events: no lower than the recorded peak rows, which are a choice of them."""
    values = {"B": 1, "T": 4096, "X": 77, "Z": 4224, "E": 128, "r": 16}
    for key in ("step.core/float8/checkpointed/one", "step.core/uint4/full/one"):
        made = without("zimage", key.split("/")[1]).outline(key).peak(values)[0]
        assert made == load_profile("zimage").outline(key).peak(values)[0]
