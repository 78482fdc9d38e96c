"""Runs a calibration: starts the worker, goes through the cells that are not there yet, keeps each as a row, and writes the overlay.

Needs no torch itself; the worker's python does, which may be another one (the trainer's).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calibration.oncard import cells
from calibration.oncard.reduced import predicted, segments_of
from calibration.oncard.rows import CELL, DONE, HEADER, NOT_MEASURED, Rows, measured
from calibration.oncard.summary import overlay_of
from estimator.errors import CannotTell, InputError, Problem
from estimator.overlay import Overlay
from estimator.overlay_file import write_overlay

WORKER = Path(__file__).with_name("worker.py")
PREDICTED_PARTS = (cells.STEP, *cells.OF_IMAGES)
INSTALL = "install the trainer's own torch, diffusers and transformers, or name the python that has them with --python"
MOST_WORDS = 200
Progress = Callable[[int, int, str], None]
"""(cells done, cells in all, the next one)."""


class Worker:
    """The process that has the card. One that died is started again with the next request, and so is one of another architecture."""

    def __init__(self, python: str) -> None:
        self.python, self.process = python, None  # type: str, subprocess.Popen[str] | None
        self.arch = ""
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the worker

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer; {"outcome": "died", ...} where the process ended instead."""
        if self.process is not None and request.get("arch", self.arch) != self.arch:
            self.process.kill()
            self.process.wait()
            self._close()
        self.arch = request.get("arch", self.arch)
        if self.process is None:
            self._start()
            if request["do"] != "hello":
                self.ask({"do": "hello"})
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        if answer:
            found: dict[str, Any] = json.loads(answer)
            return found
        status = self.process.wait()
        self._close()
        return {"outcome": "died", "error": f"the process ended with status {status}{self._last_words()}", "seconds": 0.0}

    def _last_words(self) -> str:
        """The last line that it wrote to stderr: a Python error, or a driver's."""
        self.said.seek(max(0, self.said.seek(0, os.SEEK_END) - MOST_WORDS))
        lines = self.said.read().decode("utf-8", "replace").split("\n")
        words = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ": " + "".join(char if char.isprintable() else "?" for char in words[:MOST_WORDS]) if words else ""

    def _start(self) -> None:
        environment = {**os.environ, "TORCH_DISABLE_NATIVE_JIT": "1", "HF_HUB_OFFLINE": "1"}
        try:
            self.process = subprocess.Popen(
                [self.python, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True,
                env=environment,
            )  # fmt: skip
        except OSError as error:
            raise InputError(Problem(f"--python {self.python}: cannot be started", None, error.strerror or "", INSTALL)) from None

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self._close()
        self.said.close()

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout) if self.process is not None else ():
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it never read
                    pipe.close()
        self.process = None


@dataclass
class Outcome:
    """`overlay`: None where the time was over before the last cell, or none went through. `unwritten`: why rows are not on the disk."""

    overlay: Overlay | None
    path: Path
    rows: Sequence[Mapping[str, Any]]
    left: Sequence[cells.Cell] = ()
    unwritten: str = ""
    notes: list[str] = field(default_factory=list)


def hello(worker: Worker) -> dict[str, Any]:
    """What the card and the software are. Raises InputError where something is missing."""
    found = worker.ask({"do": "hello"})
    if "missing" in found:
        raise InputError(Problem(f"not installed: {', '.join(found['missing'])}", None, f"looked for by {worker.python}", INSTALL))
    if "device" not in found:
        why = found.get("no_card") or found.get("error", "")
        fix = "run this on the machine that has it; `nvidia-smi` must list it"
        raise InputError(Problem("there is no card to calibrate", None, why, fix))
    return found


