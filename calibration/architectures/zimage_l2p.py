"""Z-Image L2P: Z-Image's transformer and text encoder on pixels, patches of 16, and a small U-Net at full size where the last layer was.

There is no VAE: the trainer's stand-in for one hands pictures through, so that latents are three values for each pixel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures import zimage
from calibration.architectures.base import Architecture

FILE = "model-1k-merge.safetensors"
CHANNELS, PATCH = 3, 16  # of the pictures; pixels each way that are one token
LOAD = {
    **zimage.LOAD,
    "load.transformer": (*zimage.LOAD["load.transformer"], "Downloading", "Using cached", "detected pixel-space", "built transformer"),
}
MODEL = {
    "name_or_path": f"zhen-nan/L2P/{FILE}", "arch": "zimage_l2p", "extras_name_or_path": "Tongyi-MAI/Z-Image-Turbo",
}  # fmt: skip
# The two jobs of each kind of weights have other sizes
BUCKETS = (
    (512, 512, 1, 12), (784, 656, 1, 60), (1024, 1024, 1, 150), (336, 624, 1, 100), (512, 512, 2, 40), (720, 976, 2, 90), (656, 432, 3, 15),
)  # fmt: skip
OTHERS = ((1232, 816, 1, 30), (624, 464, 1, 80), (912, 1008, 1, 44), (528, 752, 4, 25), (592, 704, 2, 35), (448, 496, 3, 70))
BRIEF = (BUCKETS[:1], zimage.SAMPLES[:1])  # of a kind of weights of which loading is recorded, and nothing behind caching
L2P = Architecture(
    MODEL, BUCKETS, zimage.SAMPLES, replace(zimage.LAYOUT, load=LOAD, heads_by_sample=True), relative="zimage",
    weights=("bf16", "float8", "uint4", "qfloat8"), negatives=zimage.NEGATIVES, second=(OTHERS, zimage.SAMPLES),
    left=("load.text/", "text/"), text_only=True, brief={"float8": BRIEF, "uint4": BRIEF}, loads=("float8", "uint4"),
)  # fmt: skip
ARCHITECTURES = {"zimage-l2p": L2P}


def diffusers(_name: str, _place: str) -> dict[str, Any] | None:
    return None


def transformers(_name: str, _place: str) -> dict[str, Any] | None:
    return None


def stand_in(filename: str) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of the tensors in the checkpoint: those of the trainer's own class, on pixels."""
    if filename != FILE:
        return None
    import torch
    from extensions_built_in.diffusion_models.z_image import z_image_l2p_model as l2p

    config = {**l2p.ZIMAGE_DEFAULT_CONFIG, "in_channels": CHANNELS, "all_patch_size": [PATCH]}
    with torch.device("meta"):
        model = l2p.ZImageTransformer2DModel(**{key: value for key, value in config.items() if not key.startswith("_")})
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def patch() -> None:
    """The constructor would write 25 GB of fp32 on the host."""
    from extensions_built_in.diffusion_models.z_image import z_image_l2p_model

    from calibration.trainer.models import build_untouched

    build_untouched(z_image_l2p_model, "ZImageTransformer2DModel", "Z-Image L2P")
