"""Which kind of failure it is: A to D by when it happened, E where the numbers or the prediction say that it was not the config.

The kinds and their signs are those of the guide that users know; the thresholds are ours and named here.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator import crash
from estimator.crash import Failure, LoggedRun, OomText, Prediction
from estimator.estimate import SAFE
from estimator.gpus import GIB, MIB

FIRST_STEPS = 10
"""Training steps that still count as the first: the guide's "step 1-10"."""
ROUNDING_BYTES = 64 * MIB
"""Messages give two decimals, and five sizes make the sum."""
MANY_OTHERS_BYTES = 2 * GIB
"""Taken by others that no desktop takes (Windows with a browser: up to 1.6 GiB, profiles/gpus.yaml)."""
REFUSED_MARGIN_BYTES = 256 * MIB
"""Free beyond the request for a refusal to be strange: the driver keeps some, and takes memory in pieces of 2 MiB."""
FRAGMENTS_BYTES, FRAGMENTS_SHARE = 512 * MIB, 0.04
"""Cached and unusable below this size and share is every allocator's leftover: up to 2.4 % in emulated failures of the trainer."""
USUAL_CONTEXT_BYTES = 500 * MIB
"""Outside torch's allocator where the message does not say: the CUDA context (profiles/gpus.yaml: 300 to 600 MiB)."""
MISSED = 1.03
"""The log shows more than this times the predicted peak: then the prediction is at fault, not the worker."""
CONSERVATIVE_SIDE = 768
"""The guide's safe resolutions: 512 and 768."""

_BEFORE = ("load", "cache_latents", "cache_text", "prepare")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`kind` A to E or "" (the log does not say when); `because` a reason of kind E or ""; `reasons` in words."""

    kind: str
    timing: str
    because: str
    reasons: tuple[str, ...]


def main_failure(run: LoggedRun) -> Failure | None:
    """The failure that matters: the last one that is of memory."""
    return next((each for each in reversed(run.failures) if each.what in crash.OF_MEMORY), None)


def timing_of(run: LoggedRun, failure: Failure) -> str:
    """A to D by the phase and the steps done; "" where the log does not say."""
    if failure.phase == "sample":
        return crash.KIND_C
    if failure.phase in _BEFORE:
        return crash.KIND_A
    if failure.phase == "" and failure.step == 0:
        return crash.KIND_A if run.seen_trainer else ""
    successes = failure.step - sum(f.what == crash.SKIPPED and f.step <= failure.step for f in run.failures) - run.failures_left_out
    if run.recovered or failure.phase == "save" or successes >= FIRST_STEPS:
        return crash.KIND_D
    return crash.KIND_B


def taken_by_others(numbers: OomText) -> int:
    """Bytes on the card that this process has not: as listed, or what is missing from the total. 0 where the message does not say."""
    listed = sum(size for _, size in numbers.others)
    total, free = numbers.total_bytes, numbers.free_bytes
    if total is None or free is None:
        return listed
    if numbers.in_use_bytes is not None:
        own = numbers.in_use_bytes
    elif numbers.reserved_bytes is not None:
        own = numbers.reserved_bytes + USUAL_CONTEXT_BYTES
    else:
        return listed
    missing = total - free - own
    return max(listed, missing if missing > ROUNDING_BYTES else 0)


def others_of(failure: Failure) -> int | None:
    """Taken by others when it failed; None where the log does not say."""
    numbers = failure.numbers
    if numbers is None or (numbers.total_bytes is None and not numbers.others):
        return None
    return taken_by_others(numbers)


def judge(run: LoggedRun, failure: Failure, prediction: Prediction | None, process: dict[str, object] | None) -> Verdict:
    """The kind of the failure. `process`: the config's process section as it stands, for the guide's "conservative config"."""
    timing = timing_of(run, failure)
    because, reasons = _environment(failure, prediction)
    if not because and _conservative_and_early(run, failure, timing, process) and prediction is None:
        because = crash.DIRTY
        reasons = ("the config is a conservative one (batch 1, gradient checkpointing, small sizes) and it failed before training began",)
    if not because and prediction is not None and _should_have_fit(failure, prediction):
        because, reasons = (
            crash.DIRTY,
            ("the config is predicted to fit on this card with room to spare, and nothing in the log contradicts it",),
        )
    if because:
        return Verdict(crash.KIND_E, timing, because, reasons)
    return Verdict(timing, timing, "", _when(run, failure, timing))


def _environment(failure: Failure, prediction: Prediction | None) -> tuple[str, tuple[str, ...]]:
    """A reason of kind E that the failure itself shows, and why."""
    if failure.what == crash.HOST:
        return crash.HOST_MEMORY, ("it was the computer's own memory (RAM) that ran out, not the card's",)
    if failure.what == crash.VANISHED:
        return crash.HOST_MEMORY, ("the process vanished without a word, which is how a system out of memory (RAM) ends one",)
    if failure.what == crash.DEVICE:
        return crash.WRONG_DEVICE, ("torch could not use the card at all",)
    numbers = failure.numbers
    if numbers is None:
        return "", ()
    refused = _refused(numbers)
    if refused:
        return crash.REFUSED, (refused,)
    return _by_numbers(numbers, prediction) if not _predicted_to_fail(prediction) else ("", ())


def _refused(numbers: OomText) -> str:
    """Why the card was not full at all; "" if it may have been."""
    tried, free, total = numbers.tried_bytes or 0, numbers.free_bytes, numbers.total_bytes
    if numbers.allowed_bytes is not None and total is not None and numbers.allowed_bytes < total - ROUNDING_BYTES:
        return f"the process may take {_gib(numbers.allowed_bytes)} of {_gib(total)} GiB only: a limit was set for it"
    if free is not None and tried and free >= tried + max(REFUSED_MARGIN_BYTES, tried // 10):
        return f"{_gib(free)} GiB were free and {_gib(tried)} GiB were refused: a limit of the system, not of the card"
    return ""


def _by_numbers(numbers: OomText, prediction: Prediction | None) -> tuple[str, tuple[str, ...]]:
    tried, free, total = numbers.tried_bytes or 0, numbers.free_bytes, numbers.total_bytes
    others = taken_by_others(numbers)
    own = numbers.in_use_bytes or (numbers.reserved_bytes or 0) + USUAL_CONTEXT_BYTES
    enough = min(MANY_OTHERS_BYTES, max(tried, ROUNDING_BYTES)) if prediction is not None else MANY_OTHERS_BYTES
    if total is not None and others >= enough and own + tried <= total:
        return crash.OTHERS, (f"others had {_gib(others)} of the card's {_gib(total)} GiB; without them the request had room",)
    cached = numbers.cached_bytes or 0
    many = cached >= max(FRAGMENTS_BYTES, FRAGMENTS_SHARE * (total or 0))
    if tried and many and (cached >= tried or (cached > (free or 0) and cached + (free or 0) >= tried)):
        return crash.FRAGMENTED, (f"torch held {_gib(cached)} GiB that were free but in pieces too small for {_gib(tried)} GiB",)
    return "", ()


def _predicted_to_fail(prediction: Prediction | None) -> bool:
    return prediction is not None and bool(prediction.estimate.phases) and prediction.estimate.verdict != SAFE


def _should_have_fit(failure: Failure, prediction: Prediction) -> bool:
    """The estimate says safe, and the log's own numbers do not show that the estimate is too low."""
    return prediction.estimate.verdict == SAFE and not missed(failure, prediction)


