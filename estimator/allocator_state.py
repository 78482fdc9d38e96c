"""The state of PyTorch's CUDA caching allocator: segments, free and live blocks, counters. What changes it: `estimator.allocator`.

In units of 512 bytes. A block is one integer, size << SHIFT | address, so that a sorted list of free blocks *is* torch's std::set
ordered by (size, address). `_free_at` and `_free_end` find the free block that begins or ends at an address; `_segments`, first
address to size, keeps blocks of adjacent segments apart. Constants: torch 2.14.1, `c10/core/AllocatorConfig.h`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, Self

UNIT_BYTES = 512
"""Every size is rounded up to a multiple of this, at least one (kMinBlockSize)."""
SMALL_REQUEST_UNITS = 2**20 // UNIT_BYTES
"""Largest request of the small pool, 1 MiB; also what a large block may keep unsplit (kSmallSize)."""
SMALL_SEGMENT_UNITS = 2 * 2**20 // UNIT_BYTES
"""Segment of the small pool (kSmallBuffer)."""
MIN_LARGE_UNITS = 10 * 2**20 // UNIT_BYTES
"""From this request on a segment is made to measure (kMinLargeAlloc)."""
LARGE_SEGMENT_UNITS = 20 * 2**20 // UNIT_BYTES
"""Segment for a smaller request of the large pool (large_segment_size)."""
ROUND_LARGE_UNITS = 2 * 2**20 // UNIT_BYTES
"""Segments made to measure are rounded up to a multiple of this (kRoundLarge)."""
TIES_BY_AGE_SINCE = (2, 13)
"""torch's version from which on, of free blocks of one size, the oldest segment's is taken, wherever the driver laid it; before, that at
the lowest address. pytorch/pytorch pull request 183591 of 13 May 2026; 2.13.0 is of July (not looked into itself), 2.14.1's comparator is
BlockComparatorSizeCounterAddress: six whole runs of the trainer on a device that lays segments downwards come out as if laid upwards."""
SHIFT = 44
"""Bits of an address in units: addresses up to 2**53 bytes."""
MASK = (1 << SHIFT) - 1
TOP_UNITS = 1 << (SHIFT - 1)
"""Where segments begin that are laid out downwards."""

LIVE_BLOCK, FREE_BLOCK = "active_allocated", "inactive"
"""States of a block in torch's memory snapshots; others need a second stream."""

Place = Callable[[int], int]
"""Size of a new segment in bytes -> its address in bytes."""


def ties_by_address(torch: str) -> bool:
    """Whether a version of torch, such as "2.9.1", breaks ties of best fit by address. "": the recorded one, which does not.

    Raises ValueError for what is no version.
    """
    return bool(torch) and tuple(int(part) for part in torch.split("+")[0].split(".")[:2]) < TIES_BY_AGE_SINCE


