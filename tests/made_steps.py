"""Programs of what was recorded as sizes of allocations, negative for frees."""

from __future__ import annotations

from collections.abc import Sequence

from estimator.program import ALLOCATE


def numbered(steps: Sequence[int]) -> tuple[list[int], list[int]]:
    """Bytes of each tensor, and a program's events. Frees take the oldest of that size, as a layer's tensors do."""
    live: list[tuple[int, int]] = []
    events, sizes = list[int](), list[int]()
    for size in steps:
        if size > 0:
            live.append((len(sizes), size))
            sizes.append(size)
            events.append(ALLOCATE)
        else:
            first = next(entry for entry in live if entry[1] == -size)
            live.remove(first)
            events.append(len(sizes) - first[0])
    return sizes, events
