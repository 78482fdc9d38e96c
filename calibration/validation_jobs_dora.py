"""Validation jobs of a DoRA (see validation_jobs)."""

from __future__ import annotations

from calibration.validation_jobs_adapters import CACHED, SMALL_PREVIEW, only
from calibration.validation_jobs_flux2 import klein
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
)  # fmt: skip
