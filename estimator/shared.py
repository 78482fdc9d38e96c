"""Which parts of an architecture a relative's recordings serve for, where it has none of its own (`shares` of a profile).

Not said: text encoder and VAE are the relative's too. `text`: the text encoder is, the VAE is another one (LTX-2.3). `all`: whatever was
not recorded is the relative's (estimator.programs). `vae`: the VAE is, the text encoder is another one (LTX-2.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALL, TEXT, VAE = "all", "text", "vae"
_OF_TEXT = ("load.text/", "text/", "preview.prompts")
_OF_VAE = ("cache_latents.item", "latents", "encode.", "decode", "tile.", "step.head/", "step.first_frame/")
_OF_LAYERS = ("setup.network/bf16",)
_COMPONENTS = ("text_encoder", "vae")


def parts(profile: Mapping[str, Any]) -> tuple[str, ...]:
    """Beginnings of the parts that relatives' recordings serve for. `profile`: the content of its profile.json."""
    return {TEXT: _OF_TEXT, VAE: (*_OF_VAE, *_OF_LAYERS)}.get(profile.get("shares", ""), (*_OF_TEXT, *_OF_VAE))


def components(profile: Mapping[str, Any]) -> tuple[str, ...]:
    """Beginnings of the components whose tensors are the relatives' too."""
    return {TEXT: _COMPONENTS[:1], VAE: _COMPONENTS[1:]}.get(profile.get("shares", ""), _COMPONENTS)
