"""The allocator's replay in C where the package was built with a compiler, some twenty times as fast; `estimator.allocator` otherwise.

`allocator_core.c` is compiled at installation (hatch_build.py) into a library without Python in it, and loaded here with ctypes. It does
what a replay needs, with default settings: what is loaded into an allocator, compared, or made with expandable segments stays with
`estimator.allocator`, which is the reference (tests/test_allocator_compiled.py).
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from estimator.allocator import EMPTY_CACHE, Allocator, OutOfMemory
from estimator.allocator_state import (
    LARGE_SEGMENT_UNITS,
    MIN_LARGE_UNITS,
    ROUND_LARGE_UNITS,
    SMALL_REQUEST_UNITS,
    SMALL_SEGMENT_UNITS,
    TOP_UNITS,
    UNIT_BYTES,
)

Ints = npt.NDArray[np.int64]

LIBRARY = "allocator_core.bin"
"""Name of the compiled library, beside this module."""

DONE, OUT_OF_MEMORY, KEY_IS_LIVE, KEY_HOLDS_NOTHING, UNKNOWN_SIZE = range(5)  # results of core_run_streams
NULL_POINTER, NO_BLOCK = -1, -2  # answers of core_address
STREAMS = 2  # of the C code
VERSION = 2  # of its events: see core_version


class Counters(ctypes.Structure):
    """`Counters` of allocator_core.c: the same fields in the same order, all in units of 512 bytes."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "unit_bytes", "small_request", "small_segment", "min_large", "large_segment", "round_large", "downwards", "capacity",
            "next_address", "allocated", "peak_allocated", "reserved", "peak_reserved", "retries", "event", "peak_event", "requested",
        )
    )  # fmt: skip


@cache
def library() -> ctypes.CDLL | None:
    """The compiled core; None where it was not built, or was built for another machine or from an older source."""
    try:
        core = ctypes.CDLL(str(Path(__file__).with_name(LIBRARY)))
        run, begin, version = core.core_run_streams, core.core_begin, core.core_version
    except (OSError, AttributeError):
        return None
    version.restype = ctypes.c_int64
    if version() != VERSION:
        return None
    begin.argtypes, begin.restype = [ctypes.POINTER(Counters)], ctypes.c_void_p
    core.core_copy.argtypes, core.core_copy.restype = [ctypes.c_void_p], ctypes.c_void_p
    core.core_delete.argtypes, core.core_delete.restype = [ctypes.c_void_p], None
    core.core_counters.argtypes, core.core_counters.restype = [ctypes.c_void_p], ctypes.POINTER(Counters)
    run.argtypes, run.restype = [*[ctypes.c_void_p] * 4, ctypes.c_int64], ctypes.c_int
    core.core_address.argtypes, core.core_address.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_int64
    return core


def replaying_allocator(capacity_bytes: int | None, expandable_segments: bool, downwards: bool = False) -> Allocator | CompiledAllocator:
    """An empty allocator for a replay: compiled where that is to be had."""
    if expandable_segments:  # whose addresses are one range for each pool
        return Allocator(capacity_bytes, expandable_segments)
    if library() is None:
        return Allocator(capacity_bytes, downwards=downwards)
    return CompiledAllocator(capacity_bytes, downwards=downwards)


