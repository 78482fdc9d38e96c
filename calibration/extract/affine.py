"""Exact affine sizes: find whole-number coefficients over a few features that give every recorded size, to the byte.

The fewest features win; among as few, the earlier in the list. No average is ever taken: a size that no combination gives
exactly is refused, and its name is what to look for (a missing feature). A formula must have been checked by at least one
recording more than it has features, and give no negative size to any job of a wide grid: what does not is a coincidence.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from estimator.features import feature, image_values
from estimator.levels import levels

MOST_FEATURES = 3
HALF = 0.5  # of a byte: sizes are whole
# Jobs that no formula may give a negative size: (width, height), samples, text tokens, rank (or factor). Inside of them users' jobs lie.
SIDES = ((256, 256), (512, 512), (320, 768), (1024, 1024), (1536, 640), (2048, 2048))
WIDE_GRID = tuple(
    {
        **image_values(*side), **levels(*side), "B": batch, "X": text, "N": other, "r": rank, "K": 2, "I": 3 * text // 4, "O": 1, "M": 5,
        "f": rank, "c": conv,
    }
    for side in SIDES for batch in (1, 2, 8) for text, other in ((9, 9), (40, 9), (512, 30))
    for rank, conv in ((4, 128), (128, 4))
)  # fmt: skip


def solve(features: tuple[str, ...], values: list[dict[str, int]], columns: list[tuple[int, ...]]) -> list[tuple[int, ...] | None]:
    """Coefficients over `features` for each column of sizes (one size for each occurrence); None where there are none.

    Three features only with the constant, or the batch, among them: padded images (T, edge, 1), padded text. A constant needs no
    spare recording (its key says all that it depends on), and neither does an adapter's size, which is recorded at two ranks.
    """
    table = np.array([[feature(name, v) for name in features] for v in values], dtype=np.float64)
    given = {name for v in values for name in v}
    frames = min(v.get("F", 1) for v in values)  # what only clips have is not asked of an image
    wide = [{**v, "F": frames, "T": frames * v["T"]} for v in WIDE_GRID]
    grid = np.array([[feature(name, {k: v[k] for k in v if k in given}) for name in features] for v in wide], dtype=np.float64)
    found: list[tuple[int, ...] | None] = [None] * len(columns)
    wanted = np.array(columns, dtype=np.float64).T
    for count in range(1, MOST_FEATURES + 1):
        for chosen in combinations(range(len(features)), count):
            if count == MOST_FEATURES and features[chosen[0]] not in ("1", "B"):
                continue
            left = [c for c, f in enumerate(found) if f is None]
            if not left:
                return found
            points = len(set(map(tuple, table[:, chosen].tolist())))
            if points > count or {features[c] for c in chosen} <= {"1", "r", "c"}:
                _try(table[:, chosen], wanted, chosen, left, grid, found)
    return found


def _try(
    sub: np.ndarray, wanted: np.ndarray, chosen: tuple[int, ...], left: list[int], grid: np.ndarray, found: list[tuple[int, ...] | None]
) -> None:
    """Take whole-number solutions over the chosen features for the columns that are left. `grid`: all features of the wide grid's jobs."""
    if len(sub) > 1 and np.linalg.matrix_rank(sub) < len(chosen):
        return
    whole = np.rint(np.linalg.lstsq(sub, wanted[:, left], rcond=None)[0])
    exact = (np.abs(sub @ whole - wanted[:, left]) < HALF).all(axis=0)
    exact &= (grid[:, chosen] @ whole > -HALF).all(axis=0)
    for column, good, coefficients in zip(left, exact, whole.T, strict=True):
        if good and (len(chosen) == 1 or (coefficients != 0).all()):
            full = [0] * grid.shape[1]
            for position, value in zip(chosen, coefficients, strict=True):
                full[position] = int(value)
            found[column] = tuple(full)
