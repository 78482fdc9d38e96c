"""Exact affine sizes: find whole-number coefficients over a few features that give every recorded size, to the byte.

The fewest features win; among as few, the earlier in the list. No average is ever taken: a size that no combination gives
exactly is refused, and its name is what to look for (a missing feature).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from estimator.features import feature

MOST_FEATURES = 3
HALF = 0.5  # of a byte: sizes are whole


def solve(features: tuple[str, ...], values: list[dict[str, int]], columns: list[tuple[int, ...]]) -> list[tuple[int, ...] | None]:
    """Coefficients over `features` for each column of sizes (one size for each occurrence); None where there are none.

    Three features only with the constant, or the batch, among them: padded images (T, edge, 1), padded text.
    """
    table = np.array([[feature(name, v) for name in features] for v in values], dtype=np.float64)
    found: list[tuple[int, ...] | None] = [None] * len(columns)
    wanted = np.array(columns, dtype=np.float64).T
    for count in range(1, MOST_FEATURES + 1):
        for chosen in combinations(range(len(features)), count):
            if count == MOST_FEATURES and features[chosen[0]] not in ("1", "B"):
                continue
            left = [c for c, f in enumerate(found) if f is None]
            if not left:
                return found
            _try(table[:, chosen], wanted, chosen, left, len(features), found)
    return found


def _try(
    sub: np.ndarray, wanted: np.ndarray, chosen: tuple[int, ...], left: list[int], width: int, found: list[tuple[int, ...] | None]
) -> None:
    """Take whole-number solutions over the chosen features for the columns that are left."""
    if len(sub) > 1 and np.linalg.matrix_rank(sub) < len(chosen):
        return
    whole = np.rint(np.linalg.lstsq(sub, wanted[:, left], rcond=None)[0])
    exact = (np.abs(sub @ whole - wanted[:, left]) < HALF).all(axis=0)
    for column, good, coefficients in zip(left, exact, whole.T, strict=True):
        if good and (len(chosen) == 1 or (coefficients != 0).all()):
            full = [0] * width
            for position, value in zip(chosen, coefficients, strict=True):
                full[position] = int(value)
            found[column] = tuple(full)
