"""Flex.2 and FLUX.1 Kontext: FLUX's transformer, T5 and CLIP, in classes of the trainer (BaseModel) with loaders of their own.

Caching text leaves T5 on the host while its tokens go to the card, on which the trainer stops: unloading is what can be recorded.
Kontext brings a control image to the size of its image, so that its tokens double the image's (`U`, `J`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures import flux, zimage
from calibration.architectures.base import Architecture, Layout

LOAD = {
    "load.transformer": ("Loading Flux", "Loading transformer", "Quantizing transformer"),
    "load.text": ("Loading T5", "Quantizing T5"),
    "load.rest": ("Loading CLIP", "Loading VAE", "Making", "Preparing", "Model Loaded"),
}
LAYOUT = Layout(LOAD, ("T", "S", "S128"), 3072, ("T", "X", "S"), padded_tokens=flux.TEXT_TOKENS, prompts_apart=True)
UNCONTROLLED = (
    ((576, 448, 1, 20), (896, 1024, 1, 20), (1280, 672, 1, 20), (416, 672, 2, 20), (768, 784, 3, 20), (352, 432, 2, 20)),
    ((704, 512, 1, 20), (1120, 800, 1, 20), (368, 480, 1, 20), (640, 896, 2, 20), (448, 576, 4, 20), (1008, 656, 3, 20)),
)
# Steps with a control image have the lengths U and J, those without T and S
KONTEXT = replace(LAYOUT, lengths=("T", "J", "J128", "S128"), reduced=("U", "X", "J", "T", "S"))
# Flex.2: sizes at which half of the kinds of weights are recorded; what is beside the noisy latents does not depend on weights
CONDITIONED = (
    (576, 448, 1, 20), (896, 1024, 1, 20), (1280, 672, 1, 20), (416, 672, 2, 20), (1120, 800, 1, 20),
    (768, 784, 3, 20), (640, 896, 2, 20), (368, 480, 1, 20), (448, 576, 4, 20),
)  # fmt: skip
ARCHITECTURES = {
    "flex2": Architecture(
        {"name_or_path": "ostris/Flex.2-preview", "arch": "flex2"}, zimage.BUCKETS, flux.SAMPLES, replace(LAYOUT, conditioned=True),
        "flux1-dev", other_buckets=dict.fromkeys(("bf16", "float8"), CONDITIONED), caches_text=False,
        left=("load.text/", "text/", "cache_latents.item", "preview.prompts"),  # FLUX.1's to the byte, as recorded of it too
    ),
    "flux1-kontext": Architecture(
        {"name_or_path": "black-forest-labs/FLUX.1-Kontext-dev", "arch": "flux_kontext"}, flux.BUCKETS, flux.SAMPLES, KONTEXT,
        "flux1-dev", caches_text=False, controlled=True, uncontrolled=UNCONTROLLED,
    ),
}  # fmt: skip


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    if name == "FluxTransformer2DModel" and "flex.2" in place:  # latents, masked latents, the mask and control latents of 2 x 2 pixels
        return {"in_channels": 196, "out_channels": 64, "num_layers": 8, "num_single_layers": 38, "guidance_embeds": True}
    return None


def transformers(_name: str, _place: str) -> dict[str, Any] | None:
    return None


def patch() -> None:
    """Nothing beside FLUX's."""
