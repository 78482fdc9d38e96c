"""Cores recorded at one rank: what the adapter makes goes with the rank as in a kind of weights that was recorded at two."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calibration.extract import ranks, stored
from calibration.extract.programs import Program
from estimator.paths import profiles_dir
from estimator.programs import load_profile

RECORDED_AT = 16
KEYS = ("step.core/bf16/full/one", "step.core/bf16/checkpointed/many")


def held(program: Program, rank: int) -> Program:
    """The program as one recording at that rank gives it: what has the rank beside another feature is held at it."""
    names = [name for name in program.features if name == "r" or "r" not in name.split("*")]
    rows = []
    for row in program.coefficients:
        of = dict(zip(program.features, row, strict=True))
        for name in set(of) - set(names):
            rest = "*".join(one for one in name.split("*") if one != "r")
            of[rest] = of.get(rest, 0) + rank * of.pop(name)
        rows.append(tuple(of.get(name, 0) for name in names))
    return replace(program, features=tuple(names), coefficients=rows)


def bytes_at(program: Program, rank: int) -> list[int]:
    sizes: list[int] = program.sizes({"r": rank, "T": 2565, "B": 2, "F": 9}).tolist()
    return sizes


@pytest.mark.parametrize("key", KEYS)
def test_what_one_rank_does_not_say_is_the_other_kinds(key: str) -> None:
    programs = stored.read(profiles_dir() / "wan21-1.3b").programs
    whole, other = programs[key], programs[key.replace("bf16", "qfloat8")]
    blunt = held(whole, RECORDED_AT)
    again = ranks.corrected(blunt, other, RECORDED_AT)
    assert bytes_at(blunt, RECORDED_AT) == bytes_at(whole, RECORDED_AT) == bytes_at(again, RECORDED_AT)
    assert bytes_at(blunt, 64) != bytes_at(whole, 64)
    adapters = [k for k, label in enumerate(whole.sequence.labels) if ranks.ADAPTER in label and "AccumulateGrad" not in label]
    assert len(adapters) > 1000
    assert [bytes_at(again, 64)[k] for k in adapters] == [bytes_at(whole, 64)[k] for k in adapters]


def test_bytes_that_differ_at_the_recorded_rank_are_left() -> None:
    programs = stored.read(profiles_dir() / "wan21-1.3b").programs
    blunt = held(programs[KEYS[0]], RECORDED_AT)
    assert bytes_at(ranks.corrected(blunt, programs[KEYS[0].replace("bf16", "qfloat8")], 8), 64) == bytes_at(blunt, 64)


@pytest.mark.parametrize("arch", ["wan21-14b", "wan21-i2v-14b"])
def test_profiles_with_one_probe_job_in_bf16_know_the_rank(arch: str) -> None:
    programs = stored.read(profiles_dir() / arch).programs
    probes = load_profile(arch).data["made"]["probes"]
    before = {key: program.coefficients for key, program in programs.items()}
    assert len(ranks.mended(programs, probes, programs)) == 4
    assert {key: program.coefficients for key, program in programs.items()} == before
    assert "r*T" in programs["step.core/bf16/full/one"].features
