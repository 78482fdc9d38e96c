"""Loading and rounds of previews by rule: what the rules make is what was recorded, where it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from estimator import rebuilt_loading, rebuilt_profile, rebuilt_swap
from estimator.archs import load_archs
from estimator.program import ALLOCATE, Program
from estimator.programs import Profile, load_profile

SCALARS = 64  # bytes: of a sum's partial results, whose number goes with the rank
SWAPPED = (
    "chroma", "flex1", "flex2", "flux1-dev", "flux1-kontext", "flux2-klein-4b", "flux2-klein-9b", "ltx2", "qwen-image", "wan21-1.3b",
    "wan22-5b", "zimage", "zimage-l2p",
)  # fmt: skip


def without(arch: str, *keys: str) -> Profile:
    """The profile as if those parts had not been recorded."""
    known = load_profile(arch)
    parts = {key: part for key, part in known.data["parts"].items() if key not in keys}
    return Profile(arch, {**known.data, "parts": parts}, known.folder)


def own_sizes(program: Program, rank: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return program.sizes({"r": rank})[: len(program.names) - program.imports]


@pytest.mark.parametrize("kind", ["bf16", "float8"])
@pytest.mark.parametrize("arch", ["ltx2", "ltx2.3"])
def test_the_rest_of_loading_by_rule_is_the_recorded_one(arch: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a kind that was recorded with low_vram alone."""
    monkeypatch.setattr(rebuilt_loading, "MOVED", (kind,))
    monkeypatch.setattr(rebuilt_loading, "CHECKED", {arch})
    key, recorded = f"load.rest/{kind}/plain", load_profile(arch).recorded(f"load.rest/{kind}/plain")
    profile = without(arch, key)
    profile.data["parts"].setdefault(f"load.rest/{kind}/low_vram", profile.data["parts"]["load.rest/qfloat8/low_vram"])
    made = profile.program(key)
    assert made.events.tolist() == recorded.events.tolist()
    assert made.sizes({}).tolist() == recorded.sizes({}).tolist()
    assert made.peak({})[0] == recorded.peak({})[0]
    if kind == "bf16":  # a name for each tensor
        assert made.names == recorded.names


@pytest.mark.parametrize("arch", ["ltx2", "ltx2.3"])
def test_uint4_without_low_vram_brings_all_of_the_transformer_at_the_end(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilt_loading, "CHECKED", {arch})
    profile = without(arch)
    loaded, low = (profile.program(f"load.transformer/uint4/{how}") for how in ("plain", "low_vram"))
    assert loaded.events.tolist() == low.events.tolist()
    rest = profile.program("load.rest/uint4/plain")
    stays = [size for size, name in zip(rest.sizes({}).tolist(), rest.names, strict=True) if name is not None]
    assert stays == profile.resident("transformer", "uint4")
    assert rest.peak({})[0] == sum(rest.sizes({}).tolist())


@pytest.mark.parametrize("part", ["load.transformer", "load.rest"])
@pytest.mark.parametrize("arch", ["wan21-1.3b", "wan22-14b"])
def test_an_unquantised_wan_with_low_vram_loads_as_without_less_its_tensors(arch: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilt_loading, "UNMOVED", {arch})
    key = f"{part}/bf16/low_vram"
    made, recorded = without(arch, key).program(key), load_profile(arch).recorded(key)
    assert (made.events.tolist(), made.names) == (recorded.events.tolist(), recorded.names)
    assert made.peak({}) == recorded.peak({})


@pytest.mark.parametrize("arch", sorted(rebuilt_loading.UNMOVED))
def test_it_stays_on_the_host_until_the_text_encoder_is_there(arch: str) -> None:
    profile = load_profile(arch)
    plain, low = (profile.program(f"load.transformer/bf16/{how}") for how in ("plain", "low_vram"))
    assert plain.stay_bytes("transformer", {}) == tuple(profile.resident("transformer", "bf16"))
    assert not low.names
    assert int((plain.events == ALLOCATE).sum()) + len(low.events) == len(plain.events)


