"""A plan: the edit of the least loss that makes a config safe on a card, or how far it can grow, each answer confirmed by replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from estimator.estimate import Estimate
from estimator.gpus import GIB, Gpu, all_gpus
from estimator.intervals import residual_for
from estimator.job import Job
from estimator.kernels import without_flash
from estimator.planner.costs import time_ratio
from estimator.planner.edits import Edit, Level, merged
from estimator.planner.growth import Growth, alone, driven
from estimator.planner.judge import Judge, has_room_of
from estimator.planner.search import Named, cheapest, named
from estimator.planner.space import dimensions
from estimator.planner.speed import fastest
from estimator.planner.subject import Subject


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that changes: its edits with the values before, what it costs, and what becomes of the plan without it.

    `ratio`: time for each image beside the config without this change (rough); None where it cannot be counted.
    `without`: the verdict if it alone is taken back by one step; `fails`: the phases that then fail; `weaker`: all edits of that config.
    """

    name: str
    edits: tuple[Edit, ...]
    before: tuple[object, ...]
    why: str
    ratio: float | None
    without: str = ""
    fails: tuple[str, ...] = ()
    weaker: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """`after` is None where no reachable config is safe; `smallest_card` is then the smallest of the catalogue on which one is.

    `by_rows`, `replayed`: configs that were tried.
    """

    subject: Subject
    gpu: Gpu
    aim: str
    before: Estimate
    after: Estimate | None
    edits: tuple[Edit, ...] = ()
    changes: tuple[Change, ...] = ()
    ratio: float | None = None
    growth: tuple[Growth, ...] = ()
    smallest_card: Gpu | None = None
    by_rows: int = 0
    replayed: int = 0


def make_plan(subject: Subject, gpu: Gpu, aim: str, *, look_further: bool = True) -> Plan:
    """The plan for one card. `look_further`: also how far a safe config can grow, or the smallest card where there is no plan."""
    judge = Judge(subject, gpu)
    before = judge.standing()
    found = _levels(judge, aim)
    if found is None:
        card = smallest_card(subject, gpu, aim) if look_further else None
        return Plan(subject, gpu, aim, before, None, smallest_card=card, by_rows=judge.by_rows, replayed=judge.replayed)
    levels, growth = found
    edits = merged(edit for _, level in levels for edit in level.edits)
    if not edits and aim == "quality" and look_further:
        growth = tuple(each for what in ("batch", "resolution", "frames") if (each := alone(judge, what)) is not None)
    after = judge.estimate(edits)
    changes = tuple(_change(judge, levels, n) for n in range(len(levels)))
    ratio = time_ratio(before.job, after.job)
    return Plan(subject, gpu, aim, before, after, edits, changes, ratio, growth, None, judge.by_rows, judge.replayed)


def _levels(judge: Judge, aim: str) -> tuple[tuple[Named, ...], tuple[Growth, ...]] | None:
    """The changed levels by the name of their dimension, and how far the aim was driven; None if nothing is safe."""
    space = dimensions(judge.subject, aim)
    if aim == "speed":
        levels = fastest(judge, space)
        if levels is not None:
            return levels, ()
    choice = cheapest(judge, space)
    if choice is None:
        return None
    if aim not in ("batch", "resolution", "frames") or choice.loss.aimed:
        return named(space, choice), ()
    return driven(judge, aim, space, named(space, choice))


def _change(judge: Judge, levels: tuple[Named, ...], number: int) -> Change:
    """What one level does, with what becomes of the plan where it alone is taken back by a step."""
    subject, (name, level) = judge.subject, levels[number]
    rest = tuple(edit for n, (_, other) in enumerate(levels) if n != number for edit in other.edits)
    weaker = merged((*rest, *_step_back(judge, name, level).edits))
    with_it, without_it = subject.read(merged((*rest, *level.edits))), subject.read(merged(rest))
    ratio = None if with_it is None or without_it is None else time_ratio(without_it, with_it)
    before = tuple(subject.value(edit.key) for edit in level.edits)
    verdict, fails = judge.shortfall(weaker)
    return Change(name, level.edits, before, level.why, ratio, verdict, fails, weaker)


def _step_back(judge: Judge, name: str, level: Level) -> Level:
    """The next cheaper level of the same dimension; the config as it stands where there is none between."""
    for space in dimensions(judge.subject, "quality"):
        if space.name == name and level in space.levels:
            return space.levels[space.levels.index(level) - 1]
    return Level()


def smallest_card(subject: Subject, gpu: Gpu, aim: str) -> Gpu | None:
    """The smallest card of the catalogue on which some reachable config is safe, of those larger than `gpu`: its size is what is wanting,
    unless nothing is called safe on it whatever its size."""
    cards = [each for each in all_gpus(gpu.os) if each.total_bytes > gpu.total_bytes or without_flash(gpu)]
    left, found, looked_at = [each for each in cards if not without_flash(each)], None, 1
    while left:  # further and further until one is, then by halves: where many are, those on which much is are dear to look at
        card = _speaks_for_most(left, min(looked_at, len(left)) - 1 if found is None else len(left) // 2, subject.job)
        if cheapest(Judge(subject, card), dimensions(subject, aim)) is not None:
            found, left = card, left[: left.index(card)]
        else:  # neither is anything on cards that have no more room for the same
            left, looked_at = [each for each in left if each is not card and not has_room_of(card, each, subject.job)], 2 * looked_at
    return found


def _speaks_for_most(cards: Sequence[Gpu], number: int, job: Job) -> Gpu:
    """Of cards by size, the one of this number or one of the same GiB: that with the narrowest interval, then the largest. What fails on it
    fails on most of them."""
    gib = round(cards[number].total_bytes / GIB)
    alike = [each for each in cards if round(each.total_bytes / GIB) == gib]
    return min(alike, key=lambda each: (len(residual_for(each, job).reasons), -each.total_bytes))
