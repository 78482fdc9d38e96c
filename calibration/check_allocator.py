"""Is the allocator's model right? Replay a trace that was recorded on a GPU and compare every address.

    python -m calibration.check_allocator TRACE.json.gz

prints `addresses N of N, segments M of M, peak reserved X bytes`; exits 1 if one differs (the first differences go to stderr), 2 if
the file is no trace.

A trace (JSON, plain or gzipped): `events`, in order, as [action, address, size] with the actions alloc, free (size as requested),
segment_alloc, segment_free, and with the stream at the end where there are several (0: the default one; such a trace starts from nothing);
and `segments_at_end`, the segments as they stood after the last event, each {address, total_size, type, blocks: [[address, size,
requested size, state]]}. Both are what `torch.cuda.memory._snapshot()` has, without the stacks.

What counts: an address is right if the model puts that request where the GPU's allocator did. A segment (one of those at the
start, or allocated later) is right if the same event asks for it with the same size, it is given back at the same event, and, if it
stands at the end, it is cut into the same blocks. Which address the driver gives a new segment is taken from the trace; a row of
segment_free is replayed as empty_cache(), which is also what an allocator short of memory does.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from estimator.allocator import Allocator
from estimator.allocator_state import FREE_BLOCK, LIVE_BLOCK, SMALL_REQUEST_UNITS, SMALL_SEGMENT_UNITS, UNIT_BYTES

FIRST_DIFFERENCES = 10
"""How many differences are worth reading: those after the first usually follow from it."""

Event = tuple[str, int, int, int]
Segment = dict[str, Any]


class TraceError(Exception):
    """The file is not a trace."""


@dataclass
class Result:
    """How many addresses and segments came out right, and all differences in words. A segment is its address and the event that made it."""

    addresses: int = 0
    addresses_right: int = 0
    segments: int = 0
    segments_wrong: set[tuple[int, int]] = field(default_factory=set)
    peak_reserved_bytes: int = 0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"addresses {self.addresses_right} of {self.addresses}, "
            f"segments {self.segments - len(self.segments_wrong)} of {self.segments}, "
            f"peak reserved {self.peak_reserved_bytes} bytes"
        )


def read_trace(path: Path) -> tuple[list[Event], list[Segment]]:
    """Events and segments at the end. Raises TraceError."""
    try:
        raw = path.read_bytes()
        trace = json.loads(gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw)
        rows = [(action, address, size, *(stream or [0])) for action, address, size, *stream in trace["events"]]
        events = [(str(action), int(address), int(size), int(stream)) for action, address, size, stream in rows]
        unknown = {action for action, *_ in events} - {"alloc", "free", "segment_alloc", "segment_free"}
        if unknown:
            raise ValueError(f"unknown actions {sorted(unknown)}")
        return events, [{key: segment[key] for key in ("address", "total_size", "type", "blocks")} for segment in trace["segments_at_end"]]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path}: not an allocator trace ({type(error).__name__}: {error})") from error


def state_at_start(events: Sequence[Event], at_end: Sequence[Segment]) -> list[Segment]:
    """The segments as they stood before the first event.

    What stood then is what the trace frees before allocating it, and what it never touches but has at the end; blocks and segments
    alike. All else is free, and free neighbours are always merged. A block that the trace only frees is known by its request
    alone: see `_block_size`.
    """
    first: dict[tuple[bool, int], tuple[str, int]] = {}
    for action, address, size, _ in events:
        first.setdefault((action.startswith("segment"), address), (action, size))
    segments = {a: (size, _kind(size)) for (_, a), (action, size) in first.items() if action == "segment_free"}
    live = {a: (0, size) for (_, a), (action, size) in first.items() if action == "free"}
    for segment in at_end:
        if (True, segment["address"]) not in first:
            segments[segment["address"]] = (segment["total_size"], segment["type"])
        for address, size, requested, state in segment["blocks"]:
            if state == LIVE_BLOCK and (False, address) not in first:
                live[address] = (size, requested)
    starts = sorted(live)
    edges = sorted({address for _, address in first} | live.keys() | {base + size for base, (size, _) in segments.items()})
    result = []
    for base, (size, kind) in sorted(segments.items()):
        blocks: list[list[object]] = []
        at = base
        for address in starts[bisect_left(starts, base) : bisect_left(starts, base + size)]:
            known, requested = live[address]
            block = known or _block_size(requested, edges[bisect_right(edges, address)] - address)
            blocks += [[at, address - at, 0, FREE_BLOCK]] * (address > at) + [[address, block, requested, LIVE_BLOCK]]
            at = address + block
        blocks += [[at, base + size - at, 0, FREE_BLOCK]] * (at < base + size)
        result.append({"address": base, "total_size": size, "type": kind, "blocks": blocks})
    return result


def _kind(segment_bytes: int) -> str:
    return "small" if segment_bytes == SMALL_SEGMENT_UNITS * UNIT_BYTES else "large"


def _block_size(requested: int, room: int) -> int:
    """Size of a block that the trace only frees: the request rounded up, and what follows it where a large block would not be split.

    `room`: bytes to the next address at which the trace knows a block to begin. That is a guess where a free block of the large pool
    stood behind; a wrong one shows as a difference.
    """
    rounded = -(-requested // UNIT_BYTES) * UNIT_BYTES
    slack_bytes = SMALL_REQUEST_UNITS * UNIT_BYTES
    return room if slack_bytes < rounded < room <= rounded + slack_bytes else rounded


def check(events: Sequence[Event], at_end: Sequence[Segment]) -> Result:
    """Replay the events from the state at the start, and compare."""
    start = state_at_start(events, at_end)
    comparison = _Comparison(start)
    try:
        comparison.allocator.seed(start)
    except ValueError as error:
        comparison.result.addresses = sum(action == "alloc" for action, *_ in events)
        comparison.result.differences.append(f"the state at the start cannot be: {error}")
        return comparison.result
    for index, (action, address, size, stream) in enumerate(events):
        comparison.allocator.use_stream(stream)
        comparison.step(index, action, address, size)
    comparison.finish(at_end)
    return comparison.result


class _Comparison:
    """The model beside the trace. It goes on after a difference: each of the two then has blocks and segments that the other has not."""

    def __init__(self, start: Sequence[Segment]) -> None:
        self.result = Result(segments=len(start))
        self.allocator = Allocator(place=self._place)
        self.born = {int(segment["address"]): -1 for segment in start}  # the trace's segments, and the event that made each
        self.keys = {int(block[0]): int(block[0]) for segment in start for block in segment["blocks"] if block[3] == LIVE_BLOCK}
        self.given: list[tuple[int, int]] = []  # address and size of segments that the trace's next request gets
        self.asked: list[int] = []  # sizes of segments that the model's request asked for
        self.released: set[int] = set()  # what the model gave back in the present row of segment_free, and the trace not yet
        self.spare = 2**52  # addresses for segments that the trace has not

    def _place(self, size: int) -> int:
        self.asked.append(size)
        if self.given and self.given[0][1] == size:
            address = self.given[0][0]
            if not any(address < base + other and base < address + size for base, other in self.allocator.segments_bytes().items()):
                return address
        self.spare -= size
        return self.spare

    def step(self, index: int, action: str, address: int, size: int) -> None:
        if action != "segment_free":
            self._end_of_release(index)
        if action == "segment_free":
            self._segment_free(index, address)
        elif action == "segment_alloc":
            self.result.segments += 1
            self.born[address] = index
            self.given.append((address, size))
        elif action == "alloc":
            self._alloc(index, address, size)
        elif address in self.keys:
            self.allocator.free(self.keys.pop(address))
        else:
            self._differs(index, f"free of {address}, where the trace has nothing live")

    def _alloc(self, index: int, address: int, size: int) -> None:
        self.result.addresses += 1
        self.asked = []
        self.keys[address] = index
        got = self.allocator.malloc(index, size)
        if got == address:
            self.result.addresses_right += 1
        else:
            self._differs(index, f"{size} bytes: the GPU's allocator chose {address}, the model {got}")
        if self.asked != [given for _, given in self.given]:
            for base, given in self.given:
                self._wrong(index, base, f"{size} bytes: the GPU's allocator asked for a segment of {given}, the model for {self.asked}")
            if not self.given:
                self._differs(index, f"{size} bytes: the model asked for a segment of {self.asked}, the GPU's allocator for none")
        self.given = []

    def _segment_free(self, index: int, address: int) -> None:
        if not self.released:
            before = self.allocator.segments_bytes().keys()
            self.allocator.empty_cache()
            self.released = before - self.allocator.segments_bytes().keys()
        if address in self.released:
            self.released.remove(address)
            del self.born[address]
        else:
            self._wrong(index, address, "the GPU's allocator gave it back, the model keeps it")

    def _end_of_release(self, index: int) -> None:
        for left in sorted(self.released):
            self._wrong(index, left, "the model gave it back, the GPU's allocator kept it")
        self.released = set()

    def finish(self, at_end: Sequence[Segment]) -> None:
        end = self.result.addresses
        self._end_of_release(end)
        model = {segment["address"]: segment["blocks"] for segment in self.allocator.snapshot()}
        for segment in at_end:
            blocks = [(address, size, state) for address, size, _, state in segment["blocks"]]
            if blocks != [(address, size, state) for address, size, _, state in model.pop(segment["address"], [])]:
                self._wrong(end, segment["address"], "not cut into the same blocks at the end")
        for base in model:
            self._differs(end, f"segment {base}: the model has it at the end, the GPU's allocator has not")
        self.result.peak_reserved_bytes = self.allocator.peak_reserved_bytes

    def _wrong(self, index: int, address: int, text: str) -> None:
        self.result.segments_wrong.add((address, self.born.get(address, index)))
        self._differs(index, f"segment {address}: {text}")

    def _differs(self, index: int, text: str) -> None:
        self.result.differences.append(f"event {index}: {text}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.check_allocator", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("trace", type=Path, metavar="TRACE.json.gz")
    try:
        result = check(*read_trace(parser.parse_args(arguments).trace))
    except TraceError as error:
        print(error, file=sys.stderr)
        return 2
    print(result)
    for text in result.differences[:FIRST_DIFFERENCES]:
        print(text, file=sys.stderr)
    if len(result.differences) > FIRST_DIFFERENCES:
        print(f"and {len(result.differences) - FIRST_DIFFERENCES} more", file=sys.stderr)
    return 1 if result.differences else 0


if __name__ == "__main__":
    sys.exit(main())
