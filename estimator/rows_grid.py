"""Peak rows of many jobs at once: jobs that go through the same operations with other sizes, along the axes of a grid.

The answer for each cell is that of `estimator.rows.bound`. An operation's variables depend on one axis each (the batch on the batch axis,
tokens on the resolution), so arrays are as large as what they depend on, and only the last maximum has the whole grid's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from estimator import operations as op
from estimator import plans
from estimator.allocator_state import UNIT_BYTES
from estimator.archs import load_archs
from estimator.arrays import distinct
from estimator.batches import steps_of
from estimator.features import Ints, feature
from estimator.footprint import Footprint, sum_of
from estimator.grid import NO_ROW, grid
from estimator.job import Job
from estimator.job_profile import profile_of
from estimator.offload import GROUPS
from estimator.optimizers import OptimizerProgram
from estimator.program import EventProgram, Program
from estimator.residents import DECODER_MOMENTS, VAE_MOMENTS, adds, counted_as, unquantised_linears
from estimator.rows import recast_bytes, resident_bytes, rounded_sum, workspace_threads

PIXELS, IMAGES = "pixels", "images"
NO_CONVOLUTION, OF_VAE, OF_DECODER = range(3)  # whose convolutions a row is made in: nobody's, the VAE's, the transformer's own
NONE: Ints = np.zeros((), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Operations:
    """What a job does, without sizes (`words`), and the sizes: for each operation that has some, its variables."""

    words: tuple[Any, ...]
    values: tuple[Mapping[str, int], ...]


@dataclass(frozen=True, slots=True)
class PhaseGrid:
    """A phase's highest allocated bytes in each cell; `convolutions`: whose are the peak; `pixels` of the phase's size, `images` of its
    batch."""

    phase: str
    allocated_bytes: Ints
    convolutions: Ints
    pixels: Ints
    images: Ints


def operations_of(job: Job) -> Operations:
    """The operations of a job, as `bound` runs them. Raises CannotTell for an architecture without programs."""
    plan = plans.plan_of(job, profile_of(job.arch, job.model, job.network))
    up = steps_of(job, plan.tokens(None))
    words: list[Any] = []
    values: list[Mapping[str, int]] = []
    for each in op.flat(_all(plan, (*plans.warm_up(plan, up), *up))):
        if isinstance(each, op.Part):
            words.append((each.key, each.scope, each.accumulate, tuple(each.values)))
            values.append(each.values)
        elif isinstance(each, op.Begin):
            width, height = each.variant.width, each.variant.height
            words.append((op.Begin, each.phase))
            values.append({PIXELS: 0 if width is None or height is None else width * height, IMAGES: each.variant.batch or 1})
        else:
            words.append(each)
    return Operations(tuple(words), tuple(values))


def _all(plan: Any, order: Sequence[Any]) -> Iterator[op.Operation]:
    yield from plans.before_steps(plan)
    yield from plans.steps(plan, order)
    yield from plans.after_steps(plan)


@dataclass
class _Counts:
    total: Ints = field(default_factory=lambda: np.zeros((), dtype=np.int64))
    groups: dict[str, Ints] = field(default_factory=dict)
    scopes: dict[str, Ints] = field(default_factory=dict)

    def change(self, group: str, size: Ints) -> None:
        self.groups[group] = self.groups.get(group, np.zeros((), dtype=np.int64)) + size
        self.total = self.total + size

    def held(self, group: str) -> bool:
        return bool(np.any(self.groups.get(group, 0)))


class GridRows:
    """Runs the operations of `job`, one of the grid's, with arrays in place of its sizes."""

    def __init__(self, job: Job, workspace_bytes: int) -> None:
        self.profile, self.job, self.workspace_bytes = profile_of(job.arch, job.model, job.network), job, workspace_bytes
        self.unquantised = unquantised_linears(job.model, load_archs().archs[job.arch].embedder_linears)
        self.counts = _Counts()
        self.phases: list[PhaseGrid] = []
        self._figures: dict[Any, tuple[Ints, Ints, dict[str, Ints], dict[str, Ints]]] = {}
        self._begin: tuple[str, Ints, Ints] = ("", NONE, NONE)
        self._best: Ints = NONE
        self._convolutions: Ints = NONE

    def run(self, words: Sequence[Any], values: Sequence[Mapping[str, Ints]]) -> list[PhaseGrid]:
        """Raises CannotTell for a part that was never recorded."""
        sizes = iter(values)
        for word in words:
            if isinstance(word, op.End):
                phase, pixels, images = self._begin
                self.phases.append(PhaseGrid(phase, self._best, self._convolutions, pixels, images))
            elif isinstance(word, op.MoveIn):
                self._move_in(word.component)
            elif isinstance(word, op.MoveOut):
                self.counts.change(word.component, -self.counts.groups.get(word.component, np.zeros((), dtype=np.int64)))
            elif isinstance(word, op.Recast):
                now = recast_bytes(self.profile, word.component, word.times)
                self.counts.change(word.component, now - self.counts.groups.get(word.component, NONE))
                self._see(NONE, NONE)
            elif isinstance(word, op.Release):
                self.counts.total = self.counts.total - self.counts.scopes.pop(word.scope, np.zeros((), dtype=np.int64))
            elif isinstance(word, op.Copy):
                zero = np.zeros((), dtype=np.int64)
                held = self.counts.scopes.get(word.scope, zero)
                self.counts.scopes[word.into] = self.counts.scopes.get(word.into, zero) + held
                self.counts.total = self.counts.total + held
            elif isinstance(word, tuple):
                given = next(sizes)
                if word[0] is op.Begin:
                    self._begin = (word[1], given[PIXELS], given[IMAGES])
                    self._best, self._convolutions = self.counts.total, NONE
                else:
                    key, scope, accumulate = word[:3]
                    self._part(key, scope, accumulate, given)
        return self.phases

    def _see(self, extra: Ints, convolutions: Ints) -> None:
        total = self.counts.total + extra
        higher = total > self._best
        if np.any(convolutions) or np.any(self._convolutions):
            self._convolutions = np.where(higher, convolutions, self._convolutions)
        self._best = np.maximum(total, self._best)

    def _move_in(self, component: str) -> None:
        if self.counts.held(component):
            return
        weights = self.job.model.te_kind if component.startswith("text_encoder") else self.job.model.kind
        self.counts.change(component, self._resident(component, weights))
        self._see(NONE, NONE)

    def _resident(self, component: str, weights: str) -> Ints:
        return np.array(resident_bytes(self.profile, component, weights, self.unquantised if component == "transformer" else 0))

    def _part(self, key: str, scope: str, accumulate: bool, values: Mapping[str, Ints]) -> None:
        counts = self.counts
        peak, convolutions, stays, freed = self._figures_of(key, values)
        for thread in workspace_threads(self.profile, key):
            if not counts.held(f"workspace:{thread}"):
                counts.change(f"workspace:{thread}", np.array(self.workspace_bytes))
        if self.profile.outline(key).copies:
            for group in GROUPS:
                counts.change(group, -counts.groups.get(group, np.zeros((), dtype=np.int64)))
        there = sum(size for group, size in stays.items() if adds(accumulate, group) and counts.held(counted_as(group, key)))
        self._see(peak - there, convolutions)
        for group, size in freed.items():
            counts.change(group, -np.minimum(size, counts.groups.get(group, 0)))
        for group, size in stays.items():
            if not group:
                counts.scopes[scope] = counts.scopes.get(scope, np.zeros((), dtype=np.int64)) + size
                counts.total = counts.total + size
            elif not (adds(accumulate, group) and counts.held(counted_as(group, key))):
                counts.change(counted_as(group, key), size)
        if key.startswith("load.transformer") and self.unquantised and counts.held("transformer"):
            counts.change("transformer", self._resident("transformer", self.job.model.kind) - counts.groups["transformer"])

    def _figures_of(self, key: str, values: Mapping[str, Ints]) -> tuple[Ints, Ints, dict[str, Ints], dict[str, Ints]]:
        known = (key, tuple(id(value) for value in values.values()))
        if known not in self._figures:
            program = self.profile.outline(key)
            if isinstance(program, OptimizerProgram):
                self._figures[known] = _of_optimizer(program, values)
                return self._figures[known]
            program = program.with_rows if isinstance(program, EventProgram) else program
            needed = _needed(program, values)
            peak, row = grid(program, needed)
            whose = np.array([*(_convolutions(p.moment) for p in program.peaks), NO_CONVOLUTION])
            stays, freed = ({group: _bytes(rows, needed) for group, rows in side.items()} for side in program.rows)
            self._figures[known] = (peak, whose[np.where(row == NO_ROW, len(program.peaks), row)], stays, freed)
        return self._figures[known]