@pytest.mark.parametrize("part", ["load.transformer", "load.rest"])
@pytest.mark.parametrize("kind", ["float8", "uint4"])
def test_quantised_on_the_host_it_comes_to_the_card_whole(kind: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilt_loading, "BROUGHT", {"sd35-large-aitk"})
    key = f"{part}/{kind}/low_vram"
    made, recorded = without("sd35-large-aitk", key).program(key), load_profile("sd35-large-aitk").recorded(key)
    assert (made.events.tolist(), made.names) == (recorded.events.tolist(), recorded.names)
    assert made.sizes({}).tolist() == recorded.sizes({}).tolist()
    assert made.peak({})[0] == recorded.peak({})[0]


def test_no_other_part_has_its_tensors_taken() -> None:
    profile = load_profile("wan21-i2v-14b")  # the rest of its loading moves the image encoder
    with pytest.raises(ValueError, match="does more than move the transformer"):
        rebuilt_loading._unmoved(profile.recorded("load.rest/bf16/plain"), "load.rest/bf16/low_vram")


def test_what_frees_what_others_made_has_nothing_laid_before_it() -> None:
    program = replace(load_profile("ltx2").recorded("load.rest/qfloat8/low_vram"), imports=1)
    with pytest.raises(ValueError, match="frees what others made"):
        rebuilt_loading._with_move(program, "load.rest/uint4/plain", [1], 0)
    with pytest.raises(ValueError, match="frees what others made"):
        rebuilt_swap.joined(program, program, "sample.enter/bf16/ema/first")


def test_loading_without_low_vram_is_by_rule_where_a_whole_run_was() -> None:
    found = []
    for arch in load_archs().archs.values():
        profile = load_profile(arch.key) if arch.modelled and not arch.harness else None
        if profile is not None and rebuilt_profile.base_key(profile, "load.rest/uint4/plain") is not None:
            found.append(arch.key)
    assert found == sorted(rebuilt_loading.CHECKED)


@pytest.mark.parametrize("when", ["first", "later"])
@pytest.mark.parametrize("arch", SWAPPED)
def test_a_round_with_an_ema_is_the_swap_and_the_merge(arch: str, when: str) -> None:
    profile = load_profile(arch)
    swap, merge, recorded = (profile.recorded(f"sample.enter/{kind}/{when}") for kind in ("qfloat8/ema", "bf16/none", "bf16/ema"))
    made = rebuilt_swap.joined(swap, merge, recorded.key)
    assert made.events.tolist() == recorded.events.tolist()
    assert made.names == recorded.names
    assert np.abs(own_sizes(made, 24) - own_sizes(recorded, 24)).max() <= SCALARS
    assert int((made.events == ALLOCATE).sum()) == len(made.names) - made.imports
    leave = (profile.recorded(f"sample.leave/bf16/{ema}/{when}") for ema in ("ema", "none"))
    assert len({tuple(each.events.tolist()) for each in leave}) == 1


def test_it_is_made_where_a_whole_run_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilt_swap, "CHECKED", {"ltx2.3"})
    profile = without("ltx2.3")
    for when in ("first", "later"):
        enter, leave = (profile.program(f"sample.{way}/bf16/ema/{when}") for way in ("enter", "leave"))
        swap, merge = (profile.recorded(f"sample.enter/{kind}/{when}") for kind in ("qfloat8/ema", "bf16/none"))
        assert len(enter.events) == len(swap.events) + len(merge.events)
        assert leave.events.tolist() == profile.recorded(f"sample.leave/bf16/none/{when}").events.tolist()
    assert rebuilt_profile.base_key(load_profile("wan21-i2v-14b"), "sample.enter/bf16/ema/first") is None
    assert rebuilt_profile.base_key(load_profile("ltx2"), "sample.enter/bf16/ema/first") is None  # recorded