class AllocatorState:
    """What `estimator.allocator.Allocator` acts on, and what can be asked of it, copied from it, compared, or loaded into it."""

    __slots__ = (
        "_allocated", "_capacity", "_device_total", "_downwards", "_free_at", "_free_end", "_large", "_live", "_next", "_null", "_parked",
        "_peak_allocated", "_peak_reserved", "_place", "_reserved", "_segments", "_small", "_stream", "_stream_of", "peak_event", "retries",
    )  # fmt: skip

    def __init__(
        self,
        capacity_bytes: int | None = None,
        expandable_segments: bool = False,
        *,
        device_total_bytes: int | None = None,
        place: Place | None = None,
        downwards: bool = False,
    ) -> None:
        self._capacity = None if capacity_bytes is None else capacity_bytes // UNIT_BYTES
        self._device_total = capacity_bytes if device_total_bytes is None else device_total_bytes
        self._place = place
        self._downwards = downwards
        self._next = TOP_UNITS if downwards else ROUND_LARGE_UNITS  # not 0: that is the null pointer
        self._small: list[int] = []
        self._large: list[int] = []
        self._stream = 0  # whose free blocks `_small` and `_large` are
        self._parked: dict[int, tuple[list[int], list[int]]] = {}  # the free blocks of the other streams, small and large
        self._stream_of: dict[int, int] = {}  # segments of other streams than the default one
        self._free_at: dict[int, int] = {}
        self._free_end: dict[int, int] = {}
        self._segments: dict[int, int] = {}
        self._live: dict[int, int] = {}
        self._null: set[int] = set()
        self._allocated = self._reserved = self._peak_allocated = self._peak_reserved = 0
        self.retries = 0
        self.peak_event: int | None = None

    @property
    def allocated_bytes(self) -> int:
        """torch.cuda.memory_allocated(): sum of the live blocks, each as rounded and with its unsplit remainder."""
        return self._allocated * UNIT_BYTES

    @property
    def reserved_bytes(self) -> int:
        """torch.cuda.memory_reserved(): sum of the segments (expandable: of the mapped pages)."""
        return self._reserved * UNIT_BYTES

    @property
    def peak_allocated_bytes(self) -> int:
        """torch.cuda.max_memory_allocated(): since the last `reset_peaks`."""
        return self._peak_allocated * UNIT_BYTES

    @property
    def peak_reserved_bytes(self) -> int:
        """torch.cuda.max_memory_reserved(): since the last `reset_peaks`."""
        return self._peak_reserved * UNIT_BYTES

    def reset_peaks(self) -> None:
        """Set both peaks to the present values, and `peak_event` to None. `retries` keeps counting."""
        self._peak_allocated, self._peak_reserved = self._allocated, self._reserved
        self.peak_event = None

    def use_stream(self, stream: int) -> None:
        """What is allocated from now on, and what is freed, belongs to this stream (0: the default one). Free blocks are not shared.

        Raises ValueError with expandable segments, whose ranges of addresses would be a stream's own as well.
        """
        if stream == self._stream:
            return
        self._parked[self._stream] = self._small, self._large
        self._small, self._large = self._parked.pop(stream, ([], []))
        self._stream = stream

    def _pools(self) -> list[list[int]]:
        """All pools of free blocks."""
        return [self._large, self._small, *(pool for pair in self._parked.values() for pool in pair)]

    def copy(self) -> Self:
        """An independent allocator in the same state, peaks included (`place` is shared)."""
        twin = object.__new__(type(self))
        for name in AllocatorState.__slots__ + type(self).__slots__:
            value = getattr(self, name)
            setattr(twin, name, value.copy() if isinstance(value, (list, dict, set)) else value)
        twin._parked = {stream: (small.copy(), large.copy()) for stream, (small, large) in self._parked.items()}
        return twin

    def fingerprint(self) -> bytes:
        """Equal for two allocators of equal capacity if, and but for coincidences only if, the same events have the same effects.

        Counters and peaks do not count, nor do the addresses of segments: only their order does, as new ones always come last.
        Not meaningful where `place` chooses addresses.
        """
        bases = sorted(self._segments)
        sizes = [self._segments[base] for base in bases]
        packed, total = [], 0
        for base, size in zip(bases, sizes, strict=True):
            packed.append(base - total)
            total += size
        live = sorted(self._live.items())
        blocks = [block & MASK for _, block in live]
        blocks = [address - packed[bisect_right(bases, address) - 1] for address in blocks]
        streams = [self._stream, *(self._stream_of.get(base, 0) for base in bases)] if self._stream_of else []
        parts = ([self._capacity or -1, len(live)], sizes, streams, (key for key, _ in live), blocks, (block >> SHIFT for _, block in live))
        digest = blake2b(digest_size=20)
        for part in (*parts, sorted(self._null), self._layout(bases)):
            digest.update(array("q", part).tobytes() + b"/")
        return digest.digest()

    def segments_bytes(self) -> dict[int, int]:
        """Size of each segment by its address, in bytes (expandable: of the reserved range of addresses)."""
        return {base * UNIT_BYTES: size * UNIT_BYTES for base, size in self._segments.items()}

    def snapshot(self) -> list[dict[str, Any]]:
        """The segments in the form that `seed` reads. Requested sizes are not kept: a live block's is given as its size.

        Expandable: one per mapped range, as torch's snapshots have it.
        """
        blocks = [(block, LIVE_BLOCK) for block in self._live.values()] + [(block, FREE_BLOCK) for block in self._free_at.values()]
        small = {block for pool in (self._small, *(pair[0] for pair in self._parked.values())) for block in pool}
        result: list[dict[str, Any]] = []
        end = -1
        for block, state in sorted(blocks, key=lambda pair: pair[0] & MASK):
            address, size = block & MASK, block >> SHIFT
            if address != end or address in self._segments:
                result.append({"address": address * UNIT_BYTES, "total_size": 0, "type": "large", "blocks": []})
            segment, end = result[-1], address + size
            segment["total_size"] += size * UNIT_BYTES
            live = state == LIVE_BLOCK
            if block in small or (live and size <= SMALL_REQUEST_UNITS):
                segment["type"] = "small"
            segment["blocks"].append([address * UNIT_BYTES, size * UNIT_BYTES, size * UNIT_BYTES if live else 0, state])
        return result

    def limit(self, capacity_bytes: int | None) -> None:
        """What segments may take together from now on (None: unbounded). Not with expandable segments, whose addresses depend on it."""
        self._capacity = None if capacity_bytes is None else capacity_bytes // UNIT_BYTES

    def seed(self, segments: Iterable[Mapping[str, Any]]) -> None:
        """Start from an existing state, such as a memory snapshot: replaces everything, and resets peaks and counters.

        Each segment: `address`, `total_size`, `type` ("small" | "large"), `blocks` as [address, size, requested size, state] in
        order, state LIVE_BLOCK or FREE_BLOCK. The key of a live block is its address. New segments come above all of them, or below.
        Raises ValueError for what an allocator with default settings and one stream cannot have.
        """
        self.__init__(  # type: ignore[misc]
            None if self._capacity is None else self._capacity * UNIT_BYTES,
            device_total_bytes=self._device_total, place=self._place, downwards=self._downwards,
        )  # fmt: skip
        for segment in sorted(segments, key=lambda segment: int(segment["address"])):
            self._seed_segment(segment)
        if self._downwards:
            self._next = min(self._segments, default=self._next)
        else:
            self._next = max((base + size for base, size in self._segments.items()), default=self._next)
        self.reset_peaks()

    def _seed_segment(self, segment: Mapping[str, Any]) -> None:
        small, name = segment["type"] == "small", f"segment {segment['address']}"
        base, size = int(segment["address"]) // UNIT_BYTES, int(segment["total_size"]) // UNIT_BYTES
        if (size != SMALL_SEGMENT_UNITS) if small else (size < MIN_LARGE_UNITS or size % ROUND_LARGE_UNITS):
            raise ValueError(f"{name}: {size * UNIT_BYTES} bytes is no {segment['type']} segment of an allocator with default settings")
        if self._segments and base < max(self._segments) + self._segments[max(self._segments)]:
            raise ValueError(f"{name} overlaps another")
        self._segments[base] = size
        self._reserved += size
        at, was_free = base, False
        for address, block_bytes, _, state in segment["blocks"]:
            units = block_bytes // UNIT_BYTES
            if address != at * UNIT_BYTES or block_bytes != units * UNIT_BYTES or units <= 0:
                raise ValueError(f"{name}: block {address} of {block_bytes} bytes does not start where the one before ended")
            if state == LIVE_BLOCK and (units <= SMALL_REQUEST_UNITS) == small:
                self._live[address] = units << SHIFT | at
                self._allocated += units
            elif state == FREE_BLOCK and not was_free:
                insort(self._small if small else self._large, units << SHIFT | at)
                self._free_at[at] = self._free_end[at + units] = units << SHIFT | at
            else:
                raise ValueError(f"{name}: block {address} of {block_bytes} bytes cannot be {state} there")
            was_free, at = state == FREE_BLOCK, at + units
        if at != base + size:
            raise ValueError(f"{name}: blocks end at {at * UNIT_BYTES}, not with the segment")

    def _layout(self, bases: list[int]) -> list[int]:
        """What `fingerprint` needs besides segments and live blocks. Here nothing: all else is free, and merged."""
        return []
