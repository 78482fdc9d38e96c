"""Training sizes ("buckets") of images: what the trainer makes of an image, and the worst it can make of an unknown one.

Source: ostris/ai-toolkit 27a03a91, toolkit/buckets.py (the rule) and toolkit/dataloader_mixins.py, setup_buckets (its inputs).
"""

from __future__ import annotations

import math

# Worst cases assume no image longer than this many times its width. Without a bound the largest area below the resolution squared can be
# a strip one unit wide (997 units: 1 x 997); with it, at most 1.5 % of the area is given up at any resolution from 512 to 2048 px.
MAX_ASSUMED_ASPECT = 4


def bucket_size(width: int, height: int, resolution: int, divisor: int) -> tuple[int, int]:
    """The size in pixels that an image of `width` x `height` is trained at.

    The image is scaled (never enlarged) to an area of resolution², both sides are then rounded to multiples of `divisor`, up or down,
    whichever of the four ways comes nearest to the scaled area without exceeding resolution². Sides never fall below one unit, which is
    the only way to exceed that area.

    Floating point is done in the trainer's order, so that sizes on the edge of two buckets fall to the same side.
    """
    cap = resolution * resolution
    area = width * height
    target = min(area, cap)
    scale = (target / area) ** 0.5
    columns, rows = (width * scale) / divisor, (height * scale) / divisor
    sizes = [
        (column * divisor, row * divisor)
        for column in (math.floor(columns), math.ceil(columns))
        for row in (math.floor(rows), math.ceil(rows))
    ]
    allowed = [(w, h) for w, h in sizes if w > 0 and h > 0 and w * h <= cap]
    if not allowed:
        return max(divisor, math.floor(columns) * divisor), max(divisor, math.floor(rows) * divisor)
    return min(allowed, key=lambda size: abs(size[0] * size[1] - target))


def worst_bucket(resolution: int, divisor: int) -> tuple[int, int]:
    """The bucket with the most pixels, hence tokens, that any image can fall into at this resolution (landscape; portrait is its equal).

    Every pair of multiples of `divisor` whose area is at most resolution² is some image's bucket: the one of an image of just that size.
    So the worst is the largest such area; among equals the squarest. Shapes up to 4:1 are considered. For a resolution that `divisor`
    divides it is the square itself.
    """
    units = (resolution * resolution) // (divisor * divisor)
    if units == 0:
        return divisor, divisor
    best = (0, 0, 0)
    for rows in range(math.isqrt(units), 0, -1):
        columns = min(units // rows, rows * MAX_ASSUMED_ASPECT)
        if rows * columns > best[0]:
            best = (rows * columns, columns, rows)
        if units // rows >= rows * MAX_ASSUMED_ASPECT:
            break
    _, columns, rows = best
    return columns * divisor, rows * divisor


def square_bucket(resolution: int) -> tuple[int, int]:
    """With square_crop, or with bucketing off: resolution x resolution, not rounded to any divisor."""
    return resolution, resolution
