"""Wan 2.2 TI2V 5B: Wan 2.1's text encoder, a VAE of factor 16 that works on patches, and clips that may begin with a picture.

Where a clip (or a picture) may begin with a given one, each token has a timestep of its own, in training as in every preview.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures.base import SAMPLED, WITH_ADAPTER, Architecture, Layout
from calibration.architectures.wan import LOAD, TEXT_TOKENS
from estimator.features import Cells
from estimator.operations import TIMED_CORE, TIMED_IMAGE_CORE

LAYOUT = Layout(
    LOAD, ("T", "T128"), 3072, ("T",), padded_tokens=TEXT_TOKENS, guidance="sequential", video=True, cells=Cells(32, 4),
    norms=tuple(f"sums1024_{places}A" for places in (256, 64, 32, 16, 8, 4)),  # pixels of up to four frames at each of its scales
)  # fmt: skip
# width, height, batch, caption words, frames, 1: begins with its own first frame (do_i2v). So many tokens that FlashAttention never goes
# through the keys in parts (24 heads: from 513 tokens of all samples on, beginning at a multiple of 64).
BUCKETS = (
    (736, 736, 1, 20, 1), (640, 384, 1, 20, 33), (608, 352, 1, 20, 21), (384, 608, 1, 20, 17),
    (672, 416, 1, 20, 5), (448, 416, 1, 20, 9), (480, 640, 2, 20, 1), (448, 352, 1, 20, 13, 1),
    (256, 448, 2, 20, 13), (384, 320, 1, 20, 21, 1), (320, 384, 3, 20, 9), (544, 544, 1, 20, 5, 1),
    (352, 416, 2, 20, 5), (288, 256, 4, 20, 17), (288, 416, 2, 20, 9, 1), (352, 288, 3, 20, 5, 1),
    (416, 480, 3, 20, 1), (288, 352, 4, 20, 5), (512, 384, 1, 20, 9, 1), (256, 384, 4, 20, 17, 1),
    (320, 608, 1, 20, 33, 1), (416, 320, 2, 20, 13, 1), (896, 640, 1, 20, 1), (480, 288, 2, 20, 5, 1),
    (1024, 544, 1, 20, 1, 1), (768, 800, 1, 20, 1, 1), (672, 960, 1, 20, 1, 1),
    (384, 800, 2, 20, 1, 1), (576, 416, 3, 20, 1, 1), (352, 480, 4, 20, 1, 1),
)  # fmt: skip
# width, height, guidance, prompt words, frames, 1: begins with a given picture
SAMPLES = (
    (736, 736, 4.0, 9, 1), (640, 384, 4.0, 9, 17), (384, 448, 4.0, 9, 33), (544, 288, 4.0, 9, 13), (672, 416, 4.0, 9, 5),
    (288, 448, 4.0, 9, 21), (416, 512, 1.0, 9, 13), (896, 640, 1.0, 9, 1), (544, 608, 1.0, 9, 5),
    (480, 352, 4.0, 9, 17, 1), (608, 320, 1.0, 9, 9, 1), (768, 704, 1.0, 9, 1, 1), (352, 384, 4.0, 9, 25, 1),
)  # fmt: skip
# The second job's, at another rank, with low_vram: fewer
SECOND_BUCKETS = (
    (640, 384, 1, 20, 33), (384, 608, 1, 20, 17), (896, 640, 1, 20, 1), (672, 416, 1, 20, 5),
    (256, 448, 2, 20, 13), (320, 384, 3, 20, 9), (480, 640, 2, 20, 1), (288, 352, 4, 20, 5),
    (448, 352, 1, 20, 13, 1), (544, 544, 1, 20, 5, 1), (512, 384, 1, 20, 9, 1), (320, 608, 1, 20, 33, 1),
    (288, 416, 2, 20, 9, 1), (352, 288, 3, 20, 5, 1), (256, 384, 4, 20, 17, 1), (480, 288, 2, 20, 5, 1),
    (1024, 544, 1, 20, 1, 1), (768, 800, 1, 20, 1, 1), (384, 800, 2, 20, 1, 1), (576, 416, 3, 20, 1, 1),
)  # fmt: skip
SECOND_SAMPLES = (
    (736, 736, 4.0, 9, 1), (640, 384, 4.0, 9, 17), (672, 416, 4.0, 9, 5), (288, 448, 4.0, 9, 21), (416, 512, 1.0, 9, 13),
    (896, 640, 1.0, 9, 1), (480, 352, 4.0, 9, 17, 1), (352, 384, 4.0, 9, 25, 1), (608, 320, 1.0, 9, 9, 1), (768, 704, 1.0, 9, 1, 1),
)  # fmt: skip
# With further kinds of base weights steps and texts are qfloat8's by rule, and previews too but for those in bf16
FEW_BUCKETS = ((544, 544, 1, 20, 5, 1), (480, 640, 2, 20, 1))
FEW_SAMPLES = ((672, 416, 4.0, 9, 5),)
MERGED_SAMPLES = (
    (736, 736, 4.0, 9, 1), (544, 288, 4.0, 9, 13), (672, 416, 4.0, 9, 5), (416, 512, 1.0, 9, 13), (896, 640, 1.0, 9, 1),
    (544, 608, 1.0, 9, 5), (480, 352, 4.0, 9, 17, 1), (352, 384, 4.0, 9, 25, 1), (608, 320, 1.0, 9, 9, 1), (768, 704, 1.0, 9, 1, 1),
)  # fmt: skip
MORE_MERGED = (
    (640, 384, 4.0, 9, 17), (352, 512, 1.0, 9, 9), (480, 416, 4.0, 9, 9, 1), (416, 480, 1.0, 9, 13, 1),
)  # fmt: skip
SMALL = Architecture(
    {"name_or_path": "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "arch": "wan22_5b"}, BUCKETS, SAMPLES, LAYOUT,
    weights=("bf16", "float8", "uint4", "qfloat8"), begins=True, second=(SECOND_BUCKETS, SECOND_SAMPLES),
    brief={"bf16": (FEW_BUCKETS, ()), "float8": (FEW_BUCKETS, FEW_SAMPLES), "uint4": (FEW_BUCKETS, FEW_SAMPLES)},
    relative="wan21-14b", text_only=True, left=("load.text/bf16", "load.text/uint4", "text/bf16", "text/uint4", "cache_text"),
    loads=("float8", "uint4"), fewer={"bf16": ((FEW_BUCKETS, MERGED_SAMPLES), (FEW_BUCKETS, MORE_MERGED))},
)  # fmt: skip
# All of it trained: of 1024 tokens at least in each sample (see wan.WHOLE_BUCKETS)
WHOLE_BUCKETS = (
    (1024, 1024, 1, 20, 1), (640, 384, 1, 20, 33), (1216, 896, 1, 20, 1), (672, 416, 1, 20, 21), (448, 416, 1, 20, 25),
    (448, 480, 2, 20, 17), (1184, 928, 2, 20, 1), (512, 384, 3, 20, 21), (576, 352, 4, 20, 21), (576, 480, 2, 20, 13),
    (448, 352, 1, 20, 33, 1), (1056, 1024, 1, 20, 1, 1), (544, 544, 1, 20, 13, 1), (800, 704, 1, 20, 5, 1), (640, 480, 1, 20, 21, 1),
    (448, 416, 2, 20, 21, 1), (512, 448, 3, 20, 17, 1), (576, 448, 4, 20, 17, 1), (960, 1152, 2, 20, 1, 1), (544, 512, 2, 20, 29, 1),
    (1152, 1024, 1, 20, 1, 1), (1280, 1056, 1, 20, 1, 1), (1024, 1056, 3, 20, 1, 1), (992, 1088, 4, 20, 1, 1),
)  # fmt: skip
# Of biases and of norms, of the picture (with a timestep of each token: what embeds these too) and of the text, and of what comes out
WHOLE_SUMS = ("norm3072_T", "norm14336_T", "norm18432_T", "norm3072_X", "norm192_T")
WHOLE = replace(
    SMALL, relative="wan22-5b", own=(*WITH_ADAPTER, TIMED_CORE, TIMED_IMAGE_CORE), left=("preview", "step.update", "setup.network"),
    weights=("bf16",), beside="whole", train=SAMPLED, text_only=False, buckets=WHOLE_BUCKETS, samples=SAMPLES[8:9], brief={}, loads=(),
    fewer={}, layout=replace(LAYOUT, scratch=WHOLE_SUMS),
)
ARCHITECTURES = {"wan22-5b": SMALL, "wan22-5b-whole": WHOLE}
LATENT_CHANNELS = 48
# Of diffusers' conversion (scripts/convert_wan_to_diffusers.py: Wan2.2-TI2V-5B, vae22_diffusers_config). Values of means and deviations
# decide nothing here
TRANSFORMER = {"in_channels": 48, "out_channels": 48, "num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336}
VAE = {
    "base_dim": 160, "z_dim": LATENT_CHANNELS, "is_residual": True, "in_channels": 12, "out_channels": 12, "decoder_base_dim": 256,
    "scale_factor_temporal": 4, "scale_factor_spatial": 16, "patch_size": 2, "latents_mean": [0.0] * LATENT_CHANNELS,
    "latents_std": [1.0] * LATENT_CHANNELS,
}  # fmt: skip


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    if "ti2v-5b" not in place:
        return None
    return {"WanTransformer3DModel": TRANSFORMER, "AutoencoderKLWan": VAE}.get(name)


def transformers(name: str, place: str) -> dict[str, Any] | None:
    return None  # the text encoder is Wan 2.1's


def patch() -> None:
    """Nothing that a value decides."""