def _convolutions(moment: str) -> int:
    if moment.startswith(DECODER_MOMENTS):
        return OF_DECODER
    return OF_VAE if moment.startswith(VAE_MOMENTS) else NO_CONVOLUTION


def _of_optimizer(program: OptimizerProgram, values: Mapping[str, Ints]) -> tuple[Ints, Ints, dict[str, Ints], dict[str, Ints]]:
    """An optimizer's tensors depend on the rank alone, rank by rank; a core that a fused one is laid into has peak rows."""
    rank, core = np.asarray(values[program.variable]), program.core
    beside = {"c": int(np.asarray(values["c"]).flat[0])} if "c" in values else {}  # of convolutions: no axis of a grid
    needed = _needed(core, values) if core is not None else {}
    peak = grid(program, needed)[0] if core is not None else _by_rank(rank, lambda r: program.peak({program.variable: r, **beside})[0])
    sides = []
    for side in program.flows:
        out: dict[str, Ints] = {}
        for group, tensors in side.items():
            of_core = program.of_core[tensors]
            own = tensors[of_core < 0]

            def figure(r: int, own: Ints = own) -> int:
                return rounded_sum(program.own_sizes(own, program.size_in({program.variable: r, **beside})))

            out[group] = _by_rank(rank, figure)
            if core is not None:
                out[group] = out[group] + _bytes(core.rows_of(of_core[of_core >= 0]), needed)
        sides.append(out)
    return peak, NONE, sides[0], sides[1]


def _by_rank(rank: Ints, figure: Callable[[int], int]) -> Ints:
    ranks = distinct(rank.ravel())
    return np.array([figure(r) for r in ranks], dtype=np.int64)[np.searchsorted(ranks, rank)]


class _Asked(dict[str, int]):
    """Variables that remember which of them were asked for."""

    def __init__(self, values: Mapping[str, Ints]) -> None:
        super().__init__({name: int(np.asarray(value).flat[0]) for name, value in values.items()})
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> int:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def _needed(program: Program | Footprint, values: Mapping[str, Ints]) -> dict[str, Ints]:
    """The variables that a program's sizes depend on: arrays grow only along these."""
    asked = _Asked(values)
    for name in program.features:
        feature(name, asked)
    return {name: value for name, value in values.items() if name in asked.names}


def _bytes(rows: Sequence[tuple[int, Mapping[str, int]]], values: Mapping[str, Ints]) -> Ints:
    """The sum of the tensors' bytes, each rounded as the allocator does."""
    return np.asarray(sum_of(rows, values, UNIT_BYTES), dtype=np.int64)
