"""What a step puts beside its noisy latents, as parts: control images through the VAE, and (Flex.2) masks and what is joined."""

from __future__ import annotations

from calibration.architectures.base import CONTROL_ENCODE
from calibration.extract.runs import Phase


def cut(condition: Phase, conditioned: bool) -> tuple[str, int, int]:
    """(Kind of part, first event, event after the last) of one step's.

    `conditioned`: joined in every step (Layout.conditioned). There the VAE's part of steps with control images is a part, and all of the
    steps without: what is beside the VAE's is the same in both, but for a control latent in place of zeros of its size.
    """
    if not conditioned:
        return "step.control", condition.first, condition.last
    for inner in condition.inner:
        if inner.name == CONTROL_ENCODE:
            return "step.control", inner.first, inner.last
    return f"step.condition/{'masked' if condition.info['masked'] else 'plain'}", condition.first, condition.last
