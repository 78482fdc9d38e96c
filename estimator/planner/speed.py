"""The safe config that trains fastest, by counted work: memory is spent where it buys time, and saved where that costs none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from estimator.estimate import SAFE
from estimator.planner.costs import time_ratio
from estimator.planner.edits import Dimension, Edit, Level, merged
from estimator.planner.search import Judge, Named, cheapest, named
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
    options = []
    for levels in itertools.product(*(each.levels for each in timed)):
        edits = merged(edit for level in levels for edit in level.edits)
        job = None if any(level.loss.learned for level in levels) else subject.read(edits)
        ratio = None if job is None else time_ratio(start.job, job)
        if ratio is not None:
            options.append((round(ratio, 3), sum(level.loss.trouble for level in levels), len(edits), levels, edits))
    for ratio, _, _, levels, edits in sorted(options, key=lambda each: each[:3]):
        if start.verdict == SAFE and ratio > FASTER:
            return ()
        helped = cheapest(judge, others, edits)
        if helped is not None:
            pairs = ((each.name, level) for each, level in zip(timed, levels, strict=True) if level.edits)
            return (*pairs, *named(others, helped))
    return None


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
