"""Operations of a timeline executed on the allocator, event by event: the replay."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from copy import copy

import numpy as np

from estimator import operations as op
from estimator import positions, tuned, windows
from estimator.allocator import FREE, OutOfMemory
from estimator.allocator_compiled import replaying_allocator
from estimator.allocator_state import UNIT_BYTES, ties_by_address
from estimator.archs import load_archs
from estimator.derived_weights import PLACES_OF_LINEAR, TENSORS_OF_LINEAR
from estimator.dtypes import UNQUANTISED
from estimator.features import Ints
from estimator.frequencies import kept_in
from estimator.job import Job
from estimator.offload import GROUP, GROUPS, STREAM, aged, second_step
from estimator.part_events import PartRun, events_of, ledger_at, requests
from estimator.program import Program
from estimator.programs import Profile
from estimator.residents import (
    ROUNDING,
    WORKSPACE_BYTES,
    PhasePeak,
    State,
    adds,
    component_of,
    first_forward_product,
    first_in,
    first_product,
    moved,
    place_of,
    rounded,
    shown,
    unquantised_linears,
)


class Replay:
    """Executes operations on an allocator."""

    def __init__(self, profile: Profile, job: Job, capacity_bytes: int | None, workspace_bytes: int = WORKSPACE_BYTES) -> None:
        self.profile, self.job = profile, job
        self.capacity_bytes, self.workspace_bytes = capacity_bytes, workspace_bytes
        self.state = State(replaying_allocator(capacity_bytes, job.expandable_segments, downwards=ties_by_address(job.torch)))
        self.unquantised = unquantised_linears(job.model, load_archs().archs[job.arch].embedder_linears)
        self.peaks: list[PhasePeak] = []
        model = job.model  # with the profile all that operations do not tell: where the replay is (estimator.beginnings)
        segments = job.expandable_segments, ties_by_address(job.torch)
        self.place: Hashable = id(profile), model.kind, model.te_kind, self.unquantised, segments, workspace_bytes
        self._begin: op.Begin | None = None
        self._best: tuple[int, str, dict[str, int]] = (0, "", {})
        self._retries = self._granted_bytes = 0

    @property
    def granted_bytes(self) -> int:
        """The most that was reserved."""
        return max(self._granted_bytes, self.state.allocator.peak_reserved_bytes)

    def serves(self, capacity_bytes: int | None) -> bool:
        """Whether it would be the same under another capacity: what was granted is granted, and what was refused, if anything, refused."""
        if capacity_bytes == self.capacity_bytes:
            return True
        if self.job.expandable_segments:  # addresses depend on the capacity
            return False
        if self.state.allocator.retries and (capacity_bytes is None or self.capacity_bytes is None or capacity_bytes > self.capacity_bytes):
            return False
        return capacity_bytes is None or self.granted_bytes <= capacity_bytes

    def run(self, operations: Iterable[op.Operation]) -> bool:
        """Execute; False if memory ran out (the last of `peaks` is the phase where)."""
        try:
            for operation in operations:
                self._one(operation)
        except OutOfMemory:
            self._close(failed=True)
            return False
        return True

    def fork(self, capacity_bytes: int | None) -> Replay:
        """An independent continuation from this point, under a capacity that it `serves`."""
        other = copy(self)
        other.state, other.peaks, other.capacity_bytes = self.state.copy(), list(self.peaks), capacity_bytes
        if capacity_bytes != self.capacity_bytes:
            other.state.allocator.limit(capacity_bytes)
        return other

    def _one(self, operation: op.Operation) -> None:
        state = self.state
        if isinstance(operation, op.Begin):
            self._granted_bytes = self.granted_bytes
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
        elif isinstance(operation, op.Recast):
            state.recast(operation.component, [operation.times * size for size in self.profile.resident(operation.component, UNQUANTISED)])
            self._note_peak()
        elif isinstance(operation, op.Release):
            self._release(operation.scope)
        elif isinstance(operation, op.Copy):
            self._copy(operation)
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
        reserved = allocator.peak_reserved_bytes
        self.peaks.append(PhasePeak(begin.phase, begin.detail, begin.variant, allocated, reserved, moment, components, failed, retries))
        self._begin = None

    # ---- components

    def _weights_of(self, component: str) -> str:
        return self.job.model.te_kind if component.startswith("text_encoder") else self.job.model.kind

    def _move_in(self, component: str) -> None:
        state = self.state
        if state.named.get(component):
            return
        unquantised = self.unquantised if component == "transformer" else 0
        sizes, blocks, names = moved(self.profile, component, self._weights_of(component), unquantised)
        keys = state.take_range(len(sizes))
        state.named[component] = dict(zip(names, zip(keys, blocks, strict=True), strict=True))
        state.allocator.run(np.arange(keys.start, keys.stop), sizes)
        state.count(shown(component), sum(blocks))
        self._note_peak()

    def _move_out(self, component: str) -> None:
        group = self.state.named.pop(component, {})
        keys, frees = [key for key, _ in group.values()], [FREE] * len(group)
        self.state.allocator.run_streams(keys, frees, np.full(len(group), STREAM if component == GROUP else 0))
        self.state.count(shown(component), -sum(size for _, size in group.values()))

    def _release(self, scope: str) -> None:
        rows = self.state.scopes.pop(scope, [])
        self.state.allocator.run([key for key, _, _ in rows], [FREE] * len(rows))
        for _, component, size in rows:
            self.state.count(component, -size)

    def _copy(self, operation: op.Copy) -> None:
        state, rows = self.state, self.state.scopes.get(operation.scope, [])
        first = state.take_keys(len(rows))
        copies = [(first + n, component, size) for n, (_, component, size) in enumerate(rows)]
        state.allocator.run([key for key, _, _ in copies], [size for _, _, size in copies])
        state.scopes.setdefault(operation.into, []).extend(copies)
        for _, component, size in copies:
            state.count(component, size)
        self._note_peak()

    def _note_peak(self) -> None:
        allocated = self.state.allocator.allocated_bytes
        if allocated > self._best[0]:
            self._best = (allocated, "moving to the device", dict(self.state.bytes_of))

    # ---- programs

    def _part(self, part: op.Part) -> None:
        program, state = self.profile.program(part.key), self.state
        kept = positions.needed(self.job.arch, part)
        sizes, events = requests(program, part.values, kept_in(program) if kept else ())
        before, base = dict(state.bytes_of), state.take_keys(len(program.names))
        run, made = self._workspaces(program, part, events_of(program, part, events, base, state))
        run, laid = positions.laid(program, run, kept, state)
        run, windowed = windows.apart(program, run, sizes, state)
        run, measured = tuned.laid(self.job.arch, program, part, run, state)
        peak_event = self._run_around(part, program, run, before)
        if peak_event is not None:
            if peak_event in measured:  # the moment of the layer that waits for it
                before[tuned.GROUP], peak_event = tuned.BUFFER_BYTES, peak_event - 1
            before[positions.GROUP] = before.get(positions.GROUP, 0) + sum(size for at, size in laid if at <= peak_event)
            before["workspace"] = before.get("workspace", 0) + self.workspace_bytes * sum(at <= peak_event for at in made)
            self._peak_inside(program, part, sizes, before, run, peak_event)
        self._keep(program, part, sizes, base)
        unnamed = component_of(None, part.key)
        state.scopes[part.scope] += [(key, unnamed, 0) for key in windowed]  # their bytes are the whole tensor's
        if self.unquantised and part.key.startswith("load.transformer") and state.named.get("transformer"):
            self._leave_unquantised()

    def _run(self, program: Program, run: PartRun, start: int, end: int) -> int | None:
        """The events from one to before another on the allocator, copies of offloaded layers on their own stream. What is left in slots is
        older by the part's copies behind its last event."""
        allocator, held, stretch = self.state.allocator, self.state.named, slice(start, end)
        if run.streams is None:
            return allocator.run(run.keys[stretch], run.events[stretch])
        peak_event = allocator.run_streams(run.keys[stretch], run.events[stretch], run.streams[stretch])
        for group in GROUPS if end == len(run.keys) else ():
            held[group] = {new: held[group][old] for old, new in aged(held.get(group, {}), program.copies).items()}
        return peak_event

    def _run_around(self, part: op.Part, program: Program, run: PartRun, before: dict[str, int]) -> int | None:
        """`_run`, with what happens inside the part in its places. `before` gets what that leaves on the card."""
        keys = run.keys
        if not (any(part.inside) or part.between):
            return self._run(program, run, 0, len(keys))
        groups = ((), part.between) if part.between else part.inside
        places = (0, second_step(program.labels, program.moments)) if part.between else program.forward
        cuts = [int(np.flatnonzero(keys == run.base + k)[0]) for k in places]
        seen, best, start = dict(self.state.bytes_of), None, 0
        for end, operations in zip((*cuts, len(keys)), (*groups, ()), strict=True):
            if end > start:
                event = self._run(program, run, start, end)
                best = best if event is None else start + event
            list(map(self._one, operations))
            start = end
        before |= {name: before.get(name, 0) + size - seen.get(name, 0) for name, size in self.state.bytes_of.items()}
        return best

    def _leave_unquantised(self) -> None:
        """The transformer's first linears were loaded as if quantised: they become what they are. The transient of it is not recorded."""
        state, weights = self.state, self.job.model.kind
        group = state.named["transformer"]
        quantised = [name for name in group if place_of(name) < self.unquantised * PLACES_OF_LINEAR[weights]]
        sizes = self.profile.resident("transformer", "bf16")[: self.unquantised * TENSORS_OF_LINEAR["bf16"]]
        gone = [group.pop(name) for name in quantised]
        state.allocator.run([key for key, _ in gone], [FREE] * len(gone))
        first = state.take_keys(len(sizes))
        group |= {f"transformer:unquantised{n}": (first + n, rounded(size)) for n, size in enumerate(sizes)}
        state.allocator.run(list(range(first, first + len(sizes))), sizes)
        state.count("transformer", sum(map(rounded, sizes)) - sum(size for _, size in gone))
        self._note_peak()

    def _keep(self, program: Program, part: op.Part, sizes: Ints, base: int) -> None:
        """Enter what outlives a part: by name, or into its scope."""
        state, scope = self.state, self.state.scopes.setdefault(part.scope, [])
        latents, unnamed = program.latents if part.holds else None, component_of(None, part.key)
        for group, tensors, names in program.kept:
            blocks, component = (-(-sizes[tensors] // UNIT_BYTES) * UNIT_BYTES).tolist(), shown(group) if group else unnamed
            held = zip((tensors + base).tolist(), blocks, strict=True)
            if not group:
                for key, size in held:
                    apart = latents is not None and key == base + latents
                    (state.scopes.setdefault(part.holds, []) if apart else scope).append((key, component, size))
                state.count(component, sum(blocks))
                continue
            named = state.named.setdefault(group, {})
            if named.keys().isdisjoint(names):
                named.update(zip(names, held, strict=True))
                state.count(component, sum(blocks))
                continue
            for name, (key, size) in zip(names, held, strict=True):
                if name not in named:
                    named[name] = key, size
                elif adds(part.accumulate, group):
                    continue
                else:
                    scope.append((key, component, size))
                state.count(component, size)

    def _workspaces(self, program: Program, part: op.Part, run: PartRun) -> tuple[PartRun, list[int]]:
        """cuBLAS's workspace of a thread is made once, by its first matrix product, and stays. Returns the events that make one.

        Where no recording says where the first product is, before the part. Autograd's is after the product's result: in the middle of
        the first step, when the card is full.
        """
        places = dict[str, int]()
        if first_in(part.key, program.workspace_at) and not self.state.holds("workspace:forward"):
            at = program.workspace_at.get("forward")
            places["forward"] = at if at is not None else first_forward_product(program, part.key)
        if part.key.startswith("step.core") and not self.state.holds("workspace:backward"):
            places["backward"] = first_product(program, run.keys - run.base, run.events) + 1
        made: list[int] = []
        for thread, product in places.items():
            name, at = f"workspace:{thread}", product + len(made)
            if not self.state.holds(name):
                key = self.state.take_keys(1)
                self.state.named.setdefault("workspace", {})[name] = key, self.workspace_bytes
                self.state.count("workspace", self.workspace_bytes)
                run = run.inserting(at, key, self.workspace_bytes)
                made.append(at)
        return run, made

    def _peak_inside(self, program: Program, part: op.Part, sizes: Ints, before: dict[str, int], run: PartRun, at: int) -> None:
        """Ledger and moment of a peak that lies inside a program."""
        allocated = self.state.allocator.peak_allocated_bytes
        if allocated <= self._best[0]:
            return
        moment = program.moments[program.labels[int(run.keys[at]) - run.base]]
        self._best = allocated, moment, ledger_at(program, part.key, sizes, before, run, at)
