"""All architectures that probes are recorded of, one module for each family (see `base` and docs/adding_an_architecture.md)."""

from calibration.architectures import (
    chroma,
    chroma_radiance,
    flux,
    flux2,
    flux_base,
    hidream,
    ltx2,
    ltx25,
    lumina2,
    omnigen2,
    qwen,
    qwen_edit,
    stable_diffusion,
    stable_diffusion3,
    wan,
    wan_5b,
    wan_i2v,
    zimage,
    zimage_l2p,
)
from calibration.architectures.base import Architecture

MODULES = (
    omnigen2, stable_diffusion, stable_diffusion3, flux_base, flux, flux2, chroma, chroma_radiance, zimage, zimage_l2p, qwen, qwen_edit,
    wan_5b, wan_i2v, wan, ltx2, ltx25, hidream, lumina2,
)  # fmt: skip
ARCHITECTURES: dict[str, Architecture] = {name: one for module in MODULES for name, one in module.ARCHITECTURES.items()}
