"""Peak rows over many workloads at once: the same answer as `Program.peak`, for arrays of variables. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from estimator.features import Ints, feature
from estimator.footprint import Footprint
from estimator.program import ALLOCATE, Program

CHUNK = 16_384  # workloads at a time: some twenty arrays of this length stay in a processor's cache
NO_ROW = -1


def grid(program: Program | Footprint, values: Mapping[str, Ints]) -> tuple[Ints, Ints]:
    """(bytes, row) of the highest peak row for each workload; `program.peaks[row].moment` is where it lies.

    `values`: integer arrays that broadcast against each other, one for each variable (see estimator.features); the answers
    have their common shape. A part that allocates nothing gives 0 bytes and the row NO_ROW. Raises KeyError for a variable
    that the program needs and that is not there, ValueError for a program without peak rows (an optimizer's).
    """
    if not program.peaks and isinstance(program, Program) and (program.events == ALLOCATE).any():
        raise ValueError(f"{program.key} has no peak rows: ask Program.peak")
    shape = np.broadcast_shapes(*(np.shape(v) for v in values.values()))
    flat = {name: np.broadcast_to(np.asarray(v, dtype=np.int64), shape).reshape(-1) for name, v in values.items()}
    count = int(np.prod(shape, dtype=np.int64))
    best, row = np.zeros(count, dtype=np.int64), np.full(count, NO_ROW, dtype=np.int64)
    for start in range(0, count if program.peaks else 0, CHUNK):
        part = slice(start, start + CHUNK)
        best[part], row[part] = _highest(program, {name: v[part] for name, v in flat.items()})
    return best.reshape(shape), row.reshape(shape)


def _highest(program: Program | Footprint, values: Mapping[str, Ints]) -> tuple[Ints, Ints]:
    length = len(next(iter(values.values()))) if values else 1
    columns = {f: feature(f, values) for k, f in enumerate(program.features) if any(p.coefficients[k] for p in program.peaks)}
    totals = np.zeros((len(program.peaks), length), dtype=np.int64)
    for total, peak in zip(totals, program.peaks, strict=True):
        for coefficient, name in zip(peak.coefficients, program.features, strict=True):
            if coefficient:
                total += coefficient * columns[name]
    row = totals.argmax(axis=0)
    return totals.max(axis=0), row
