"""Wan 2.1 and 2.2: video, UMT5 padded to 512 tokens that the blocks see in cross attention only, a VAE that works in chunks of frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures.base import Architecture, Layout

TEXT_TOKENS = 512  # UMT5, padded to max_length (toolkit/models/wan21/wan21.py, get_prompt_embeds)
LOAD = {
    "load.transformer": ("Loading Wan", "Loading transformer", "Quantizing Transformer", "- quantizing", "Moving transformer"),
    "load.text": ("Loading UMT5", "Quantizing UMT5"),
    "load.rest": ("Loading VAE", "Making", "Preparing"),
}
LAYOUT = Layout(LOAD, ("T", "T128"), 1536, ("T",), padded_tokens=TEXT_TOKENS, guidance="sequential", video=True)
# width, height, batch, caption words, frames. At 5 frames the second chunk of the VAE is its last.
BUCKETS = (
    (512, 512, 1, 20, 1), (640, 384, 1, 20, 33), (384, 624, 1, 20, 17), (256, 320, 1, 20, 9), (624, 352, 1, 20, 21), (448, 320, 1, 20, 5),
    (256, 448, 2, 20, 13), (320, 384, 3, 20, 9), (288, 256, 4, 20, 17), (480, 640, 2, 20, 1), (336, 416, 2, 20, 5),
)  # fmt: skip
MORE_BUCKETS = (
    (384, 448, 1, 20, 1), (528, 640, 1, 20, 1), (304, 272, 1, 20, 13), (272, 320, 1, 20, 9), (592, 352, 1, 20, 1), (320, 240, 1, 20, 5),
    (304, 224, 2, 20, 21), (416, 288, 2, 20, 1), (240, 400, 3, 20, 13), (256, 208, 2, 20, 5), (368, 272, 2, 20, 1), (304, 512, 4, 20, 1),
    (512, 304, 3, 20, 1),
)  # fmt: skip
SAMPLES = (
    (512, 512, 4.0, 9, 1), (640, 384, 4.0, 9, 17), (384, 448, 4.0, 9, 33), (480, 272, 4.0, 9, 9), (368, 320, 4.0, 9, 5),
    (272, 448, 4.0, 9, 21), (416, 304, 1.0, 9, 13), (512, 384, 1.0, 9, 1), (288, 352, 1.0, 9, 5),
)  # fmt: skip

SMALL = Architecture(
    {"name_or_path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "arch": "wan21"}, BUCKETS, SAMPLES, LAYOUT,
    relative="wan21-14b", other_buckets={"qfloat8": MORE_BUCKETS},
)  # fmt: skip
LARGE = {"name_or_path": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "arch": "wan21"}
ARCHITECTURES = {
    "wan21-1.3b": SMALL,
    "wan21-14b": replace(
        SMALL, model=LARGE, relative="wan21-1.3b", layout=replace(LAYOUT, width=5120), weights=("bf16", "qfloat8", "uint4"),
        other_buckets={"bf16": MORE_BUCKETS},
    ),
}


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    if name == "WanTransformer3DModel":
        return {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30} if "1.3b" in place else {}
    return {} if name == "AutoencoderKLWan" else None  # the published configurations are the classes' defaults


def transformers(name: str, place: str) -> dict[str, Any] | None:
    if name != "UMT5EncoderModel":
        return None
    return {
        "d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_heads": 64, "num_layers": 24, "vocab_size": 256384,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    }  # fmt: skip


def patch() -> None:
    """Nothing: no value read from the device decides anything in Wan 2.1."""
