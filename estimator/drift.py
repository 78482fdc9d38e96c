"""Versions: a profile is of the trainer that it was recorded from, and another one may allocate otherwise.

Where a config or `--trainer-version` names another version, the interval is wider and the report says so. What really moved can be
recorded: `python -m calibration.drift`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from estimator.errors import InputError, Problem
from estimator.job import Job
from estimator.programs import load_profile

DRIFT_SHARE = 0.03
"""Further share of the replayed figure on either side. Assumed: no second version of the trainer was recorded yet."""
SHOWN = {"ai-toolkit": "AI Toolkit", "torch": "torch", "diffusers": "diffusers"}
_VERSION = re.compile(r"v?(\d+(?:\.\d+)*[\w.+-]{0,40})", re.ASCII)


def checked_version(text: str) -> str:
    """A version as `--trainer-version` gives it, without a v. Raises InputError."""
    found = _VERSION.fullmatch(text.strip())
    if found is None:
        fix = "write it as the trainer's version.py has it, for example 0.12.26"
        raise InputError(Problem(f"--trainer-version {text[:80]}: no version", None, "", fix))
    return found[1]


def recorded_versions(arch: str) -> Mapping[str, str]:
    """What the profile of an architecture was recorded from: package -> version. Raises CannotTell if there is no profile."""
    versions: Mapping[str, str] = load_profile(arch).data["made"]["versions"]
    return versions


def drift_of(job: Job) -> str | None:
    """Why the interval must be wider: the trainer is of another version than the profile's. None where it is the same, or not named."""
    if job.trainer_version is None:
        return None
    versions = recorded_versions(job.arch)
    if job.trainer_version == versions["ai-toolkit"]:
        return None
    made = ", ".join(f"{name} {versions[package]}" for package, name in SHOWN.items())
    return f"AI Toolkit {job.trainer_version} is named, recorded were {made}: what it allocates may differ, the interval is wider"
