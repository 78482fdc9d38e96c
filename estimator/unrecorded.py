"""What it means to a user that a part was never recorded, as far as there are words for it: keys of parts are the program's own."""

from __future__ import annotations

_HEAD, _TWO = "step.head/encoded/", "/two"  # of a key: the head of a step with latents that are not cached; a clip of two latent frames
TWO_FRAMES = "clips of two latent frames (5 to 8 frames) whose latents are not cached: cache them, or take more frames"
NOT_RECORDED = "this combination was never recorded"


def meaning(key: str) -> str:
    """Of a part's key."""
    return TWO_FRAMES if key.startswith(_HEAD) and key.endswith(_TWO) else NOT_RECORDED
