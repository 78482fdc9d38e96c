"""A grid of settings through the peak rows: the peak of each cell and what it means for a card, up to a million cells.

Jobs that differ only in sizes go through the same operations; each axis is read value by value, its values sorted by the operations
that they lead to, and each combination of such sorts is one run over arrays (estimator.rows_grid). The last cell of each run is checked
against the job itself; where an operation would depend on two axes at once, its cells are estimated one by one instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from estimator.errors import CannotTell
from estimator.features import Ints
from estimator.gpus import Gpu
from estimator.intervals import residual_for
from estimator.job import Job
from estimator.kernels import lacks_triton, on_card, without_flash
from estimator.outside import outside
from estimator.planner.axes import Axis, edits_of
from estimator.planner.edits import merged
from estimator.planner.subject import Subject
from estimator.residents import workspace_of
from estimator.residual import Residual, ends
from estimator.rows import bound
from estimator.rows_grid import OF_DECODER, OF_VAE, GridRows, Operations, PhaseGrid, operations_of

UNCONFIRMED, BORDERLINE, OOM, UNKNOWN = 0, 1, 2, 3
VERDICTS = ("unconfirmed", "borderline", "oom", "unknown", "safe")
"""By peak rows, a lower bound: "oom" is certain, "borderline" at best that; what is "unconfirmed" only a replay can call "safe"."""
PHASES = ("load", "prepare", "cache_latents", "cache_text", "sample", "train", "save", "")


@dataclass(frozen=True, slots=True)
class Sweep:
    """Arrays with an axis of the grid each: peak of allocated bytes (-1: cannot be told), place in PHASES, place in VERDICTS."""

    axes: tuple[Axis, ...]
    peak_bytes: Ints
    phase: npt.NDArray[np.int8]
    verdict: npt.NDArray[np.int8]


def sweep(subject: Subject, gpu: Gpu, axes: Sequence[Axis]) -> Sweep:
    """Every cell. What cannot be read or is not modelled has the verdict "unknown"."""
    shape = tuple(len(axis.values) for axis in axes)
    made = Sweep(tuple(axes), np.full(shape, -1, np.int64), np.full(shape, len(PHASES) - 1, np.int8), np.full(shape, UNKNOWN, np.int8))
    base = subject.read(())
    if base is not None and lacks_triton(base, gpu):
        return made
    cells = _Cells(subject, axes, gpu)
    for groups in cells.runs():
        where = np.ix_(*groups)
        phases = _one_run(cells, groups, gpu)
        if phases is None:
            for cell in itertools.product(*groups):
                job = cells.job(cell)
                _store(made, tuple(np.array([n]) for n in cell), _single(job, gpu), gpu, residual_for(gpu, job))
        elif phases:
            _store(made, where, phases, gpu, residual_for(gpu, cells.job(tuple(group[0] for group in groups))))
    return made


class _Cells:
    """The jobs of a grid on a card, read when they are needed."""

    def __init__(self, subject: Subject, axes: Sequence[Axis], gpu: Gpu) -> None:
        self.subject, self.axes, self.gpu = subject, axes, gpu
        self.edits = [[edits_of(subject, axis.name, value) for value in axis.values] for axis in axes]
        self._operations: dict[tuple[int, ...], Operations | None] = {}

    def job(self, cell: Sequence[int]) -> Job | None:
        job = self.subject.read(merged(edit for axis, n in zip(self.edits, cell, strict=True) for edit in axis[n]))
        return None if job is None else on_card(job, self.gpu)

    def operations(self, cell: tuple[int, ...]) -> Operations | None:
        if cell not in self._operations:
            job = self.job(cell)
            try:
                self._operations[cell] = None if job is None else operations_of(job)
            except CannotTell:
                self._operations[cell] = None
        return self._operations[cell]

    def runs(self) -> list[tuple[tuple[int, ...], ...]]:
        """Combinations of groups of values: along each axis, the values that lead to the same operations at the first of the others."""
        sorts = []
        for at, axis in enumerate(self.axes):
            groups: dict[Any, list[int]] = {}
            for n in range(len(axis.values)):
                cell = tuple(n if other == at else 0 for other in range(len(self.axes)))
                operations = self.operations(cell)
                groups.setdefault(None if operations is None else operations.words, []).append(n)
            sorts.append([tuple(group) for group in groups.values()])
        return list(itertools.product(*sorts))


def _one_run(cells: _Cells, groups: tuple[tuple[int, ...], ...], gpu: Gpu) -> list[PhaseGrid] | None:
    """The phases of a run over arrays; empty where nothing can be told; None where its cells must be taken one by one."""
    first = tuple(group[0] for group in groups)
    base, job = cells.operations(first), cells.job(first)
    if base is None or job is None:
        return None if any(len(group) > 1 for group in groups) else []
    values: list[dict[str, Ints]] = [{name: np.asarray(v, dtype=np.int64) for name, v in each.items()} for each in base.values]
    kept: dict[Any, Ints] = {}  # equal arrays are one object, so that a part's figures are computed once
    for at, group in enumerate(groups):
        along = [cells.operations((*first[:at], n, *first[at + 1 :])) for n in group]
        if any(each is None or each.words != base.words for each in along):
            return None
        for k, each in enumerate(base.values):
            for name in each:
                numbers = tuple(other.values[k][name] for other in along if other is not None)
                if any(number != numbers[0] for number in numbers):
                    shape = tuple(len(group) if axis == at else 1 for axis in range(len(groups)))
                    varied = np.array(numbers, dtype=np.int64).reshape(shape)
                    if values[k][name].ndim:
                        varied, unit = values[k][name] * varied, max(numbers[0], 1)
                        if np.any(varied % unit):
                            return None
                        varied = varied // unit
                    values[k][name] = kept.setdefault((varied.shape, *varied.ravel().tolist()), varied)
    if not _products(cells, groups, values):
        return None
    for made in values:
        for name, value in made.items():
            if value.ndim == 0:
                made[name] = kept.setdefault(int(value), value)
    try:
        phases = GridRows(job, workspace_of(gpu)).run(base.words, values)
    except CannotTell:
        return []
    return phases if _agrees(cells, groups, phases, gpu) else None


def _products(cells: _Cells, groups: tuple[tuple[int, ...], ...], values: Sequence[Mapping[str, Ints]]) -> bool:
    """Whether what varies along several axes does so by their product, as the pixels of a batch of pictures do.

    Held against the job in the last cell of each two axes.
    """
    first = [group[0] for group in groups]
    for one, other in itertools.combinations(range(len(groups)), 2):
        shared = [(k, name) for k, each in enumerate(values) for name, value in each.items() if _along(value, one) and _along(value, other)]
        if not shared:
            continue
        cell = cells.operations(tuple(groups[axis][-1] if axis in (one, other) else first[axis] for axis in range(len(groups))))
        at = tuple(-1 if axis in (one, other) else 0 for axis in range(len(groups)))
        if cell is None or any(int(values[k][name][at]) != cell.values[k][name] for k, name in shared):
            return False
    return True


def _along(value: Ints, axis: int) -> bool:
    return value.ndim > 0 and value.shape[axis] > 1


def _agrees(cells: _Cells, groups: tuple[tuple[int, ...], ...], phases: Sequence[PhaseGrid], gpu: Gpu) -> bool:
    """Whether the last cell of a run is what its job's own peak rows say."""
    job = cells.job([group[-1] for group in groups])
    if job is None:
        return False
    try:
        own = bound(job, workspace_bytes=workspace_of(gpu))
    except CannotTell:
        return False
    return max(p.allocated_bytes for p in own.phases) == max(int(np.ravel(p.allocated_bytes)[-1]) for p in phases)


