"""The fast way: peaks from peak rows alone, without the allocator. What is resident is counted; nothing is placed.

A lower bound of what a card must have: no rounding of blocks, no fragmentation, reserved taken as allocated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from estimator import operations as op
from estimator import phases as ph
from estimator.job import Job
from estimator.programs import Profile, load_profile
from estimator.residents import COMPUTE, WORKSPACE_BYTES, PhasePeak, Simulation, component_of, rounded, shown
from estimator.timeline import text_encoders_of


@dataclass
class _Counts:
    """Bytes on the card by name of tensor group: components, named exports (by their component), scopes."""

    held: dict[str, int] = field(default_factory=dict)
    named: dict[str, tuple[str, int]] = field(default_factory=dict)
    scopes: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, component: str, size: int) -> None:
        self.held[component] = self.held.get(component, 0) + size

    @property
    def total(self) -> int:
        return sum(self.held.values())


class _Rows:
    def __init__(self, profile: Profile, job: Job, workspace_bytes: int) -> None:
        self.profile, self.job, self.workspace_bytes = profile, job, workspace_bytes
        self.counts = _Counts()
        self.peaks: list[PhasePeak] = []
        self._begin = op.Begin("")
        self._best: tuple[int, str, dict[str, int]] = (0, "", {})

    def run(self, operations: Iterable[op.Operation]) -> None:
        for operation in operations:
            if isinstance(operation, op.Begin):
                self._begin, self._best = operation, (self.counts.total, "at the start", dict(self.counts.held))
            elif isinstance(operation, op.End):
                self._close()
            elif isinstance(operation, op.Part):
                self._part(operation)
            elif isinstance(operation, op.MoveIn):
                self._move_in(operation.component)
            elif isinstance(operation, op.MoveOut):
                self._drop(f"{operation.component}:")
            elif isinstance(operation, op.Release):
                for component, size in self.counts.scopes.pop(operation.scope, {}).items():
                    self.counts.add(component, -size)

    def _close(self) -> None:
        total, moment, ledger = self._best
        components = {name: size for name, size in ledger.items() if size}
        begin = self._begin
        self.peaks.append(PhasePeak(begin.phase, begin.detail, begin.variant, total, total, moment, components))

    def _see(self, extra: int, moment: str) -> None:
        total = self.counts.total + extra
        if total > self._best[0]:
            ledger = dict(self.counts.held)
            ledger["activations"] = ledger.get("activations", 0) + extra
            self._best = (total, moment, ledger)

    def _move_in(self, component: str) -> None:
        if any(name.startswith(f"{component}:") for name in self.counts.named):
            return
        weights = self.job.model.te_weights if component.startswith("text_encoder") else self.job.model.weights
        size = sum(map(rounded, self.profile.resident(component, weights)))
        self.counts.named[f"{component}:moved"] = (shown(component), size)
        self.counts.add(shown(component), size)
        self._see(0, "moving to the device")

    def _drop(self, prefix: str) -> None:
        for name in [n for n in self.counts.named if n.startswith(prefix)]:
            component, size = self.counts.named.pop(name)
            self.counts.add(component, -size)

    def _part(self, part: op.Part) -> None:
        program = self.profile.program(part.key)
        threads = ["forward", "backward"] if part.key.startswith("step.core") else ["forward"] if part.key.startswith(COMPUTE) else []
        for thread in threads:
            if f"workspace:{thread}" not in self.counts.named:
                self.counts.named[f"workspace:{thread}"] = ("workspace", self.workspace_bytes)
                self.counts.add("workspace", self.workspace_bytes)
        self._see(*program.peak(part.values))
        own = len(program.names) - program.imports
        for name in program.names[own:]:
            if name is not None and name in self.counts.named:
                component, size = self.counts.named.pop(name)
                self.counts.add(component, -size)
        sizes = program.sizes(part.values)
        for k in program.exported:
            name, size = program.names[k], rounded(int(sizes[k]))
            component = component_of(name, part.key)
            if name is not None and name in self.counts.named:
                continue  # added to what is there
            self.counts.add(component, size)
            if name is not None:
                self.counts.named[name] = (component, size)
            else:
                scope = self.counts.scopes.setdefault(part.scope, {})
                scope[component] = scope.get(component, 0) + size


def bound(job: Job, *, workspace_bytes: int = WORKSPACE_BYTES) -> Simulation:
    """Peaks of all phases from peak rows. Raises CannotTell for a combination that was never recorded."""
    profile = load_profile(job.arch)
    plan = ph.Plan(job, text_encoders_of(profile))
    rows = _Rows(profile, job, workspace_bytes)
    rows.run(ph.before_steps(plan))
    rows.run(ph.steps(plan, ph.steps_of(job, plan.tokens(None))))
    rows.run(ph.after_steps(plan))
    return Simulation(tuple(rows.peaks), None, 0)
