"""Which residual holds for a job on a card: the fitted one of profiles/residuals.json, or the card's own, wider where nothing was checked.

The profile is made by `python -m calibration.fit` and says on which rows and sources it rests, and what they cover: an architecture,
a card generation or a setting that is not among it adds a share of its own, and a reason that the report and the JSON document show.

Most of the shipped width is what cards, their generations and trainers may differ by, as published rows of them do. On a calibrated card
with step cells of the job's architecture, run with the software that the programs were recorded from, that is no guess: AI Toolkit's own
runs on the emulated device (`runs` of the profile) and those cells are all that is between the replay and the card. Text caching keeps the
shipped width: no cell runs a text encoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from estimator.checked import NOTHING, load_checked
from estimator.drift import DRIFT_SHARE, drift_of, recorded_versions
from estimator.gpus import GIB, Gpu
from estimator.job import Job
from estimator.paths import profiles_dir
from estimator.programs import load_profile
from estimator.residual import FIGURES, Interval, Residual, Seen, Spread

SCHEMA = 1
GENERATIONS = {
    "6": "Pascal", "7.0": "Volta", "7.5": "Turing", "8.0": "Ampere (A100)", "8.6": "Ampere", "8.7": "Ampere", "8.9": "Ada", "9": "Hopper",
    "10": "Blackwell", "12": "Blackwell",
}  # fmt: skip
"""Compute capability, or its major number -> the generation's name (NVIDIA, CUDA GPUs)."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """profiles/residuals.json. `runs`: of the trainer's runs on the emulated device alone, without what cards add; `checked`: kind -> the
    values that were; `unchecked`: kind -> the share that one that was not adds; `cells`: of the step cells of a card, the spread that is
    expected before any is seen ("share") and how many cells that expectation is worth ("worth"); `compiled`: the share by which compiled
    blocks may take less."""

    residual: Residual
    runs: Residual
    checked: Mapping[str, frozenset[str]]
    unchecked: Mapping[str, float]
    cells: Mapping[str, float]
    compiled: float


@cache
def profile() -> Fitted:
    """The shipped profile. Raises KeyError or ValueError if it is not as it must be: a bug of this package."""
    raw = json.loads((profiles_dir() / "residuals.json").read_text(encoding="utf-8"))
    if raw["schema"] != SCHEMA:
        raise ValueError(f"residuals.json: schema {raw['schema']}, this version reads {SCHEMA}")
    checked = {kind: frozenset(values) for kind, values in raw["checked"].items()}
    runs = residual_of({**raw, "spreads": {figure: raw["runs"][figure] for figure in FIGURES}, "source": raw["runs"]["source"]})
    return Fitted(residual_of(raw), runs, checked, dict(raw["unchecked"]), dict(raw["cells"]), float(raw["compiled"]))


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
    offloading, compiled = ("on" if switch else "off" for switch in (job.model.layer_offloading, job.model.compiled))
    return {
        "arch": job.arch, "weights": job.model.weights, "optimizer": job.train.optimizer, "trainer": job.trainer, "offloading": offloading,
        "compiled": compiled,
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
    "compiled": "blocks are compiled, whose kernels no run of ours had",
    "generation": "no peak of a card of this generation ({}) is known",
}


TRAINED, UNSEEN = "train", ("cache_text",)
"""The phase that step cells are of, and those whose kernels no cell runs."""
COMPILED_RUN = (TRAINED, "sample", "save")  # phases of compiled blocks, and of what they leave in torch's cache
RECORDED_TRAINER = "ai-toolkit"
OBSERVED = "low and high rest on {} step cells of {} on this card and {}; of text caching, which no cell runs, on published rows besides"
NO_CELLS = (
    "no step cells of {} on this card: low and high are as wide as on cards that were never measured (estimate calibrate makes cells of "
    "some architectures)"
)
OTHER_SOFTWARE = (
    "the cells of this card ran with torch {}, diffusers {}, recorded were torch {}, diffusers {}: low and high are as wide as on cards "
    "that were never measured"
)


CHANCE = "the trainer draws the offloaded layers anew in every run: in 98 of 100 within {:.2f} GiB of the estimate: the interval is wider"


def residual_for(gpu: Gpu, job: Job | None = None, *, narrowest: bool = False) -> Residual:
    """The residual of a card, and of a job on it: wider, with the reasons, by what was never checked. Without a job the narrowest.

    `narrowest`: of the jobs that differ from this one in their optimizer alone, without what the trainer's draw of layers adds.
    A calibrated card's own residual (`gpu.residual`) stands for the shipped one and for its generation; what it holds is not widened by it.
    """
    shipped = profile()
    own, why = _own(gpu, job)
    found = settings(job) if job is not None else {}
    if narrowest:
        found.pop("optimizer", None)
    if own is None:
        found["generation"] = generation(gpu.compute_capability)
    missing = [kind for kind, value in found.items() if not is_checked(kind, value)]
    reasons = [*why, *(f"{WORDS[kind].format(found[kind])}: the interval is wider" for kind in missing)]
    shares = [shipped.unchecked[kind] for kind in missing]
    if job is not None and (drift := drift_of(job)) is not None:
        reasons.append(drift)
        shares.append(DRIFT_SHARE)
    residual = _shipped(tuple(shares), tuple(reasons)) if own is None else _widened(own, shares, tuple(reasons))
    residual = residual.lowered(shipped.compiled, COMPILED_RUN) if job is not None and job.model.compiled else residual
    chance = _chance_bytes(job) if job is not None and job.model.layer_offloading and not narrowest else 0
    return residual.with_chance(chance, CHANCE.format(chance / GIB)) if chance else residual


def _own(gpu: Gpu, job: Job | None) -> tuple[Residual | None, list[str]]:
    """A calibrated card's residual for a job, and why it is no narrower; None for a card that was not. Without a job the narrowest."""
    own, made = gpu.residual, gpu.calibration
    if own is None or made is None or not (job is None or job.trainer == RECORDED_TRAINER):
        return own, []
    if job is None:
        seen = min(gpu.seen, key=lambda one: one.allocated.high_share + one.allocated.low_share, default=None)
        return own if seen is None else observed(own, seen), []
    seen = next((one for one in gpu.seen if one.arch in programs_of(job.arch)), None)
    if seen is None:
        return own, [NO_CELLS.format(job.arch)]
    recorded = recorded_versions(job.arch)
    ran, of = (made.torch.split("+")[0], made.diffusers), (recorded["torch"], recorded["diffusers"])
    return (observed(own, seen), []) if ran == of else (own, [OTHER_SOFTWARE.format(*ran, *of)])


