"""Parts of pictures that are padded to one number of tokens, which are structures of their own: those that are no squares (HiDream-I1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from calibration.architectures.base import Layout
from calibration.extract.parts import Occurrence
from estimator.features import PIXELS_PER_EDGE, image_values
from estimator.operations import CORE, PREVIEW
from estimator.padded import PADDED_CORE, PADDED_PREVIEW, is_square, scaled_to_area

OWN = {CORE: PADDED_CORE, PREVIEW: PADDED_PREVIEW}


def split(found: Iterator[Occurrence], layout: Layout) -> Iterator[Occurrence]:
    """Cores and previews by the shape of their pictures; a preview's values are of the size that the pipeline makes it in."""
    for part in found:
        kind = part.key.split("/")[0]
        if kind == PREVIEW:
            part = replace(part, values={**part.values, **_made(part.values, layout.preview_side)})
        if kind in OWN and not is_square(part.values):
            part = replace(part, key=OWN[kind] + part.key.removeprefix(kind))
        yield part


def _made(values: dict[str, int], side: int) -> dict[str, int]:
    """`image_values` of a preview as it is made. Its sides as asked for follow from its area and its edge."""
    area, edge = values["T"], values["E"]
    apart = math.isqrt(max(edge**2 - 4 * area, 0))
    long, short = (edge + apart) // 2, (edge - apart) // 2
    if long * short != area:
        raise ValueError(f"a preview of {area} tokens and an edge of {edge}: no whole sides")
    return image_values(*scaled_to_area(long * PIXELS_PER_EDGE, short * PIXELS_PER_EDGE, side, PIXELS_PER_EDGE))
