"""The cheapest combination of edits that is safe: by rising loss through the peak rows, and only what they let pass through the replay.

Peak rows are a lower bound, so what they reject no replay would call safe: the first that the replay calls safe has the least loss of all.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from estimator.engine import estimate_job, fails_alone, surely_fails, surely_unsafe, without_flash
from estimator.errors import CannotTell
from estimator.estimate import OOM, SAFE, Estimate
from estimator.gpus import Gpu
from estimator.planner.edits import NOTHING, Dimension, Edit, Level, Loss, merged
from estimator.planner.subject import Subject
from estimator.residents import PhasePeak

# What cannot change a phase's peak rows: a phase that fails, fails with every alternative of these. Held by tests/test_plan_laws.py.
IRRELEVANT = {
    "load": frozenset({"latents", "text", "checkpointing", "optimizer", "batch", "previews", "buckets", "frames"}),
    "save": frozenset({"checkpointing", "batch", "buckets", "frames"}),
    "sample": frozenset({"checkpointing", "batch", "buckets", "frames"}),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One level of each dimension: what they are together."""

    levels: tuple[Level, ...] = ()

    @property
    def edits(self) -> tuple[Edit, ...]:
        return tuple(edit for level in self.levels for edit in level.edits)

    @property
    def loss(self) -> Loss:
        return sum((level.loss for level in self.levels), NOTHING)


NOT_SAFE = "not safe"
"""Borderline or out of memory: which of the two has not been looked into."""
Named = tuple[str, Level]
"""A level with the name of its dimension."""


def named(space: Sequence[Dimension], choice: Choice) -> tuple[Named, ...]:
    """The levels that change something."""
    return tuple((each.name, level) for each, level in zip(space, choice.levels, strict=True) if level.edits)


@dataclass(slots=True)
class Judge:
    """What is safe on a card, remembered. `by_rows` and `replayed` count the work."""

    subject: Subject
    gpu: Gpu
    by_rows: int = 0
    replayed: int = 0
    _rows: dict[tuple[Edit, ...], tuple[PhasePeak, ...] | None] = field(default_factory=dict)
    _estimates: dict[tuple[Edit, ...], Estimate] = field(default_factory=dict)
    _failed: set[tuple[Edit, ...]] = field(default_factory=set)

    def failing(self, edits: tuple[Edit, ...]) -> tuple[PhasePeak, ...] | None:
        """The phases that peak rows rule out; None where the edited config cannot be estimated at all."""
        if edits not in self._rows:
            job = self.subject.read(edits)
            self.by_rows += 1
            try:
                self._rows[edits] = None if job is None else tuple(surely_unsafe(job, self.gpu))
            except CannotTell:
                self._rows[edits] = None
        return self._rows[edits]

    def estimate(self, edits: tuple[Edit, ...]) -> Estimate:
        """The replayed estimate of the edited config. The edits must be readable. Raises CannotTell."""
        if edits not in self._estimates:
            job = self.subject.read(edits)
            assert job is not None
            self.replayed += 1
            self._estimates[edits] = estimate_job(job, self.gpu)
        return self._estimates[edits]

    def shortfall(self, edits: tuple[Edit, ...]) -> tuple[str, tuple[str, ...]]:
        """(verdict, the phases that fail), as far as has been found out; "" where nothing has."""
        estimate = self._estimates.get(edits)
        if estimate is not None:
            return estimate.verdict, tuple(dict.fromkeys(p.phase for p in estimate.phases if p.verdict != SAFE))
        failing = self.failing(edits)
        if failing:
            return NOT_SAFE, tuple(dict.fromkeys(p.phase for p in failing))
        return (NOT_SAFE, ()) if edits in self._failed else ("", ())

    def standing(self, edits: tuple[Edit, ...] = ()) -> Estimate:
        """The edited config: by peak rows where these are certain that it fails. The edits must be readable. Raises CannotTell."""
        job = self.subject.read(edits)
        assert job is not None
        rows = estimate_job(job, self.gpu, fast=True)
        return rows if rows.verdict == OOM else self.estimate(edits)

    def safe(self, edits: tuple[Edit, ...]) -> bool:
        """Safe by the rule of `check`. What fails is mostly seen from one replay that breaks off early."""
        if edits in self._estimates or self.failing(edits) != ():
            return self.failing(edits) == () and self.estimate(edits).verdict == SAFE
        job = self.subject.read(edits)
        assert job is not None
        if edits not in self._failed and surely_fails(job, self.gpu):
            self.replayed += 1
            self._failed.add(edits)
        return edits not in self._failed and self.estimate(edits).verdict == SAFE


