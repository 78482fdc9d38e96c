"""What an allocator answers to events, in one form for torch's and for the model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from estimator.allocator import Allocator, OutOfMemory

DATA = Path(__file__).parent / "data" / "allocator_traces"
RESET_PEAKS = -3
MIB = 2**20

Events = list[tuple[int, int]]
Answers = list[list[int | None]]


def model_answers(events: Events, allocator: Allocator) -> Answers:
    """After each event: address, allocated, reserved, their peaks, retries, out-of-memory errors."""
    answers: Answers = []
    ooms = 0
    for key, size in events:
        address: int | None = None
        if size > 0:
            try:
                address = allocator.malloc(key, size)
            except OutOfMemory:
                ooms += 1
        elif size == RESET_PEAKS:
            allocator.reset_peaks()
        else:
            allocator.run([key], [size])
        now = [allocator.allocated_bytes, allocator.reserved_bytes, allocator.peak_allocated_bytes, allocator.peak_reserved_bytes]
        answers.append([address, *now, allocator.retries, ooms])
    return relative(answers)


def relative(answers: Answers) -> Answers:
    """Addresses counted from the first one. The emulated driver hands out segments upwards and without gaps, as the model does."""
    origin = next(address for address, *_ in answers if address is not None)
    return [[None if address is None else address - origin, *rest] for address, *rest in answers]


def stored_path(name: str) -> Path:
    return DATA / f"torch_{name}.json.gz"


def stored(name: str) -> dict[str, Any]:
    """torch's answers, recorded by tests/test_allocator_emulated.py: torch, expandable, room_mib, events, answers."""
    answers: dict[str, Any] = json.loads(gzip.decompress(stored_path(name).read_bytes()))
    return answers
