"""What to change in the config: walking it down in the guide's order until it is predicted to fit, each step's effect computed.

Images: gradient checkpointing on, batch 1, the largest bucket, previews, then low_vram, quantisation and the rest. Video: frames before
all. Previews come first where they are what failed. Nothing is proposed that is set already, and nothing that does not lower what
must be lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from estimator import advice
from estimator.advice import Edit
from estimator.crash import Failure, Remedy
from estimator.diagnosis.compare import candidates
from estimator.errors import CannotTell, InputError
from estimator.estimate import OOM, SAFE, Advice, Estimate
from estimator.gpus import Gpu, all_gpus
from estimator.job import Job

MOST_STEPS = 8
"""Steps down at most: a config that needs more is another one."""
MOST_REPLAYS = 4
"""Whole replays to confirm a step; each takes about a second."""
MOST_CARDS = 12
"""Cards tried by replay above the first that peak rows allow: several of one capacity, some without FlashAttention."""
Run = Callable[[Job, bool], Estimate]
"""(job, fast) -> its estimate on the card."""

_RANKS = {
    "train.gradient_checkpointing": 1, "train.batch_size": 2, "datasets.*.resolution": 3,
    "sample.width, sample.height": 4, "train.disable_sampling": 4,
}  # fmt: skip
_FRAMES_RANK, _OTHERS_RANK = 0, 5
_PREVIEW_KEYS = ("sample.num_frames", "sample.width, sample.height", "train.disable_sampling")


def walk_down(job: Job, failure: Failure, run: Run) -> tuple[tuple[Remedy, ...], Estimate | None]:
    """The steps, each on top of those before, and the whole estimate of what comes of them; none where they are not enough.

    The first step lowers the phase that failed; further ones what still fails. `saves_bytes` is the difference of that phase's peaks.
    """
    current, replays = _tried(run, job, True), 0
    remedies: list[Remedy] = []
    outcome: Estimate | None = None
    while current is not None and len(remedies) < MOST_STEPS:
        step = next(_steps(current, failure, run, bool(remedies) or _could_do(current, failure)), None)
        if step is None:
            break
        edit, changed, saves = step
        verdict = changed.verdict
        if verdict != OOM and replays < MOST_REPLAYS:
            replays += 1
            outcome = _tried(run, edit.job, False)
            verdict = outcome.verdict if outcome is not None else verdict
        made = Advice(edit.key, edit.before, edit.after, saves, edit.why, verdict)
        remedies.append(Remedy(made, saves, _need(changed, failure), verdict == SAFE))
        current = changed
        if verdict == SAFE or replays >= MOST_REPLAYS:
            break
    if not remedies or remedies[-1].advice.verdict == OOM:
        return (), None
    return _merged(remedies), outcome


def _merged(remedies: list[Remedy]) -> tuple[Remedy, ...]:
    """Without a key that comes twice, such as a rank halved again: from the first value to the last."""
    out: dict[str, Remedy] = {}
    for each in remedies:
        first = out.pop(each.advice.key, None)
        if first is not None:
            saves = first.saves_bytes + each.saves_bytes
            made = replace(each.advice, before=first.advice.before, saves_bytes=saves)
            each = replace(each, advice=made, saves_bytes=saves)
        out[each.advice.key] = each
    return tuple(out.values())


def _on(estimate_job: Callable[[Job, Gpu, bool], Estimate], card: Gpu, job: Job, fast: bool) -> Estimate:
    return estimate_job(job, card, fast)


def smallest_card(job: Job, gpu: Gpu, estimate_job: Callable[[Job, Gpu, bool], Estimate]) -> Gpu | None:
    """The smallest card of the catalogue, of those larger than `gpu`, on which the job is safe: by peak rows, then confirmed by replay."""
    cards = [card for card in all_gpus(gpu.os) if card.total_bytes > gpu.total_bytes]
    low, high = 0, len(cards)
    while low < high:  # a larger card fails nowhere that a smaller one does not
        middle = (low + high) // 2
        card = cards[middle]
        tried = _tried(partial(_on, estimate_job, card), job, True)
        if tried is not None and tried.verdict == SAFE:
            high = middle
        else:
            low = middle + 1
    for card in cards[low : low + MOST_CARDS]:
        if estimate_job(job, card, False).verdict == SAFE:
            return card
    return None


def _steps(current: Estimate, failure: Failure, run: Run, further: bool) -> Iterator[tuple[Edit, Estimate, int]]:
    """The edits that lower the phase that failed; once it has been lowered, or where it should fit, those that lower the peak too."""
    for edit in ordered(current.job, failure):
        changed = _tried(run, edit.job, True)
        if changed is None or not changed.phases:
            continue
        saves = _need(current, failure) - _need(changed, failure)
        if saves >= advice.WORTH_BYTES or (further and _peak(current) - _peak(changed) >= advice.WORTH_BYTES):
            yield edit, changed, saves


def _could_do(estimate: Estimate, failure: Failure) -> bool:
    """Whether the phase that failed is predicted to fit, while another is not."""
    return estimate.verdict != SAFE and all(phase.verdict == SAFE for phase in candidates(estimate, failure))


def _tried(run: Run, job: Job, fast: bool) -> Estimate | None:
    try:
        return run(job, fast)
    except (CannotTell, InputError):
        return None


def _need(estimate: Estimate, failure: Failure) -> int:
    """Allocated peak of the phase that failed, 0 where it is gone."""
    return max((phase.allocated_bytes for phase in candidates(estimate, failure)), default=0) if failure.phase else _peak(estimate)


def _peak(estimate: Estimate) -> int:
    return max((phase.allocated_bytes for phase in estimate.phases), default=0)


def ordered(job: Job, failure: Failure) -> list[Edit]:
    """Every edit that applies, in the guide's order."""
    previews_first = failure.phase == "sample"

    def rank(edit: Edit) -> int:
        if previews_first and edit.key in _PREVIEW_KEYS:
            return -1
        return _FRAMES_RANK if edit.key.endswith("num_frames") else _RANKS.get(edit.key, _OTHERS_RANK)

    return sorted([*_frames_edits(job), *advice.edits(job)], key=rank)


def _frames_edits(job: Job) -> Iterator[Edit]:
    """Half as many frames, as video models count them (4n + 1), for clips and for previews."""
    most = max((bucket.frames for each in job.datasets for bucket in each.buckets), default=1)
    if most > 1:
        half = _half(most)
        datasets = tuple(
            replace(each, buckets=tuple(replace(bucket, frames=min(bucket.frames, half)) for bucket in each.buckets))
            for each in job.datasets
        )
        yield Edit("datasets.*.num_frames", most, half, "shorter clips: less motion is learned at once", replace(job, datasets=datasets))
    shown = max((sample.frames for sample in job.samples), default=1)
    if shown > 1 and not job.train.disable_sampling:
        half = _half(shown)
        samples = tuple(replace(sample, frames=min(sample.frames, half)) for sample in job.samples)
        yield Edit("sample.num_frames", shown, half, "shorter previews; training is the same", replace(job, samples=samples))


def _half(frames: int) -> int:
    return max((frames // 2 - 1) // 4 * 4 + 1, 1)
