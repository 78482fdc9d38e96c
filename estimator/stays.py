"""Parts that only make tensors which stay, until their scope is released: what they are is known, so none of them was recorded.

Sources: ostris/ai-toolkit 27a03a91, toolkit/prompt_utils.py (PromptEmbeds.to changes the object it is called on) and
toolkit/models/base_model.py (generate_images calls it on prompts that were cached); extensions_built_in/diffusion_models/flux2/src/
sampling.py (encode_image_refs). The sizes are those of tensors in whole runs of the trainer on the emulated device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from estimator.controls import RAW, RAW_BYTES_PER_PIXEL
from estimator.program import ALLOCATE, PeakRow, Program

TOKENS = "control.tokens"  # part: tokens of control images (FLUX.2), kept until the forward is over
PROMPTS = "preview.kept"  # part: the two cached prompts of a preview (Qwen-Image-Edit), on the card from its first round on

LATENT_BYTES, PLACE_BYTES = 256, 32  # of a token of FLUX.2: 128 channels of bf16; four coordinates of 8 bytes
EMBEDDING_BYTES, MASK_BYTES = 7168, 2  # of a text token: Qwen2.5-VL's 3584 channels of bf16; its mask, bf16 as well


def _staying(key: str, features: tuple[str, ...], rows: Sequence[tuple[int, ...]], moment: str) -> Program:
    """A part that makes a tensor for each row of bytes over its features, and frees none."""
    count, all_of_them = len(rows), tuple(map(sum, zip(*rows, strict=True)))
    return Program(
        key, features, np.array(rows), (0,) * count, [moment], (None,) * count, np.array([ALLOCATE] * count), 0,
        (PeakRow(all_of_them, moment),), {},
    )  # fmt: skip


PROGRAMS: Mapping[str, Program] = {
    RAW: _staying(RAW, ("R",), [(RAW_BYTES_PER_PIXEL,)], "a control image as it was read"),
    TOKENS: _staying(TOKENS, ("T",), [(LATENT_BYTES,), (PLACE_BYTES,)], "control images: their tokens"),
    PROMPTS: _staying(
        PROMPTS, ("X", "N"), [(EMBEDDING_BYTES, 0), (MASK_BYTES, 0), (0, EMBEDDING_BYTES), (0, MASK_BYTES)], "a preview's cached prompts"
    ),
}
