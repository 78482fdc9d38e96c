"""Validation jobs without an adapter: the whole transformer is trained (see validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_adapters import CACHED, SMALL_PREVIEW
from calibration.validation_jobs_flux2 import klein
from calibration.validation_jobs_unet import XL_UI
from calibration.validation_settings import *

WHOLE: dict[str, Any] = {"network": None, **UNQUANTISED}
JOBS = (
    Job("zimage-whole", web_ui("zimage"), (("phone", [512, 768], {}),), {**WHOLE, **CACHED}, SMALL_PREVIEW),
    Job(
        "zimage-whole-adamw-b2", web_ui("zimage"), (("five", [640], {}),),
        {**WHOLE, **CACHED_LATENTS, **HIGH_VRAM, **NO_CHECKPOINTING, **batch(2), **optimizer("adamw"), **EMA}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-whole-adafactor", web_ui("zimage"), (("portraits", [1024], {}),), {**WHOLE, **CACHED, **optimizer("adafactor")},
        SMALL_PREVIEW,
    ),
    Job("klein4b-whole", klein("4b"), (("phone", [512, 768], {}),), {**WHOLE, **CACHED}, SMALL_PREVIEW),
    Job(
        "klein4b-whole-adafactor-b2", klein("4b"), (("five", [640], {}),),
        {**WHOLE, **CACHED_LATENTS, **NO_CHECKPOINTING, **batch(2), **optimizer("adafactor"), **EMA}, SMALL_PREVIEW,
    ),
    Job(
        "klein9b-whole-adafactor", klein("9b"), (("portraits", [768], {}), ("phone", [512], {"batch_size": 2})),
        {**WHOLE, **CACHED, **optimizer("adafactor")}, SMALL_PREVIEW,
    ),
    Job("sdxl-whole", XL_UI, (("portraits", [1024], {}), ("wide", [768], {"batch_size": 2})), {**WHOLE, **CACHED_LATENTS}, SMALL_PREVIEW),
    Job(
        "klein9b-whole-ema", klein("9b"), (("portraits", [512], {}),),
        {**WHOLE, **CACHED_LATENTS, **UNLOADED, **EMA, **optimizer("adafactor")}, SMALL_PREVIEW,
    ),
    Job("sdxl-whole-ema", XL_UI, (("five", [640], {}),), {**WHOLE, **NO_CHECKPOINTING, **batch(2), **EMA}, SMALL_PREVIEW),
    Job(
        "flux-whole-adafactor", example(FLUX), (("portraits", [512, 1024], {}),),
        {**WHOLE, **CACHED_TEXT, **NO_EMA, **optimizer("adafactor")}, SMALL_PREVIEW,
    ),
    Job(
        "flux-whole-b2", web_ui("flux"), (("five", [512], {}),), {**WHOLE, **CACHED, **NO_CHECKPOINTING, **batch(2)}, SMALL_PREVIEW,
    ),
)  # fmt: skip
