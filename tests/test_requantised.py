"""Parts of a kind of base weights by rule: the events that recordings of that kind have; refused where the base holds something else."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from calibration.architectures import ARCHITECTURES
from calibration.extract import build, requantised, stored
from calibration.extract.programs import Program, Refused
from calibration.extract.stored import Stored
from estimator.offload import OWN, WRAPPED, Layer
from estimator.paths import profiles_dir
from estimator.programs import load_profile

MADE = [arch for arch, family in sorted(ARCHITECTURES.items()) if family.quantised]


@cache
def kept(arch: str) -> Stored:
    return stored.read(profiles_dir() / arch)


def form(program: Program) -> tuple[Any, ...]:
    """Events, bytes over features, moments, names and uses of layers, whatever the numbers of tensors."""
    order = build.order_of(program)
    rows = [{f: c for f, c in zip(program.features, program.coefficients[k], strict=True) if c} for k in order]
    labels, names = program.sequence.labels, program.sequence.names
    calls = build.calls_of(program, order).tolist() if program.sequence.calls else []
    return build.coded(program, order).tolist(), rows, [labels[k] for k in order], [names[k] for k in order], calls


def made(arch: str, base: str, key: str) -> Program:
    kind = key.split("/")[1]
    of = kept(arch)
    layers = requantised.layers_in(kind, of.tables, of.offload)
    return requantised.made(of.programs[base], key, layers[: len(of.offload["layers"]["transformer"])] if "setup" in key else layers)


@pytest.mark.parametrize(
    ("arch", "base", "key"),
    [
        *(("zimage", f"step.core/bf16/{part}", f"step.core/{kind}/{part}")
          for kind in ("float8", "uint4") for part in ("full/one", "full/many", "checkpointed/one", "checkpointed/many")),
        *(("zimage", f"text/bf16/plain/{many}", f"text/{kind}/plain/{many}") for kind in ("float8", "uint4") for many in ("one", "many")),
        *(("zimage", f"preview/qfloat8/{part}", f"preview/float8/{part}") for part in ("cfg/cached", "plain/encoded")),
        ("zimage", "preview/uint4/cfg/cached", "preview/float8/cfg/cached"),
        ("zimage", "preview/float8/plain/cached", "preview/uint4/plain/cached"),
        ("zimage", "step.core/uint4/full/one", "step.core/float8/full/one"),
        ("flux1-dev", "step.core/bf16/full/one", "step.core/float8/full/one"),
        ("flux1-dev", "text/bf16/graph/one", "text/float8/graph/one"),
        ("flux2-klein-4b", "step.core/bf16/full/many", "step.core/uint4/full/many"),
        *((arch, "setup.network/bf16", f"setup.network/{kind}") for arch in ("zimage", "flux1-dev") for kind in ("float8", "uint4")),
        *(("flux1-dev", f"sample.{part}", f"sample.{part.replace('qfloat8', 'uint4')}")
          for part in ("enter/qfloat8/ema/later", "leave/qfloat8/none/first")),
    ],
)  # fmt: skip
def test_the_rule_has_the_events_that_were_recorded(arch: str, base: str, key: str) -> None:
    """Tensor for tensor: order, bytes over the features, moment, name; and where each layer is used."""
    ours, recorded = form(made(arch, base, key)), form(kept(arch).programs[key])
    assert ours[0] == recorded[0]
    assert ours[1:4] == recorded[1:4]
    if ours[4] and recorded[4] and key.startswith("step.core"):
        assert ours[4] == recorded[4]


def test_what_else_a_layer_makes_before_its_output_is_refused() -> None:
    base = kept("zimage").programs["preview/uint4/cfg/cached"]
    call = next(one for one in base.sequence.calls if one.output is not None and one.output - one.first == 3)
    rows = list(base.coefficients)
    rows[call.first + 1] = tuple(2 * c for c in rows[call.first + 1])
    key, layers = "preview/float8/cfg/cached", requantised.layers_in("float8", kept("zimage").tables, kept("zimage").offload)
    assert requantised.made(base, key, layers).made_of == base.key
    with pytest.raises(Refused, match="something else"):
        requantised.made(replace(base, coefficients=rows), key, layers)
    with pytest.raises(Refused, match="not recorded"):
        requantised.made(base, key, [None] * len(layers))


def test_bytes_that_a_layer_makes_of_its_weight() -> None:
    """1,024 weights: a byte each in float8, half of one in uint4 beside 16 groups of 64."""
    assert requantised.rebuilt(Layer(0, 0, 2, WRAPPED, (1024, 4))) == ((2048, 2048), (0,))
    assert requantised.rebuilt(Layer(0, 0, 4, OWN, (8, 512, 32, 16))) == ((1024, 2048, 32), (0, 2))
    assert requantised.rebuilt(Layer(0, 0, 1, 0, (2048,))) == ((), ())


@pytest.mark.parametrize("arch", MADE)
def test_a_profile_has_what_the_rule_makes_and_no_more(arch: str) -> None:
    """So a change of the rule, or of a base, is not left out of the profile."""
    of, family = kept(arch), ARCHITECTURES[arch]
    ruled = {key: program for key, program in of.programs.items() if program.made_of}
    recorded = {key: program for key, program in of.programs.items() if not program.made_of}
    again = {program.key: program for program in requantised.further(family.quantised, recorded, of.tables, of.offload)}
    relative = load_profile(arch).relative
    lent = {key for key in again if key.startswith("text/") and relative is not None and key in relative.data["parts"]}
    again = {key: program for key, program in again.items() if key not in lent}
    assert again.keys() == ruled.keys()
    for key, program in again.items():
        assert form(program) == form(ruled[key])
        assert program.made_of == ruled[key].made_of


@pytest.mark.parametrize("arch", MADE)
def test_parts_by_rule_are_of_kinds_that_were_loaded(arch: str) -> None:
    profile, family = load_profile(arch), ARCHITECTURES[arch]
    assert not {*family.quantised} & {*family.weights}
    for kind in family.quantised:
        for low in ("plain", "low_vram"):
            assert profile.has(f"load.transformer/{kind}/{low}")
        cores = [key for key in profile.data["parts"] if key.startswith(f"step.core/{kind}/")]
        assert len(cores) == 4
        assert all(profile.data["parts"][key]["made_of"] for key in cores)


@pytest.mark.parametrize("text", ["plain/one", "plain/many", "graph/one"])
def test_text_of_t5_in_uint4_is_not_of_this_rule_and_of_the_other_one_as_recorded(text: str) -> None:
    """Its feed-forward asks for a weight's type, which rebuilds the weight of the trainer's own kind, through fp32."""
    key = f"text/uint4/{text}"
    assert key not in kept("wan21-1.3b").programs
    other, recorded = load_profile("wan21-1.3b").program(key), load_profile("wan21-14b").recorded(key)
    assert other.deaths.tolist() == recorded.deaths.tolist()
    assert other.constants[: len(other.deaths) - 1].tolist() == recorded.constants[: len(recorded.deaths) - 1].tolist()


@pytest.mark.parametrize("key", [*(f"preview/{kind}/cfg/low_vram" for kind in ("float8", "uint4")), "text/float8/plain/many"])
def test_the_rule_of_estimates_that_begins_with_qfloat8_says_the_same(key: str) -> None:
    """Two rules that share nothing: estimator.rebuilt_weights makes such parts where a profile does not hold them."""
    known = load_profile("wan21-1.3b")
    parts = {name: part for name, part in known.data["parts"].items() if name != key}
    other, ours = replace(known, data={**known.data, "parts": parts}).program(key), known.program(key)
    assert other.deaths.tolist() == ours.deaths.tolist()
    rows = [[{f: c for f, c in zip(one.features, row, strict=True) if c} for row in one.coefficients.tolist()] for one in (other, ours)]
    assert rows[0] == rows[1]
