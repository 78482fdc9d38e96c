"""Validation jobs of single settings: optimizers, kinds of base weights (see validation_jobs). Small pictures, one preview each."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_compiled import JOBS as COMPILED_JOBS
from calibration.validation_jobs_dtypes import JOBS as TYPED_JOBS
from calibration.validation_settings import *

CACHED: dict[str, Any] = {**CACHED_LATENTS, **CACHED_TEXT}
ONE_PREVIEW = (preview(512, 512),)
# Automagic3's window of signs is full after 8 steps: 12 batches of one
JOBS = (
    Job(
        "zimage-qint8-automagic3", web_ui("zimage"), (("mixed", [512, 768], {}),),
        {**CACHED, **quantised("qint8"), **optimizer("automagic3"), **rank(24)}, ONE_PREVIEW,
    ),
    Job(
        "zimage-uint3-lion8bit-r4", web_ui("zimage"), (("odd", [512], {}),),
        {**quantised("uint3"), **optimizer("lion8bit"), **rank(4)}, ONE_PREVIEW,
    ),
    Job(
        "zimage-bf16-prodigy8bit", web_ui("zimage"), (("portraits", [512], {}),),
        {**CACHED, **UNQUANTISED, **HIGH_VRAM, **optimizer("prodigy8bit"), **rank(12), **EMA}, ONE_PREVIEW,
    ),
    Job(
        "turbo-uint7-adagrad-b2", web_ui("turbo"), (("five", [512], {}),),
        {**CACHED, **quantised("uint7"), **optimizer("adagrad"), **batch(2), **rank(48)}, ONE_PREVIEW,
    ),
    Job(
        "flex-uint2-automagic", web_ui("flex1"), (("portraits", [512], {}),),
        {**CACHED, **quantised("uint2"), **optimizer("automagic"), **rank(20)}, ONE_PREVIEW,
    ),
    Job(
        "flux-uint6-automagic2-accumulated", web_ui("flux"), (("small", [512], {}),),
        {**CACHED_LATENTS, **UNLOADED, **quantised("uint6"), **optimizer("automagic2"), **batch(1, 2), **rank(40)}, ONE_PREVIEW,
    ),
    Job(
        "schnell-qfloat8-e5m2-adamw8", web_ui("schnell"), (("odd", [512], {}),),
        {**quantised("qfloat8_e5m2"), **CACHED, **optimizer("adamw8"), **EMA}, ONE_PREVIEW,
    ),
    *COMPILED_JOBS, *TYPED_JOBS,
)  # fmt: skip