def programs_of(arch: str) -> tuple[str, ...]:
    """The architecture, and those whose programs it has, to the last weight: a cell of one of them is one of it. Raises CannotTell."""
    profiles = [load_profile(arch)]
    while profiles[-1].shares_all and profiles[-1].relative is not None:
        profiles.append(profiles[-1].relative)
    return tuple(one.arch for one in profiles)


def observed(own: Residual, seen: Seen) -> Residual:
    """A calibrated card's residual for jobs of an architecture that was seen on it: the emulated runs' and its cells'."""
    runs, phases = profile().runs, {*profile().runs.allocated, *own.allocated}

    def spread(figure: str, phase: str) -> Spread:
        known, found = own.spread(figure, phase), seen.beside(runs.spread(figure, phase), figure, phase == TRAINED)
        return known if phase in UNSEEN or known.low_share + known.high_share < found.low_share + found.high_share else found

    spreads = {figure: {phase: spread(figure, phase) for phase in phases} for figure in FIGURES}
    source = OBSERVED.format(seen.cells, seen.arch, runs.source)
    return replace(own, allocated=spreads["allocated"], reserved=spreads["reserved"], source=source)


def _chance_bytes(job: Job) -> int:
    from estimator.offload_profile import chance_bytes

    return chance_bytes(job)


@cache
def _shipped(shares: tuple[float, ...], reasons: tuple[str, ...]) -> Residual:
    """The shipped residual, `_widened`: of every config that a plan tries the same."""
    return _widened(profile().residual, shares, reasons)


def _widened(residual: Residual, shares: Iterable[float], reasons: tuple[str, ...]) -> Residual:
    more = sum(share * share for share in shares) ** 0.5
    if not more:
        return replace(residual, reasons=(*residual.reasons, *reasons)) if reasons else residual
    allocated, reserved = (
        {phase: spread.widened(1.0, more) for phase, spread in spreads.items()} for spreads in (residual.allocated, residual.reserved)
    )
    return replace(residual, allocated=allocated, reserved=reserved, reasons=(*residual.reasons, *reasons))
