"""The cheapest combination of edits that is safe: by rising loss through the peak rows, and only what they let pass through the replay.

Peak rows are a lower bound, so what they reject no replay would call safe: the first that the replay calls safe has the least loss of all.
Settings are decided one after the other. Before any way is followed further, the lowest that it can lead to is tried: where that fails,
all that lies on the way fails (estimator.planner.sight).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from estimator.engine import (
    EARLY,
    Failure,
    estimate_job,
    fails_alone,
    fails_at_start,
    failure,
    room_bytes,
    rows_of,
    surely_safe,
    surely_unsafe,
    without_flash,
)
from estimator.errors import CannotTell
from estimator.estimate import OOM, SAFE, Estimate
from estimator.gpus import Gpu
from estimator.planner.edits import NOTHING, Dimension, Edit, Level, Loss, merged
from estimator.planner.known import Known, Places
from estimator.planner.sight import BESIDE_STEPS, LOAD, START, TRAIN, UNSEEN, UNTOLD, phase_of, seen
from estimator.planner.subject import Subject
from estimator.residents import PhasePeak, Simulation, workspace_of

SPEED = "speed"
"""The dimension of all that changes the time of a step."""
FIRST = (SPEED, "text", "low_vram", "weights", "latents")
LAST = ("batch", "buckets", "frames", "controls", "checkpointing", "optimizer", "offloading", "previews")
"""In which order settings are decided. LAST: those of which it is known where they leave a phase least (estimator.planner.sight)."""


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
    _starts: dict[tuple[str, tuple[Edit, ...]], bool] = field(default_factory=dict)
    _early: dict[tuple[Edit, ...], list[Failure]] = field(default_factory=dict)
    _failures: dict[tuple[Edit, ...], Failure | None] = field(default_factory=dict)

    def failing(self, edits: tuple[Edit, ...]) -> tuple[PhasePeak, ...] | None:
        """The phases that peak rows rule out; None where the edited config cannot be estimated at all."""
        if edits not in self._rows:
            job, rows = self.subject.read(edits), self._bound(edits)
            self.by_rows += 1
            self._rows[edits] = None if job is None or rows is None else tuple(surely_unsafe(job, self.gpu, rows))
        return self._rows[edits]

    def estimate(self, edits: tuple[Edit, ...]) -> Estimate:
        """The replayed estimate of the edited config. The edits must be readable. Raises CannotTell."""
        if edits not in self._estimates:
            job = self.subject.read(edits)
            assert job is not None
            self.replayed += edits not in self._failures
            self._estimates[edits] = estimate_job(job, self.gpu)
        return self._estimates[edits]

    def shortfall(self, edits: tuple[Edit, ...]) -> tuple[str, tuple[str, ...]]:
        """(verdict, the phases that fail), as far as has been found out; "" where nothing has."""
        estimate = self._estimates.get(edits)
        if estimate is not None:
            return estimate.verdict, tuple(dict.fromkeys(p.phase for p in estimate.phases if p.verdict != SAFE))
        failing, failure = self.failing(edits), self._failures.get(edits)
        if failure is not None:
            return NOT_SAFE, (failure.phase,)
        return (NOT_SAFE, tuple(dict.fromkeys(p.phase for p in failing))) if failing else ("", ())

    def standing(self, edits: tuple[Edit, ...] = ()) -> Estimate:
        """The edited config: by peak rows where these are certain that it fails. The edits must be readable. Raises CannotTell."""
        job = self.subject.read(edits)
        assert job is not None
        rows = estimate_job(job, self.gpu, fast=True)
        return rows if rows.verdict == OOM else self.estimate(edits)

    def starts(self, edits: tuple[Edit, ...], part: str) -> bool:
        """Whether LOAD or START goes through by replay, with the most room it can have. The edits must be readable. Raises CannotTell."""
        what = part, seen(edits, part)
        if what not in self._starts:
            job = self.subject.read(edits)
            assert job is not None
            self._starts[what] = not fails_at_start(job, self.gpu, loading_only=part == LOAD)
        return self._starts[what]

    def safe(self, edits: tuple[Edit, ...]) -> bool:
        """Safe by the rule of `check`, which replays training steps in other orders as well: these are asked only where they matter."""
        if self.failing(edits) != ():
            return False
        failure, job, rows = self._failure(edits), self.subject.read(edits), self._bound(edits)
        assert job is not None
        assert rows is not None
        if failure is None and edits not in self._estimates and surely_safe(job, self.gpu, room_bytes(job, self.gpu, rows)):
            return True
        return (failure is None or not failure.decides) and self.estimate(edits).verdict == SAFE

    def likely(self, edits: tuple[Edit, ...]) -> bool:
        """Whether it may well be safe: if its steps reserve as much more than they allocate as those of the config as it stands.

        For where to look first. The edited config must be one that peak rows let pass. Raises CannotTell.
        """
        job, rows = self.subject.read(edits), self._bound(edits)
        assert job is not None
        assert rows is not None
        cached = max((p.reserved_bytes - p.allocated_bytes for p in self.estimate(()).phases if p.phase == TRAIN), default=0)
        need = max((p.allocated_bytes for p in rows.phases if p.phase == TRAIN), default=0) + cached
        return need <= room_bytes(job, self.gpu, rows)

    def _failure(self, edits: tuple[Edit, ...]) -> Failure | None:
        """How the edited config is known to fail, or is found to under its capacity alone. A start that fails speaks for all like it."""
        if edits not in self._failures:
            job, rows, start = self.subject.read(edits), self._bound(edits), seen(edits, START)
            assert job is not None
            assert rows is not None
            capacity = room_bytes(job, self.gpu, rows)
            known = (each for each in self._early.get(start, ()) if each.from_bytes <= capacity <= each.to_bytes)
            found = next(known, None)
            if found is None:
                self.replayed += edits not in self._estimates
                found = failure(job, self.gpu, capacity)
            self._failures[edits] = found
            if found is not None and found.phase in EARLY:
                self._early.setdefault(start, []).append(found)
        return self._failures[edits]

    def _bound(self, edits: tuple[Edit, ...]) -> Simulation | None:
        """Peak rows, which are the same on cards of one kind; None where the edited config cannot be estimated at all."""
        bounds, key = self.subject.bounds, (edits, workspace_of(self.gpu))
        if key not in bounds:
            job = self.subject.read(edits)
            try:
                bounds[key] = None if job is None else rows_of(job, self.gpu)
            except CannotTell:
                bounds[key] = None
        return bounds[key]


def cheapest(judge: Judge, space: Sequence[Dimension], base: tuple[Edit, ...] = (), *, by_rows: bool = False) -> Choice | None:
    """The safe choice of the least loss over the edits `base`; None if there is none. Of equal losses, that with the fewest edits.

    `by_rows`: the first that peak rows do not rule out.
    """
    if without_flash(judge.gpu):
        return None  # nothing is called safe there
    search = _Search(judge, space, base)
    for places in itertools.chain(((0,) * len(space),), search.rising()):
        edits = search.edits(places)
        if judge.failing(edits) == ():
            if by_rows or judge.safe(edits):
                return search.choice(places)
            search.learn(places)
    return None


class _Search:
    """Decides one dimension after the other, the cheapest beginning first: what is decided costs no less with what is not.

    Places are those of levels in the first dimensions, in the order in which they are decided. `replayed`: of what peak rows let pass,
    these (LOAD, START) are replayed before it is followed further; asked for once some choice has failed in them.
    """

    def __init__(self, judge: Judge, space: Sequence[Dimension], base: tuple[Edit, ...]) -> None:
        self.judge, self.base, self.given, self.replayed = judge, base, space, set[str]()
        self.space = sorted(space, key=lambda each: (*FIRST, *LAST).index(each.name))
        self.known = Known(self.space, base, judge.subject.job.train)
        self.lowest = tuple(len(each.levels) - 1 if each.name in LAST else 0 for each in self.space)
        self.costs = [[(*level.loss.order, len(level.edits)) for level in each.levels] for each in self.space]

    def rising(self) -> Iterator[Places]:
        """The places of every choice by rising loss, each once, but for those that are known to fail."""
        waiting = [self._entry(())]
        while waiting:
            places = heapq.heappop(waiting)[-1]
            at = len(places)
            if at and places[-1] + 1 < len(self.space[at - 1].levels):
                heapq.heappush(waiting, self._entry((*places[:-1], places[-1] + 1)))
            if self._fails(places):
                continue
            if at == len(self.space):
                yield places
            else:
                heapq.heappush(waiting, self._entry((*places, 0)))

    def _entry(self, places: Places) -> tuple[int, int, int, int, int, Places]:
        aimed = learned = trouble = edits = 0
        for costs, n in zip(self.costs, places, strict=False):
            each = costs[n]
            aimed, learned, trouble, edits = aimed + each[0], learned + each[1], trouble + each[2], edits + each[3]
        return aimed, learned, trouble, edits, -len(places), places

    def edits(self, places: Places) -> tuple[Edit, ...]:
        """Those of the choice at these places, over the base."""
        return merged((*self.base, *self.choice(places).edits))

    def choice(self, places: Places) -> Choice:
        """The levels at these places, one for each dimension."""
        levels = {each.name: each.levels[n] for each, n in zip(self.space, places, strict=True)}
        return Choice(tuple(levels[each.name] for each in self.given))

    def learn(self, places: Places) -> None:
        """What the replay says against a choice that peak rows let pass.

        A training step that fails with and without previews and cached latents is taken to fail with any size of previews: what a step
        needs is the same, only the free blocks that it finds are not. Where one of these ends goes through, nothing is concluded.
        """
        fails = self.judge.shortfall(self.edits(places))[1]
        if EARLY.intersection(fails):
            self.replayed |= {LOAD if LOAD in fails else START}
        elif TRAIN in fails and all(self._fails_in_training(corner) for corner in self.known.corners(TRAIN, places, BESIDE_STEPS)):
            self.known.bury_between(TRAIN, places, BESIDE_STEPS)

    def _fails_in_training(self, places: Places) -> bool:
        edits = self.edits(places)
        failing = self.judge.failing(edits)
        if failing == ():
            return not self.judge.safe(edits) and TRAIN in self.judge.shortfall(edits)[1]
        return failing is not None and any(phase_of(peak) == TRAIN for peak in failing)

    def _fails(self, places: Places) -> bool:
        """Whether all that these places can lead to fails, as far as can be told from where each phase is least."""
        at = len(places)
        if self.known.dead(places):
            return True
        if at and places[-1] == self.lowest[at - 1]:
            return False  # what would be tried was, one place earlier
        whole = places + self.lowest[at:]
        for part in sorted(self.replayed):
            if not self._starts(whole, part):
                self.known.bury(part, whole, at)
        if self.known.dead(places):
            return True
        for phase in self._failing(whole):
            ends = self.known.ends(phase, whole, at)
            corners = [tuple(corner.get(d, n) for d, n in enumerate(whole)) for corner in ends]
            if all(phase in self._failing(corner) for corner in corners):
                self.known.bury(phase, whole, at)
                if self.known.dead(places):
                    return True
        return False

    def _starts(self, places: Places, part: str) -> bool:
        """Whether it is not known to fail by replay."""
        edits = self.edits(places)
        return self.judge.failing(edits) is None or self.judge.starts(edits, part)

    def _failing(self, places: Places) -> tuple[str, ...]:
        """The phases that fail at these places by their own bytes; UNTOLD alone where nothing can be told."""
        failing = self.known.failing(places)
        if failing is None:
            peaks = self.judge.failing(self.edits(places))
            told = {phase_of(peak) for peak in peaks if fails_alone(peak, self.judge.gpu)} if peaks is not None else {UNTOLD}
            failing = tuple(phase for phase in UNSEEN if phase in told)  # in one order in every process
            self.known.note(places, failing)
        return failing
