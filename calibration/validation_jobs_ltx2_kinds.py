"""Validation jobs of LTX-2 and LTX-2.3 in kinds of base weights whose steps are qfloat8's by rule (see validation_jobs_ltx2)."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_ltx2 import UI, UI_23, frames
from calibration.validation_jobs_wan import clip
from calibration.validation_settings import *

IMAGES["long sounding clips"] = ((640, 480, "short", 90, 1), (640, 480, "tag", 85, 1))
SMALL = (clip(320, 256, 17),)
CACHED: dict[str, Any] = {**CACHED_LATENTS, **CACHED_TEXT}
JOBS = (
    Job(
        "ltx2-bf16-b2", web_ui("ltx2"), (("long sounding clips", [256], frames(33)),),
        {**UI, **UNQUANTISED, **batch(2), **rank(16), **CACHED_LATENTS}, SMALL,
    ),
    Job(
        "ltx2-float8-81", web_ui("ltx2"), (("long sounding clips", [256], frames(81)),),
        {**UI, **quantised("float8"), **CACHED, **rank(32)}, SMALL,
    ),
    Job(
        "ltx2-uint4-no-checkpointing", web_ui("ltx2"), (("long sounding clips", [256], frames(9, do_audio=False)),),
        {**UI, **quantised("uint4"), **NO_CHECKPOINTING, **HIGH_VRAM, **UNLOADED, **rank(8)}, SMALL,
    ),
    Job(
        "ltx23-bf16-81", web_ui("ltx2.3"), (("long sounding clips", [256], frames(81)),),
        {**UI_23, **UNQUANTISED, **UNLOADED, **rank(8)}, SMALL,
    ),
    Job(
        "ltx23-float8-b2", web_ui("ltx2.3"), (("long sounding clips", [256], frames(33)),),
        {**UI, **quantised("float8"), **HIGH_VRAM, **batch(2), **rank(64)}, SMALL,
    ),
    Job(
        "ltx23-uint4-33", web_ui("ltx2.3"), (("long sounding clips", [320], frames(33)),),
        {**UI_23, **quantised("uint4"), **CACHED_TEXT, **EMA, **rank(16)}, SMALL,
    ),
)  # fmt: skip
