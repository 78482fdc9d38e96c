"""What `estimate archs` says was checked is no more than what was."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from estimator.archs import load_archs

RUNS = Path(__file__).parents[1] / "calibration" / "data" / "emulated_runs.jsonl"
NAMES = {
    "flux1-dev": "flux",
    "flux1-schnell": "schnell",
    "flex1": "flex",
    "flux1-kontext": "kontext",
    "chroma": "chroma",
    "flux2-klein-4b": "klein4b",
    "flux2-klein-9b": "klein9b",
    "zimage": "zimage",
    "zimage-turbo": "turbo",
    "wan21-1.3b": "wan1b",
    "wan21-14b": "wan14b",
    "wan22-14b": "wan22",
    "wan22-i2v-14b": "wan22i",
    "qwen-image": "qwen",
    "qwen-image-edit-2509": "edit",
    "qwen-image-edit-2511": "edit11",
}


@pytest.mark.parametrize("key", sorted(load_archs().modelled()))
def test_no_more_runs_are_claimed_than_there_are(key: str) -> None:
    runs = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()]
    whole = Counter(run["name"].split("-")[0] for run in runs if "@" not in run["name"])
    assert load_archs().archs[key].checked_runs <= whole[NAMES[key]]
