"""Headroom curves: what a config needs over one of its settings, a line for each of a few others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from estimator.engine import rows_of
from estimator.errors import InputError, Problem
from estimator.estimate import Estimate
from estimator.gpus import GIB, Gpu
from estimator.intervals import residual_for
from estimator.outside import extra_at_peak, room
from estimator.planner.axes import edits_of
from estimator.planner.edits import Edit, merged
from estimator.planner.growth import largest_safe
from estimator.planner.judge import Judge
from estimator.planner.space import largest_batch, quantised, unquantised
from estimator.planner.subject import Subject

OVERS = {
    "resolution": (range(256, 2049, 64), "largest bucket [px]"),
    "batch": (range(1, 17), "batch size"),
    "frames": (range(1, 122, 8), "frames"),
    "rank": (range(4, 129, 4), "rank"),
    "preview": (range(256, 2049, 64), "preview, both sides [px]"),
}
"""What a curve can run over: the values looked at, and the axis's label."""
MOST_LINES = 4


@dataclass(frozen=True, slots=True)
class Point:
    """GiB that a job must have at one value, by peak rows and what lies outside torch: low, likely, high."""

    value: int
    low_gib: float
    likely_gib: float
    high_gib: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One line. `last_safe`: the last value that is safe on the card by replay; None where none is."""

    label: str
    points: tuple[Point, ...]
    last_safe: Point | None


@dataclass(frozen=True, slots=True)
class Curves:
    """`own`: the config's own value and what it puts on the card, replayed; `verdict` of it."""

    over: str
    gpu: Gpu
    lines: tuple[Curve, ...]
    own: tuple[int, float] | None
    verdict: str
    name: str


def curves(subject: Subject, gpu: Gpu, over: str) -> Curves:
    """The lines. Raises CannotTell where the config itself cannot be estimated, InputError where one value alone is known."""
    judge = Judge(subject, gpu)
    estimate = judge.estimate(())
    lines = tuple(line for label, edits in _settings(subject) if (line := _line(judge, over, label, edits)) is not None)
    if all(len(line.points) < 2 for line in lines):
        why, fix = "others stop the trainer, or are not modelled", "draw it over another setting, such as --over resolution"
        raise InputError(Problem(f"--over {over}: one value at most is known for {subject.arch.name}", None, why, fix))
    value = _own(subject, over)
    return Curves(over, gpu, lines, None if value is None else (value, _on_card(estimate)), estimate.verdict, subject.job.name)


def _settings(subject: Subject) -> Iterator[tuple[str, tuple[Edit, ...]]]:
    """The config, and what it would be with checkpointing the other way and with other weights."""
    yield "as configured", ()
    on = subject.job.train.gradient_checkpointing
    yield f"gradient checkpointing {'off' if on else 'on'}", (Edit("train.gradient_checkpointing", not on),)
    exact = unquantised(subject)
    if exact is not None:
        yield "transformer unquantised", exact.edits
    for kind in ("qfloat8", "uint4"):
        edits = quantised(subject, kind, None)
        job = subject.read(edits)
        if job is not None and job.model.weights != subject.job.model.weights:
            yield f"transformer in {job.model.weights}", edits
            return


def _line(judge: Judge, over: str, label: str, edits: tuple[Edit, ...]) -> Curve | None:
    values = OVERS[over][0]
    every = {value: merged((*edits, *edits_of(judge.subject, over, value))) for value in values}
    points = tuple(point for value, each in every.items() if (point := _point(judge, value, each)) is not None)
    if not points:
        return None
    known = [point.value for point in points]
    place = largest_safe(judge, [every[value] for value in known])
    return Curve(label, points, points[place] if place >= 0 else None)


def _point(judge: Judge, value: int, edits: tuple[Edit, ...]) -> Point | None:
    if judge.failing(edits) is None:
        return None
    job = judge.subject.read(edits)
    assert job is not None
    rows = rows_of(job, judge.gpu)
    residual = residual_for(judge.gpu, job)
    space, peak = room(judge.gpu, residual, rows.phases), max(p.allocated_bytes for p in rows.phases)
    high = max(p.allocated_bytes + extra_at_peak(p, residual).high_bytes for p in rows.phases)
    low, likely, beside = (judge.gpu.total_bytes - left for left in (space.high_bytes, space.likely_bytes, space.low_bytes))
    return Point(value, *(size / GIB for size in (peak + low, peak + likely, high + beside)))


def _own(subject: Subject, over: str) -> int | None:
    """The config's own value; None where it has none."""
    job = subject.job
    if over == "batch":
        return largest_batch(subject)
    if over == "rank":
        return None if job.network is None or job.method == "full" else job.network.rank
    if over == "preview":
        return max((max(each.width, each.height) for each in job.samples), default=None)
    if over == "frames":
        return max(bucket.frames for each in job.datasets for bucket in each.buckets)
    return max(each.resolution for each in job.datasets)


def _on_card(estimate: Estimate) -> float:
    """GiB on the card in the likely case; where it fails, what it would need at the least."""
    gpu = estimate.gpu
    failing = [p.allocated_bytes + gpu.context_bytes + gpu.desktop_bytes for p in estimate.phases if p.verdict == "oom"]
    return max(failing or [p.device.likely_bytes for p in estimate.phases]) / GIB