def _single(job: Job | None, gpu: Gpu) -> list[PhaseGrid]:
    if job is None:
        return []
    operations = operations_of(job)
    values: list[Mapping[str, Ints]] = [{name: np.asarray(v, dtype=np.int64) for name, v in each.items()} for each in operations.values]
    try:
        return GridRows(job, workspace_of(gpu)).run(operations.words, values)
    except CannotTell:
        return []


def _store(made: Sweep, where: Any, phases: Sequence[PhaseGrid], gpu: Gpu, residual: Residual) -> None:
    if not phases:
        return
    shape = made.peak_bytes[where].shape
    best: Any = np.zeros((1,) * len(shape), dtype=np.int64)
    highest, more, least = best, best, best
    phase: Any = np.zeros((1,) * len(shape), dtype=np.int8)
    for each in phases:
        phase = np.where(each.allocated_bytes > best, np.int8(PHASES.index(each.phase)), phase)
        best = np.maximum(best, each.allocated_bytes)
        images = (each.convolutions == OF_VAE) * _uses_vae(each.phase) + (each.convolutions == OF_DECODER) * each.images
        workspace = residual.cudnn_bytes_per_pixel.high_bytes * each.pixels * images  # as estimator.outside has it
        highest = np.maximum(highest, each.allocated_bytes + workspace)
        low, _, high = ends(each.allocated_bytes, residual.spread("allocated", each.phase))
        more = np.maximum(more, np.rint(high).astype(np.int64) - each.allocated_bytes)
        least = np.maximum(least, np.rint(np.maximum(low, 0)).astype(np.int64))
    other = outside(gpu)
    unsure = (highest > gpu.total_bytes - other.high_bytes - more) | without_flash(gpu)
    verdict = np.where(least > gpu.total_bytes - other.low_bytes, OOM, np.where(unsure, BORDERLINE, UNCONFIRMED))
    made.peak_bytes[where], made.phase[where] = np.broadcast_to(best, shape), np.broadcast_to(phase, shape)
    made.verdict[where] = np.broadcast_to(verdict, shape).astype(np.int8)


def _uses_vae(phase: str) -> bool:
    return phase in ("cache_latents", "sample")
