"""Validation jobs of models on pixels, without a VAE: Z-Image L2P and Chroma1-Radiance; and of Z-Image De-Turbo (see validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_flux2 import of_flux
from calibration.validation_settings import *

EXTRAS = {"extras_name_or_path": "Tongyi-MAI/Z-Image-Turbo"}


def of_zimage(name_or_path: str, arch: str, scale: float = 4) -> dict[str, Any]:
    """What the web UI writes for a relative of Z-Image."""
    base = web_ui("zimage")
    return base | {
        "model": {**base["model"], "name_or_path": name_or_path, "arch": arch, **EXTRAS},
        "sample": {**base["sample"], "guidance_scale": scale},
    }


def l2p() -> dict[str, Any]:
    """The same for L2P, where it takes the settings of convolutions out."""
    base = of_zimage("zhen-nan/L2P/model-1k-merge.safetensors", "zimage_l2p")
    network = {key: value for key, value in base["network"].items() if not key.startswith("conv")}
    return base | {"network": network, "train": {**base["train"], "timestep_type": "linear"}}


L2P = l2p()
DETURBO = of_zimage("ostris/Z-Image-De-Turbo", "zimage:deturbo", 3)
RADIANCE = of_flux("lodestones/Chroma1-Radiance", "chroma_radiance")

JOBS = (
    Job("l2p-ui", L2P, (("portraits", [512, 768, 1024], {}),)),
    Job(
        "l2p-bf16-no-checkpointing", L2P, (("odd", [512], {}),),
        {**UNQUANTISED, **NO_CHECKPOINTING, **HIGH_VRAM, **rank(8), **optimizer("adamw")}, GUIDED,
    ),
    Job("l2p-unloaded", L2P, (("small", [640], {}),), {**UNLOADED, **rank(24)}, (preview(768, 512),)),
    Job("l2p-cached-b2", L2P, (("mixed", [512, 768], {}),), {**CACHED_LATENTS, **CACHED_TEXT, **EMA, **batch(2), **rank(16)}, TWO_SIZES),
    Job("deturbo-ui", DETURBO, (("small", [512], {}),), {}, (preview(768, 768),)),
    Job("radiance-ui", RADIANCE, (("portraits", [512, 768, 1024], {}),)),
    Job(
        "radiance-qint8-b2", RADIANCE, (("five", [512], {}),),
        {**quantised("qint8"), **batch(2), **CACHED_LATENTS, **UNLOADED, **rank(16), **EMA, **optimizer("adafactor")},
        (preview(896, 1152, guidance_scale=1),),
    ),
    Job(
        "radiance-no-checkpointing", RADIANCE, (("odd", [512], {}),),
        {**NO_CHECKPOINTING, **LOW_VRAM, **CACHED_TEXT, **rank(8), **optimizer("adamw")}, (preview(768, 768),),
    ),
)  # fmt: skip
