"""The safe config that trains fastest, by counted work: memory is spent where it buys time, and saved where that costs none."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from estimator.estimate import SAFE
from estimator.job import Job, Model, Train
from estimator.planner.costs import time_ratio
from estimator.planner.edits import Dimension, Edit, Level, Loss, merged
from estimator.planner.judge import Judge
from estimator.planner.search import SPEED, Choice, Named, cheapest, named
from estimator.planner.space import unquantised
from estimator.planner.subject import Subject

FASTER = 0.97
"""Time ratios nearer to 1 than this are within what counting can tell."""
TIMED = ("checkpointing", "weights", "text", "offloading")
"""The settings that change the time of a step; the others may only make room."""


def fastest(judge: Judge, space: Sequence[Dimension]) -> tuple[Named, ...] | None:
    """The changes to the safe config with the shortest time for each image.

    No changes where the config itself is safe and none is faster by more than counting can tell; None where nothing is safe.
    """
    start, subject = judge.standing(), judge.subject
    timed = _timed(subject, space)
    others = [Dimension(each.name, tuple(v for v in each.levels if not v.loss.learned)) for each in space if each.name not in TIMED]
    options = [(ratio, levels) for ratio, levels in _options(subject, timed) if start.verdict != SAFE or ratio <= FASTER]
    if not options:
        return () if start.verdict == SAFE else None
    ways = tuple(Level(_edits(levels), Loss(aimed=n)) for n, (_, levels) in enumerate(options))
    found = cheapest(judge, (Dimension(SPEED, ways), *others))
    if found is None:
        return () if start.verdict == SAFE else None
    way, *helped = found.levels
    pairs = ((each.name, level) for each, level in zip(timed, options[way.loss.aimed][1], strict=True) if level.edits)
    return (*pairs, *named(others, Choice(tuple(helped))))


def _edits(levels: Iterable[Level]) -> tuple[Edit, ...]:
    return merged(edit for level in levels for edit in level.edits)


def _options(subject: Subject, timed: Sequence[Dimension]) -> list[tuple[float, tuple[Level, ...]]]:
    """Every combination that costs nothing learned, the fastest first, with its time beside the config's."""
    single = {level.edits: subject.read(level.edits) for each in timed for level in each.levels}
    options = []
    for levels in itertools.product(*(each.levels for each in timed)):
        if any(level.loss.learned for level in levels):
            continue
        ratio = time_ratio(subject.job, _composed(subject.job, [single[level.edits] for level in levels if level.edits]))
        if ratio is not None:
            options.append((round(ratio, 3), sum(level.loss.trouble for level in levels), len(_edits(levels)), levels))
    return [(ratio, levels) for ratio, _, _, levels in sorted(options, key=lambda each: each[:3])]


def _composed(job: Job, edited: Iterable[Job | None]) -> Job:
    """The job with all that any of the edited ones has otherwise: good enough to count its time by, and quick."""
    train, model = job.train, job.model
    for each in edited:
        if each is not None:
            train = replace(train, **_differing(job.train, each.train))
            model = replace(model, **_differing(job.model, each.model))
    return replace(job, train=train, model=model)


def _differing(before: Train | Model, after: Train | Model) -> dict[str, Any]:
    return {each.name: getattr(after, each.name) for each in fields(after) if getattr(after, each.name) != getattr(before, each.name)}


def _timed(subject: Subject, space: Sequence[Dimension]) -> list[Dimension]:
    """The settings that change the time: besides the alternatives that save memory, those that spend it."""
    levels = {each.name: each.levels for each in space if each.name in TIMED}
    off = Level((Edit("train.gradient_checkpointing", False),), why="the same result; activations are kept instead of computed twice")
    if subject.job.train.gradient_checkpointing and subject.allowed(off.edits) and subject.read(off.edits):
        levels["checkpointing"] = (Level(), off)
    exact = unquantised(subject)
    if exact is not None:
        levels["weights"] = (*levels.get("weights", (Level(),)), exact)
    return [Dimension(name, each) for name, each in levels.items()]
