"""The trainer itself, run here and now on the emulated device, gives what the committed rows say it gave.

Run by hand: AITK is a checkout of the trainer, EMULATED_CUDA_PYTHON the environment of the README's third command (the `calibrate`
extra). About a minute. No stand-in adapter is needed for this job.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from calibration import validation
from calibration.accuracy_compare import ALLOCATED_BAR, RESERVED_BAR

JOB = "zimage-uint4-1280"
pytestmark = [
    pytest.mark.trainer,
    pytest.mark.skipif(not os.environ.get("AITK"), reason="AITK does not name a checkout of the trainer"),
    pytest.mark.skipif(not os.environ.get("EMULATED_CUDA_PYTHON"), reason="EMULATED_CUDA_PYTHON names no Python with torch's CUDA build"),
]


def test_a_run_gives_the_committed_row(tmp_path: Path) -> None:
    """To the byte while the order of events is fixed; in the bars where the trainer shuffles its buckets."""
    validation.run(JOB, tmp_path, [])
    made = validation.row(JOB, json.loads((tmp_path / JOB / "result.json").read_text()))
    known = next(row for row in map(json.loads, validation.ROWS.read_text().splitlines()) if row["name"] == JOB)
    assert (made["outcome"], made["ooms"], made["config"]) == ("ok", 0, known["config"])
    assert [phase["phase"] for phase in made["phases"]] == [phase["phase"] for phase in known["phases"]]
    trained = False
    for own, other in zip(made["phases"], known["phases"], strict=True):
        trained = trained or own["phase"] == "train"
        if not trained:
            assert (own["allocated_peak"], own["reserved_peak"]) == (other["allocated_peak"], other["reserved_peak"]), own["phase"]
        elif own.get("buckets") == other.get("buckets"):
            assert own["allocated_peak"] == pytest.approx(other["allocated_peak"], rel=ALLOCATED_BAR)
            assert own["reserved_peak"] == pytest.approx(other["reserved_peak"], rel=2 * RESERVED_BAR)
