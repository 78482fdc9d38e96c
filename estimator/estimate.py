"""The result of an estimate: bytes per phase, the verdict on a card, advice. Data only; `report` and `jsonout` show it.

Terms: *allocated* is torch.cuda.max_memory_allocated, *reserved* max_memory_reserved on a card with room to spare, *device* what
nvidia-smi shows on this card: reserved under its capacity, plus what lies outside torch's allocator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from estimator.gpus import Gpu
from estimator.job import Job
from estimator.residual import Interval

__all__ = [
    "BORDERLINE", "OOM", "SAFE", "UNKNOWN", "Advice", "Estimate", "Interval", "PhaseEstimate", "Variant", "worst_verdict",
]  # fmt: skip

SAFE, BORDERLINE, OOM, UNKNOWN = "safe", "borderline", "oom", "unknown"


@dataclass(frozen=True, slots=True)
class Variant:
    """What a phase was computed for: the bucket or preview size; None where a size has no meaning (load, save)."""

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class PhaseEstimate:
    """One phase in one variant.

    `phase`: load | cache_latents | cache_text | prepare | sample | train | save.
    `allocated_bytes`: peak of torch.cuda.max_memory_allocated; `reserved_bytes`: of max_memory_reserved on an unbounded card;
    `device`: what nvidia-smi would show on this card. `components` sums exactly to `allocated_bytes`.
    `detail`: which part of the phase, e.g. "baseline" or "with optimizer state" for samples, "text encoder" for load.
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
    """One change of the config that was tried on the model: setting `key` to `after` lowers the job's peak by `saves_bytes`.

    `saves_bytes` is the difference of the two jobs' peaks of *allocated* memory, both by peak rows. `why`: what it costs the user.
    `verdict`: of the changed job on this card, by peak rows: "oom" is certain then, "safe" is not.
    """

    key: str
    before: object
    after: object
    saves_bytes: int
    why: str
    verdict: str = UNKNOWN


@dataclass(frozen=True, slots=True)
class Host:
    """RAM that the job needs at least, at its highest `moment`, by component. `ram_bytes`: what there is (None: not said)."""

    components: Mapping[str, int]
    moment: str
    ram_bytes: int | None = None

    @property
    def total_bytes(self) -> int:
        return sum(self.components.values())

    @property
    def enough(self) -> bool | None:
        return None if self.ram_bytes is None else self.total_bytes <= self.ram_bytes


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
    host: Host | None = None

    @property
    def peak_phase(self) -> PhaseEstimate | None:
        """The phase of the peak; None where nothing could be estimated (verdict unknown)."""
        return self.phases[self.peak] if 0 <= self.peak < len(self.phases) else None

    @property
    def spilled_bytes(self) -> int:
        """What Windows' driver moves to system RAM at the worst phase, in the likely case; 0 on another system.

        Reserved beyond what the card has for torch: no allocation fails there, so that torch releases nothing of its cache.
        """
        if self.gpu.os != "windows":
            return 0
        return max(0, max((phase.reserved_bytes for phase in self.phases), default=0) - self.gpu.usable_bytes)


_BADNESS = (SAFE, UNKNOWN, BORDERLINE, OOM)


def worst_verdict(verdicts: Iterable[str]) -> str:
    """The worst of several verdicts: a failure that is certain or likely outweighs one that cannot be told. SAFE for none."""
    return max(verdicts, key=_BADNESS.index, default=SAFE)
