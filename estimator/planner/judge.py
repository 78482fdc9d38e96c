"""What is safe on a card: by peak rows first, and by a replay only of what these let pass. Remembered for all that a plan asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from estimator.engine import (
    EARLY,
    LOADING,
    Failure,
    estimate_job,
    failing_alone,
    failure,
    needed_at_start,
    room_bytes,
    rows_of,
    start_of,
    surely_safe,
    surely_unsafe,
)
from estimator.errors import CannotTell
from estimator.estimate import OOM, SAFE, Estimate
from estimator.gpus import Gpu
from estimator.intervals import residual_for
from estimator.job import Job
from estimator.outside import outside
from estimator.planner.edits import Edit
from estimator.planner.sight import LOAD, START, TRAIN, seen
from estimator.planner.subject import Subject
from estimator.residents import PhasePeak, Simulation, workspace_of
from estimator.rows import Rows

NOT_SAFE = "not safe"
"""Borderline or out of memory: which of the two has not been looked into."""


@dataclass(slots=True)
class Judge:
    """What is safe on a card, remembered. `by_rows` and `replayed` count the work."""

    subject: Subject
    gpu: Gpu
    replayed: int = 0
    _looked_at: set[tuple[Edit, ...]] = field(default_factory=set)
    _rows: dict[tuple[Edit, ...], tuple[PhasePeak, ...] | None] = field(default_factory=dict)
    _estimates: dict[tuple[Edit, ...], Estimate] = field(default_factory=dict)
    _starts: dict[tuple[str, tuple[Edit, ...]], bool] = field(default_factory=dict)
    _early: dict[tuple[Edit, ...], list[Failure]] = field(default_factory=dict)
    _failures: dict[tuple[Edit, ...], Failure | None] = field(default_factory=dict)

    @property
    def by_rows(self) -> int:
        """Configs of which some peak rows were looked at."""
        return len(self._looked_at)

    def failing(self, edits: tuple[Edit, ...]) -> tuple[PhasePeak, ...] | None:
        """The phases that peak rows rule out; None where the edited config cannot be estimated at all."""
        if edits not in self._rows:
            job, rows = self.subject.read(edits), self._bound(edits)
            self._looked_at.add(edits)
            self._rows[edits] = None if job is None or rows is None else tuple(surely_unsafe(job, self.gpu, rows))
        return self._rows[edits]

    def failing_alone(self, edits: tuple[Edit, ...]) -> list[PhasePeak] | None:
        """Those of the failing phases that fail whatever the others are; None where the edited config cannot be estimated at all."""
        peaks, job = self.failing(edits), self.subject.read(edits)
        return None if peaks is None or job is None else failing_alone(peaks, job, self.gpu)

    def failing_early(self, edits: tuple[Edit, ...]) -> list[PhasePeak] | None:
        """The phases before the first previews that fail by peak rows whatever comes after them; None where they cannot be estimated."""
        job, rows = self.subject.read(edits), self._start(edits)
        self._looked_at.add(edits)
        if job is None or rows is None:
            return None
        return failing_alone(rows.peaks, job, self.gpu)

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
        """Whether LOAD or START goes through, with the most room it can have: by peak rows if they rule it out, or by replay.

        The edits must be readable. Raises CannotTell.
        """
        what = part, seen(edits, part)
        if what not in self._starts:
            job, rows, phases = self.subject.read(edits), self._start(edits), LOADING if part == LOAD else EARLY
            assert job is not None
            assert rows is not None
            ruled_out = any(peak.phase in phases for peak in self.failing_early(edits) or ())
            self._starts[what] = not ruled_out and self._begins(job, rows.peaks, what)
        return self._starts[what]

    def _begins(self, job: Job, peaks: Sequence[PhasePeak], what: tuple[str, tuple[Edit, ...]]) -> bool:
        """Whether a replay of LOAD or START goes through; what one needed serves the cards of its kind."""
        known, key = self.subject.needed, (*what, workspace_of(self.gpu))
        needed = needed_at_start(job, self.gpu, peaks, loading_only=what[0] == LOAD, known_bytes=known.get(key))
        if needed is not None:
            known[key] = needed
        return needed is not None

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
            start = self._start(edits)
            try:
                bounds[key] = None if job is None or start is None else rows_of(job, self.gpu, start)
            except CannotTell:
                bounds[key] = None
        return bounds[key]

    def _start(self, edits: tuple[Edit, ...]) -> Rows | None:
        """Peak rows of all before the first previews, for all that begin alike; None where that cannot be estimated."""
        starts, key = self.subject.starts, (seen(edits, START), workspace_of(self.gpu))
        job = self.subject.read(edits)
        if job is not None and key not in starts:
            try:
                starts[key] = start_of(job, self.gpu)
            except CannotTell:
                starts[key] = None
        return None if job is None else starts[key]


def has_room_of(card: Gpu, other: Gpu, job: Job) -> bool:
    """Whether a card leaves a job at least the room that another does, at the high end of everything: what is safe there is safe on it.

    Of cards of the catalogue, whose interval is wider by each of its reasons; a calibrated card's own is not.
    """
    mine, theirs = residual_for(card, job), residual_for(other, job)
    assert card.residual is None
    assert other.residual is None
    no_wider = set(mine.reasons) <= set(theirs.reasons) and workspace_of(card) <= workspace_of(other)
    return no_wider and card.total_bytes - outside(card).high_bytes >= other.total_bytes - outside(other).high_bytes
