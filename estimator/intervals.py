"""Which residual holds for a job on a card: the fitted one of profiles/residuals.json, or the card's own, wider where nothing was checked.

The profile is made by `python -m calibration.fit` and says on which rows and sources it rests, and what they cover: an architecture,
a card generation or a setting that is not among it adds a share of its own, and a reason that the report and the JSON document show.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from estimator.checked import NOTHING, load_checked
from estimator.drift import DRIFT_SHARE, drift_of
from estimator.gpus import GIB, Gpu
from estimator.job import Job
from estimator.paths import profiles_dir
from estimator.residual import Interval, Residual, Spread

SCHEMA = 1
GENERATIONS = {
    "6": "Pascal", "7.0": "Volta", "7.5": "Turing", "8.0": "Ampere (A100)", "8.6": "Ampere", "8.7": "Ampere", "8.9": "Ada", "9": "Hopper",
    "10": "Blackwell", "12": "Blackwell",
}  # fmt: skip
"""Compute capability, or its major number -> the generation's name (NVIDIA, CUDA GPUs)."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """profiles/residuals.json. `checked`: kind -> the values that were; `unchecked`: kind -> the share that one that was not adds."""

    residual: Residual
    checked: Mapping[str, frozenset[str]]
    unchecked: Mapping[str, float]


@cache
def profile() -> Fitted:
    """The shipped profile. Raises KeyError or ValueError if it is not as it must be: a bug of this package."""
    raw = json.loads((profiles_dir() / "residuals.json").read_text(encoding="utf-8"))
    if raw["schema"] != SCHEMA:
        raise ValueError(f"residuals.json: schema {raw['schema']}, this version reads {SCHEMA}")
    checked = {kind: frozenset(values) for kind, values in raw["checked"].items()}
    return Fitted(residual_of(raw), checked, dict(raw["unchecked"]))


def residual_of(raw: Mapping[str, Any]) -> Residual:
    """A residual as the profile, or a card's overlay, writes it: spreads, cudnn_bytes_per_pixel (low, likely, high), source."""
    spreads = {figure: {phase: Spread(**one) for phase, one in phases.items()} for figure, phases in raw["spreads"].items()}
    return Residual(spreads["allocated"], spreads["reserved"], Interval(*raw["cudnn_bytes_per_pixel"]), raw["source"])


def generation(compute_capability: str) -> str:
    """The name of a card's generation; its compute capability where that has none."""
    major = compute_capability.split(".")[0]
    return GENERATIONS.get(compute_capability) or GENERATIONS.get(major) or f"compute capability {compute_capability}"


def settings(job: Job) -> dict[str, str]:
    """What was checked or was not, kind -> value: keys of the profile's `unchecked`."""
    offloading = "on" if job.model.layer_offloading else "off"
    return {
        "arch": job.arch, "weights": job.model.weights, "optimizer": job.train.optimizer, "trainer": job.trainer, "offloading": offloading,
    }  # fmt: skip


def is_checked(kind: str, value: str) -> bool:
    """An architecture by its whole runs (profiles/checked.json), anything else by the profile's rows."""
    if kind == "arch":
        return load_checked().get(value, NOTHING).runs > 0
    return value in profile().checked[kind]


WORDS = {
    "arch": "the architecture {} was never held against a whole run",
    "weights": "base weights in {} were never held against a whole run",
    "optimizer": "the optimizer {} was never held against a whole run",
    "trainer": "no run of this kind of trainer ({}) was ever compared",
    "offloading": "layer offloading is {}: a card may give blocks back later than the emulated device, which waits for nothing",
    "generation": "no peak of a card of this generation ({}) is known",
}


CHANCE = "the trainer draws the offloaded layers anew in every run: in 98 of 100 within {:.2f} GiB of the estimate: the interval is wider"


def residual_for(gpu: Gpu, job: Job | None = None) -> Residual:
    """The residual of a card, and of a job on it: wider, with the reasons, by what was never checked. Without a job the narrowest.

    A calibrated card's own residual (`gpu.residual`) stands for the shipped one and for its generation; what it holds is not widened by it.
    """
    shipped = profile()
    own = gpu.residual
    found = settings(job) if job is not None else {}
    if own is None:
        found["generation"] = generation(gpu.compute_capability)
    missing = [kind for kind, value in found.items() if not is_checked(kind, value)]
    reasons = [f"{WORDS[kind].format(found[kind])}: the interval is wider" for kind in missing]
    shares = [shipped.unchecked[kind] for kind in missing]
    if job is not None and (drift := drift_of(job)) is not None:
        reasons.append(drift)
        shares.append(DRIFT_SHARE)
    residual = _widened(own or shipped.residual, shares, tuple(reasons))
    chance = _chance_bytes(job) if job is not None and job.model.layer_offloading else 0
    return residual.with_chance(chance, CHANCE.format(chance / GIB)) if chance else residual


def _chance_bytes(job: Job) -> int:
    from estimator.offload_profile import chance_bytes

    return chance_bytes(job)


def _widened(residual: Residual, shares: Iterable[float], reasons: tuple[str, ...]) -> Residual:
    more = sum(share * share for share in shares) ** 0.5
    if not more:
        return residual
    allocated, reserved = (
        {phase: spread.widened(1.0, more) for phase, spread in spreads.items()} for spreads in (residual.allocated, residual.reserved)
    )
    return replace(residual, allocated=allocated, reserved=reserved, reasons=(*residual.reasons, *reasons))
