"""The diagnosis in words: what happened, why, what to do about the environment. No cause is named that log or model do not show."""

from __future__ import annotations

from collections.abc import Sequence

from estimator import crash
from estimator.crash import Failure, LoggedRun, Prediction
from estimator.diagnosis import kinds
from estimator.estimate import OOM, SAFE, Estimate
from estimator.gpus import GIB, Gpu

_DOING = {
    ("load", "transformer"): "while loading the transformer", ("load", "text encoder"): "while loading the text encoder",
    ("load", "the rest"): "while loading", ("load", ""): "while loading", ("cache_latents", ""): "while caching latents",
    ("cache_text", ""): "while caching text embeddings", ("prepare", "adapter"): "while setting up the adapter",
    ("prepare", "before the loop"): "while preparing the training loop", ("sample", "baseline"): "while making the first preview",
    ("sample", "with optimizer state"): "while making a preview", ("save", ""): "while saving",
}  # fmt: skip

_NAMES = {"load": "loading", "cache_latents": "caching latents", "cache_text": "caching text", "prepare": "preparing the training loop",
          "sample": "previewing", "train": "training", "save": "saving"}  # fmt: skip


def gib(count_bytes: int) -> str:
    """Bytes as GiB with two decimals."""
    return f"{count_bytes / GIB:.2f}"


def headline(run: LoggedRun, failure: Failure, verdict: kinds.Verdict) -> str:
    """One sentence: what happened and when."""
    where = _where(run, failure)
    if failure.what == crash.SPILLED:
        return f"memory spilled to system RAM {where}: {failure.text}"
    if verdict.because == crash.HOST_MEMORY:
        return f"out of system RAM {where}, not of the card's memory"
    if failure.what == crash.DEVICE:
        return f"the card could not be used {where}"
    return f"out of memory {where}"


def _where(run: LoggedRun, failure: Failure) -> str:
    known = _DOING.get((failure.phase, failure.part))
    if known is not None:
        return known + (f" after {_steps(run, failure)}" if failure.phase in ("sample", "save") and failure.step else "")
    if failure.phase == "train":
        return f"in training, after {_steps(run, failure)}"
    return "before training" if run.seen_trainer else "(the log does not say when)"


def _steps(run: LoggedRun, failure: Failure) -> str:
    planned = f" of {run.steps_planned}" if run.steps_planned else ""
    return f"{failure.step}{planned} steps"


def more_reasons(run: LoggedRun, failure: Failure, prediction: Prediction | None) -> tuple[str, ...]:
    """What else the log and the prediction say about it."""
    lines = []
    if failure.what in (crash.SKIPPED, crash.GAVE_UP):
        lines.append(
            "the trainer skips a batch that runs out of memory and gives up at the fourth in a row; torch's own message is not printed then"
        )
    if failure.what in (crash.LIBRARY, crash.CUDA_OOM):
        lines.append("the message has no numbers: the library or the driver was refused memory, not torch's allocator")
    if failure.phase == "train" and failure.what not in (crash.HOST, crash.DEVICE):
        lines += _sizes(run, prediction)
    if prediction is not None:
        lines += _against(failure, prediction)
    if failure.phase == "sample" and failure.step and run.samples_done:
        rounds = f"{run.samples_done} round{'s' if run.samples_done > 1 else ''} of previews"
        lines.append(f"{rounds} went well before: with optimizer state on the card there is less room")
    if run.pressed > 2:
        lines.append(f"torch found the card full {run.pressed} times on the way and tried to go on by releasing what it had cached")
    return tuple(lines)


