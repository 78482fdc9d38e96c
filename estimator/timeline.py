"""A Job's timeline replayed: one allocator state from loading to the last preview, peaks and ledger of each phase.

`simulate` runs the operations of `estimator.phases` through `estimator.allocator`. Under a capacity it goes as far as the
real allocator would, and says which phase ran out of memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from estimator import phases as ph
from estimator.allocator import EMPTY_CACHE, FREE, Allocator, OutOfMemory
from estimator.estimate import Variant
from estimator.job import Job
from estimator.programs import ALLOCATE, Ints, Profile, Program, load_profile

UNIT_BYTES = 512  # the allocator's rounding (kMinBlockSize)
MIB = 2**20
# torch's cuBLAS workspace, one for each thread that multiplies: 8.125 MiB below compute capability 9.0, 32 MiB from there on
# (aten/src/ATen/cuda/CUDABlas/CublasHandlePool: getChosenWorkspaceSize; read off the real allocator on the emulated device)
WORKSPACE_BYTES, WORKSPACE_BYTES_90 = 8_519_680, 32 * MIB
COMPUTE = ("text", "preview", "cache_latents.item", "step.head/encoded", "step.core")  # parts that multiply matrices
ROUNDING = "allocator rounding"
SHOWN = {"text_encoder0": "text_encoder", "text_encoder1": "text_encoder", "ema_copy": "ema", "gradient": "gradients", "assistant": "training_adapter"}


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """A phase's peaks in bytes, with room to spare or under the capacity that was given. `components` sums to `allocated_bytes`."""

    phase: str
    detail: str
    variant: Variant
    allocated_bytes: int
    reserved_bytes: int
    moment: str
    components: Mapping[str, int]
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Simulation:
    """`failed`: index of the phase that ran out of memory; None if none did. `retries`: releases of all cached blocks."""

    phases: tuple[PhasePeak, ...]
    failed: int | None
    retries: int


@dataclass
class _State:
    """What is on the card, by name. Tensors of components and named exports: name -> allocator key; the rest by scope."""

    allocator: Allocator
    named: dict[str, int] = field(default_factory=dict)
    scopes: dict[str, list[tuple[int, str, int]]] = field(default_factory=dict)
    bytes_of: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    next_key: int = 0

    def copy(self) -> _State:
        scopes = {scope: list(rows) for scope, rows in self.scopes.items()}
        return _State(self.allocator.copy(), dict(self.named), scopes, dict(self.bytes_of), dict(self.sizes), self.next_key)

    def count(self, component: str, size_bytes: int) -> None:
        self.bytes_of[component] = self.bytes_of.get(component, 0) + size_bytes


