"""Validation jobs of Stable Diffusion XL and 1.5 (see calibration.validation_jobs): UNets, with an adapter on convolutions and without."""

from __future__ import annotations

from typing import Any

from calibration.validation_settings import *

XL, SD15 = "stabilityai/stable-diffusion-xl-base-1.0", "stable-diffusion-v1-5/stable-diffusion-v1-5"
DDPM = {"train.noise_scheduler": "ddpm", "sample.sampler": "ddpm"}
LINEAR_ALONE = {"network.conv": None, "network.conv_alpha": None}


def of_unet(name: str, arch: str, quantize: bool) -> dict[str, Any]:
    """What the web UI writes for a UNet: for SDXL it takes quantisation out, for 1.5 it leaves it in, of no effect on the weights."""
    base = web_ui("flux")
    return base | {
        "train": {**base["train"], "noise_scheduler": "ddpm"},
        "model": {**base["model"], "name_or_path": name, "arch": arch, "quantize": quantize, "quantize_te": quantize},
        "sample": {**base["sample"], "sampler": "ddpm", "guidance_scale": 6, **({} if arch == "sdxl" else {"width": 512, "height": 512})},
    }


def by_hand(name: str, arch: str) -> dict[str, Any]:
    """A config after the trainer's examples."""
    base = example({"name_or_path": name, "arch": arch})
    base["train"]["noise_scheduler"], base["sample"]["sampler"] = "ddpm", "ddpm"
    return base | {"model": {"name_or_path": name, "arch": arch}}


XL_UI, XL_BY_HAND = of_unet(XL, "sdxl", False), by_hand(XL, "sdxl")
SD15_UI, SD15_BY_HAND = of_unet(SD15, "sd15", True), by_hand(SD15, "sd1")
JOBS = (
    Job("sdxl-ui", XL_UI, (("wide", [512, 768, 1024], {}),)),
    Job("sdxl-by-hand-b2", XL_BY_HAND, (("five", [768], {}),), {**batch(2), **optimizer("adamw")}, TWO_SIZES),
    Job(
        "sdxl-no-checkpointing", XL_UI, (("odd", [640], {}), ("wide", [1024], {"cache_latents_to_disk": True})),
        {**LINEAR_ALONE, **NO_CHECKPOINTING, **rank(8), **LOW_VRAM, **optimizer("prodigy")}, GUIDED,
    ),
    Job("sd15-ui", SD15_UI, (("wide", [512, 768], {}),), {}, (preview(512, 512), preview(512, 768, SECOND))),
    Job(
        "sd15-by-hand-b2", SD15_BY_HAND, (("five", [512], {}),), {**batch(2), **optimizer("adamw"), **rank(32)},
        (preview(640, 448), preview(512, 704, SECOND, guidance_scale=1)),
    ),
    Job(
        "sd15-no-checkpointing-b4", SD15_UI, (("five", [448], {}),),
        {**batch(4), **NO_CHECKPOINTING, **CACHED_LATENTS, **LOW_VRAM, **EMA, **rank(16), "network.conv": 12, "network.conv_alpha": 12},
        (preview(384, 640),),
    ),
    Job(
        "sd15-text-encoder", SD15_BY_HAND, (("portraits", [512], {}), ("five", [448], {"batch_size": 2})),
        {"train.train_text_encoder": True, **rank(32), **CACHED_LATENTS}, (preview(512, 704),),
    ),
    Job(
        "sd15-text-encoder-b4", SD15_BY_HAND, (("five", [448], {}),),
        {"train.train_text_encoder": True, **batch(4), **EMA, **rank(8), **optimizer("adamw")}, (preview(384, 640),),
    ),
    Job(
        "sdxl-text-encoders", XL_BY_HAND, (("portraits", [768], {}), ("five", [576], {"batch_size": 2})),
        {"train.train_text_encoder": True, **rank(8), **CACHED_LATENTS, **NO_EMA}, (preview(512, 704),),
    ),
)  # fmt: skip