def _sizes(run: LoggedRun, prediction: Prediction | None) -> list[str]:
    """Which bucket or clip: by the prediction, else the largest in the log."""
    if prediction is not None:
        train = {f"{p.variant.width}x{p.variant.height}" + (f"x{p.variant.frames}" if (p.variant.frames or 1) > 1 else ""): p.verdict
                 for p in prediction.estimate.phases if p.phase == "train"}  # fmt: skip
        failing = [name for name, verdict in train.items() if verdict != SAFE]
        fitting = [name for name, verdict in train.items() if verdict == SAFE]
        if failing and fitting:
            return [f"predicted not to fit: {', '.join(failing[-4:])}; to fit: {', '.join(fitting[:4])}"]
        if len(train) < 2 or not failing:
            return []
    buckets = [bucket for dataset in run.buckets for bucket in dataset]
    if not buckets:
        return []
    largest = max(buckets, key=lambda bucket: bucket.width * bucket.height * bucket.frames)
    frames = f"x{largest.frames}" if largest.frames > 1 else ""
    return [f"the largest training size in the log is {largest.width}x{largest.height}{frames}"]


def _against(failure: Failure, prediction: Prediction) -> list[str]:
    estimate = prediction.estimate
    lines = []
    if kinds.missed(failure, prediction):
        assert failure.numbers is not None
        had = (failure.numbers.allocated_bytes or 0) + (failure.numbers.tried_bytes or 0)
        lines.append(f"it had or asked for {gib(had)} GiB where {gib(kinds.predicted_bytes(prediction))} are predicted: the prediction")
        lines[-1] += " is too low, or the run differed from this config; --record FILE keeps the numbers"
    elif estimate.verdict == SAFE:
        lines.append(f"predicted on an empty card: {fits(estimate)}")
    else:
        phase = estimate.peak_phase
        what = "does not fit on this card" if estimate.verdict == OOM else "is borderline on this card"
        first = f"; {_NAMES[phase.phase]} fails first" if phase is not None else ""
        lines.append(f"predicted too: the config {what}{first}")
    others = kinds.taken_by_others(failure.numbers) if failure.numbers is not None else 0
    if others > kinds.ROUNDING_BYTES and estimate.verdict != SAFE:
        lines.append(f"besides, others had {gib(others)} GiB of the card")
    return lines


def fits(estimate: Estimate) -> str:
    """ "fits, 15.26 of 23.51 GiB at the peak"."""
    most = max(estimate.phases, key=lambda phase: phase.device.likely_bytes)
    return f"fits, {gib(most.device.likely_bytes)} of {gib(estimate.gpu.total_bytes)} GiB at the peak"


def another_card(gpu: Gpu, total: int) -> str:
    """It ran on another card than the one named."""
    return f"it ran on a card of {gib(total)} GiB, which is not {gpu.name} ({gib(gpu.total_bytes)} GiB)"


def nothing_found(run: LoggedRun, other: Failure | None) -> str:
    """The headline where no memory failure is in the log."""
    if other is not None:
        return f"it failed, but not on memory: {other.text}"
    if run.finished:
        return "it finished: no memory failure in this log"
    if run.stopped:
        return "it was stopped: no memory failure in this log"
    if not run.seen_trainer:
        return "no memory failure in this log, and nothing that AI Toolkit prints: is it the log of a run? (a config goes behind --config)"
    place = "in training" if run.phase == "train" else _DOING.get((run.phase, run.part), "early")
    return f"the log ends {place}, after {run.step} steps, without an error: still running, cut off, or killed from outside"


def about_jobs(run: LoggedRun, runs: Sequence[LoggedRun]) -> list[str]:
    """Other jobs in the log, and the same config tried before."""
    lines = []
    if len(runs) > 1:
        lines.append(f"{len(runs)} jobs are in this log; this is {run.name or 'the one'} in lines {run.first_line} to {run.last_line}")
    earlier = [
        each
        for each in runs
        if each.last_line < run.first_line + 1 and each is not run and each.processes == run.processes and run.processes
    ]
    failed, now = next((each for each in reversed(earlier) if kinds.main_failure(each)), None), kinds.main_failure(run)
    if failed is not None and now is not None:
        before = kinds.main_failure(failed)
        assert before is not None
        if before.phase == now.phase:
            lines.append(f"the same config failed in the same phase before (line {before.line}): running it unchanged again will not help")
    elif now is not None and any(each.finished for each in earlier):
        lines.append("the same config finished before in this log: look at what else was on the card this time")
    return lines
