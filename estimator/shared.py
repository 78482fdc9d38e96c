"""Which parts of an architecture a relative's recordings serve for, where it has none of its own (`shares` of a profile).

Not said: text encoder and VAE are the relative's too. `text`: the text encoder is, the VAE is another one (LTX-2.3). `all`: whatever was
not recorded is the relative's (estimator.programs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALL, TEXT = "all", "text"
_OF_TEXT = ("load.text/", "text/", "preview.prompts")
_OF_VAE = ("cache_latents.item", "latents", "encode.", "decode", "tile.", "step.head/", "step.first_frame/")
_COMPONENTS = ("text_encoder", "vae")


def parts(profile: Mapping[str, Any]) -> tuple[str, ...]:
    """Beginnings of the parts that relatives' recordings serve for. `profile`: the content of its profile.json."""
    return _OF_TEXT if profile.get("shares") == TEXT else (*_OF_TEXT, *_OF_VAE)


def components(profile: Mapping[str, Any]) -> tuple[str, ...]:
    """Beginnings of the components whose tensors are the relatives' too."""
    return _COMPONENTS[:1] if profile.get("shares") == TEXT else _COMPONENTS
