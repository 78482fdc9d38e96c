"""Sets of small numbers by tables come to what numpy's sorting comes to."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from estimator.arrays import among, distinct

NUMBERS = st.lists(st.integers(-50, 300), max_size=40)


@given(numbers=NUMBERS, others=NUMBERS)
def test_among(numbers: list[int], others: list[int]) -> None:
    row = np.array(numbers, dtype=np.int64)
    expected = [number in others for number in numbers]
    assert among(row, np.array(others, dtype=np.int64)).tolist() == expected
    assert among(row, set(others)).tolist() == expected


@given(NUMBERS)
def test_distinct(numbers: list[int]) -> None:
    assert distinct(np.array(numbers, dtype=np.int64)) == sorted(set(numbers))