class _Dead:
    """Combinations of levels that fail whatever the other dimensions are at, by which dimensions they are of."""

    def __init__(self, judge: Judge, space: Sequence[Dimension], base: tuple[Edit, ...]) -> None:
        self.judge, self.space, self.base = judge, space, base
        self.groups: dict[tuple[int, ...], set[tuple[int, ...]]] = {}

    def note(self, places: tuple[int, ...], failing: tuple[PhasePeak, ...]) -> None:
        """Only a phase that fails by its own bytes counts: the tolerance is one of the whole job's peak."""
        for peak in failing:
            if fails_alone(peak, self.judge.gpu):
                spared = IRRELEVANT.get(peak.phase, frozenset())
                group = tuple(d for d, each in enumerate(self.space) if each.name not in spared)
                self.groups.setdefault(group, set()).add(tuple(places[d] for d in group))

    def has(self, places: tuple[int, ...]) -> bool:
        return any(tuple(places[d] for d in group) in dead for group, dead in self.groups.items())

    def all_of_loading(self) -> bool:
        """Try everything that loading depends on, once: where nothing loads there is nothing to search."""
        group = tuple(d for d, each in enumerate(self.space) if each.name not in IRRELEVANT["load"])
        every = [range(len(each.levels)) if d in group else range(1) for d, each in enumerate(self.space)]
        combinations = list(itertools.product(*every))
        for places in combinations:
            failing = self.judge.failing(merged((*self.base, *_choice(self.space, places).edits))) or ()
            self.note(places, tuple(peak for peak in failing if peak.phase == "load"))
        return len(self.groups.get(group, ())) == len(combinations)


def _choice(space: Sequence[Dimension], places: tuple[int, ...]) -> Choice:
    return Choice(tuple(each.levels[n] for each, n in zip(space, places, strict=True)))


def cheapest(judge: Judge, space: Sequence[Dimension], base: tuple[Edit, ...] = ()) -> Choice | None:
    """The safe choice of the least loss over the edits `base`; None if there is none. Of equal losses, that with the fewest edits."""
    if without_flash(judge.gpu):
        return None  # nothing is called safe there
    dead = _Dead(judge, space, base)
    if dead.all_of_loading():
        return None
    for places in _rising(space):
        if dead.has(places) or _hopeless(judge, space, base, places):
            continue
        choice = _choice(space, places)
        edits = merged((*base, *choice.edits))
        failing = judge.failing(edits)
        dead.note(places, failing or ())
        if failing == () and judge.safe(edits):
            return choice
    return None


def _hopeless(judge: Judge, space: Sequence[Dimension], base: tuple[Edit, ...], places: tuple[int, ...]) -> bool:
    """Whether a choice that offloads a share of the layers fails even with all offloaded, which leaves least: one try for ten."""
    most = tuple(len(each.levels) - 1 if each.name == "offloading" and n else n for each, n in zip(space, places, strict=True))
    return most != places and bool(judge.failing(merged((*base, *_choice(space, most).edits))))


def _rising(space: Sequence[Dimension]) -> Iterator[tuple[int, ...]]:
    """Every choice as places in the dimensions, by rising loss, each once."""

    def entry(places: tuple[int, ...]) -> tuple[tuple[int, int, int], int, tuple[int, ...]]:
        levels = [each.levels[n] for each, n in zip(space, places, strict=True)]
        return sum((level.loss for level in levels), NOTHING).order, sum(len(level.edits) for level in levels), places

    start = (0,) * len(space)
    waiting, seen = [entry(start)], {start}
    while waiting:
        _, _, places = heapq.heappop(waiting)
        yield places
        for d, each in enumerate(space):
            after = (*places[:d], places[d] + 1, *places[d + 1 :])
            if after[d] < len(each.levels) and after not in seen:
                seen.add(after)
                heapq.heappush(waiting, entry(after))
