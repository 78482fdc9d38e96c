"""What `estimate archs` says was checked is what was, and every value of model.arch is in its table."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from calibration.accuracy_compare import Row
from calibration.accuracy_rows import read_job, read_rows
from calibration.checked import checked
from calibration.harness.check import rows as harness_rows
from estimator import cli
from estimator.archs import load_archs
from estimator.checked import load_checked


def test_runs_are_those_that_are_kept() -> None:
    """After new rows: `python -m calibration.checked`."""
    runs = [run for run in read_rows() if run.total_bytes is None]
    archs = [*(read_job(run).arch for run in runs), *(one["run"]["arch"] for one in harness_rows())]
    assert Counter(archs) == {key: one.runs for key, one in load_checked().items() if one.runs}


def row(run: str, arch: str, allocated: int, reserved: int) -> Row:
    """Of 10,000 bytes each, in the run."""
    return Row(run, arch, "train", "", 10_000, 10_000, allocated, reserved, "")


def test_the_worst_error_is_the_largest_of_either_sign() -> None:
    rows = [row("a", "flex1", 10_010, 9_700), row("a", "flex1", 9_960, 10_190), row("b", "flex1", 10_000, 10_000)]
    (found,) = checked([*rows], []).values()
    assert (found.runs, found.phases, found.outside) == (2, 3, 1)
    assert (found.worst_allocated, found.worst_reserved) == (-0.004, -0.03)
    assert set(checked([*rows, row("c", "chroma", 1, 1)], [])) == {"flex1", "chroma"}


def test_every_value_of_model_arch_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    table = load_archs()
    assert cli.main(["archs"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.split("\n"))) <= 80
    text = " ".join(shown.split())
    for key in (*table.trainer, *table.modelled()):
        assert key in text, key
    assert cli.main(["archs", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["key"] for one in document["trainer_archs"]] == list(table.trainer)
    for one in document["trainer_archs"]:
        assert one["modelled"] or one["nearest"] is None or table.archs[one["nearest"]].modelled
