"""Peak rows: of all running totals of a program, the few that can be the highest, each with the moment it stands for.

A running total is affine too. One that is nowhere larger than another, feature by feature, can never be the maximum; of the
rest, those are kept that are the maximum somewhere on a grid over the domain of jobs.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from calibration.extract.align import Sequence
from estimator.features import feature

DOMAIN = {
    "B": (1, 2, 3, 4, 8, 16), "T": (64, 256, 576, 1024, 1551, 2304, 4096, 6400, 9216, 16384), "X": (16, 77, 160, 300, 512),
    "r": (1, 4, 16, 32, 64, 128, 256),
}  # fmt: skip
IMAGE_CELLS = (180, 400, 600, 1400)  # of the control images of a text, which are tokens beside its own
CLIP, FRAMES = {"A", "F", "K", "T128"}, (1, 2, 3, 5, 9, 21, 31)  # variables that only video has; latent frames, T being those of one then


def peak_rows(sequence: Sequence, coefficients: np.ndarray, features: tuple[str, ...]) -> list[tuple[tuple[int, ...], str]]:
    """(coefficients, moment) of each row that can be the maximum; none for a part that allocates nothing."""
    totals, tensors = running_totals(sequence, coefficients)
    if not len(totals):
        return []
    unique, first = np.unique(totals, axis=0, return_index=True)
    used = np.flatnonzero(unique.any(axis=0))
    grid = _grid(tuple(features[c] for c in used))
    best = np.zeros(len(unique), dtype=bool)
    for start in range(0, len(grid), 256):  # the memory of one block, not of the whole product
        values = unique[:, used] @ grid[start : start + 256].T
        best[np.unique(values.argmax(axis=0))] = True
    keep = np.flatnonzero(best)
    return [(tuple(int(x) for x in unique[k]), sequence.labels[tensors[first[k]]]) for k in keep]


def running_totals(sequence: Sequence, coefficients: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Totals after each allocation, as coefficients, and the tensor allocated there."""
    deltas, tensors, at = [], [], []
    for event in sequence.events:
        if event is None:
            continue
        if event >= 0:
            at.append(len(deltas))
            tensors.append(event)
        deltas.append(coefficients[event] if event >= 0 else -coefficients[~event])
    if not at:
        return np.zeros((0, coefficients.shape[1] if coefficients.ndim == 2 else 0), dtype=np.int64), []
    return np.cumsum(np.array(deltas, dtype=np.int64), axis=0)[at], tensors


def _grid(features: tuple[str, ...]) -> np.ndarray:
    rows = []
    factors = {factor for name in features for factor in name.split("*")}
    domain = DOMAIN if factors.isdisjoint(CLIP) else {**DOMAIN, "F": FRAMES}
    domain = {**domain, "I": IMAGE_CELLS} if "I" in factors else domain
    for values in product(*domain.values()):
        given = dict(zip(domain, values, strict=True))
        given["E"], given["N"], given["A"] = 2 * int(given["T"] ** 0.5), given["X"], given["T"]
        given["T"] *= given.setdefault("F", 1)
        given["X"] += given.get("I", 0)
        given["K"] = max(given["F"] - 2, 1)  # the last of the chunks that are alike
        rows.append([feature(name, given) for name in features])
    return np.unique(np.array(rows, dtype=np.int64), axis=0)
