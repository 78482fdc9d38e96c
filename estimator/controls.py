"""Control images of edit models: what sizes the trainer and its pipeline make of a picture, and how many tokens that is.

A picture keeps its own shape. It is scaled to about a megapixel for the VAE (`latent_size`: its latent's tokens stand behind those of the
image that is trained) and to 384 x 384 pixels' worth for the text encoder's vision tower (`cells`: text tokens, one for 28 x 28 pixels).
Source: ostris/ai-toolkit 27a03a91, extensions_built_in/diffusion_models/qwen_image/qwen_image_edit_plus.py (get_prompt_embeds,
get_noise_prediction); diffusers c9438378, pipeline_qwenimage_edit_plus.py (calculate_dimensions); transformers' smart_resize of Qwen2-VL.
"""

from __future__ import annotations

import math

Size = tuple[int, int]
"""Width and height in pixels."""

PROMPTS, SINGLE, FITTED, TOKENS, CHANNELS = "prompts", "single", "fitted", "tokens", "channels"
"""What an architecture does with control images (`control_images` in profiles/archs.yaml)."""

LATENT_AREA, VISION_AREA = 1024 * 1024, 384 * 384  # pixels: VAE_IMAGE_SIZE, CONDITION_IMAGE_SIZE
STEP = 32  # both sides are rounded to multiples of it
TOKEN = 16  # pixels of a side of FLUX.2's tokens
CELL = 28  # of the vision tower: 2 x 2 patches of 14 pixels become one token (smart_resize: factor)
SMALL: Size = (512, 512)  # what the trainer resizes control images to without full_size_control_images
BLANK = (224, 224)  # what is encoded with a text that has no control image (SDTrainer.get_blank_control_image)
ASSUMED = (1024, 1024)  # of a control image that is not here
MOST_IMAGES = 3
RAW = "control.raw"  # part: a picture on the card as it was read, `R` pixels
ENCODE = "control.encode"  # part: the VAE alone over a picture that is on the card already
CONTROLLED_PREVIEW = "preview.controlled"  # part: a preview with a control image, where others have none
RAW_BYTES_PER_PIXEL = 6  # three channels of bf16


def scaled(picture: Size, area: int) -> Size:
    """A picture scaled to about so many pixels, in its own shape."""
    ratio = picture[1] / picture[0]
    height = math.sqrt(area * ratio)
    return max(STEP, round(height / ratio / STEP) * STEP), max(STEP, round(height / STEP) * STEP)


def latent_size(picture: Size, target: Size | None = None) -> Size:
    """The size at which the VAE encodes a picture; `target`: that of the trained image, where model_kwargs.match_target_res is on."""
    return scaled(picture, LATENT_AREA if target is None else target[0] * target[1])


def encoded_size(kind: str | None, picture: Size, target: Size | None = None) -> Size:
    """The size at which an architecture's VAE encodes a picture in a training step. `kind`: its `control_images` in profiles/archs.yaml."""
    if kind == SINGLE and target is not None:
        return target
    return capped_size(picture, target) if kind == TOKENS else latent_size(picture, target)


def vision_area(kind: str | None) -> int:
    """Pixels of a picture for the vision tower. `kind`: the architecture's `control_images` in profiles/archs.yaml."""
    return LATENT_AREA if kind == SINGLE else VISION_AREA


def cells(picture: Size, area: int = VISION_AREA) -> int:
    """Text tokens that a picture becomes in a prompt, scaled to `area` pixels."""
    width, height = scaled(picture, area)
    return max(1, round(width / CELL)) * max(1, round(height / CELL))


def capped_size(picture: Size, target: Size | None = None) -> Size:
    """The size at which FLUX.2's VAE encodes a picture: a megapixel at most, and cropped to whole tokens.

    `target`: that of the trained image, where model_kwargs.match_target_res is on: about as many pixels, and no more.
    Source: ostris/ai-toolkit 27a03a91, extensions_built_in/diffusion_models/flux2/flux2_model.py (get_noise_prediction), src/sampling.py
    (encode_image_refs, default_prep).
    """
    width, height = (side // TOKEN * TOKEN for side in capped(picture, target))
    return max(TOKEN, width), max(TOKEN, height)


def capped(picture: Size, target: Size | None = None) -> Size:
    """The size of a picture of FLUX.2 before it is cropped."""
    most = LATENT_AREA
    if target is not None:
        picture, most = scaled(picture, target[0] * target[1]), target[0] * target[1]
    scale = min(1.0, math.sqrt(most / (picture[0] * picture[1])))
    return int(picture[0] * scale), int(picture[1] * scale)


def pixels(pictures: tuple[Size, ...]) -> int:
    return sum(width * height for width, height in pictures)
