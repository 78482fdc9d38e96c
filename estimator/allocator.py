"""PyTorch's CUDA caching allocator, replayed: which address each request gets, and what the card must hold for it.

Semantics are those of torch 2.14's native `CUDACachingAllocator`, default settings. The algorithm was read in
pytorch/pytorch, `c10/cuda/CUDACachingAllocator.cpp` at 001074d2, which is older; that 2.14.1 still does the same is checked address by
address with torch 2.14.1 on the emulated device (tests/test_allocator_emulated.py), and against traces of a real GPU
(`python -m calibration.check_allocator`).

Terms: a *segment* is what one cudaMalloc returned; a *block* is a part of it, live or free; *allocated* is the sum of the live
blocks (`torch.cuda.memory_allocated`), *reserved* the sum of the segments (`torch.cuda.memory_reserved`).

Of free blocks of one size torch takes the oldest segment's: segments laid upwards have that order. Before 2.13 (`ties_by_address`) it took
that at the lowest address, and where a new segment lies is the driver's choice: downwards, from the top into the highest gap (both real
traces; of 23 published steps of CogVideoX, of torch 2.4, 20 come out within 6 MiB so, upwards up to 5 % too low): `downwards`.
Each stream has free blocks of its own: a request is never given another stream's, and segments are its stream's (BlockComparatorSize
compares streams first). A block that another stream uses too (`record_stream`) is given back to its own when the other's work on it is
over, which torch learns at its next request. Here it is given back where it is freed: the same, where that work is over by then, as on the
emulated device. On a card such blocks can come back later, and more be reserved.

By default segments are laid out upwards, as on the emulated device, without gaps, and an address is never used twice; `place` supplies
other addresses.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from estimator.allocator_state import (
    LARGE_SEGMENT_UNITS,
    MASK,
    MIN_LARGE_UNITS,
    ROUND_LARGE_UNITS,
    SHIFT,
    SMALL_REQUEST_UNITS,
    SMALL_SEGMENT_UNITS,
    UNIT_BYTES,
    AllocatorState,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Row = Sequence[int] | npt.NDArray[np.int64]

FREE = -1
"""In the sizes of `Allocator.run`: free the key."""
EMPTY_CACHE = -2
"""In the sizes of `Allocator.run`: torch.cuda.empty_cache()."""
NOTHING = -3
"""In the sizes of `Allocator.run`: no event, whatever the key."""


class OutOfMemory(Exception):
    """torch.OutOfMemoryError: no room even after all cached segments were released (which has happened, and is counted in `retries`).

    `requested_bytes`: the request, rounded up to 512; `allocated_bytes` and `reserved_bytes`: at the time of failure, after the release;
    `event`: index of the failing event within `Allocator.run`.
    """

    def __init__(self, requested_bytes: int, allocated_bytes: int, reserved_bytes: int, capacity_bytes: int) -> None:
        super().__init__(
            f"out of memory: {requested_bytes:,} bytes requested, {allocated_bytes:,} allocated, "
            f"{reserved_bytes:,} reserved of {capacity_bytes:,}"
        )
        self.requested_bytes = requested_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes
        self.capacity_bytes = capacity_bytes
        self.event = 0


class Allocator(AllocatorState):
    """The allocator's state. Keys are the caller's handles of live blocks: any 64-bit integers.

    `capacity_bytes`: what the segments may take together (None: unbounded). `expandable_segments`: as in PYTORCH_CUDA_ALLOC_CONF;
    the instance is then an `estimator.allocator_expandable.ExpandableAllocator`, and `device_total_bytes` (totalGlobalMem, by default
    the capacity) sets the address space of each pool to 9/8 of it. `place`: see the module.
    A request of 0 bytes gets the null pointer and no block, as in torch; its key is held until it is freed.
    """

    __slots__ = ()

    _SPLIT_LARGE_UNITS = SMALL_REQUEST_UNITS + 1
    _choose: Callable[[list[int], int], int] | None = None

    def __new__(cls, capacity_bytes: int | None = None, expandable_segments: bool = False, **_: object) -> Allocator:
        if expandable_segments:
            from estimator.allocator_expandable import ExpandableAllocator

            return object.__new__(ExpandableAllocator)
        return object.__new__(cls)

    def malloc(self, key: int, size_bytes: int) -> int:
        """The address in bytes of a block for `size_bytes`; 0 for no bytes. Raises OutOfMemory, ValueError if the key is live."""
        if size_bytes < 0:
            raise ValueError(f"malloc of {size_bytes} bytes for key {key}")
        self.run((key,), (size_bytes,))
        return self.address(key)

    def free(self, key: int) -> None:
        """Free the key's block. Raises ValueError if it holds none."""
        self.run((key,), (FREE,))

    def address(self, key: int) -> int:
        """The address in bytes of a live key's block (0: a request of no bytes). Raises KeyError."""
        return 0 if key in self._null else (self._live[key] & MASK) * UNIT_BYTES

    def empty_cache(self) -> None:
        """torch.cuda.empty_cache(): give back every segment without a live block (expandable: every page)."""
        self._release()

    def run(self, keys: Row, sizes: Row) -> int | None:  # noqa: PLR0915 - see the last paragraph
        """Replay events: per event malloc(key, size) for a size >= 0, free(key) for FREE, empty_cache() for EMPTY_CACHE, and
        nothing for NOTHING.

        Returns the index of the event that set the highest peak of allocated, or None if this run stayed at or below the peak
        known before; `peak_event` keeps the last index returned that was not None, since `reset_peaks`.
        Raises OutOfMemory with `.event`, and ValueError for a live key's malloc, an unknown key's free, or an unknown size; the
        events before have then been replayed. Arrays are made lists of plain ints.

        This is the replay's hot loop: all in one function, on local names, with the merging of free neighbours written out.
        """
        if len(keys) != len(sizes):
            raise ValueError(f"{len(keys)} keys for {len(sizes)} sizes")
        if not isinstance(keys, (list, tuple)):
            keys = keys.tolist()  # type: ignore[union-attr]
        if not isinstance(sizes, (list, tuple)):
            sizes = sizes.tolist()  # type: ignore[union-attr]
        live, free_at, free_end, segments = self._live, self._free_at, self._free_end, self._segments
        small, large, choose, obtain = self._small, self._large, self._choose, self._obtain
        split_large, small_max, shift, mask, unit = self._SPLIT_LARGE_UNITS, SMALL_REQUEST_UNITS, SHIFT, MASK, UNIT_BYTES
        round_up, null = unit - 1, self._null
        allocated, peak, peak_event = self._allocated, self._peak_allocated, None
        index = 0
        try:
            for index, key, size in zip(range(len(sizes)), keys, sizes, strict=True):
                if size > 0:
                    if key in live or key in null:
                        raise ValueError(f"event {index}: malloc for key {key}, which is live")
                    units = (size + round_up) // unit
                    pool = small if units <= small_max else large
                    at = bisect_left(pool, units << shift)
                    if at < len(pool):
                        block = pool.pop(at) if choose is None else pool.pop(choose(pool, at))
                    else:
                        self._allocated = allocated
                        block = obtain(units)
                    address = block & mask
                    have = block >> shift
                    del free_at[address]
                    if have - units >= (1 if pool is small else split_large):
                        rest = block - (units << shift) + units
                        insort(pool, rest)
                        free_at[address + units] = free_end[address + have] = rest
                        live[key] = units << shift | address
                        allocated += units
                    else:
                        del free_end[address + have]
                        live[key] = block
                        allocated += have
                    if allocated > peak:
                        peak = allocated
                        peak_event = index
                elif size == FREE:
                    block = live.pop(key, 0)
                    if not block:
                        self._free_null(index, key)
                        continue
                    address = block & mask
                    units = block >> shift
                    end = address + units
                    allocated -= units
                    pool = small if units <= small_max else large
                    if end in free_at and end not in segments:
                        after = free_at.pop(end)
                        del pool[bisect_left(pool, after)]
                        block += after - end
                        end += after >> shift
                    if address in free_end and address not in segments:
                        before = free_end.pop(address)
                        del pool[bisect_left(pool, before)]
                        block += before - address
                        address = before & mask
                    insort(pool, block)
                    free_at[address] = free_end[end] = block
                else:
                    self._other(index, key, size)
        except OutOfMemory as error:
            error.event = index
            raise
        finally:
            self._allocated, self._peak_allocated = allocated, peak
            if peak_event is not None:
                self.peak_event = peak_event
        return peak_event

    def run_streams(self, keys: Row, sizes: Row, streams: npt.NDArray[np.int64]) -> int | None:
        """`run` with the stream of each event's block: a row of events of one stream at a time. Leaves the default stream chosen."""
        best, start = None, 0
        cuts = (streams[1:] != streams[:-1]).nonzero()[0] + 1
        try:
            for end in (*cuts.tolist(), len(streams)):
                if end > start:
                    self.use_stream(int(streams[start]))
                    peak = self.run(keys[start:end], sizes[start:end])
                    best, start = (best if peak is None else start + peak), end
        except OutOfMemory as error:
            error.event += start
            raise
        finally:
            self.use_stream(0)
            if best is not None:
                self.peak_event = best
        return best

    def _obtain(self, units: int) -> int:
        """A free block for a request that no cached one fits: of a new segment, if need be after releasing the cached ones."""
        block = self._grow(units)
        if block is None:
            self._release()
            self.retries += 1
            block = self._grow(units)
        if block is None:
            assert self._capacity is not None
            raise OutOfMemory(units * UNIT_BYTES, self.allocated_bytes, self.reserved_bytes, self._capacity * UNIT_BYTES)
        return block

    def _grow(self, units: int) -> int | None:
        """A free block (in free_at and free_end, not in its pool): a new segment. None: cudaMalloc fails."""
        if units <= SMALL_REQUEST_UNITS:
            size = SMALL_SEGMENT_UNITS
        elif units < MIN_LARGE_UNITS:
            size = LARGE_SEGMENT_UNITS
        else:
            size = -(-units // ROUND_LARGE_UNITS) * ROUND_LARGE_UNITS
        if self._capacity is not None and self._reserved + size > self._capacity:
            return None
        base = self._take_addresses(size)
        self._reserve(size)
        block = size << SHIFT | base
        self._free_at[base] = self._free_end[base + size] = block
        return block

    def _take_addresses(self, size: int) -> int:
        """A segment of `size` units: its address. Raises ValueError if `place` names one that is in use."""
        base = self._next - size if self._downwards else self._next
        if self._place is not None:
            base = self._place(size * UNIT_BYTES) // UNIT_BYTES
            if any(base < other + other_size and other < base + size for other, other_size in self._segments.items()):
                raise ValueError(f"place: {base * UNIT_BYTES} lies in a segment that is in use")
        self._next = base if self._downwards else max(self._next, base + size)
        self._segments[base] = size
        if self._stream:
            self._stream_of[base] = self._stream
        return base

    def _reserve(self, units: int) -> None:
        self._reserved += units
        self._peak_reserved = max(self._peak_reserved, self._reserved)

    def _release(self) -> None:
        """release_cached_blocks: every segment that is one free block goes back to the driver."""
        segments = self._segments
        for pool in self._pools():
            whole = [block for block in pool if segments.get(block & MASK) == block >> SHIFT]
            for block in whole:
                base = block & MASK
                size = segments.pop(base)
                self._stream_of.pop(base, None)
                self._reserved -= size
                del self._free_at[base], self._free_end[base + size]
            if whole:
                gone = set(whole)
                pool[:] = [block for block in pool if block not in gone]

    def _free_null(self, index: int, key: int) -> None:
        if key not in self._null:
            raise ValueError(f"event {index}: free of key {key}, which holds no block")
        self._null.remove(key)

    def _other(self, index: int, key: int, size: int) -> None:
        """The rare events: a request of no bytes, and empty_cache."""
        if size == EMPTY_CACHE:
            self._release()
        elif size == 0:
            if key in self._live or key in self._null:
                raise ValueError(f"event {index}: malloc for key {key}, which is live")
            self._null.add(key)
        elif size != NOTHING:
            raise ValueError(f"event {index}: size {size}")