class CompiledAllocator:
    """As `estimator.allocator.Allocator` with default settings, for `run`, copies and counters. Raises MemoryError without host memory."""

    __slots__ = ("_core", "_counters", "_library", "peak_event")

    def __init__(self, capacity_bytes: int | None = None, *, downwards: bool = False) -> None:
        core = library()
        assert core is not None, "ask replaying_allocator"
        start = Counters(
            UNIT_BYTES, SMALL_REQUEST_UNITS, SMALL_SEGMENT_UNITS, MIN_LARGE_UNITS, LARGE_SEGMENT_UNITS, ROUND_LARGE_UNITS, downwards,
            -1 if capacity_bytes is None else capacity_bytes // UNIT_BYTES, TOP_UNITS if downwards else ROUND_LARGE_UNITS,
        )  # fmt: skip
        self._library = core
        self._take(core.core_begin(start))
        self.peak_event: int | None = None

    def _take(self, core: int | None) -> None:
        self._core = core
        if core is None:
            raise MemoryError
        self._counters: Counters = self._library.core_counters(core).contents

    def __del__(self) -> None:
        if getattr(self, "_core", None) is not None:
            self._library.core_delete(self._core)

    @property
    def allocated_bytes(self) -> int:
        """As Allocator.allocated_bytes; so are the others."""
        return int(self._counters.allocated) * UNIT_BYTES

    @property
    def reserved_bytes(self) -> int:
        return int(self._counters.reserved) * UNIT_BYTES

    @property
    def peak_allocated_bytes(self) -> int:
        return int(self._counters.peak_allocated) * UNIT_BYTES

    @property
    def peak_reserved_bytes(self) -> int:
        return int(self._counters.peak_reserved) * UNIT_BYTES

    @property
    def retries(self) -> int:
        """Releases of all cached blocks so far because a request found no room."""
        return int(self._counters.retries)

    def reset_peaks(self) -> None:
        """Set both peaks to the present values, and `peak_event` to None."""
        self._counters.peak_allocated, self._counters.peak_reserved = self._counters.allocated, self._counters.reserved
        self.peak_event = None

    def copy(self) -> Self:
        """An independent allocator in the same state, peaks included."""
        twin = object.__new__(type(self))
        twin._library, twin.peak_event = self._library, self.peak_event
        twin._take(self._library.core_copy(self._core))
        return twin

    def limit(self, capacity_bytes: int | None) -> None:
        """As Allocator.limit."""
        self._counters.capacity = -1 if capacity_bytes is None else capacity_bytes // UNIT_BYTES

    def malloc(self, key: int, size_bytes: int) -> int:
        """As Allocator.malloc."""
        if size_bytes < 0:
            raise ValueError(f"malloc of {size_bytes} bytes for key {key}")
        self.run([key], [size_bytes])
        return self.address(key)

    def address(self, key: int) -> int:
        """The address in bytes of a live key's block (0: a request of no bytes). Raises KeyError."""
        units = self._library.core_address(self._core, key)
        if units == NO_BLOCK:
            raise KeyError(key)
        return 0 if units == NULL_POINTER else units * UNIT_BYTES

    def empty_cache(self) -> None:
        """torch.cuda.empty_cache()."""
        self.run([0], [EMPTY_CACHE])

    def run(self, keys: list[int] | Ints, sizes: list[int] | Ints) -> int | None:
        """As Allocator.run, and quickest with arrays of int64."""
        return self.run_streams(keys, sizes, None)

    def run_streams(self, keys: list[int] | Ints, sizes: list[int] | Ints, streams: Ints | None) -> int | None:
        """As Allocator.run_streams: of STREAMS streams at most (ValueError). None: all on the default one."""
        if streams is not None and len(streams) and not 0 <= streams.min() <= streams.max() < STREAMS:
            raise ValueError(f"more than {STREAMS} streams")
        if len(keys) != len(sizes):
            raise ValueError(f"{len(keys)} keys for {len(sizes)} sizes")
        key_row, size_row = np.ascontiguousarray(keys, dtype=np.int64), np.ascontiguousarray(sizes, dtype=np.int64)
        stream_row = None if streams is None else np.ascontiguousarray(streams, dtype=np.int64)
        stream_place = None if stream_row is None else stream_row.ctypes.data
        result = self._library.core_run_streams(self._core, key_row.ctypes.data, size_row.ctypes.data, stream_place, len(size_row))
        peak_event = int(self._counters.peak_event)
        if peak_event >= 0:
            self.peak_event = peak_event
        if result != DONE:
            self._raise(result, key_row, size_row)
        return peak_event if peak_event >= 0 else None

    def _raise(self, result: int, keys: Ints, sizes: Ints) -> None:
        counters = self._counters
        event = int(counters.event)
        if result == OUT_OF_MEMORY:
            asked, capacity = int(counters.requested) * UNIT_BYTES, int(counters.capacity) * UNIT_BYTES
            error = OutOfMemory(asked, self.allocated_bytes, self.reserved_bytes, capacity)
            error.event = event
            raise error
        if result == KEY_IS_LIVE:
            raise ValueError(f"event {event}: malloc for key {keys[event]}, which is live")
        if result == KEY_HOLDS_NOTHING:
            raise ValueError(f"event {event}: free of key {keys[event]}, which holds no block")
        if result == UNKNOWN_SIZE:
            raise ValueError(f"event {event}: size {sizes[event]}")
        raise MemoryError
