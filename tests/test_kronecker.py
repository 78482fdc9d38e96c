"""Sizes of a LoKr's matrices, against what toolkit/models/lokr.py (factorization) returns."""

from __future__ import annotations

import numpy as np
import pytest

from estimator.kronecker import AUTO, elements, factorization, matrices

# What the trainer's function returns (its docstring has some of these otherwise)
RETURNED = [
    (127, -1, (1, 127)), (128, -1, (8, 16)), (250, 4, (2, 125)), (250, 16, (10, 25)), (360, 16, (15, 24)), (1024, -1, (32, 32)),
    (3840, -1, (60, 64)), (12288, -1, (96, 128)), (15360, -1, (120, 128)), (18432, -1, (128, 144)), (3840, 7, (6, 640)),
]  # fmt: skip


@pytest.mark.parametrize(("dimension", "factor", "expected"), RETURNED)
def test_factors_are_the_trainers(dimension: int, factor: int, expected: tuple[int, int]) -> None:
    assert factorization(dimension, factor) == expected


@pytest.mark.parametrize("dimension", [3072, 3840, 10240, 256, 18432])
@pytest.mark.parametrize("factor", [AUTO, 2, 4, 5, 7, 16, 32])
def test_a_layer_is_the_product_of_its_matrices(dimension: int, factor: int) -> None:
    first, second = factorization(dimension, factor)
    assert first * second == dimension
    small, large = matrices(dimension, 3072, factor)
    assert (small[0] * large[0], small[1] * large[1]) == (3072, dimension)


def test_factors_that_divide_are_taken_as_they_are() -> None:
    assert matrices(3840, 10240, 4) == ((4, 4), (2560, 960))
    assert matrices(3072, 3072, 32) == ((32, 32), (96, 96))


def test_features_are_of_one_factor_or_of_many() -> None:
    single = [elements("kron2_3840x10240", factor) for factor in (4, 8, AUTO)]
    assert elements("kron2_3840x10240", np.array([4, 8, AUTO])).tolist() == single
    assert elements("kron1_3840x10240", 4) * single[0] == 3840 * 10240
    with pytest.raises(KeyError):
        elements("kron9_3840x10240", 4)
    with pytest.raises(KeyError):
        elements("kron1_3840", 4)
