"""Parts that only make tensors which stay, until their scope is released: what they are is known, so none of them was recorded.

Two make a copy of a copy, and let go of the first (`BLANK`, `BROUGHT`).

Sources: ostris/ai-toolkit 27a03a91, toolkit/prompt_utils.py (PromptEmbeds.to changes the object it is called on) and
toolkit/models/base_model.py (generate_images calls it on prompts that were cached); extensions_built_in/diffusion_models/flux2/src/
sampling.py (encode_image_refs); diffusers c9438378, LTX2Pipeline.__call__ (what guidance computes of pictures). The sizes are those of
tensors in whole runs of the trainer on the emulated device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from estimator import asked
from estimator.controls import RAW, RAW_BYTES_PER_PIXEL
from estimator.footprint import PeakRow
from estimator.program import ALLOCATE, Program

TOKENS = "control.tokens"  # part: tokens of control images (FLUX.2), kept until the forward is over
PROMPTS = "preview.kept"  # part: the two cached prompts of a preview (Qwen-Image-Edit), on the card from its first round on
PROMPTS_3B = "preview.kept/3b"  # part: the same of OmniGen2
LATENT = "control.latent"  # part: a control image's latent, or its tokens (Qwen-Image-Edit)
STEP_BEFORE = "preview.step_before"  # part: predictions of LTX-2's denoising step before, while the next runs; behind a bar: how many
PIXELS_BEFORE = "preview.pixels_before"  # part: the same of a model on pixels; behind a bar: whose pipeline
ANGLES = "positions.kept"  # part: the angles of positions that Z-Image's first forward of all makes, and keeps

ADAPTED, BARE, EMBEDDINGS = "forward.adapted/", "forward.bare/", "embeddings/"  # how keys of passes and their prompts begin (forward_pass)
INPUTS = "forward.inputs"  # part: latents and noise of a picture, each once, and once for each noise level (BaseSDTrainProcess.validate)
LATENT_TOKEN_BYTES = 128  # 16 channels of 2 x 2 latent pixels in bf16: of all architectures that have passes (trainers/modelled.py)

BLANK = "step.blank"  # part: the empty prompt's embedding, of which a step's prompts are made where the text encoder was unloaded

BROUGHT = "prompt.brought"  # part: a prompt that was encoded on the host, moved to the card and copied there (Chroma1-Radiance)

T5_BYTES = UMT5_BYTES = 8192  # of a text token: T5-XXL's and UMT5's (Wan) 4096 channels of bf16
PACKED_BYTES = 128  # of a token of Qwen-Image: 16 channels of 2 x 2 latents, bf16
LATENT_BYTES, PLACE_BYTES = 256, 32  # of a token of FLUX.2: 128 channels of bf16; four coordinates of 8 bytes
EMBEDDING_BYTES, MASK_BYTES = 7168, 2  # of a text token: Qwen2.5-VL's 3584 channels of bf16; its mask, bf16 as well
EMBEDDING_3B_BYTES, MASK_3B_BYTES = 4096, 8  # the same of Qwen2.5-VL 3B's 2048 channels; the mask as the tokenizer has it (OmniGen2)
PREDICTED_BYTES = 512  # of a token of LTX-2: 128 channels of fp32
# Complex numbers of 8 bytes for 1536 places in text and 512 each way, half as many as channels (transformer_z_image.py: RopeEmbedder)
ANGLE_BYTES = (8 * 1536 * 16, 8 * 512 * 24, 8 * 512 * 24)
PIXEL_BYTES = 1536  # of a token of 16 pixels each way, three values of bf16 each
# Of those on pixels: what Z-Image's pipeline has of a step while the next one's forward runs is the model's output in bf16, of both prompts
# at once, and in fp32 the guided prediction, with guidance those of the two prompts and the negated one too; Chroma's has the prediction,
# with guidance three, of which the recorded forward of the negative prompt has had the first beside it
STAYING_PIXELS = {
    "zimage": (PIXEL_BYTES, 2 * PIXEL_BYTES), "zimage guided": (2 * PIXEL_BYTES,) * 5,
    "chroma": (PIXEL_BYTES,), "chroma guided": (PIXEL_BYTES,) * 2,
}  # fmt: skip
# Those of pictures, which stay until the next step makes them anew: the prediction and the guided one; with both prompts also the negative
# one's and its difference; with LTX-2.3's two further forwards these two of either
PREDICTED_PLAIN, PREDICTED_GUIDED, PREDICTED_APART = 2, 4, 8


def staying(key: str, features: tuple[str, ...], rows: Sequence[tuple[int, ...]], moment: str) -> Program:
    """A part that makes a tensor for each row of bytes over its features, and frees none."""
    count, all_of_them = len(rows), tuple(map(sum, zip(*rows, strict=True)))
    return Program(
        key, features, np.array(rows), (0,) * count, [moment], (None,) * count, np.array([ALLOCATE] * count), 0,
        (PeakRow(all_of_them, moment),), {},
    )  # fmt: skip


PROGRAMS: Mapping[str, Program] = {
    **asked.PROGRAMS,
    RAW: staying(RAW, ("R",), [(RAW_BYTES_PER_PIXEL,)], "a control image as it was read"),
    TOKENS: staying(TOKENS, ("T",), [(LATENT_BYTES,), (PLACE_BYTES,)], "control images: their tokens"),
    LATENT: staying(LATENT, ("T",), [(PACKED_BYTES,)], "control images: their tokens"),
    PROMPTS: staying(
        PROMPTS, ("X", "N"), [(EMBEDDING_BYTES, 0), (MASK_BYTES, 0), (0, EMBEDDING_BYTES), (0, MASK_BYTES)], "a preview's cached prompts"
    ),
    PROMPTS_3B: staying(
        PROMPTS_3B, ("X", "N"), [(EMBEDDING_3B_BYTES, 0), (MASK_3B_BYTES, 0), (0, EMBEDDING_3B_BYTES), (0, MASK_3B_BYTES)],
        "a preview's cached prompts",
    ),
    INPUTS: staying(
        INPUTS, ("T", "B*T"), [(LATENT_TOKEN_BYTES, 0)] * 2 + [(0, LATENT_TOKEN_BYTES)] * 2, "a validation batch"
    ),
    BLANK: Program(
        BLANK, ("X",), np.array([(UMT5_BYTES,), (UMT5_BYTES,)]), (0, 0), ["the empty prompt, copied"], (None, None),
        np.array([ALLOCATE, ALLOCATE, 2]), 0, (PeakRow((2 * UMT5_BYTES,), "the empty prompt, copied"),), {},
    ),
    BROUGHT: Program(
        BROUGHT, ("X",), np.array([(T5_BYTES,), (MASK_BYTES,)] * 2), (0,) * 4, ["a prompt from the host, copied"], (None,) * 4,
        np.array([ALLOCATE] * 4 + [4, 3]), 0, (PeakRow((2 * (T5_BYTES + MASK_BYTES),), "a prompt from the host, copied"),), {},
    ),
    **{
        f"{STEP_BEFORE}/{count}": staying(f"{STEP_BEFORE}/{count}", ("T",), [(PREDICTED_BYTES,)] * count, "predictions of the step before")
        for count in (PREDICTED_PLAIN, PREDICTED_GUIDED, PREDICTED_APART)
    },
    ANGLES: staying(ANGLES, ("1",), [(size,) for size in ANGLE_BYTES], "angles of positions"),
    **{
        key: staying(key, ("T",), [(size,) for size in sizes], "predictions of the step before")
        for key, sizes in {f"{PIXELS_BEFORE}/{whose}": sizes for whose, sizes in STAYING_PIXELS.items()}.items()
    },
}
