"""Validation jobs of a DoRA (see validation_jobs)."""

from __future__ import annotations

from calibration.validation_jobs_adapters import CACHED, SMALL_PREVIEW, only
from calibration.validation_jobs_edit import ONE, edited, numbered
from calibration.validation_jobs_flux2 import CHROMA, klein
from calibration.validation_jobs_qwen import WEIGHTED
from calibration.validation_jobs_wan import clip, frames
from calibration.validation_settings import *

DORA = {"network.type": "dora"}
JOBS = (
    Job("zimage-dora", web_ui("zimage"), (("phone", [512, 768], {}),), {**DORA, **CACHED, **rank(16)}, SMALL_PREVIEW),
    Job(
        "zimage-dora-no-checkpointing-b2", web_ui("zimage"), (("five", [512], {}),),
        {**DORA, **CACHED, **NO_CHECKPOINTING, **batch(2), **EMA, **optimizer("adamw")}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-dora-bf16-b2", web_ui("zimage"), (("five", [640], {}), ("square", [512], {})),
        {**DORA, **UNQUANTISED, **HIGH_VRAM, **batch(2), **rank(24), **EMA}, SMALL_PREVIEW,
    ),
    Job("flux-dora", web_ui("flux"), (("phone", [512, 768], {}),), {**DORA, **CACHED, **rank(16)}, SMALL_PREVIEW),
    Job(
        "flux-dora-no-checkpointing-b2", example(FLUX), (("five", [512], {}),),
        {**DORA, **CACHED, **NO_CHECKPOINTING, **batch(2), **EMA}, SMALL_PREVIEW,
    ),
    Job(
        "flux-dora-bf16-b2", web_ui("flux"), (("five", [512], {}), ("square", [640], {})),
        {**DORA, **UNQUANTISED, **HIGH_VRAM, **batch(2), **rank(24), **EMA}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-dora-attention-only-b2", web_ui("zimage"), (("five", [512], {}),),
        {**DORA, **only("attention."), **CACHED, **batch(2), **rank(16), **EMA}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-dora-uint4", web_ui("zimage"), (("phone", [512, 768], {}),), {**DORA, **quantised("uint4"), **CACHED, **rank(16)},
        SMALL_PREVIEW,
    ),
    Job("klein4b-dora", klein("4b"), (("portraits", [512, 768], {}),), {**DORA, **CACHED, **rank(16)}, SMALL_PREVIEW),
    Job("qwen-dora", web_ui("qwen"), (("portraits", [512, 640], {}),), {**DORA, **WEIGHTED, **CACHED, **rank(16)}, SMALL_PREVIEW),
    Job("klein9b-dora", klein("9b"), (("phone", [512, 640], {}),), {**DORA, **CACHED, **rank(24)}, SMALL_PREVIEW),
    Job(
        "wan1b-dora", web_ui("wan 1.3b"), (("short clips", [320], frames(21)), ("small", [384], {})), {**DORA, **CACHED, **rank(16)},
        (clip(480, 320, 33),),
    ),
    Job("flex-dora", web_ui("flex1"), (("portraits", [512, 768], {}),), {**DORA, **CACHED, **rank(16)}, SMALL_PREVIEW),
    Job("chroma-dora", CHROMA, (("phone", [512, 640], {}),), {**DORA, **CACHED_LATENTS, **rank(16)}, SMALL_PREVIEW),
    Job(
        "turbo-dora-bf16", web_ui("turbo"), (("portraits", [512, 640], {}),), {**DORA, **CACHED, **UNQUANTISED, **rank(24)},
        SMALL_PREVIEW,
    ),
    Job(
        "turbo-dora-uint4-b2", web_ui("turbo"), (("five", [512], {}),),
        {**DORA, **CACHED, **quantised("uint4"), **batch(2), **EMA, **rank(16)}, SMALL_PREVIEW,
    ),
    Job(
        "first-edit-dora", web_ui("first edit"), (("odd", [512], {"control_path": ONE[0]}),), {**DORA, **WEIGHTED, **CACHED, **rank(16)},
        (preview(512, 512, ctrl_img=f"{ONE[0]}/image0.png"),),
    ),
    Job(
        "edit-dora", web_ui("edit"), (("odd", [512], numbered(ONE)),), {**DORA, **WEIGHTED, **CACHED, **rank(16)},
        (edited(ONE, 512, 512),),
    ),
    Job(
        "qwen-dora-bf16-b2", web_ui("qwen"), (("five", [512], {}),),
        {**DORA, **WEIGHTED, **UNQUANTISED, **CACHED_LATENTS, **batch(2), **EMA, **rank(24)}, SMALL_PREVIEW,
    ),
    Job(
        "qwen-dora-no-checkpointing-b2", web_ui("qwen"), (("five", [512], {}),),
        {**DORA, **WEIGHTED, **CACHED, **NO_CHECKPOINTING, **batch(2), **rank(8)}, SMALL_PREVIEW,
    ),
    Job(
        "klein9b-dora-bf16-b2", klein("9b"), (("five", [512], {}),),
        {**DORA, **UNQUANTISED, **CACHED, **batch(2), **EMA, **rank(16), **optimizer("adamw")}, SMALL_PREVIEW,
    ),
    Job(
        "klein9b-dora-no-checkpointing", klein("9b"), (("portraits", [512], {}),), {**DORA, **CACHED, **NO_CHECKPOINTING, **rank(8)},
        SMALL_PREVIEW,
    ),
    Job(
        "wan1b-dora-qfloat8-no-checkpointing-b2", web_ui("wan 1.3b"), (("short clips", [256], frames(13)),),
        {**DORA, **quantised("qfloat8"), **CACHED, **NO_CHECKPOINTING, **batch(2), **EMA, **rank(24)}, (clip(416, 256, 17),),
    ),
    Job(
        "flex-dora-bf16-no-checkpointing-b2", web_ui("flex1"), (("five", [512], {}),),
        {**DORA, **UNQUANTISED, **CACHED, **NO_CHECKPOINTING, **batch(2), **EMA, **rank(24)}, SMALL_PREVIEW,
    ),
    Job(
        "chroma-dora-bf16-no-checkpointing-b2", CHROMA, (("five", [512], {}),),
        {**DORA, **UNQUANTISED, **CACHED_LATENTS, **NO_CHECKPOINTING, **batch(2), **EMA, **rank(24)}, SMALL_PREVIEW,
    ),
    Job("schnell-dora", web_ui("schnell"), (("portraits", [512], {}),), {**DORA, **CACHED, **rank(16)}, SMALL_PREVIEW),
    Job(
        "edit11-dora", web_ui("edit 2511"), (("odd", [512], numbered(ONE)),), {**DORA, **WEIGHTED, **CACHED, **rank(16)},
        (edited(ONE, 512, 512),),
    ),
    Job(
        "wan14b-dora", web_ui("wan 14b"), (("short clips", [256], frames(13)),), {**DORA, **CACHED, **rank(16)}, (clip(320, 256, 17),),
    ),
    Job(
        "turbo-dora-attention-only", web_ui("turbo"), (("portraits", [512], {}),),
        {**DORA, **only("attention."), **CACHED, **UNQUANTISED, **rank(8)}, SMALL_PREVIEW,
    ),
)  # fmt: skip
