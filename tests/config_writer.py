"""Writes small job files for tests: the trainer's shape, with only what a test is about."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from estimator.errors import CannotTell, InputError, Problem
from estimator.job import Job
from estimator.trainers import read_jobs

FLUX_DEV = {"name_or_path": "black-forest-labs/FLUX.1-dev", "arch": "flux"}
ZIMAGE = {"name_or_path": "Tongyi-MAI/Z-Image", "arch": "zimage"}
ADAPTER = "ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors"
TURBO = {"name_or_path": "Tongyi-MAI/Z-Image-Turbo", "arch": "zimage:turbo", "assistant_lora_path": ADAPTER}


def process(**sections: Any) -> dict[str, Any]:
    """A training process of FLUX.1-dev in bf16 with a rank 16 LoRA; `sections` replace its sections."""
    base = {
        "type": "sd_trainer",
        "training_folder": "output",
        "network": {"type": "lora", "linear": 16},
        "datasets": [{"folder_path": "/nowhere/images", "resolution": 512}],
        "train": {"dtype": "bf16", "noise_scheduler": "flowmatch"},
        "model": FLUX_DEV,
    }
    return {key: value for key, value in (base | sections).items() if value is not ...}


def write(folder: Path, *processes: dict[str, Any], name: str = "job.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"job": "extension", "config": {"name": "test", "process": list(processes)}}, indent=1))
    return path


def read(folder: Path, *overrides: str, arch: str | None = None, **sections: Any) -> Job:
    """The one Job of a job file with these sections."""
    (job,) = read_jobs(write(folder, process(**sections)), overrides, arch)
    return job


def refusal(folder: Path, *overrides: str, **sections: Any) -> tuple[Problem, ...]:
    """The problems that make a job file with these sections bad input (exit status 2)."""
    found = outcome(lambda: read(folder, *overrides, **sections))
    assert isinstance(found, InputError)
    return found.problems


def no_answer(folder: Path, *overrides: str, arch: str | None = None, **sections: Any) -> tuple[Problem, ...]:
    """What makes a job file with these sections one that nothing can be told of (exit status 3)."""
    found = outcome(lambda: read(folder, *overrides, arch=arch, **sections))
    assert isinstance(found, CannotTell)
    return found.problems


def outcome(reading: Callable[[], object]) -> object:
    """What `reading` returns, or the refusal it raises; any other exception passes through and fails the test."""
    try:
        return reading()
    except (InputError, CannotTell) as refusal_:
        return refusal_


def unmodelled_keys(job: Job) -> set[str]:
    return {entry.place.key for entry in job.unmodelled}


def train(**settings: Any) -> dict[str, Any]:
    return {"dtype": "bf16", "noise_scheduler": "flowmatch", **settings}
