"""What is peculiar to the trainer's UNets (Stable Diffusion XL, 1.5): their levels, and how their profiles name things."""

from __future__ import annotations

UNET = "unet"  # `model_class` in profiles/archs.yaml
UNMERGED = "unmerged"  # kind of weights in keys of previews with the adapter beside unquantised weights
LATENT_PIXELS = 8  # of a latent each way


def levels(width: int, height: int) -> dict[str, int]:
    """`u` and `v`: places of a UNet's third and fourth levels; each is half as wide and high as the one above it, rounded up."""

    def places(halvings: int) -> int:
        edge = LATENT_PIXELS << halvings
        return -(-width // edge) * -(-height // edge)

    return {"u": places(2), "v": places(3)}
