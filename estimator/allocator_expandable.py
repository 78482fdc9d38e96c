"""`expandable_segments:True`: the same allocator on segments that grow page by page inside a reserved range of addresses.

Each pool has one range of 9/8 of the device's memory (more only if that is fragmented away), of which pages of 2 MiB (small pool) or
20 MiB (large) are mapped as needed, at the lowest addresses that make room, and unmapped again by empty_cache and before an
out-of-memory retry, wherever a free block covers whole pages. Source and checks: as `estimator.allocator`
(find_expandable_block, map_block, try_allocate_expandable_block, unmap_block, release_blocks).

Choose it by `Allocator(..., expandable_segments=True)`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from typing import Any

from estimator.allocator import Allocator
from estimator.allocator_state import LARGE_SEGMENT_UNITS, MASK, SHIFT, SMALL_REQUEST_UNITS, SMALL_SEGMENT_UNITS, UNIT_BYTES, Place

UNBOUNDED_TOTAL_BYTES = 2**46
"""Stands for the device's memory where neither it nor a capacity is given: more than any step maps."""


class ExpandableAllocator(Allocator):
    """`_unmapped` ranges, like free blocks, are found by their first address; each pool keeps those addresses sorted.

    Raises ValueError for a capacity larger than the device.
    """

    __slots__ = ("_large_unmapped", "_small_unmapped", "_unmapped")

    _SPLIT_LARGE_UNITS = 1  # should_split: any remainder, in both pools

    def __init__(
        self,
        capacity_bytes: int | None = None,
        expandable_segments: bool = True,
        *,
        device_total_bytes: int | None = None,
        place: Place | None = None,
    ) -> None:
        if device_total_bytes is not None and capacity_bytes is not None and device_total_bytes < capacity_bytes:
            raise ValueError(f"a capacity of {capacity_bytes} bytes on a device of {device_total_bytes}")
        super().__init__(capacity_bytes, device_total_bytes=device_total_bytes, place=place)
        self._unmapped: dict[int, int] = {}
        self._small_unmapped: list[int] = []
        self._large_unmapped: list[int] = []

    def use_stream(self, stream: int) -> None:
        """See `Allocator`."""
        if stream:
            raise ValueError("several streams with expandable segments are not modelled")

    def seed(self, segments: Iterable[Mapping[str, Any]]) -> None:
        """Not to be had: a snapshot does not say where the reserved ranges of addresses begin and end."""
        raise ValueError("cannot start from a snapshot with expandable segments")

    def _choose(self, pool: list[int], at: int) -> int:
        """Best fit counts what a block could grow to: skip those at the edge of unmapped pages while the next could grow to less."""
        while at + 1 < len(pool) and self._extent(pool[at + 1]) < self._extent(pool[at]):
            at += 1
        return at

    def _extent(self, block: int) -> int:
        size = block >> SHIFT
        end = (block & MASK) + size
        return size if end in self._segments else size + self._unmapped.get(end, 0)

    def _grow(self, units: int) -> int | None:
        small = units <= SMALL_REQUEST_UNITS
        page = SMALL_SEGMENT_UNITS if small else LARGE_SEGMENT_UNITS
        pool, unmapped = (self._small, self._small_unmapped) if small else (self._large, self._large_unmapped)
        start = self._find(unmapped, units)
        if start is None:
            start = self._new_segment(page, unmapped, units)
        block = self._free_at.get(start)
        while block is None or block >> SHIFT < units:
            edge, have = (start, 0) if block is None else (start + (block >> SHIFT), block >> SHIFT)
            wanted = min(self._unmapped[edge], units - have)
            mapped = -(-wanted // page) * page
            if self._capacity is not None and self._reserved + mapped > self._capacity:
                return None  # what was mapped before stays, free
            self._map(edge, mapped, pool, unmapped)
            block = self._free_at[start]
        del pool[bisect_left(pool, block)]
        return block

    def _find(self, unmapped: list[int], units: int) -> int | None:
        """The lowest address from which free and unmapped ranges together make `units`; it is at, or just before, an unmapped one."""
        for edge in unmapped:
            start = edge
            if edge in self._free_end and edge not in self._segments:
                start = self._free_end[edge] & MASK
            at, room = start, 0
            while room < units and (at == start or at not in self._segments):
                block = self._free_at.get(at)
                size = self._unmapped.get(at, 0) if block is None else block >> SHIFT
                if not size:
                    break
                at, room = at + size, room + size
            if room >= units:
                return start
        return None

    def _new_segment(self, page: int, unmapped: list[int], units: int) -> int:
        total = UNBOUNDED_TOTAL_BYTES if self._device_total is None else max(1, self._device_total)
        size = -(-(total + total // 8) // (page * UNIT_BYTES)) * page
        if self._capacity is None:
            size = max(size, -(-units // page) * page)
        base = self._take_addresses(size)
        insort(unmapped, base)
        self._unmapped[base] = size
        return base

    def _map(self, edge: int, mapped: int, pool: list[int], unmapped: list[int]) -> None:
        """Map the first `mapped` units of the unmapped range at `edge`; they become free, and merge with their free neighbours."""
        size = self._unmapped.pop(edge)
        del unmapped[bisect_left(unmapped, edge)]
        if mapped < size:
            self._unmapped[edge + mapped] = size - mapped
            insort(unmapped, edge + mapped)
        self._reserve(mapped)
        start, end = edge, edge + mapped
        if start in self._free_end and start not in self._segments:
            start = self._drop(pool, self._free_end[start]) & MASK
        if end in self._free_at and end not in self._segments:
            end += self._drop(pool, self._free_at[end]) >> SHIFT
        self._add(pool, start, end)

    def _add(self, pool: list[int], start: int, end: int) -> None:
        if start < end:
            block = (end - start) << SHIFT | start
            insort(pool, block)
            self._free_at[start] = self._free_end[end] = block

    def _drop(self, pool: list[int], block: int) -> int:
        del pool[bisect_left(pool, block)]
        address = block & MASK
        del self._free_at[address], self._free_end[address + (block >> SHIFT)]
        return block

    def _release(self) -> None:
        """release_cached_blocks: unmap every page that lies within a free block; give up ranges of addresses without any page."""
        for pool, unmapped, page in (
            (self._large, self._large_unmapped, LARGE_SEGMENT_UNITS),
            (self._small, self._small_unmapped, SMALL_SEGMENT_UNITS),
        ):
            bases = sorted(self._segments)
            for block in pool.copy():
                address, end = block & MASK, (block & MASK) + (block >> SHIFT)
                base = bases[bisect_right(bases, address) - 1]
                first, last = base - (base - address) // page * page, base + (end - base) // page * page
                if first < last:
                    self._drop(pool, block)
                    self._add(pool, address, first)
                    self._add(pool, last, end)
                    self._reserved -= last - first
                    self._unmap(unmapped, base, first, last)

    def _unmap(self, unmapped: list[int], base: int, first: int, last: int) -> None:
        """Add first..last to the unmapped ranges, merged with those beside it within the segment at `base`."""
        at = bisect_left(unmapped, first)
        if at < len(unmapped) and unmapped[at] == last and last not in self._segments:
            last += self._unmapped.pop(unmapped.pop(at))
        if at > 0 and first != base and unmapped[at - 1] + self._unmapped[unmapped[at - 1]] == first:
            at -= 1
            first = unmapped.pop(at)
            del self._unmapped[first]
        if last - first == self._segments[base]:
            del self._segments[base]
        else:
            unmapped.insert(at, first)
            self._unmapped[first] = last - first

    def _layout(self, bases: list[int]) -> list[int]:
        """Page size of each segment's pool, and the unmapped ranges by segment and offset."""
        flat = [self._device_total or -1]
        for page, unmapped in ((SMALL_SEGMENT_UNITS, self._small_unmapped), (LARGE_SEGMENT_UNITS, self._large_unmapped)):
            for first in unmapped:
                segment = bisect_right(bases, first) - 1
                flat += [page, segment, first - bases[segment], self._unmapped[first]]
        return flat
