"""Sizes of a LoKr's matrices: a layer's update as the Kronecker product of a small and a large matrix.

Inputs and outputs are each factored in two; the small matrix has the first factor of both, the large one the second (full rank: neither is
decomposed further). Between the two a token is as large as the inputs' first factor times the outputs' second one.
Source: toolkit/models/lokr.py (factorization, LokrModule).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np

AUTO = -1  # factors as near as can be to the square root
NAME = re.compile(r"kron(\d)_(\d+)x(\d+)")


@cache
def factorization(dimension: int, factor: int) -> tuple[int, int]:
    """The first and the second factor of a dimension: `factor` itself where it divides, else the pair with the least sum not above it."""
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    most = dimension if factor == AUTO else factor
    best = (1, dimension)
    while best[0] < best[1]:
        first = next(n for n in range(best[0] + 1, dimension + 1) if dimension % n == 0)
        if first + dimension // first > sum(best) or first > most:
            break
        best = (first, dimension // first)
    return min(best), max(best)


@cache
def matrices(inputs: int, outputs: int, factor: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows, columns) of the small and of the large matrix."""
    (in_first, in_second), (out_first, out_second) = factorization(inputs, factor), factorization(outputs, factor)
    return (out_first, in_first), (out_second, in_second)


def elements(name: str, factor: Any) -> Any:
    """The value of a feature (see estimator.features), for a factor or an array of them."""
    if isinstance(factor, int):
        return _elements(name, factor)
    return np.vectorize(_elements, otypes=[np.int64])(name, factor)


@cache
def _elements(name: str, factor: int) -> int:
    found = NAME.fullmatch(name)
    if found is None:
        raise KeyError(f"unknown variable {name!r}")
    which, inputs, outputs = (int(group) for group in found.groups())
    small, large = matrices(inputs, outputs, int(factor))
    return {1: small[0] * small[1], 2: large[0] * large[1], 3: small[1] * large[0]}[which]
