"""The fast way: peaks from peak rows alone, without the allocator. What is resident is counted; nothing is placed.

A lower bound of what a card must have: no rounding of blocks, no fragmentation, reserved taken as allocated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from estimator import operations as op
from estimator import plans
from estimator.allocator_state import UNIT_BYTES
from estimator.archs import load_archs
from estimator.batches import steps_of
from estimator.dtypes import UNQUANTISED
from estimator.features import Ints
from estimator.job import Job
from estimator.job_profile import profile_of
from estimator.offload import GROUPS
from estimator.programs import Profile
from estimator.residents import COMPUTE, WORKSPACE_BYTES, PhasePeak, Simulation, adds, component_of, counted_as, shown, unquantised_linears
from estimator.timeline import by_variant


@dataclass
class _Counts:
    """Bytes on the card: `held` as the ledger shows them, `groups` of named tensors by component, `scopes` of unnamed ones."""

    held: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    scopes: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, component: str, size: int) -> None:
        self.held[component] = self.held.get(component, 0) + size

    def change(self, group: str, size: int) -> None:
        self.groups[group] = self.groups.get(group, 0) + size
        self.add(shown(group), size)

    @property
    def total(self) -> int:
        return sum(self.held.values())


class Rows:
    """Operations on peak rows: what is on the card, and the peaks of the phases that ended."""

    def __init__(self, profile: Profile, job: Job, workspace_bytes: int) -> None:
        self.profile, self.job, self.workspace_bytes = profile, job, workspace_bytes
        self.unquantised = unquantised_linears(job.model, load_archs().archs[job.arch].embedder_linears)
        self.counts = _Counts()
        self.peaks: list[PhasePeak] = []
        self._begin = op.Begin("")
        self._best: tuple[int, str, dict[str, int]] = (0, "", {})

    def fork(self, profile: Profile, job: Job) -> Rows:
        """An independent continuation, at the end of a phase, of a job that was alike up to here."""
        other = Rows(profile, job, self.workspace_bytes)
        counts, scopes = self.counts, {scope: dict(held) for scope, held in self.counts.scopes.items()}
        other.counts, other.peaks = _Counts(dict(counts.held), dict(counts.groups), scopes), list(self.peaks)
        return other

    def run(self, operations: Iterable[op.Operation]) -> None:
        for operation in op.flat(operations):
            if isinstance(operation, op.Part):  # the most frequent first
                self._part(operation)
            elif isinstance(operation, op.Begin):
                self._begin, self._best = operation, (self.counts.total, "at the start", dict(self.counts.held))
            elif isinstance(operation, op.End):
                self._close()
            elif isinstance(operation, op.MoveIn):
                self._move_in(operation.component)
            elif isinstance(operation, op.MoveOut):
                self.counts.change(operation.component, -self.counts.groups.get(operation.component, 0))
            elif isinstance(operation, op.Recast):
                self._recast(operation.component, operation.times)
            elif isinstance(operation, op.Copy):
                for component, size in self.counts.scopes.get(operation.scope, {}).items():
                    held = self.counts.scopes.setdefault(operation.into, {})
                    held[component] = held.get(component, 0) + size
                    self.counts.add(component, size)
            elif isinstance(operation, op.Release):
                for component, size in self.counts.scopes.pop(operation.scope, {}).items():
                    self.counts.add(component, -size)

    def _close(self) -> None:
        total, moment, ledger = self._best
        components = {name: size for name, size in ledger.items() if size}
        begin = self._begin
        self.peaks.append(PhasePeak(begin.phase, begin.detail, begin.variant, total, total, moment, components))

    def _see(self, extra: int, moment: str, component: str = "activations") -> None:
        total = self.counts.total + extra
        if total > self._best[0]:
            ledger = dict(self.counts.held)
            ledger[component] = ledger.get(component, 0) + extra
            self._best = (total, moment, ledger)

    def _move_in(self, component: str) -> None:
        if self.counts.groups.get(component, 0):
            return
        weights = self.job.model.te_kind if component.startswith("text_encoder") else self.job.model.kind
        self.counts.change(component, self._resident_bytes(component, weights))
        self._see(0, "moving to the device")

    def _recast(self, component: str, times: int) -> None:
        self.counts.change(component, recast_bytes(self.profile, component, times) - self.counts.groups.get(component, 0))
        self._see(0, "moving to the device")

    def _resident_bytes(self, component: str, weights: str) -> int:
        unquantised = self.unquantised if component == "transformer" else 0
        return resident_bytes(self.profile, component, weights, unquantised)

    def _part(self, part: op.Part) -> None:
        counts = self.counts
        figures = figures_of(self.profile, part)
        for workspace in figures.workspaces:
            if not counts.groups.get(workspace):
                counts.groups[workspace] = self.workspace_bytes
                counts.add("workspace", self.workspace_bytes)
        if figures.copies:  # slots are written anew: how long the old ones last depends on both parts
            for group in GROUPS:
                counts.change(group, -counts.groups.get(group, 0))
        there = sum(size for g, size in figures.stays.items() if adds(part.accumulate, g) and counts.groups.get(counted_as(g, part.key)))
        self._see(figures.peak_bytes - there, figures.moment, figures.component)  # not known how many had been made by then
        for group, size in figures.freed.items():
            counts.change(group, -min(size, counts.groups.get(group, 0)))
        for group, size in figures.stays.items():
            if not group:
                component = figures.component
                scope = counts.scopes.setdefault(part.scope, {})
                scope[component] = scope.get(component, 0) + size
                counts.add(component, size)
            elif not (adds(part.accumulate, group) and counts.groups.get(counted_as(group, part.key), 0)):
                counts.change(counted_as(group, part.key), size)
        if part.key.startswith("load.transformer") and self.unquantised and counts.groups.get("transformer"):
            counts.change("transformer", self._resident_bytes("transformer", self.job.model.kind) - counts.groups["transformer"])


def workspace_threads(profile: Profile, key: str) -> list[str]:
    """The threads that multiply matrices in a part: cuBLAS has a workspace for each."""
    forward = ["forward"] if key.startswith(COMPUTE) or profile.outline(key).workspace_at else []
    return [*forward, "backward"] if key.startswith("step.core") else forward


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run of a part does, in bytes: its highest row, and what stays or is freed by component ("": unnamed).

    `component`: what its unnamed tensors are shown as. `workspaces`: groups of those that it needs. `copies`: whether it fills slots.
    """

    peak_bytes: int
    moment: str
    stays: Mapping[str, int]
    freed: Mapping[str, int]
    component: str
    workspaces: tuple[str, ...]
    copies: bool


