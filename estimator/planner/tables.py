"""A grid as a table: a row for each cell, the last axis fastest. CSV with numpy alone; Parquet through pandas, an extra."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from estimator.errors import InputError, Problem
from estimator.estimate import SAFE
from estimator.job import Place
from estimator.planner.axes import edits_of
from estimator.planner.edits import merged
from estimator.planner.judge import Judge
from estimator.planner.sweep import PHASES, UNCONFIRMED, VERDICTS, Sweep

MOST_CONFIRMED = 500
"""Cells that are replayed at most: one takes about half a second."""
ENDINGS = (".csv", ".parquet")
COLUMNS = ("peak_allocated_bytes", "phase", "verdict")
INSTALL = "pip install pandas pyarrow"


def confirmed(made: Sweep, judge: Judge) -> Sweep:
    """The grid with every unconfirmed cell replayed: "safe", "borderline", "oom" as check has it. Raises InputError for too many."""
    import numpy as np

    cells = np.argwhere(made.verdict == UNCONFIRMED).tolist()
    if len(cells) > MOST_CONFIRMED:
        what = f"--confirm: {len(cells):,} cells to replay"
        raise InputError(Problem(what, None, f"at most {MOST_CONFIRMED}, about half a second each", "take fewer values"))
    verdict = made.verdict.copy()
    for cell in cells:
        edits = merged(e for axis, n in zip(made.axes, cell, strict=True) for e in edits_of(judge.subject, axis.name, axis.values[n]))
        verdict[tuple(cell)] = VERDICTS.index(judge.estimate(edits).verdict)
    return replace(made, verdict=verdict)


def check_table(target: str | None) -> None:
    """Raises InputError, before any work, where the table could not be written."""
    if target is None:
        return
    place, folder = Place("--out", ""), os.path.dirname(target) or "."
    if not target.endswith(ENDINGS):
        raise InputError(Problem(f"{target}: must end in {' or '.join(ENDINGS)}", place, "it tells the kind of table", "rename it"))
    if not os.path.isdir(folder):
        raise InputError(Problem(f"{folder}: no such folder", place, "", "make it first, or write somewhere else"))
    if target.endswith(".parquet"):
        _pandas(target)


def _pandas(target: str) -> Any:
    import importlib

    try:
        importlib.import_module("pyarrow")
        return importlib.import_module("pandas")
    except ImportError as error:
        why = f"Parquet is written by pandas and pyarrow, and {error.name} is not installed"
        raise InputError(Problem(f"{target}: cannot be written", Place("--out", ""), why, f"{INSTALL}, or write a .csv")) from None


def csv_text(made: Sweep) -> str:
    """The table as CSV."""
    import numpy as np

    from estimator.planner.rowtext import rows_text

    columns = [[_csv((_plain(value),)) + "," for value in axis.values] for axis in made.axes]
    ends = [f",{phase},{verdict}\n" for phase in PHASES for verdict in VERDICTS]
    end_of = made.phase.ravel().astype(np.int64) * len(VERDICTS) + made.verdict.ravel()
    head = _csv([*(axis.name for axis in made.axes), *COLUMNS])
    return f"{head}\n{rows_text(columns, made.peak_bytes.ravel(), ends, end_of)}"


def _csv(cells: Iterable[object]) -> str:
    """One row, quoted where it must be."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(cells)
    return out.getvalue()


def _rows(made: Sweep) -> Iterator[tuple[object, ...]]:
    values = itertools.product(*([_plain(value) for value in axis.values] for axis in made.axes))
    peaks = [size if size >= 0 else "" for size in made.peak_bytes.ravel().tolist()]
    phases = map(PHASES.__getitem__, made.phase.ravel().tolist())
    verdicts = map(VERDICTS.__getitem__, made.verdict.ravel().tolist())
    for cell, peak, phase, verdict in zip(values, peaks, phases, verdicts, strict=True):
        yield (*cell, peak, phase, verdict)


def _plain(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def write_table(made: Sweep, target: str) -> None:
    """Write the table as its ending says. Raises InputError where it cannot be written."""
    try:
        if target.endswith(".csv"):
            with open(target, "w", encoding="utf-8", newline="") as file:
                file.write(csv_text(made))
        else:
            names = [*(axis.name for axis in made.axes), *COLUMNS]
            rows = zip(*_rows(made), strict=True)
            columns = {name: [None if value == "" else value for value in column] for name, column in zip(names, rows, strict=True)}
            _pandas(target).DataFrame(columns).to_parquet(target, index=False)
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(Problem(f"{target}: cannot be written", Place("--out", ""), why, "check the path and its permissions")) from None


def safe_or_unconfirmed(made: Sweep) -> int:
    """Cells that are safe or not ruled out."""
    return int(((made.verdict == UNCONFIRMED) | (made.verdict == VERDICTS.index(SAFE))).sum())