def header_of(found: Mapping[str, Any], card: str, version: str, command: str) -> dict[str, Any]:
    """The first row: what all others were made on."""
    names = ("device", "total_bytes", "compute_capability", "os", "emulated")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "kind": HEADER, "schema": 1, "date": now, "command": command, "card": {"name": card, **{name: found[name] for name in names}},
        "made": {"version": version, **found["made"]}, "others_bytes": found["others_bytes"],
    }  # fmt: skip


def open_rows(path: Path, header: Mapping[str, Any], notes: list[str]) -> tuple[Rows, dict[str, Any]]:
    """The file of rows and its header. An unfinished one of the same card and software is continued, any other kept aside as .old.

    What others hold changes from day to day: an unfinished calibration keeps what it saw first.
    """
    rows = Rows(path)
    if rows.rows:
        first, finished = rows.rows[0], any(row.get("kind") == DONE for row in rows.rows)
        ignored = (*NOT_MEASURED, "others_bytes")
        same = {k: v for k, v in first.items() if k not in ignored} == {k: v for k, v in header.items() if k not in ignored}
        if same and not finished:
            notes.append(f"continued: {len(measured(rows.rows))} cells were there")
            return rows, first
        aside = path.with_name(path.name + ".old")
        os.replace(path, aside)
        notes.append(f"{'an earlier calibration' if finished else 'rows of other software or another card'}: kept as {aside.name}")
        rows.close()
        rows = Rows(path)
    rows.append(dict(header))
    return rows, dict(header)


def calibrate(
    worker: Worker, rows: Rows, header: Mapping[str, Any], plan: Sequence[cells.Cell], minutes: float, show: Progress
) -> list[cells.Cell]:
    """Go through the cells that have no row yet. Returns those for which the time was over; the card's own are always made."""
    known = measured(rows.rows)
    spent = sum(float(row.get("seconds", 0)) for row in known.values())
    began, left = time.monotonic(), []
    for number, cell in enumerate(plan):
        if cell.name in known:
            continue
        show(number, len(plan), cell.name)
        if spent + time.monotonic() - began > 60 * minutes and cell.part in PREDICTED_PARTS:
            left.append(cell)
            continue
        rows.append(cell_row(worker.ask({"do": "cell", **cell.as_row()}), cell, header))
    show(len(plan), len(plan), "")
    return left


def cell_row(answer: dict[str, Any], cell: cells.Cell, header: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's row: what it was, what it took, and what is predicted from the state in which it began."""
    start = answer.pop("start", None)
    if start is not None:
        expandable = "expandable_segments:true" in header["made"]["allocator_settings"].lower().replace(" ", "")
        try:
            allocated, reserved = predicted(cell, segments_of(start), expandable, header["made"]["torch"])
            answer.update(predicted_allocated_bytes=allocated, predicted_reserved_bytes=reserved)
        except (CannotTell, ValueError) as error:  # never recorded, or an allocator with settings that are not replayed
            answer["not_predicted"] = str(error)[:200]
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"kind": CELL, "cell": cell.name, **cell.as_row(), **answer, "at": at}


def finish(rows: Rows, header: Mapping[str, Any], out: Path, left: Sequence[cells.Cell], notes: list[str]) -> Outcome:
    """The overlay of the rows, written; and a last row that says so, without which a next run would go on with these."""
    try:
        overlay = overlay_of(header, rows.rows, rows.path.name)
    except ValueError:
        return Outcome(None, out, rows.rows, left, rows.flush(), notes)
    write_overlay(overlay, str(out))
    unwritten = rows.append({"kind": DONE, "overlay": out.name}) if not left else rows.flush()
    return Outcome(overlay, out, rows.rows, left, unwritten, notes)


def python_of(given: str | None, trainer: str | None) -> str:
    """The python of the cells: as given, the trainer's own environment, or this one."""
    if given is None and trainer is not None:
        places = (Path(trainer, "venv", "bin", "python"), Path(trainer, "venv", "Scripts", "python.exe"))
        return next((str(place) for place in places if place.exists()), sys.executable)
    return given or sys.executable
