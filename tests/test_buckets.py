"""Training sizes: known cases of the trainer's rule, and the laws it obeys."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.buckets import MAX_ASSUMED_ASPECT, bucket_size, square_bucket, worst_bucket

sides = st.integers(1, 8000)
resolutions = st.integers(64, 2048)
divisors = st.sampled_from([8, 16, 32, 64])


@pytest.mark.parametrize(
    ("image", "resolution", "divisor", "bucket"),
    [
        # what the trainer's own function (toolkit/buckets.py, 27a03a91) gave for these
        ((1024, 1024), 1024, 32, (1024, 1024)),
        ((1216, 832), 1024, 32, (1216, 832)),
        ((1216, 832), 768, 32, (960, 608)),
        ((1216, 832), 512, 32, (608, 416)),
        ((4000, 3000), 1024, 16, (1168, 896)),
        ((1920, 1080), 1024, 16, (1360, 768)),
        ((640, 480), 1024, 32, (640, 480)),  # never enlarged
        ((300, 300), 512, 32, (288, 320)),
        ((20, 3000), 512, 32, (32, 2976)),
        ((10, 10), 512, 32, (32, 32)),
        ((3000, 1), 512, 32, (2976, 32)),
    ],
)
def test_known_sizes(image: tuple[int, int], resolution: int, divisor: int, bucket: tuple[int, int]) -> None:
    assert bucket_size(*image, resolution, divisor) == bucket


@given(sides, sides, resolutions, divisors)
def test_sides_are_multiples_and_the_area_is_within_the_resolution(width: int, height: int, resolution: int, divisor: int) -> None:
    w, h = bucket_size(width, height, resolution, divisor)
    assert w % divisor == 0
    assert h % divisor == 0
    assert w > 0
    assert h > 0
    one_unit_wide = min(w, h) == divisor
    assert w * h <= resolution**2 or one_unit_wide


@given(sides, sides, resolutions, divisors)
def test_turning_an_image_turns_its_bucket_or_an_equal_one(width: int, height: int, resolution: int, divisor: int) -> None:
    w, h = bucket_size(width, height, resolution, divisor)
    turned = bucket_size(height, width, resolution, divisor)
    assert turned[0] * turned[1] == w * h


@given(st.integers(1, 40), st.integers(1, 40), divisors)
def test_an_image_of_a_buckets_size_stays_as_it_is(columns: int, rows: int, divisor: int) -> None:
    width, height = columns * divisor, rows * divisor
    assert bucket_size(width, height, 40 * divisor, divisor) == (width, height)


@given(sides, sides, resolutions, divisors)
def test_no_image_of_a_usual_shape_has_more_pixels_than_the_worst_bucket(width: int, height: int, resolution: int, divisor: int) -> None:
    w, h = bucket_size(width, height, resolution, divisor)
    if w * h <= resolution**2 and max(w, h) <= MAX_ASSUMED_ASPECT * min(w, h):
        worst = worst_bucket(resolution, divisor)
        assert w * h <= worst[0] * worst[1]


@given(resolutions, divisors)
def test_the_worst_bucket_is_a_bucket(resolution: int, divisor: int) -> None:
    worst = worst_bucket(resolution, divisor)
    assert bucket_size(*worst, resolution, divisor) == worst


@pytest.mark.parametrize(("resolution", "divisor"), [(512, 32), (768, 16), (1024, 32), (1280, 16), (1536, 32)])
def test_the_worst_bucket_of_a_divisible_resolution_is_its_square(resolution: int, divisor: int) -> None:
    assert worst_bucket(resolution, divisor) == (resolution, resolution)


@pytest.mark.parametrize(("resolution", "divisor"), [(1000, 32), (1328, 32), (997, 16), (600, 32), (250, 64)])
def test_the_worst_bucket_is_the_largest_of_all_shapes_tried(resolution: int, divisor: int) -> None:
    units = range(1, 4 * resolution // divisor)
    shapes = [
        (a, b) for a, b in itertools.product(units, units) if b <= a <= MAX_ASSUMED_ASPECT * b and a * b * divisor**2 <= resolution**2
    ]
    width, height = worst_bucket(resolution, divisor)
    assert width * height == max(a * b for a, b in shapes) * divisor**2


def test_a_resolution_below_one_unit_gives_one_unit() -> None:
    assert worst_bucket(20, 32) == (32, 32) == bucket_size(500, 500, 20, 32)


def test_a_square_crop_keeps_the_resolution() -> None:
    assert square_bucket(1000) == (1000, 1000)
