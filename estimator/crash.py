"""What a training log tells of a crash, and what is made of it: the values between reading a log and showing the diagnosis.

Bytes are integers; None is "the log does not say". Kinds are those of the guide: A while loading or before training, B in the first
training steps, C while previewing, D only sometimes, E the environment and not the config.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.estimate import Advice, Estimate, PhaseEstimate
from estimator.job import Bucket

KIND_A, KIND_B, KIND_C, KIND_D, KIND_E = "A", "B", "C", "D", "E"

# What a failure is. Numbers come with OOM only (CUDA's own "out of memory" has none).
OOM_TEXT, CUDA_OOM, LIBRARY, SKIPPED, GAVE_UP = "oom", "cuda", "library", "skipped", "gave_up"
HOST, VANISHED, DEVICE, SPILLED, OTHER = "host", "vanished", "device", "spilled", "other"
OF_MEMORY = (OOM_TEXT, CUDA_OOM, LIBRARY, SKIPPED, GAVE_UP, HOST, VANISHED, DEVICE, SPILLED)

# Why it is not the config (kind E).
OTHERS, REFUSED, FRAGMENTED, HOST_MEMORY, WRONG_DEVICE, DIRTY = "others", "refused", "fragmented", "host_memory", "wrong_device", "dirty"


@dataclass(frozen=True, slots=True)
class OomText:
    """The numbers of an out-of-memory message. `cached_bytes`: reserved by torch and not allocated. `others`: (pid, bytes) it lists."""

    device: int | None = None
    tried_bytes: int | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    in_use_bytes: int | None = None
    allocated_bytes: int | None = None
    cached_bytes: int | None = None
    allowed_bytes: int | None = None
    others: tuple[tuple[int, int], ...] = ()

    @property
    def reserved_bytes(self) -> int | None:
        """Held by torch's allocator, live or cached."""
        if self.allocated_bytes is None or self.cached_bytes is None:
            return None
        return self.allocated_bytes + self.cached_bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that went wrong. `phase` and `part` as estimates have them ("" unknown); `step`: training steps done before it."""

    what: str
    line: int
    text: str
    phase: str = ""
    part: str = ""
    step: int = 0
    numbers: OomText | None = None


@dataclass(frozen=True, slots=True)
class Slowdown:
    """Steps that suddenly take much longer and stay so: seconds per step before and after, and from which step on."""

    step: int
    before_seconds: float
    after_seconds: float
    line: int


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """One job as its log tells it.

    `processes`: its config as the trainer prints it at the start; `buckets`: of each dataset, as printed; `successes`: training steps
    that went through; `recovered`: a step went through after one had run out of memory; `pressed`: how often torch found the card full
    and went on. `finished`: the log says so, or the last step was done. `samples_done`: rounds of previews that were completed.
    """

    name: str = ""
    first_line: int = 1
    last_line: int = 1
    processes: tuple[dict[str, object], ...] = ()
    buckets: tuple[tuple[Bucket, ...], ...] = ()
    failures: tuple[Failure, ...] = ()
    failures_left_out: int = 0
    skips: int = 0
    recovered: bool = False
    step: int = 0
    steps_planned: int | None = None
    phase: str = ""
    part: str = ""
    finished: bool = False
    stopped: bool = False
    samples_done: int = 0
    pressed: int = 0
    slowdown: Slowdown | None = None
    windows: bool = False
    others: tuple[tuple[int, int], ...] = ()
    seen_trainer: bool = False

    @property
    def successes(self) -> int:
        """Training steps that were done without running out of memory."""
        return max(self.step - self.skips, 0)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The estimate of the config that crashed, and the phase of it in which the log ends. `source`: where the config came from."""

    estimate: Estimate
    phase: PhaseEstimate | None
    source: str


@dataclass(frozen=True, slots=True)
class Remedy:
    """One step of walking the config down: done on top of those before it. `enough`: with it the job is no longer predicted to fail.

    `saves_bytes`: of the crashed phase's allocated peak; `needs_bytes`: what is left of that peak.
    """

    advice: Advice
    saves_bytes: int
    needs_bytes: int
    enough: bool


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What happened, why, and what to change. `kind` "" where none of memory was found; `timing`: A to D by when it happened, also for E.

    `because`: one of the reasons of kind E, "" otherwise. `reasons`: why, in words.
    `actions`: what to do that is no change of the config, first things first. `general`: the guide's
    list, where no prediction can be made. `outcome`: the estimate with all remedies.
    `others_bytes`: taken on the card by others than this process, None where the log does not say.
    """

    run: LoggedRun
    jobs: int
    kind: str
    timing: str
    because: str
    failure: Failure | None
    headline: str
    reasons: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    general: tuple[str, ...] = ()
    prediction: Prediction | None = None
    outcome: Estimate | None = None
    notes: tuple[str, ...] = ()
    others_bytes: int | None = None
