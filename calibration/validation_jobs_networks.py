"""Validation jobs of LoKr on several architectures and of dropout in adapters (see validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_adapters import CACHED, SMALL_PREVIEW, lokr, only
from calibration.validation_jobs_dora import JOBS as DORA_JOBS
from calibration.validation_jobs_edit import ONE, edited, numbered
from calibration.validation_jobs_flux2 import CHROMA, FLUX2, klein
from calibration.validation_jobs_networks_more import JOBS as MORE_JOBS
from calibration.validation_jobs_qwen import WEIGHTED
from calibration.validation_jobs_unet import SD15_BY_HAND
from calibration.validation_jobs_wan import clip, frames
from calibration.validation_settings import *


def dropout(share: float) -> dict[str, Any]:
    return {"network.dropout": share}


EVERY_LAYER = {"network.transformer_only": False}  # where none is outside the blocks
JOBS = (
    *DORA_JOBS, *MORE_JOBS,
    Job("sd15-every-layer", SD15_BY_HAND, (("five", [512], {}),), {**EVERY_LAYER, **batch(2)}, SMALL_PREVIEW),
    Job(
        "zimage-every-layer-of-two-blocks", web_ui("zimage"), (("phone", [512], {}),),
        {**EVERY_LAYER, **only("layers.12.", "layers.21.attention"), **CACHED}, SMALL_PREVIEW,
    ),
    Job("zimage-lokr-auto", web_ui("zimage"), (("phone", [512, 768], {}),), {**lokr(-1), **CACHED}, SMALL_PREVIEW),
    Job(
        "zimage-lokr-4-bf16-b2", web_ui("zimage"), (("five", [512], {}),),
        {**lokr(4), **CACHED, **UNQUANTISED, **HIGH_VRAM, **NO_CHECKPOINTING, **batch(2), **optimizer("adamw")}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-lokr-8-uint4", web_ui("zimage"), (("portraits", [512, 768], {}),), {**quantised("uint4"), **lokr(8), **CACHED},
        SMALL_PREVIEW,
    ),
    Job(
        "flux-lokr-auto-uint4-b2", web_ui("flux"), (("five", [512], {}),),
        {**quantised("uint4"), **LOW_VRAM, **lokr(-1), **CACHED, **batch(2)}, SMALL_PREVIEW,
    ),
    Job(
        "turbo-lokr-16-uint4-no-checkpointing", web_ui("turbo"), (("portraits", [512], {}),),
        {**quantised("uint4"), **lokr(16), **CACHED, **NO_CHECKPOINTING}, SMALL_PREVIEW,
    ),
    Job("klein9b-lokr-8-uint4", klein("9b"), (("phone", [512], {}),), {**quantised("uint4"), **lokr(8), **CACHED}, SMALL_PREVIEW),
    Job("klein4b-lokr-auto", klein("4b"), (("portraits", [512, 768], {}),), {**lokr(-1), **CACHED}, SMALL_PREVIEW),
    Job("qwen-lokr-8", web_ui("qwen"), (("portraits", [512], {}),), {**WEIGHTED, **lokr(8), **CACHED}, SMALL_PREVIEW),
    Job("klein9b-lokr-auto", klein("9b"), (("portraits", [512], {}),), {**lokr(-1), **CACHED}, SMALL_PREVIEW),
    Job("flex-lokr-auto", web_ui("flex1"), (("portraits", [512, 768], {}),), {**lokr(-1), **CACHED}, SMALL_PREVIEW),
    Job("chroma-lokr-8", CHROMA, (("phone", [512, 640], {}),), {**lokr(8), **CACHED_LATENTS}, SMALL_PREVIEW),
    Job(
        "first-edit-lokr-8", web_ui("first edit"), (("odd", [512], {"control_path": ONE[0]}),), {**WEIGHTED, **lokr(8), **CACHED},
        (preview(512, 512, ctrl_img=f"{ONE[0]}/image0.png"),),
    ),
    Job("edit-lokr-auto", web_ui("edit"), (("odd", [512], numbered(ONE)),), {**WEIGHTED, **lokr(-1), **CACHED}, (edited(ONE, 512, 512),)),
    Job(
        "wan1b-lokr-4", web_ui("wan 1.3b"), (("short clips", [320], frames(21)), ("small", [384], {})), {**lokr(4), **CACHED},
        (clip(480, 320, 33),),
    ),
    Job(
        "wan1b-lokr-auto-qfloat8", web_ui("wan 1.3b"), (("short clips", [320], frames(21)),),
        {**quantised("qfloat8"), **lokr(-1), **CACHED, **EMA}, (clip(480, 320, 33),),
    ),
    Job(
        "klein4b-lokr-8-bf16-b2", klein("4b"), (("five", [512], {}),), {**UNQUANTISED, **lokr(8), **CACHED, **batch(2), **EMA},
        SMALL_PREVIEW,
    ),
    Job("klein4b-lokr-auto-uint4", klein("4b"), (("phone", [512], {}),), {**quantised("uint4"), **lokr(-1), **CACHED}, SMALL_PREVIEW),
    Job("flex-lokr-8-bf16", web_ui("flex1"), (("portraits", [512], {}),), {**UNQUANTISED, **lokr(8), **CACHED, **EMA}, SMALL_PREVIEW),
    Job("chroma-lokr-auto-bf16", CHROMA, (("portraits", [512], {}),), {**UNQUANTISED, **lokr(-1), **CACHED_LATENTS}, SMALL_PREVIEW),
    Job("schnell-lokr-auto", web_ui("schnell"), (("portraits", [512], {}),), {**lokr(-1), **CACHED}, SMALL_PREVIEW),
    Job("flux2dev-lokr-auto", FLUX2, (("phone", [512], {}),), {**lokr(-1), **CACHED}, SMALL_PREVIEW),
    Job("wan14b-lokr-auto", web_ui("wan 14b"), (("short clips", [256], frames(13)),), {**lokr(-1), **CACHED}, (clip(320, 256, 17),)),
    Job("flux-dropout", example(FLUX), (("portraits", [512, 768], {}),), {**dropout(0.1), **CACHED}, SMALL_PREVIEW),
    Job(
        "zimage-dropout-no-checkpointing-b2", web_ui("zimage"), (("five", [512], {}),),
        {**dropout(0.3), **CACHED, **NO_CHECKPOINTING, **batch(2), **rank(16)}, SMALL_PREVIEW,
    ),
)  # fmt: skip