def missed(failure: Failure, prediction: Prediction) -> bool:
    """Whether the process had more than was predicted: the prediction is too low, or the config is another one."""
    numbers = failure.numbers
    if numbers is None or numbers.allocated_bytes is None or not prediction.estimate.phases:
        return False
    return numbers.allocated_bytes + (numbers.tried_bytes or 0) > MISSED * predicted_bytes(prediction) + ROUNDING_BYTES


def predicted_bytes(prediction: Prediction) -> int:
    """The most that is predicted to be allocated in the phase that failed; in any, where the log does not say which it was."""
    failed = prediction.phase
    return max(phase.allocated_bytes for phase in prediction.estimate.phases if failed is None or phase.phase == failed.phase)


def _conservative_and_early(run: LoggedRun, failure: Failure, timing: str, process: dict[str, object] | None) -> bool:
    """The guide's test for a bad worker: batch 1, checkpointing, small sizes, before training, nothing free or a library refused."""
    nothing_free = failure.numbers is not None and failure.numbers.free_bytes is not None and failure.numbers.free_bytes < ROUNDING_BYTES
    early = timing == crash.KIND_A or (timing == crash.KIND_C and failure.step == 0)
    return early and (nothing_free or failure.what in (crash.LIBRARY, crash.CUDA_OOM)) and process is not None and conservative(process)


def conservative(process: dict[str, object]) -> bool:
    """Batch 1, gradient checkpointing on, quantised, no size above CONSERVATIVE_SIDE; as far as the config says."""
    train, model, sample = (process.get(key) for key in ("train", "model", "sample"))
    if not isinstance(train, dict) or not isinstance(model, dict):
        return False
    sides = [train.get("batch_size", 1) == 1, train.get("gradient_checkpointing", True) is True, model.get("quantize") is True]
    datasets = process.get("datasets")
    for dataset in datasets if isinstance(datasets, list) else []:
        size = dataset.get("resolution", 512) if isinstance(dataset, dict) else 512
        sides.append(max(size if isinstance(size, list) else [size], default=512, key=_as_int) <= CONSERVATIVE_SIDE)
    if isinstance(sample, dict) and train.get("disable_sampling") is not True:
        sides.append(max(_as_int(sample.get("width", 512)), _as_int(sample.get("height", 512))) <= CONSERVATIVE_SIDE)
    return all(sides)


def _as_int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _when(run: LoggedRun, failure: Failure, timing: str) -> tuple[str, ...]:
    """Why this kind, where it is the config."""
    if timing == crash.KIND_D:
        if run.recovered:
            return (f"{run.skips} batches ran out of memory and others went through: the largest ones do not fit",)
        return (f"{failure.step} steps went through before it",)
    if timing == crash.KIND_B:
        return ("no training step went through" if failure.step == 0 else f"it came within the first {FIRST_STEPS} steps",)
    return ()


def _gib(count_bytes: int) -> str:
    return f"{count_bytes / GIB:.2f}"