def _rounded(size: int) -> int:
    return -(-size // UNIT_BYTES) * UNIT_BYTES


def _shown(component: str) -> str:
    return SHOWN.get(component, component)


def component_of(name: str | None, key: str, label: str) -> str:
    """The ledger's component of a tensor: its own if named; the adapter's buffers; activations otherwise."""
    if name is not None:
        return _shown(name.split(":")[0])
    return "adapter" if key.startswith("setup.network") else "activations"


class Replay:
    """Executes operations on an allocator."""

    def __init__(self, profile: Profile, job: Job, capacity_bytes: int | None, workspace_bytes: int = WORKSPACE_BYTES) -> None:
        self.profile, self.job = profile, job
        self.state = _State(Allocator(capacity_bytes, expandable_segments=job.expandable_segments))
        self.workspace_bytes = workspace_bytes
        self.peaks: list[PhasePeak] = []
        self._begin: ph.Begin | None = None
        self._best: tuple[int, str, dict[str, int]] = (0, "", {})

    def run(self, operations: Iterable[ph.Operation]) -> bool:
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
        return other

    def _one(self, operation: ph.Operation) -> None:
        state = self.state
        if isinstance(operation, ph.Begin):
            state.allocator.reset_peaks()
            self._begin = operation
            self._best = (state.allocator.allocated_bytes, "at the start", dict(state.bytes_of))
        elif isinstance(operation, ph.End):
            self._close(failed=False)
        elif isinstance(operation, ph.Part):
            self._part(operation)
        elif isinstance(operation, ph.MoveIn):
            self._move_in(operation.component)
        elif isinstance(operation, ph.MoveOut):
            self._move_out(operation.component)
        elif isinstance(operation, ph.Release):
            self._release(operation.scope)
        else:
            state.allocator.empty_cache()

    def _close(self, failed: bool) -> None:
        if self._begin is None:
            return
        allocator, begin = self.state.allocator, self._begin
        allocated, moment, ledger = self._best
        shown = {name: size for name, size in ledger.items() if size}
        shown[ROUNDING] = allocated - sum(shown.values())
        if not shown[ROUNDING]:
            del shown[ROUNDING]
        peak = PhasePeak(begin.phase, begin.detail, begin.variant, allocated, allocator.peak_reserved_bytes, moment, shown, failed)
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
            self.state.named[name], self.state.sizes[name] = key, _rounded(size)
        self._events(list(keys), sizes, f"{component}.to(device)")
        self.state.count(_shown(component), sum(map(_rounded, sizes)))
        self._note_peak()

    def _move_out(self, component: str) -> None:
        prefix = f"{component}:"
        names = [name for name in self.state.named if name.startswith(prefix)]
        keys = [self.state.named.pop(name) for name in names]
        self.state.allocator.run(keys, [FREE] * len(keys))
        self.state.count(_shown(component), -sum(self.state.sizes.pop(name) for name in names))

    def _release(self, scope: str) -> None:
        rows = self.state.scopes.pop(scope, [])
        self.state.allocator.run([key for key, _, _ in rows], [FREE] * len(rows))
        for _, component, size in rows:
            self.state.count(component, -size)

    def _events(self, keys: list[int], sizes: list[int], moment: str) -> int | None:
        return self.state.allocator.run(keys, sizes)

    def _note_peak(self) -> None:
        allocated = self.state.allocator.allocated_bytes
        if allocated > self._best[0]:
            self._best = (allocated, "moving to the device", dict(self.state.bytes_of))

    # ---- programs

    def _part(self, part: ph.Part) -> None:
        program = self.profile.program(part.key)
        state, sizes = self.state, program.sizes(part.values)
        self._workspaces(program, part)
        tensors = program.tensor_of_event
        base, own = state.next_key, len(program.names) - program.imports
        state.next_key += len(program.names)
        keys = tensors + base
        event_sizes = np.where(program.events == ALLOCATE, sizes[tensors], FREE)
        event_sizes = np.where(tensors < 0, EMPTY_CACHE, event_sizes)
        drop: set[int] = set()
        for k in range(own, len(program.names)):  # imports: whatever of this name is on the card
            name = program.names[k]
            assert name is not None
            if name in state.named:
                keys[tensors == k] = state.named.pop(name)
                state.count(component_of(name, part.key, ""), -state.sizes.pop(name))
            else:
                drop.add(k)
        exported = [k for k in program.exported]
        doubled = {k for k in exported if program.names[k] in state.named} if part.accumulate else set()
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
        for k in exported:
            if k not in doubled:
                self._keep(program, part, k, base + k, int(sizes[k]))

    def _keep(self, program: Program, part: ph.Part, k: int, key: int, size: int) -> None:
        name, rounded = program.names[k], _rounded(size)
        component = component_of(name, part.key, "")
        self.state.count(component, rounded)
        if name is not None and name not in self.state.named:
            self.state.named[name], self.state.sizes[name] = key, rounded
        else:
            self.state.scopes.setdefault(part.scope, []).append((key, component, rounded))

    def _workspaces(self, program: Program, part: ph.Part) -> None:
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
        self, program: Program, part: ph.Part, sizes: Ints, before: dict[str, int], keys: Ints, events: Ints, at: int, base: int
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
            component = component_of(program.names[k], part.key, "")
            ledger[component] = ledger.get(component, 0) + _rounded(int(sizes[k]))
        moment = self.profile.labels[program.labels[int(seen[at])]]
        self._best = (allocated, moment, ledger)


def _freed_at_once(keys: Ints, sizes: Ints, doubled: set[int]) -> tuple[Ints, Ints]:
    """Gradients that are added to existing ones: freed right after they were made."""
    where = np.flatnonzero(np.isin(keys, list(doubled)) & (sizes >= 0))
    return np.insert(keys, where + 1, keys[where]), np.insert(sizes, where + 1, FREE)


def text_encoders_of(profile: Profile) -> int:
    return sum(profile.has_resident(name) for name in ph.TEXT_ENCODERS)


def workspace_bytes_for(compute_capability: str) -> int:
    return WORKSPACE_BYTES_90 if int(compute_capability.split(".")[0]) in (9, 10) else WORKSPACE_BYTES


def simulate(
    job: Job, order: Sequence[ph.Step] | None = None, capacity_bytes: int | None = None, *, workspace_bytes: int = WORKSPACE_BYTES
) -> Simulation:
    """Replay a job. `order`: the training steps as they come (None: each bucket, ascending and descending, the worse one kept).

    `capacity_bytes`: what the allocator may reserve (None: unbounded). Raises CannotTell for a combination that was never recorded.
    """
    profile = load_profile(job.arch)
    plan = ph.Plan(job, text_encoders_of(profile))
    replay = Replay(profile, job, capacity_bytes, workspace_bytes)
    if not replay.run(ph.before_steps(plan)):
        return _finished(replay.peaks, replay)
    if order is not None:
        if replay.run(ph.steps(plan, order)):
            replay.run(ph.after_steps(plan))
        return _finished(replay.peaks, replay)
    up = ph.steps_of(job, plan.tokens(None))
    branches = []
    for candidate in [up, up[::-1]] if len(up) > 1 else [up]:
        branch = replay.fork()
        done = branch.run(ph.steps(plan, candidate))
        branches.append((done, max(p.reserved_bytes for p in branch.peaks), branch))
    _, _, worst = min(branches, key=lambda row: (row[0], -row[1]))
    train = _by_variant([p for _, _, branch in branches for p in branch.peaks])
    worst.peaks = []
    if all(done for done, _, _ in branches):
        worst.run(ph.after_steps(plan))
    return _finished([*replay.peaks, *train, *worst.peaks], worst)


def _by_variant(peaks: list[PhasePeak]) -> list[PhasePeak]:
    """One row for each bucket: the highest of what it had in any order."""
    best: dict[Variant, PhasePeak] = {}
    for peak in peaks:
        known = best.get(peak.variant)
        if known is None:
            best[peak.variant] = peak
            continue
        higher = peak if (peak.failed, peak.allocated_bytes) > (known.failed, known.allocated_bytes) else known
        best[peak.variant] = replace(higher, reserved_bytes=max(peak.reserved_bytes, known.reserved_bytes))
    return list(best.values())


def _finished(peaks: list[PhasePeak], replay: Replay) -> Simulation:
    failed = next((i for i, p in enumerate(peaks) if p.failed), None)
    return Simulation(tuple(peaks), failed, replay.state.allocator.retries)