def figures_of(profile: Profile, part: op.Part) -> Figures:
    """The figures of a part for its values. Raises CannotTell if it was never recorded."""
    key = (part.key, tuple(part.values.items()))
    known = profile.figures(part.key)
    kept = known.get(key)  # planning asks for the same parts thousands of times
    if kept is None:
        outline = profile.outline(part.key)
        workspaces = tuple(f"workspace:{thread}" for thread in workspace_threads(profile, part.key))
        sums, component = outline.sums(part.values, UNIT_BYTES), component_of(None, part.key)
        kept = known[key] = Figures(*outline.peak(part.values), *sums, component, workspaces, bool(outline.copies))
    assert isinstance(kept, Figures)
    return kept


def resident_bytes(profile: Profile, component: str, weights: str, unquantised: int = 0) -> int:
    """Bytes of a component on the card, as rounded by the allocator. Raises CannotTell if it was never recorded."""
    key = (component, weights, unquantised)
    kept = profile.kept.get(key)
    if kept is None:
        kept = profile.kept[key] = rounded_sum(np.array(profile.resident(component, weights, unquantised), dtype=np.int64))
    assert isinstance(kept, int)
    return kept


def recast_bytes(profile: Profile, component: str, times: int) -> int:
    """Bytes of a component that is never quantised, each of its tensors with so many times the bytes that it was recorded with."""
    return rounded_sum(times * np.array(profile.resident(component, UNQUANTISED), dtype=np.int64))


def rounded_sum(sizes: Ints) -> int:
    """Bytes of tensors together, each rounded up as the allocator does."""
    return int((-(-sizes // UNIT_BYTES) * UNIT_BYTES).sum())


def begun(job: Job, *, workspace_bytes: int = WORKSPACE_BYTES) -> Rows:
    """All before a job's first previews. Raises CannotTell for a combination that was never recorded."""
    profile = profile_of(job.arch, job.model, job.network)
    rows = Rows(profile, job, workspace_bytes)
    rows.run(plans.before_previews(plans.plan_of(job, profile)))
    return rows


def bound(job: Job, start: Rows | None = None, *, workspace_bytes: int = WORKSPACE_BYTES) -> Simulation:
    """Peaks of all phases from peak rows. `start`: of a job that begins alike, what is before its first previews.

    Raises CannotTell for a combination that was never recorded.
    """
    profile = profile_of(job.arch, job.model, job.network)
    plan = plans.plan_of(job, profile)
    rows = (start or begun(job, workspace_bytes=workspace_bytes)).fork(profile, job)
    rows.run(plans.first_previews(plan))
    before = len(rows.peaks)
    up = steps_of(job, plan.tokens(None))
    rows.run(plans.steps(plan, (*plans.warm_up(plan, up), *up)))  # the first step has no optimizer state yet: the smallest bucket once more
    rows.peaks[before:] = by_variant(rows.peaks[before:])
    rows.run(plans.after_steps(plan))
    return Simulation(tuple(rows.peaks), None, 0)
