"""Which architectures cells can be made of, and how: names only, so that planning a calibration needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """`transformer`, `vae`: diffusers' classes. `place`: the checkpoint whose configuration they have. `depth_keys`: constructor arguments
    that say how many blocks there are, of each list in `blocks`. `calls`: how the transformer is called. `text`: text tokens of a cell.
    `cell_depths`: how many blocks cells have.
    """

    transformer: str
    vae: str
    place: str
    depth_keys: tuple[str, ...]
    blocks: tuple[str, ...]
    depth: tuple[int, ...]
    calls: str
    text: int
    cell_depths: tuple[tuple[int, ...], ...]


_FLUX = ("FluxTransformer2DModel", "AutoencoderKL")
_FLUX_DEPTH = (("num_layers", "num_single_layers"), ("transformer_blocks", "single_transformer_blocks"))
_FLUX_CELLS = ((1, 1), (2, 1), (1, 3))
_ZIMAGE = ("ZImageTransformer2DModel", "AutoencoderKL")
_ZIMAGE_CELLS = (("n_layers",), ("layers",), (30,), "zimage", 96, ((1,), (2,), (4,)))
FAMILIES = {
    "flux1-dev": Family(*_FLUX, "black-forest-labs/FLUX.1-dev", *_FLUX_DEPTH, (19, 38), "flux", 512, _FLUX_CELLS),
    "flex1": Family(*_FLUX, "ostris/Flex.1-alpha", *_FLUX_DEPTH, (8, 38), "flux", 512, _FLUX_CELLS),
    "zimage": Family(*_ZIMAGE, "Tongyi-MAI/Z-Image", *_ZIMAGE_CELLS),
    "zimage-turbo": Family(*_ZIMAGE, "Tongyi-MAI/Z-Image-Turbo", *_ZIMAGE_CELLS),
}
