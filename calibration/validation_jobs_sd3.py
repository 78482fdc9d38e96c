"""Validation jobs of Stable Diffusion 3.5 large and medium (see calibration.validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_offload import offloaded
from calibration.validation_settings import *

LARGE, MEDIUM = "stabilityai/stable-diffusion-3.5-large", "stabilityai/stable-diffusion-3.5-medium"


def sd35_example(name: str) -> dict[str, Any]:
    """The trainer's config/examples/train_lora_sd35_large_24gb.yaml."""
    base = example({"name_or_path": name, "is_v3": True})
    base["train"]["timestep_type"] = "linear"
    return base


def by_key(name: str) -> dict[str, Any]:
    """The same by the architecture's key, without an EMA."""
    base = sd35_example(name)
    base["model"] = {"name_or_path": name, "arch": "sd3", "quantize": True}
    base["train"]["ema_config"] = {"use_ema": False, "ema_decay": 0.99}
    return base


JOBS = (
    Job("sd35-example", sd35_example(LARGE), (("square", [1024], {}), ("odd", [768], {})), {}, TWO_SIZES),
    Job(
        "sd35-cached-b2", by_key(LARGE), (("five", [512], {}),),
        {**batch(2), **CACHED_TEXT, **LOW_VRAM, **NO_CHECKPOINTING, **optimizer("adamw")}, GUIDED,
    ),
    Job(
        "sd35-bf16-unloaded-b2", by_key(LARGE), (("portraits", [640], {}), ("wide", [896], {})),
        {"model.quantize": False, **UNLOADED, **UNCACHED, **EMA, **rank(32), **batch(2)}, (preview(832, 1216, guidance_scale=1),),
    ),
    Job(
        "sd35-float8-offload-nothing", by_key(LARGE), (("portraits", [576], {}),),
        {**offloaded(1, 1), **LOW_VRAM, **UNCACHED, **EMA, **rank(24), **batch(2)}, (preview(640, 960),),
    ),
    Job(
        "sd35-uint4", by_key(LARGE), (("phone", [704], {}), ("wide", [512], {})),
        {"model.qtype": "uint4", **NO_CHECKPOINTING, **UNLOADED, **rank(8), **optimizer("adamw")}, (preview(768, 768),),
    ),
    Job("sd35-medium-example", sd35_example(MEDIUM), (("phone", [1024], {}), ("odd", [512], {})), {}, TWO_SIZES),
    Job(
        "sd35-medium-b3", by_key(MEDIUM), (("five", [448], {}), ("odd", [256], {})),
        {**batch(3), **NO_CHECKPOINTING, **CACHED_TEXT, **LOW_VRAM, **rank(32)}, (preview(896, 1152),),
    ),
    Job("sd35-medium-unloaded", by_key(MEDIUM), (("square", [640], {}),), {**UNLOADED, **UNCACHED, **rank(8)}, (preview(640, 512),)),
    Job(
        "sd35-medium-bf16-b2", by_key(MEDIUM), (("portraits", [640], {}),),
        {"model.quantize": False, **LOW_VRAM, **UNCACHED, **EMA, **rank(32), **batch(2)}, (preview(896, 704),),
    ),
    Job(
        "sd35-medium-bf16", by_key(MEDIUM), (("phone", [896], {}), ("odd", [512], {})),
        {"model.quantize": False, **NO_CHECKPOINTING, **CACHED_TEXT, **rank(8), **optimizer("adamw")},
        (preview(768, 1024), preview(640, 832, guidance_scale=1)),
    ),
    Job(
        "sd35-medium-float8-b2", by_key(MEDIUM), (("portraits", [640], {}),),
        {"model.qtype": "float8", **LOW_VRAM, **batch(2), **CACHED_TEXT, **EMA, **rank(24)}, (preview(896, 640),),
    ),
    Job(
        "sd35-medium-uint4", by_key(MEDIUM), (("phone", [768], {}),),
        {"model.qtype": "uint4", **NO_CHECKPOINTING, **UNCACHED, **rank(48), **optimizer("adamw")}, (preview(768, 768, guidance_scale=1),),
    ),
    Job(
        "sd35-medium-offload-nothing", by_key(MEDIUM), (("square", [512], {}),),
        {**offloaded(1, 0.5), **UNLOADED, **rank(8), "train.disable_sampling": True},
    ),
)  # fmt: skip
