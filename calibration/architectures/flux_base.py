"""Flex.2 (and FLUX's other relatives whose class in the trainer is a BaseModel): FLUX's transformer, T5 and CLIP, a loader of their own.

Caching text leaves T5 on the host while its tokens go to the card, on which the trainer stops: unloading is what can be recorded.
"""

from __future__ import annotations

from typing import Any

from calibration.architectures import flux, zimage
from calibration.architectures.base import Architecture, Layout

LOAD = {
    "load.transformer": ("Loading Flux", "Loading transformer", "Quantizing transformer"),
    "load.text": ("Loading T5", "Quantizing T5"),
    "load.rest": ("Loading CLIP", "Loading VAE", "Making", "Preparing", "Model Loaded"),
}
LAYOUT = Layout(LOAD, ("T", "S", "S128"), 3072, ("T", "X", "S"), padded_tokens=flux.TEXT_TOKENS, prompts_apart=True)
ARCHITECTURES = {
    "flex2": Architecture(
        {"name_or_path": "ostris/Flex.2-preview", "arch": "flex2"}, zimage.BUCKETS, flux.SAMPLES, LAYOUT, "flux1-dev", caches_text=False,
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
