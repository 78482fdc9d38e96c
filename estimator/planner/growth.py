"""How far a config can grow on a card: the largest value that is safe, next to one that is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from estimator.planner.buckets import FRAME_STEP, LARGEST, MOST_FRAMES, STEP, frame_edits, frames_of, grown, resolutions
from estimator.planner.edits import Dimension, Edit, Level, merged
from estimator.planner.judge import Judge
from estimator.planner.search import Named, cheapest
from estimator.planner.space import batch_edits, largest_batch
from estimator.planner.subject import Subject
from estimator.trainers.aitoolkit_train import MAX_BATCH

FREE = ("latents", "dtype", "text", "low_vram", "checkpointing")
"""What growing may use: it costs time at most."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How far one setting can go with the rest as planned: `most` is safe, `beyond` is not (None: the end of what is looked at).

    `refused`: what is beyond cannot be estimated at all: the trainer stops on it, or it is not modelled.
    """

    what: str
    now: int
    most: int
    beyond: int | None
    refused: bool = False


Edits = Callable[..., tuple[Edit, ...]]
"""The edits for a value; of buckets, that are added to others, for several."""


def _candidates(subject: Subject, what: str) -> tuple[int, Sequence[int], Edits]:
    """(the value now, larger ones, the edits for one of them)."""
    if what == "batch":
        now = largest_batch(subject)
        return now, range(now + 1, MAX_BATCH + 1), lambda value: batch_edits(subject, value)
    if what == "resolution":
        now = resolutions(subject)[-1]
        return now, range(now // STEP * STEP + STEP, LARGEST + 1, STEP), lambda *values: grown(subject, *values)
    now = frames_of(subject)
    longer = range(now + FRAME_STEP, MOST_FRAMES + 1, FRAME_STEP) if now > 1 else range(0)
    return now, longer, lambda value: frame_edits(subject, value)


def grown_to(subject: Subject, what: str, value: int) -> tuple[Edit, ...]:
    """The edits with which a config of the subject has so large a batch, bucket or number of frames."""
    return _candidates(subject, what)[2](value)


def driven(judge: Judge, aim: str, space: Sequence[Dimension], levels: tuple[Named, ...]) -> tuple[tuple[Named, ...], tuple[Growth, ...]]:
    """The aimed setting as far up as it goes, with whatever of FREE that takes.

    A bucket more can make room for one that did not fit alone, whose size its blocks suit: so buckets are added until none is safe.
    """
    now, values, edits_for = _candidates(judge.subject, aim)
    taken = {name for name, _ in levels}
    free = [Dimension(d.name, tuple(v for v in d.levels if not v.loss.learned)) for d in space if d.name in FREE and d.name not in taken]
    base = tuple(edit for _, level in levels for edit in level.edits)

    def attempt(chosen: tuple[int, ...], replay: bool) -> tuple[Level, ...] | None:
        grow = edits_for(*chosen)
        found = cheapest(judge, free, (*base, *grow), by_rows=not replay) if grow else None
        return None if found is None else found.levels

    def furthest(chosen: tuple[int, ...], values: Sequence[int]) -> int:
        place = _last(len(values), lambda n: attempt((*chosen, values[n]), False) is not None)
        return _last(place + 1, lambda n: attempt((*chosen, values[n]), True) is not None, place)

    chosen: tuple[int, ...] = ()
    helped: tuple[Level, ...] = ()
    while values:
        place = furthest(chosen, values)
        if place < 0:
            break
        chosen = (*chosen, values[place])
        helped, values = attempt(chosen, True) or (), values[place + 1 :]
        if not any(isinstance(edit.value, tuple) for edit in edits_for(*chosen)):
            break
    beyond = values[0] if values and edits_for(values[0]) else None
    helps = tuple(edit for each in free for edit in each.levels[-1].edits)
    refused = beyond is not None and all(_refused(judge, (*base, *more, *edits_for(beyond))) for more in ((), helps))
    if not chosen:
        return levels, (Growth(aim, now, now, beyond, refused),) if beyond is not None else ()
    grow = Level(edits_for(*chosen), why=f"{aim} {chosen[-1]} instead of {now}: as far as it goes on this card")
    helpers = tuple((each.name, level) for each, level in zip(free, helped, strict=True) if level.edits)
    return (*levels, *helpers, (aim, grow)), (Growth(aim, now, chosen[-1], beyond, refused),)


def alone(judge: Judge, what: str) -> Growth | None:
    """How far one setting alone can go; None where it is pinned or has no meaning."""
    now, values, edits_for = _candidates(judge.subject, what)
    if not values or not edits_for(values[0]):
        return None
    place = largest_safe(judge, [edits_for(value) for value in values])
    beyond = values[place + 1] if place + 1 < len(values) else None
    refused = beyond is not None and _refused(judge, edits_for(beyond))
    return Growth(what, now, values[place] if place >= 0 else now, beyond, refused)


def _refused(judge: Judge, edits: tuple[Edit, ...]) -> bool:
    """Whether the trainer stops on the edited config, or it is not modelled: there is nothing to be safe or not."""
    return judge.failing(merged(edits)) is None


def largest_safe(judge: Judge, steps: Sequence[tuple[Edit, ...]]) -> int:
    """The place of the last of ever larger edits that is safe, next to one that is not; -1 if the first is not."""
    place = _last(len(steps), lambda n: judge.failing(steps[n]) == ())
    likely = _last(place + 1, lambda n: judge.likely(steps[n]))
    return _last(place + 1, lambda n: judge.safe(steps[n]), likely)


def _last(count: int, good: Callable[[int], bool], likely: int = 0) -> int:
    """The last of 0 .. count - 1 that is good, -1 if the first is not: the one after it has been tried, and is not good.

    Looks ever further away from where the limit is likely.
    """
    low, high, step, at = -1, count, 1, max(likely, 0)
    while low + 1 < high:
        if good(at):
            low = at
        else:
            high = at
        if low >= 0 and high < count:
            at = (low + high) // 2
        else:
            at = max(high - step, 0) if low < 0 else min(low + step, count - 1)
            step *= 2
    return low
