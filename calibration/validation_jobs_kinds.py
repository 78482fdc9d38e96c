"""Validation jobs in the trainer's further kinds of weights, which no architecture was recorded in (estimator.recipes)."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_adapters import lokr
from calibration.validation_jobs_edit import FEW, edited, numbered
from calibration.validation_jobs_flux2 import FLUX2, NO_WORKERS, klein
from calibration.validation_jobs_ltx2 import FEW_CLIPS
from calibration.validation_jobs_offload import offloaded
from calibration.validation_jobs_pixels import L2P
from calibration.validation_jobs_sd3 import MEDIUM, by_key
from calibration.validation_jobs_wan import BEGINNING, clip, frames
from calibration.validation_settings import *

CACHED: dict[str, Any] = {**CACHED_LATENTS, **CACHED_TEXT}
SMALL_PREVIEW = (preview(640, 448),)
IMAGE_JOBS = (
    Job("zimage-convrot8", web_ui("zimage"), (("odd", [768], {}),), {**quantised("convrot8"), **HIGH_VRAM, **rank(16)}, SMALL_PREVIEW),
    Job(
        "zimage-nvfp4-b2", web_ui("zimage"), (("five", [640], {}),),
        {**quantised("nvfp4"), **NO_CHECKPOINTING, **CACHED_LATENTS, **batch(2), **rank(8)}, (preview(720, 528, guidance_scale=1),),
    ),
    Job(
        "turbo-convrot8-low-vram", web_ui("turbo"), (("small", [512], {}), ("portraits", [1024], {})),
        {**quantised("convrot8"), **CACHED, **EMA}, SMALL_PREVIEW,
    ),
    Job("turbo-convrotint4", web_ui("turbo"), (("odd", [640], {}),), {**quantised("convrotint4"), **HIGH_VRAM, **rank(8)}, SMALL_PREVIEW),
    Job("flux-nvfp4", web_ui("flux"), (("odd", [640], {}),), {**quantised("nvfp4"), **LOW_VRAM, **rank(16)}, SMALL_PREVIEW),
    Job(
        "flux-convrot8-b2", web_ui("flux"), (("five", [512], {}),),
        {**quantised("convrot8"), **CACHED_LATENTS, **UNLOADED, **batch(2), **rank(24), **optimizer("adafactor")}, SMALL_PREVIEW,
    ),
    Job(
        "flux-convrot4", web_ui("flux"), (("small", [512], {}),),
        {**quantised("convrot4", "qfloat8"), **NO_CHECKPOINTING, **CACHED, **rank(8)}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-convrotint3", web_ui("zimage"), (("screens", [512], {}),), {**quantised("convrotint3", "nvfp4"), **CACHED_TEXT},
        SMALL_PREVIEW,
    ),
    Job(
        "zimage-bitnet-b2", web_ui("zimage"), (("five", [512], {}),),
        {**quantised("convrotbitnet"), **HIGH_VRAM, **NO_CHECKPOINTING, **UNLOADED, **batch(2), **rank(8)}, SMALL_PREVIEW,
    ),
    Job(
        "klein9b-convrot8", klein("9b"), (("odd", [768], {}),), {**quantised("convrot8"), **CACHED_TEXT, **rank(16)}, SMALL_PREVIEW,
    ),
    Job("klein4b-nvfp4", klein("4b"), (("small", [640], {}),), {**quantised("nvfp4"), **HIGH_VRAM, **rank(8), **EMA}, SMALL_PREVIEW),
)  # fmt: skip
# On cards that have no kernel for fp4, and on one that multiplies such values
CARD_JOBS = (
    Job(
        "zimage-nvfp4-before-ada", web_ui("zimage"), (("odd", [512], {}),), {**quantised("nvfp4"), **CACHED_LATENTS, **rank(16)},
        SMALL_PREVIEW, capability="8.6",
    ),
    Job(
        "flux-convrot4-blackwell", web_ui("flux"), (("small", [512], {}),),
        {**quantised("convrot4", "qfloat8"), **LOW_VRAM, **CACHED, **rank(8)}, SMALL_PREVIEW, capability="12.0",
    ),
)
QWEN_JOBS = (
    Job(
        "qwen-convrot8", web_ui("qwen"), (("small", [512], {}),), {**quantised("convrot8"), **LOW_VRAM, **CACHED, **rank(16)},
        SMALL_PREVIEW,
    ),
    Job(
        "qwen-convrotint4-b2", web_ui("qwen"), (("five", [384], {}),),
        {**quantised("convrotint4", "convrotint7"), **HIGH_VRAM, **CACHED_LATENTS, **batch(2), **rank(8)}, SMALL_PREVIEW,
    ),
)  # fmt: skip
VIDEO_JOBS = (
    Job(
        "wan1b-convrot8-33", web_ui("wan 1.3b"), (("clips", [320], frames(33)),), {**quantised("convrot8"), **LOW_VRAM, **rank(16)},
        (clip(416, 240, 9),),
    ),
    Job(
        "wan14b-nvfp4", web_ui("wan 14b"), (("short clips", [256], frames(13)), ("small", [384], {})),
        {**quantised("nvfp4"), **CACHED, **rank(8)}, (clip(416, 240, 9),),
    ),
    Job(
        "wan22-convrot8", web_ui("wan 2.2 14b"), (("short clips", [256], frames(13)),), {**quantised("convrot8"), **CACHED, **rank(16)},
        (clip(416, 240, 9),),
    ),
    Job(
        "ltx2-convrot8", web_ui("ltx2"), (FEW_CLIPS,), {**quantised("convrot8"), **CACHED, **rank(8), **NO_WORKERS}, (clip(320, 256, 17),),
    ),
)  # fmt: skip
# Architectures of other classes, one run each
OTHER_JOBS = (
    Job(
        "schnell-nvfp4", web_ui("schnell"), (("small", [512], {}),), {**quantised("nvfp4"), **LOW_VRAM, **CACHED, **rank(16)},
        SMALL_PREVIEW,
    ),
    Job(
        "flex-convrotint6", web_ui("flex1"), (("odd", [512], {}),), {**quantised("convrotint6"), **CACHED_LATENTS, **rank(16)},
        SMALL_PREVIEW,
    ),
    Job("flux2dev-nvfp4", FLUX2, (("small", [512], {}),), {**quantised("nvfp4"), **CACHED, **rank(8)}, SMALL_PREVIEW),
    Job("l2p-convrot8", L2P, (("small", [512], {}),), {**quantised("convrot8"), **CACHED_TEXT, **rank(16)}, SMALL_PREVIEW),
    Job(
        "edit-convrot8", web_ui("edit"), (("small", [512], numbered(FEW)),),
        {**quantised("convrot8", "qfloat8"), **CACHED, **rank(16)}, (edited(FEW, 640, 448),),
    ),
    Job(
        "sd35m-convrot8", by_key(MEDIUM), (("small", [512], {}),), {**quantised("convrot8"), **CACHED_LATENTS, **UNLOADED, **rank(16)},
        SMALL_PREVIEW,
    ),
    Job(
        "wan5b-convrot8", web_ui("wan 5b"), (("short clips", [288], frames(13)),), {**quantised("convrot8"), **CACHED_LATENTS, **rank(16)},
        (clip(448, 320, 9),),
    ),
    Job(
        "wan22i-convrotint4", web_ui("wan 2.2 i2v"), (("short clips", [256], frames(13)),),
        {**quantised("convrotint4"), **CACHED_TEXT, **rank(8), **NO_WORKERS}, (clip(416, 240, 9, **BEGINNING),),
    ),
    Job(
        "wan21i-nvfp4", web_ui("wan 2.1 i2v"), (("short clips", [256], frames(13)),),
        {**quantised("nvfp4"), **CACHED_TEXT, **rank(8), **NO_WORKERS}, (clip(416, 240, 9, **BEGINNING),),
    ),
    Job(
        "ltx23-nvfp4", web_ui("ltx2.3"), (FEW_CLIPS,), {**quantised("nvfp4"), **CACHED, **rank(8), **NO_WORKERS}, (clip(320, 256, 17),),
    ),
)  # fmt: skip
OFFLOADED_JOBS = (
    Job(
        "zimage-convrot8-offload-half", web_ui("zimage"), (("small", [512], {}),),
        {**offloaded(0.5, 0), **quantised("convrot8", "qfloat8"), **CACHED, **rank(16)}, SMALL_PREVIEW, seed=5,
    ),
    Job(
        "klein9b-nvfp4-offload", klein("9b"), (("odd", [640], {}),),
        {**offloaded(1, 0), **quantised("nvfp4", "qfloat8"), **CACHED_TEXT, **rank(8)}, SMALL_PREVIEW,
    ),
    Job(
        "qwen-convrotint4-offload-half", web_ui("qwen"), (("small", [512], {}),),
        {**offloaded(0.5, 0), **quantised("convrotint4", "qfloat8"), **HIGH_VRAM, **CACHED, **rank(8)}, SMALL_PREVIEW, seed=7,
    ),
)  # fmt: skip
# Other adapters than a plain LoRA on all layers
ADAPTER_JOBS = (
    Job("zimage-convrot8-lokr", web_ui("zimage"), (("odd", [512], {}),), {**quantised("convrot8"), **CACHED, **lokr(8)}, SMALL_PREVIEW),
    Job(
        "flux-nvfp4-lokr-b2", web_ui("flux"), (("five", [384], {}),),
        {**quantised("nvfp4"), **CACHED, **lokr(8), **NO_CHECKPOINTING, **batch(2)}, SMALL_PREVIEW,
    ),
    Job(
        "flux-convrotint4-dropout", web_ui("flux"), (("small", [512], {}),),
        {**quantised("convrotint4"), **LOW_VRAM, **CACHED, **rank(16), "network.dropout": 0.1}, SMALL_PREVIEW,
    ),
)  # fmt: skip
JOBS = (*IMAGE_JOBS, *CARD_JOBS, *QWEN_JOBS, *VIDEO_JOBS, *OTHER_JOBS, *OFFLOADED_JOBS, *ADAPTER_JOBS)
