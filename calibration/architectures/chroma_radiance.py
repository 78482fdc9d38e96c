"""Chroma1-Radiance: Chroma's blocks on pixels, patches of 16, with a small network for each patch where the last layer was (NeRF).

There is no VAE: the trainer's stand-in for one hands pictures through, so that latents are three values for each pixel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures import chroma
from calibration.architectures.base import Architecture

FILE = "Chroma1-Radiance.safetensors"
# The second job has other sizes than the first; of both some with tokens that are no multiple of 8 (see chroma)
BUCKETS = (
    (512, 512, 1, 20), (768, 640, 1, 20), (352, 608, 1, 20), (1024, 1024, 1, 20), (928, 544, 1, 20), (416, 480, 1, 20),
    (512, 512, 2, 20), (672, 992, 2, 20), (640, 448, 3, 20), (320, 384, 4, 20), (352, 288, 3, 20), (576, 416, 2, 20),
)  # fmt: skip
OTHERS = ((1248, 800, 1, 20), (608, 416, 1, 20), (928, 960, 1, 20), (544, 800, 4, 20), (608, 672, 2, 20), (448, 512, 3, 20))
FEW = BUCKETS[:1]  # of a kind of weights of which loading is recorded, and nothing behind caching
# Previews with the adapter merged, with numbers of tokens that are no multiple of 8 among them, as of buckets
MERGED_SIZES = ((512, 512), (768, 1152), (544, 800), (368, 592), (1344, 768))
MORE_SIZES = ((640, 512), (1024, 1024), (672, 992), (400, 656), (1248, 800))
MERGED, MORE_MERGED = (tuple((w, h, cfg, 9) for w, h in sizes for cfg in (1.0, 4.0)) for sizes in (MERGED_SIZES, MORE_SIZES))
RADIANCE = Architecture(
    {"name_or_path": "lodestones/Chroma1-Radiance", "arch": "chroma_radiance"}, BUCKETS, chroma.SAMPLES,
    replace(chroma.LAYOUT, heads_by_sample=True), relative="chroma", weights=("bf16", "float8", "uint4", "qfloat8"),
    second=(OTHERS, chroma.SAMPLES), left=("load.text/", "text/", "preview.prompts"), text_only=True,
    brief={"bf16": (FEW, ()), "float8": (FEW, chroma.SAMPLES[:1])}, loads=("float8",),
    fewer={"bf16": ((FEW, MERGED), (FEW, MORE_MERGED))},
)  # fmt: skip
ARCHITECTURES = {"chroma-radiance": RADIANCE}


def diffusers(_name: str, _place: str) -> dict[str, Any] | None:
    return None


def transformers(_name: str, _place: str) -> dict[str, Any] | None:
    return None


def stand_in(filename: str) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of the tensors in the checkpoint: those of the trainer's own class."""
    if filename != FILE:
        return None
    import torch
    from extensions_built_in.diffusion_models.chroma.src import radiance

    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in radiance.Chroma(radiance.chroma_params).state_dict().items()}


def patch() -> None:
    """The constructor would write 38 GB of fp32 on the host. The places of a patch's pixels, which the first forward of all makes and keeps
    (64 KiB), are there from the beginning, so that a part is the same in every recording.
    """
    import torch
    from extensions_built_in.diffusion_models.chroma import chroma_radiance_model

    from calibration.trainer.models import build_untouched
    from calibration.trainer.patches import note

    def place(model: Any) -> None:
        model.nerf_image_embedder.fetch_pos(model.params.patch_size, torch.device("cuda", 0), torch.float32)

    build_untouched(chroma_radiance_model, "Chroma", "Chroma1-Radiance", place)
    note("Chroma1-Radiance: places of a patch's pixels made with the model")
