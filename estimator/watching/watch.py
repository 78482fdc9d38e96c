"""Beside a run while it lasts: read what it printed, ask the card, sleep. Nothing that goes wrong here may end the run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

from estimator.watching.child import Child
from estimator.watching.phases import Phases
from estimator.watching.sampling import Sampler

INTERVAL_SECONDS = 0.2
"""torch's cache stays with a process until it is emptied, so that peaks last longer than this; asking takes well under a millisecond."""
_MOST_AT_ONCE_BYTES = 2**20


def beside(child: Child, log: Path | None, sampler: Sampler, phases: Phases, from_bytes: int = 0) -> list[str]:
    """Until the child ends. `from_bytes`: where in the log this run begins. Returns what went wrong here, in words."""
    troubles: dict[str, None] = {}
    file: BinaryIO | None = None
    alive = True
    while alive:
        alive = child.pause(INTERVAL_SECONDS)
        try:
            if file is None and log is not None and log.exists():
                file = log.open("rb")
                file.seek(from_bytes)
            if file is not None:
                phases.printed(file.read(_MOST_AT_ONCE_BYTES))
            if alive:
                phases.sampled(sampler.sample(child.pid), time.monotonic())
        except Exception as error:  # the run comes first
            troubles[f"{type(error).__name__}: {error}"] = None
    return _end(file, child, phases, troubles)


def _end(file: BinaryIO | None, child: Child, phases: Phases, troubles: dict[str, None]) -> list[str]:
    child.finish()
    if file is not None:
        with file:
            try:
                while data := file.read(_MOST_AT_ONCE_BYTES):
                    phases.printed(data)
            except Exception as error:
                troubles[f"{type(error).__name__}: {error}"] = None
    return list(troubles)
