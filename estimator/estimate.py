"""The result of an estimate: bytes per phase, the verdict on a card, advice. Data only; `report` and `jsonout` show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from estimator.gpus import Gpu
from estimator.job import Job

SAFE, BORDERLINE, OOM, UNKNOWN = "safe", "borderline", "oom", "unknown"


@dataclass(frozen=True, slots=True)
class Variant:
    """What a phase was computed for: the bucket or preview size; None where a size has no meaning (load, save)."""

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """Low, likely and high bytes of the same quantity."""

    low_bytes: int
    likely_bytes: int
    high_bytes: int


@dataclass(frozen=True, slots=True)
class PhaseEstimate:
    """One phase in one variant.

    `phase`: load | cache_latents | cache_text | prepare | sample | train | save.
    `allocated_bytes`: peak of torch.cuda.max_memory_allocated; `reserved_bytes`: of max_memory_reserved on an unbounded card;
    `device`: what nvidia-smi would show on this card. `components` sums exactly to `allocated_bytes`.
    `detail`: which part of the phase, e.g. "baseline" or "with optimizer state" for samples, "Quantizing T5" for load.
    """

    phase: str
    variant: Variant
    allocated_bytes: int
    reserved_bytes: int
    device: Interval
    verdict: str
    moment: str
    components: Mapping[str, int]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Advice:
    """One change of the config that was tried on the model: setting `key` to `to` lowers the job's peak by `saves_bytes`."""

    key: str
    before: object
    after: object
    saves_bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """Everything the CLI shows for one job on one card. `peak` is an index into `phases`.

    `lower_bound`: made without replay (--fast): reserved and device figures are then at least what is shown.
    `retries`: releases of cached blocks that the replay needed under this card's capacity.
    """

    job: Job
    gpu: Gpu
    verdict: str
    phases: tuple[PhaseEstimate, ...]
    peak: int
    required_bytes: int | None = None
    retries: int = 0
    advice: tuple[Advice, ...] = ()
    warnings: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    lower_bound: bool = False
