"""Pictures that are padded to one number of tokens unless they are squares, and previews of one area (HiDream-I1).

Source: ostris/ai-toolkit 27a03a91, extensions_built_in/diffusion_models/hidream: hidream_model.py (get_noise_prediction: latents whose
sides differ are put into `max_seq` tokens of zeros, with a mask), src/pipelines/hidream_image/pipeline_hidream_image.py (__call__: width
and height are scaled to the area of a square of 128 latent pixels' side, then cut to multiples of 16).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

# Forward, loss, backward; and denoising, of pictures that are no squares
PADDED_CORE, PADDED_PREVIEW = "step.core.padded", "preview.padded"


def is_square(values: Mapping[str, int]) -> bool:
    """Whether an image of these `T` and `E` (estimator.features.image_values) has equal sides: its edge is twice the root of its area."""
    return values["E"] ** 2 == 4 * values["T"]


def scaled_to_area(width: int, height: int, side: int, divisor: int) -> tuple[int, int]:
    """Width and height at the area of a square of so many pixels' side, cut to multiples of `divisor` (by floats, as it is done)."""
    scale = math.sqrt(side**2 / (width * height))
    return int(width * scale // divisor * divisor), int(height * scale // divisor * divisor)


def unequal(width: int, height: int, divisor: int) -> tuple[int, int]:
    """A size whose sides differ, as large as can be: of a square the one side a divisor shorter."""
    return (width, height - divisor) if width == height > divisor else (width, height)
