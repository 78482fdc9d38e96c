"""Operations of a timeline executed on the allocator, event by event: the replay."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from estimator import operations as op
from estimator.allocator import EMPTY_CACHE, FREE, Allocator, OutOfMemory
from estimator.job import Job
from estimator.programs import ALLOCATE, Ints, Profile, Program
from estimator.residents import COMPUTE, ROUNDING, WORKSPACE_BYTES, PhasePeak, State, component_of, rounded, shown


class Replay:
    """Executes operations on an allocator."""

    def __init__(self, profile: Profile, job: Job, capacity_bytes: int | None, workspace_bytes: int = WORKSPACE_BYTES) -> None:
        self.profile, self.job = profile, job
        self.state = State(Allocator(capacity_bytes, expandable_segments=job.expandable_segments))
        self.workspace_bytes = workspace_bytes
        self.peaks: list[PhasePeak] = []
        self._begin: op.Begin | None = None
        self._best: tuple[int, str, dict[str, int]] = (0, "", {})
        self._retries = 0

    def run(self, operations: Iterable[op.Operation]) -> bool:
        """Execute; False if memory ran out (the last of `peaks` is the phase where)."""
        try:
            for operation in operations:
                self._one(operation)
        except OutOfMemory:
            self._close(failed=True)
            return False
        return True

    def fork(self) -> Replay:
        """An independent continuation from this point, with no peaks yet."""
        other = Replay.__new__(Replay)
        other.profile, other.job, other.workspace_bytes = self.profile, self.job, self.workspace_bytes
        other.state, other.peaks, other._begin, other._best = self.state.copy(), [], None, (0, "", {})
        other._retries = 0
        return other

    def _one(self, operation: op.Operation) -> None:
        state = self.state
        if isinstance(operation, op.Begin):
            state.allocator.reset_peaks()
            self._retries = state.allocator.retries
            self._begin = operation
            self._best = (state.allocator.allocated_bytes, "at the start", dict(state.bytes_of))
        elif isinstance(operation, op.End):
            self._close(failed=False)
        elif isinstance(operation, op.Part):
            self._part(operation)
        elif isinstance(operation, op.MoveIn):
            self._move_in(operation.component)
        elif isinstance(operation, op.MoveOut):
            self._move_out(operation.component)
        elif isinstance(operation, op.Release):
            self._release(operation.scope)
        else:
            state.allocator.empty_cache()

    def _close(self, failed: bool) -> None:
        if self._begin is None:
            return
        allocator, begin = self.state.allocator, self._begin
        allocated, moment, ledger = self._best
        components = {name: size for name, size in ledger.items() if size}
        if allocated != sum(components.values()):
            components[ROUNDING] = allocated - sum(components.values())
        retries = allocator.retries - self._retries
        peak = PhasePeak(begin.phase, begin.detail, begin.variant, allocated, allocator.peak_reserved_bytes, moment, components, failed, retries)
        self.peaks.append(peak)
        self._begin = None

    # ---- components

    def _weights_of(self, component: str) -> str:
        return self.job.model.te_weights if component.startswith("text_encoder") else self.job.model.weights

    def _move_in(self, component: str) -> None:
        prefix = f"{component}:"
        if any(name.startswith(prefix) for name in self.state.named):
            return
        sizes = self.profile.resident(component, self._weights_of(component))
        keys = range(self.state.next_key, self.state.next_key + len(sizes))
        self.state.next_key += len(sizes)
        for number, (key, size) in enumerate(zip(keys, sizes, strict=True)):
            name = f"{prefix}moved{number}"
            self.state.named[name], self.state.sizes[name] = key, rounded(size)
        self.state.allocator.run(list(keys), sizes)
        self.state.count(shown(component), sum(map(rounded, sizes)))
        self._note_peak()

    def _move_out(self, component: str) -> None:
        prefix = f"{component}:"
        names = [name for name in self.state.named if name.startswith(prefix)]
        keys = [self.state.named.pop(name) for name in names]
        self.state.allocator.run(keys, [FREE] * len(keys))
        self.state.count(shown(component), -sum(self.state.sizes.pop(name) for name in names))

    def _release(self, scope: str) -> None:
        rows = self.state.scopes.pop(scope, [])
        self.state.allocator.run([key for key, _, _ in rows], [FREE] * len(rows))
        for _, component, size in rows:
            self.state.count(component, -size)

    def _note_peak(self) -> None:
        allocated = self.state.allocator.allocated_bytes
        if allocated > self._best[0]:
            self._best = (allocated, "moving to the device", dict(self.state.bytes_of))

    # ---- programs

    def _part(self, part: op.Part) -> None:
        program = self.profile.program(part.key)
        state, sizes = self.state, program.sizes(part.values)
        self._workspaces(program, part)
        tensors = program.tensor_of_event
        base, own = state.next_key, len(program.names) - program.imports
        state.next_key += len(program.names)
        keys = tensors + base
        event_sizes = np.where(program.events == ALLOCATE, np.append(sizes, 0)[tensors], FREE)  # -1: empty_cache, no tensor
        event_sizes = np.where(tensors < 0, EMPTY_CACHE, event_sizes)
        drop: set[int] = set()
        for k in range(own, len(program.names)):  # imports: whatever of this name is on the card
            name = program.names[k]
            assert name is not None
            if name in state.named:
                keys[tensors == k] = state.named.pop(name)
                state.count(component_of(name, part.key), -state.sizes.pop(name))
            else:
                drop.add(k)
        doubled = {k for k in program.exported if program.names[k] in state.named} if part.accumulate else set()
        keep = ~np.isin(tensors, list(drop)) if drop else None
        event_keys, event_list = keys, event_sizes
        if keep is not None:
            event_keys, event_list = keys[keep], event_sizes[keep]
        if doubled:
            event_keys, event_list = _freed_at_once(event_keys, event_list, {base + k for k in doubled})
        before = dict(state.bytes_of)
        peak_event = state.allocator.run(event_keys.tolist(), event_list.tolist())
        if peak_event is not None:
            self._peak_inside(program, part, sizes, before, event_keys, event_list, peak_event, base)
        for k in program.exported:
            if k not in doubled:
                self._keep(program, part, k, base + k, int(sizes[k]))

    def _keep(self, program: Program, part: op.Part, k: int, key: int, size: int) -> None:
        name, kept = program.names[k], rounded(size)
        component = component_of(name, part.key)
        self.state.count(component, kept)
        if name is not None and name not in self.state.named:
            self.state.named[name], self.state.sizes[name] = key, kept
        else:
            self.state.scopes.setdefault(part.scope, []).append((key, component, kept))

    def _workspaces(self, program: Program, part: op.Part) -> None:
        """cuBLAS's workspace of a thread is made once, by the first that needs it, and stays."""
        threads = list(program.workspace_at) or (["forward"] if part.key.startswith(COMPUTE) else [])
        if part.key.startswith("step.core"):
            threads = ["forward", "backward"]
        for thread in threads:
            name = f"workspace:{thread}"
            if name not in self.state.named:
                key = self.state.next_key
                self.state.next_key += 1
                self.state.allocator.run([key], [self.workspace_bytes])
                self.state.named[name], self.state.sizes[name] = key, self.workspace_bytes
                self.state.count("workspace", self.workspace_bytes)

    def _peak_inside(
        self, program: Program, part: op.Part, sizes: Ints, before: dict[str, int], keys: Ints, events: Ints, at: int, base: int
    ) -> None:
        """Ledger and moment of a peak that lies inside a program: what it had allocated by then, by component."""
        allocated = self.state.allocator.peak_allocated_bytes
        if allocated <= self._best[0]:
            return
        ledger = dict(before)
        seen, kinds = keys[: at + 1] - base, events[: at + 1]
        inside = (seen >= 0) & (seen < len(program.names) - program.imports)
        live = np.zeros(len(program.names), dtype=bool)
        live[seen[inside & (kinds >= 0)]] = True
        live[seen[inside & (kinds == FREE)]] = False
        for k in np.flatnonzero(live).tolist():
            component = component_of(program.names[k], part.key)
            ledger[component] = ledger.get(component, 0) + rounded(int(sizes[k]))
        moment = self.profile.labels[program.labels[int(seen[at])]]
        self._best = (allocated, moment, ledger)


def _freed_at_once(keys: Ints, sizes: Ints, doubled: set[int]) -> tuple[Ints, Ints]:
    """Gradients that are added to existing ones: freed right after they were made."""
    where = np.flatnonzero(np.isin(keys, list(doubled)) & (sizes >= 0))
    return np.insert(keys, where + 1, keys[where]), np.insert(sizes, where + 1, FREE)


