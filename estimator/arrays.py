"""What numpy's own set functions do, for small whole numbers: by a table instead of sorting, and without importing numpy.ma as those do."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from estimator.features import Ints

Bools = npt.NDArray[np.bool_]


def among(numbers: Ints, others: Ints | Collection[int]) -> Bools:
    """Of each number whether it is among others. The table is as long as the others are apart: for numbers of tensors, events, keys."""
    row = np.fromiter(others, dtype=np.int64, count=len(others)) if not isinstance(others, np.ndarray) else others
    if not len(row):
        return np.zeros(numbers.shape, dtype=np.bool_)
    low, high = int(row.min()), int(row.max())
    table = np.zeros(high - low + 3, dtype=np.bool_)  # what is below and above has a place of its own at either end
    table[row - (low - 1)] = True
    return table[np.clip(numbers, low - 1, high + 1) - (low - 1)]


def distinct(numbers: Ints) -> list[int]:
    """Each of them once, rising. The table is as long as they are apart."""
    low = int(numbers.min()) if numbers.size else 0
    return (np.flatnonzero(np.bincount(numbers - low)) + low).tolist()


def joined(rows: tuple[Ints, Bools], at: Ints, further: tuple[Ints, Bools]) -> tuple[Ints, Bools]:
    """Two rows of the same length with further numbers before these places, which rise: numpy's insert, for both at once."""
    places = at + np.arange(len(at))
    old = np.ones(len(rows[0]) + len(at), dtype=np.bool_)
    old[places] = False
    numbers, switches = np.empty(len(old), dtype=np.int64), np.empty(len(old), dtype=np.bool_)
    numbers[old], switches[old] = rows
    numbers[places], switches[places] = further
    return numbers, switches
