"""Rows of a calibration: JSON Lines, appended one by one, each on the disk before the next cell begins. Pure; needs no torch.

A process may be killed at any point and a disk may fill up: what is cut short at the end of the file was never written, and is taken away.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HEADER, CELL, DONE = "calibration", "cell", "done"
NOT_MEASURED = ("at", "date", "seconds", "delayed", "command")
"""Of a row, what says when and how it was made: not part of the digest, so that an interrupted calibration has that of a whole one."""


class Busy(Exception):
    """Another calibration writes to this file."""


def digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of what rows say, whatever their order and times."""
    texts = sorted(json.dumps({k: v for k, v in row.items() if k not in NOT_MEASURED}, sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def whole_lines(raw: bytes) -> tuple[list[dict[str, Any]], int]:
    """The rows of a file's bytes, and how many bytes they take: from the first line on that is none, nothing counts."""
    rows, end = [], 0
    for line in raw.splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if not isinstance(row, dict):
            break
        rows.append(row)
        end += len(line)
    return rows, end


class Rows:
    """A file of rows, open for appending. `rows`: all that it has, those included that could not be written yet (`pending`)."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.pending: list[dict[str, Any]] = []
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._lock()
        with os.fdopen(os.dup(self._file), "rb") as file:
            self.rows, self._end = whole_lines(file.read())
        os.ftruncate(self._file, self._end)

    def _lock(self) -> None:
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._file)
                raise Busy(str(self.path)) from None

    def append(self, row: dict[str, Any]) -> str:
        """Write a row and what could not be written before. "" if all is on the disk, else why not: it is tried again with the next."""
        self.rows.append(row)
        self.pending.append(row)
        return self.flush()

    def flush(self) -> str:
        """Try to write what is pending."""
        why = ""
        while self.pending and not why:
            why = self._write(self.pending[0])
            if why:
                self.pending[0]["delayed"] = why
            else:
                self.pending.pop(0)
        return why

    def _write(self, row: Mapping[str, Any]) -> str:
        data = (json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n").encode()
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._file, data[done:], self._end + done)
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            return error.strerror or str(error)
        self._end += len(data)
        return ""

    def close(self) -> None:
        os.close(self._file)


def measured(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The rows of cells by name."""
    return {str(row["cell"]): row for row in rows if row.get("kind") == CELL}
