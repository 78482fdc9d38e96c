"""Validation jobs of other compute types than bf16 (train.dtype; see validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_qwen import UNGUIDED, WEIGHTED
from calibration.validation_jobs_unet import LINEAR_ALONE, SD15_BY_HAND, SD15_UI, XL_BY_HAND, XL_UI
from calibration.validation_jobs_wan import clip, frames
from calibration.validation_settings import *

CACHED: dict[str, Any] = {**CACHED_LATENTS, **CACHED_TEXT}


def dtype(name: str | None) -> dict[str, Any]:
    """`None`: the key is missing, and the trainer's default holds."""
    return {"train.dtype": name}


HALF_JOBS = (
    Job("sdxl-fp16", XL_UI, (("odd", [640, 896], {}),), dtype("fp16"), (preview(832, 1216), preview(1024, 768, SECOND, guidance_scale=1))),
    Job(
        "sd15-fp16-no-checkpointing-b2", SD15_UI, (("five", [512], {}),),
        {**dtype("float16"), **NO_CHECKPOINTING, **batch(2), **EMA, **CACHED_LATENTS, **rank(16)}, (preview(512, 704),),
    ),
    Job("flux-fp16", example(FLUX), (("portraits", [512, 768], {}),), dtype("fp16"), (preview(768, 1152),)),
    Job(
        "turbo-fp16", web_ui("turbo"), (("portraits", [512, 768], {}),), {**dtype("fp16"), **CACHED_LATENTS},
        (preview(768, 1024), preview(1024, 1024, SECOND)),
    ),
    Job(
        "turbo-fp16-uint4", web_ui("turbo"), (("odd", [512], {}),), {**dtype("fp16"), **quantised("uint4"), **CACHED, **rank(8)},
        (preview(512, 704),),
    ),
    Job(
        "zimage-fp16-no-checkpointing-b2", web_ui("zimage"), (("five", [512], {}),),
        {**dtype("half"), **CACHED, **NO_CHECKPOINTING, **batch(2), **EMA, **rank(16), **optimizer("adamw")}, (preview(512, 704),),
    ),
    Job(
        "flux-fp16-no-checkpointing", example(FLUX), (("small", [512], {}),), {**dtype("fp16"), **NO_CHECKPOINTING, **CACHED, **rank(8)},
        (preview(512, 640),),
    ),
    Job("qwen-fp16", web_ui("qwen"), (("odd", [640], {}),), {**WEIGHTED, **dtype("fp16"), **CACHED}, UNGUIDED[:1]),
    Job(
        "wan1b-fp16", web_ui("wan 1.3b"), (("short clips", [320], frames(21)), ("small", [384], {})), {**dtype("fp16"), **CACHED_TEXT},
        (clip(480, 320, 33),),
    ),
)  # fmt: skip
FULL_JOBS = (
    Job(
        "sdxl-fp32", XL_UI, (("odd", [576, 832], {}),), {**dtype(None), **LINEAR_ALONE, **rank(20)},
        (preview(832, 1216), preview(1024, 768, SECOND, guidance_scale=1)),
    ),
    Job(
        "sdxl-fp32-no-checkpointing-b2", XL_BY_HAND, (("five", [512], {}),),
        {**dtype("float32"), **NO_CHECKPOINTING, **batch(2), **CACHED_LATENTS, **LOW_VRAM, **optimizer("adamw")}, (preview(576, 896),),
    ),
    Job(
        "sd15-fp32", SD15_BY_HAND, (("portraits", [512, 640], {}),), {**dtype(None), **EMA, **rank(32)},
        (preview(512, 768), preview(640, 448, SECOND, guidance_scale=1)),
    ),
    Job(
        "sd15-fp32-no-checkpointing-b2", SD15_BY_HAND, (("five", [448], {}),),
        {**dtype("float"), **NO_CHECKPOINTING, **batch(2), **CACHED_LATENTS, **optimizer("prodigy")}, (preview(384, 640),),
    ),
    Job(
        "zimage-fp32-b2", web_ui("zimage"), (("five", [640], {}),), {**dtype(None), **CACHED_LATENTS, **batch(2), **EMA, **rank(20)},
        (preview(640, 896), preview(512, 704, SECOND, guidance_scale=1)),
    ),
    Job(
        "zimage-fp32-no-checkpointing", web_ui("zimage"), (("small", [448], {}),),
        {**dtype("fp32"), **HIGH_VRAM, **CACHED, **NO_CHECKPOINTING, **rank(8), **optimizer("adamw")}, (preview(448, 640),),
    ),
)  # fmt: skip
JOBS = (*HALF_JOBS, *FULL_JOBS)
