"""Wan 2.1 I2V 14B: a CLIP image encoder sees what a clip begins with, and the transformer has keys of its picture beside those of the text.

With low_vram the trainer stops at the end of the first preview: its pipeline hands on no `expand_timesteps`, which diffusers then misses
among what it was made of (AggressiveWanI2VUnloadPipeline; DiffusionPipeline.components).

The VAE's share of it is Wan 2.2 I2V's, text encoder and VAE are Wan 2.1's: what they do is left to the relative.
"""

from __future__ import annotations

from typing import Any

from calibration.architectures.base import Architecture, Layout
from calibration.architectures.wan import LOAD, TEXT_TOKENS

LAYOUT = Layout(LOAD, ("T", "T128"), 5120, ("T",), padded_tokens=TEXT_TOKENS, guidance="sequential", video=True, pixels=True)
# So many tokens that FlashAttention never goes through the keys in parts (40 heads: 321 of one sample, 129 of more)
BUCKETS = (
    (512, 512, 1, 20, 1), (384, 320, 1, 20, 9), (272, 448, 1, 20, 5), (304, 272, 1, 20, 13), (368, 320, 1, 20, 17), (256, 352, 1, 20, 1),
    (256, 448, 2, 20, 13), (320, 240, 3, 20, 9), (288, 256, 4, 20, 5), (480, 640, 2, 20, 1), (336, 416, 2, 20, 5), (304, 224, 2, 20, 17),
)  # fmt: skip
SAMPLES = (
    (512, 512, 1.0, 9, 1), (384, 448, 4.0, 9, 1), (272, 448, 1.0, 9, 1), (288, 352, 4.0, 9, 5), (256, 400, 1.0, 9, 5),
    (368, 320, 4.0, 9, 5), (448, 320, 4.0, 9, 17), (480, 272, 4.0, 9, 9), (416, 304, 1.0, 9, 13), (352, 256, 1.0, 9, 21),
    (304, 272, 4.0, 9, 9),
)  # fmt: skip
# The second job's, at another rank: fewer
SECOND = (tuple(BUCKETS[n] for n in (0, 1, 4, 6, 7, 9)), tuple(SAMPLES[n] for n in (0, 1, 3, 8)))
# With further kinds of base weights: short clips, since what VAE and image encoder do is known
FEW = (
    (
        ((512, 512, 1, 20, 1), (384, 320, 1, 20, 9), (256, 352, 1, 20, 1), (272, 448, 1, 20, 5), (320, 240, 3, 20, 9), (288, 256, 4, 20, 5),
         (480, 640, 2, 20, 1), (256, 448, 2, 20, 9)),
        ((384, 448, 4.0, 9, 1), (480, 272, 4.0, 9, 9), (288, 352, 4.0, 9, 5), (512, 512, 1.0, 9, 1), (256, 400, 1.0, 9, 5),
         (368, 272, 1.0, 9, 9)),
    ),
    (
        ((512, 448, 1, 20, 1), (304, 272, 1, 20, 9), (304, 224, 3, 20, 9), (416, 352, 2, 20, 1)),
        ((352, 320, 4.0, 9, 5), (416, 304, 1.0, 9, 1)),
    ),
)  # fmt: skip
ARCHITECTURES = {
    "wan21-i2v-14b": Architecture(
        {"name_or_path": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "arch": "wan21_i2v"}, BUCKETS, SAMPLES, LAYOUT, relative="wan22-i2v-14b",
        pictured=True, loaded=True, second=SECOND, fewer={"bf16": FEW},
        weights=("bf16", "qfloat8"), quantised=("float8", "uint4"),
        left=("load.text", "text", "cache_text", "step.head", "step.first_frame", "encode.", "decode", "preview.prompts"),
    )
}  # fmt: skip
# Of diffusers' conversion (scripts/convert_wan_to_diffusers.py: Wan-I2V-14B-480p)
TRANSFORMER = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
# The published image_encoder/config.json: CLIP ViT-H/14
IMAGE_ENCODER = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
    "projection_dim": 1024, "hidden_act": "gelu",
}  # fmt: skip


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    return TRANSFORMER if name == "WanTransformer3DModel" and "wan2.1-i2v" in place else None


def transformers(name: str, place: str) -> dict[str, Any] | None:
    return IMAGE_ENCODER if name == "CLIPVisionModel" else None


def patch() -> None:
    """The image processor's values are its class's defaults, which are those of the published preprocessor_config.json."""
    from transformers import CLIPImageProcessor

    CLIPImageProcessor.from_pretrained = classmethod(lambda cls, *_, **__: cls())
