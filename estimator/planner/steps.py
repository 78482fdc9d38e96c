"""Walking by hand, one setting at a time, in the order of the guides: down until the job is safe, then up from a config that is.

Down, images: checkpointing on, batch 1, drop the largest bucket, shrink or disable previews, then low_vram, quantisation, offloading;
video: frames first. Up: a larger bucket, richer previews, only then a larger batch or longer clips; checkpointing off as an experiment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from estimator.estimate import SAFE, Estimate
from estimator.gpus import MIB, Gpu
from estimator.kernels import unsure_of_attention
from estimator.planner.buckets import FRAME_STEP, LARGEST, frame_edits, frames_of, grown, resolutions
from estimator.planner.costs import headroom_bytes
from estimator.planner.edits import Dimension, Edit, Level, merged
from estimator.planner.judge import Judge
from estimator.planner.space import PREVIEW_STEP, batch_edits, dimensions, largest_batch, scaled_previews
from estimator.planner.subject import Subject

IMAGE_ORDER = (
    "dtype", "checkpointing", "batch", "buckets", "previews", "low_vram", "text", "weights", "latents", "optimizer", "offloading",
)  # fmt: skip
VIDEO_ORDER = ("frames", *IMAGE_ORDER)
USUAL = (512, 768, 1024, 1280, 1536, 2048)  # px: what people train at
WORTH_BYTES = 16 * MIB
"""A step that brings less is left out."""
EXPERIMENT = "an experiment, not a default: change nothing else with it, and watch the first steps and the first previews"


@dataclass(frozen=True, slots=True)
class Line:
    """One step of a walk. `edits`: this step's own; `estimate`: of the config with it, and on the way down with all steps before it."""

    title: str
    edits: tuple[Edit, ...]
    before: tuple[object, ...]
    why: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Walk:
    """`down`: one upon the other until the job is safe, or to the end; `idle`: steps that would have brought nothing and were left out.

    `up`: each alone upon the config where `down` ends, if that is safe.
    """

    subject: Subject
    gpu: Gpu
    start: Estimate
    down: tuple[Line, ...]
    idle: tuple[str, ...]
    up: tuple[Line, ...]

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All that the way down changes."""
        return merged(edit for line in self.down for edit in line.edits)

    @property
    def end(self) -> Estimate:
        """Of the config at the end of the way down."""
        return self.down[-1].estimate if self.down else self.start


def walk(subject: Subject, gpu: Gpu) -> Walk:
    """Both ways. Every line is replayed, unless its peak rows alone are more than the card has."""
    judge = Judge(subject, gpu)
    start = judge.standing()
    idle: dict[str, None] = {}
    down = tuple(_down(judge, start, idle))
    end = down[-1].estimate if down else start
    edits = merged(edit for line in down for edit in line.edits)
    return Walk(subject, gpu, start, down, tuple(idle), tuple(_up(judge, edits)) if end.verdict == SAFE else ())


def _down(judge: Judge, start: Estimate, idle: dict[str, None]) -> Iterator[Line]:
    """Each setting in turn, at its levels from the mildest on where these are few, until the job is safe."""
    subject, done, now = judge.subject, tuple[Edit, ...](), start
    space = {each.name: each for each in dimensions(subject, "quality")}
    for name in VIDEO_ORDER if frames_of(subject) > 1 else IMAGE_ORDER:
        for title, level in _by_hand(name, space.get(name)):
            if now.verdict == SAFE or unsure_of_attention(now):
                return
            edits = merged((*done, *level.edits))
            if judge.failing(edits) is None:
                continue
            estimate = judge.standing(edits)
            if estimate.verdict != SAFE and headroom_bytes(estimate) - headroom_bytes(now) < WORTH_BYTES:
                idle[title] = None
                continue
            done, now = edits, estimate
            yield Line(title, level.edits, tuple(subject.value(edit.key) for edit in level.edits), level.why, estimate)


def _by_hand(name: str, dimension: Dimension | None) -> Iterator[tuple[str, Level]]:
    """The levels that a walk by hand goes through: of many only the usual ones."""
    if dimension is None:
        return
    levels = dimension.levels[1:]
    titles = {
        "checkpointing": "gradient checkpointing on", "batch": "batch 1", "buckets": "drop the largest bucket", "frames": "fewer frames",
        "low_vram": "low_vram on", "weights": "quantise", "text": "cache the text", "latents": "cache the latents",
        "optimizer": "a smaller optimizer state", "offloading": "offload layers", "dtype": "bf16",
    }  # fmt: skip
    if name == "previews":
        yield from (("no previews" if level.edits[0].key.startswith("train.") else "smaller previews", level) for level in levels[-2:])
    elif name == "batch":
        yield titles[name], levels[-1]
    elif name in ("frames", "offloading"):
        yield from ((titles[name], level) for level in (levels[len(levels) // 2], levels[-1]))
    elif name == "buckets":
        chosen = [level for level in levels if any(_top(edit.value) in USUAL for edit in level.edits)]
        yield from ((titles[name], level) for level in chosen)
    else:
        yield from ((titles[name], level) for level in levels if not level.loss.learned)


def _top(value: object) -> object:
    return value[-1] if isinstance(value, tuple) else value


def _up(judge: Judge, done: tuple[Edit, ...]) -> Iterator[Line]:
    """One heavier setting at a time, each alone upon the stable config."""
    subject = judge.subject
    stable = Planned(subject, done)
    for title, edits, why in stable.heavier():
        wanted = merged((*done, *edits))
        if edits and judge.failing(wanted) is not None:
            yield Line(title, edits, tuple(stable.value(edit.key) for edit in edits), why, judge.standing(wanted))


class Planned:
    """The config with the edits of the way down, and what would be heavier than that."""

    def __init__(self, subject: Subject, edits: Sequence[Edit]) -> None:
        self.subject, self.edits = subject.edited(edits), edits

    def value(self, key: str) -> object:
        return self.subject.value(key)

    def heavier(self) -> Iterator[tuple[str, tuple[Edit, ...], str]]:
        subject = self.subject
        larger = next((side for side in USUAL if side > resolutions(subject)[-1]), None)
        if larger is not None and larger <= LARGEST:
            yield "a larger bucket", grown(subject, larger), f"finer detail, up to {larger} px"
        if subject.job.train.disable_sampling:
            on = subject.allowed([Edit("train.disable_sampling", False)])
            yield "previews on", on, "you see what is learned"
        elif subject.job.samples:
            longest = max(max(each.width, each.height) for each in subject.job.samples)
            side = next((side for side in USUAL if side > longest), longest + 4 * PREVIEW_STEP)
            yield "richer previews", scaled_previews(subject, side, longest), f"previews of {side} px"
        batch = largest_batch(subject) + 1
        yield "a larger batch", batch_edits(subject, batch), f"{batch} images at a time: smoother steps"
        if frames_of(subject) > 1:
            yield "longer clips", frame_edits(subject, frames_of(subject) + FRAME_STEP), "more motion is learned"
        if subject.job.train.gradient_checkpointing:
            yield "checkpointing off", subject.allowed([Edit("train.gradient_checkpointing", False)]), f"faster; {EXPERIMENT}"
