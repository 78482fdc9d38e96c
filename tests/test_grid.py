"""Peak rows over arrays: the same as one workload at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.features import reduce_blocks
from estimator.grid import CHUNK, NO_ROW, grid
from estimator.programs import Profile, load_profile

PARTS = [
    ("flux1-dev", "step.core/qfloat8/checkpointed/many"),
    ("flux1-dev", "step.core/bf16/full/one"),
    ("zimage", "step.core/float8/checkpointed/many"),
    ("zimage", "preview/uint4/cfg/encoded"),
    ("flux1-dev", "save/ema"),
]
NAMES = ("B", "T", "E", "X", "N", "r")
WORKLOADS = st.lists(
    st.tuples(
        st.integers(1, 16), st.integers(16, 16_384), st.integers(8, 512), st.integers(1, 512), st.integers(1, 512), st.integers(1, 256)
    ),
    min_size=1, max_size=30,
)  # fmt: skip
PROFILES: dict[str, Profile] = {}


def profile(arch: str) -> Profile:
    return PROFILES.setdefault(arch, load_profile(arch))


@pytest.mark.parametrize(("arch", "key"), PARTS)
@given(workloads=WORKLOADS)
def test_a_grid_is_each_workload_on_its_own(arch: str, key: str, workloads: list[tuple[int, ...]]) -> None:
    program = profile(arch).program(key)
    arrays = dict(zip(NAMES, np.array(workloads).T, strict=True))
    peaks, rows = grid(program, arrays)
    for workload, peak, row in zip(workloads, peaks.tolist(), rows.tolist(), strict=True):
        alone = dict(zip(NAMES, workload, strict=True))
        only = replace(program, peaks=(program.peaks[row],))  # the row that is named is one that gives the bytes
        assert peak == program.peak(alone)[0] == only.peak(alone)[0]


def test_arrays_broadcast_and_moments_differ_across_a_grid() -> None:
    program = profile("flux1-dev").program("step.core/qfloat8/checkpointed/many")
    batch, tokens = np.arange(2, 10)[:, None], np.linspace(256, 16_384, 64, dtype=np.int64)[None, :]
    values = {"B": batch, "T": tokens, "E": 2 * np.sqrt(tokens).astype(np.int64), "X": np.array(512), "r": np.array(16)}
    peaks, rows = grid(program, values)
    assert peaks.shape == rows.shape == (8, 64)
    assert (np.diff(peaks, axis=0) > 0).all()
    assert (np.diff(peaks, axis=1) > 0).all()
    assert len(np.unique(rows)) > 1


def test_chunks_meet() -> None:
    program = profile("flux1-dev").program("step.core/bf16/checkpointed/one")
    tokens = np.arange(256, 256 + 2 * CHUNK + 3)
    peaks, _ = grid(program, {"B": np.array(1), "T": tokens, "E": np.array(128), "X": np.array(512), "r": np.array(16)})
    for place in (0, CHUNK - 1, CHUNK, 2 * CHUNK, 2 * CHUNK + 2):
        assert peaks[place] == program.peak({"B": 1, "T": int(tokens[place]), "E": 128, "X": 512, "r": 16})[0]


def test_a_part_that_allocates_nothing() -> None:
    program = profile("flux1-dev").program("sample.enter/qfloat8/none/first")
    peaks, rows = grid(program, {"r": np.array([4, 8])})
    assert peaks.tolist() == [0, 0]
    assert rows.tolist() == [NO_ROW, NO_ROW]


def test_a_missing_variable_is_an_error() -> None:
    with pytest.raises(KeyError):
        grid(profile("flux1-dev").program("step.core/bf16/full/one"), {"B": np.array([1, 2])})


@given(st.lists(st.tuples(st.integers(1, 100_000), st.integers(1, 200_000)), min_size=1, max_size=50))
def test_reductions_of_arrays_are_those_of_numbers(pairs: list[tuple[int, int]]) -> None:
    outputs, rows = np.array(pairs).T
    assert reduce_blocks(outputs, rows).tolist() == [reduce_blocks(o, r) for o, r in pairs]
