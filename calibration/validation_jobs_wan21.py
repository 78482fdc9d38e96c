"""Validation jobs of Wan 2.1 in further kinds of base weights: clips of 33 and 81 frames, alone and in batches (see validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_flux2 import NO_WORKERS
from calibration.validation_jobs_offload import offloaded
from calibration.validation_jobs_wan import BEGINNING, clip, frames
from calibration.validation_settings import *

IMAGES["long clips"] = ((704, 512, "short", 90), (704, 512, "medium", 120))
CACHED: dict[str, Any] = {**CACHED_LATENTS, **CACHED_TEXT}
NO_PREVIEWS: dict[str, Any] = {"train.disable_sampling": True}
SMALL_JOBS = (
    Job(
        "wan1b-qfloat8-33", web_ui("wan 1.3b"), (("clips", [416], frames(33)),), {**quantised("qfloat8"), **LOW_VRAM, **rank(24)},
        (clip(640, 352, 33), clip(416, 608, 1, SECOND)),
    ),
    Job(
        "wan1b-qfloat8-81-b2", web_ui("wan 1.3b"), (("long clips", [288], frames(81)),),
        {**quantised("qfloat8"), **CACHED_LATENTS, **UNLOADED, **NO_CHECKPOINTING, **batch(2), **optimizer("adamw"), **NO_WORKERS},
        (clip(400, 224, 81), clip(304, 240, 33, SECOND, guidance_scale=1)),
    ),
    Job(
        "wan1b-float8-33-b2", web_ui("wan 1.3b"), (("long clips", [320], frames(33)),),
        {**quantised("float8"), **LOW_VRAM, **CACHED_TEXT, **EMA, **batch(2), **rank(16), **optimizer("adafactor")},
        (clip(432, 240, 33), clip(512, 400, 1, SECOND)),
    ),
    Job(
        "wan1b-float8-81", web_ui("wan 1.3b"), (("clips", [256], frames(81)), ("portraits", [448], {})),
        {**quantised("float8"), **HIGH_VRAM, **NO_CHECKPOINTING, **rank(64)}, (clip(480, 256, 17, guidance_scale=1),),
    ),
    Job(
        "wan1b-uint4-33", web_ui("wan 1.3b"), (("clips", [368], frames(33)),),
        {**quantised("uint4"), **HIGH_VRAM, **CACHED, **EMA, **rank(16)}, (clip(592, 336, 33),),
    ),
    Job(
        "wan1b-uint4-81-b2", web_ui("wan 1.3b"), (("long clips", [272], frames(81)),),
        {**quantised("uint4"), **LOW_VRAM, **UNLOADED, **NO_CHECKPOINTING, **batch(2), **rank(8), **optimizer("adamw"), **NO_WORKERS},
        (clip(480, 272, 81), clip(288, 384, 1, SECOND, guidance_scale=1)),
    ),
)  # fmt: skip
LARGE_JOBS = (
    Job(
        "wan14b-float8-33", web_ui("wan 14b"), (("clips", [432], frames(33)),), quantised("float8"),
        (clip(704, 400, 33), clip(576, 768, 1, SECOND)),
    ),
    Job(
        "wan14b-float8-81-b2", web_ui("wan 14b"), (("long clips", [272], frames(81)),),
        {**quantised("float8"), **HIGH_VRAM, **CACHED, **NO_CHECKPOINTING, **EMA, **batch(2), **rank(8), **optimizer("adamw")},
        (clip(432, 240, 33),),
    ),
    Job(
        "wan14b-bf16-ema", web_ui("wan 14b"), (("clips", [240], frames(33)),),
        {**UNQUANTISED, **HIGH_VRAM, **CACHED, **EMA, **rank(24), **NO_WORKERS}, (clip(416, 240, 17, guidance_scale=1),),
    ),
    Job(
        "wan14b-bf16-low-vram", web_ui("wan 14b"), (("clips", [240], frames(33)),),
        {**UNQUANTISED, **LOW_VRAM, **CACHED_LATENTS, **EMA, **rank(24), **NO_WORKERS},
        (clip(448, 256, 17), clip(400, 304, 1, SECOND, guidance_scale=1)),
    ),
)  # fmt: skip
# With low_vram the trainer stops at the first preview
PICTURED_JOBS = (
    Job(
        "wan21i-bf16-33-b2", web_ui("wan 2.1 i2v"), (("long clips", [288], frames(33)),),
        {**UNQUANTISED, **UNLOADED, **batch(2), **rank(24), **NO_WORKERS}, (clip(432, 240, 33, **BEGINNING),),
    ),
    Job(
        "wan21i-bf16-ema", web_ui("wan 2.1 i2v"), (("clips", [240], frames(33)),),
        {**UNQUANTISED, **CACHED_TEXT, **EMA, **rank(12), **NO_WORKERS}, (clip(416, 240, 17, guidance_scale=1, **BEGINNING),),
    ),
    Job(
        "wan21i-bf16-81-low-vram", web_ui("wan 2.1 i2v"), (("clips", [272], frames(81)), ("portraits", [448], {})),
        {**UNQUANTISED, **LOW_VRAM, **CACHED_TEXT, **NO_CHECKPOINTING, **EMA, **rank(16), **NO_PREVIEWS}, (),
    ),
    Job(
        "wan21i-float8-81", web_ui("wan 2.1 i2v"), (("clips", [288], frames(81)),),
        {**quantised("float8"), **CACHED_TEXT, **EMA, **rank(16), **optimizer("adamw")},
        (clip(432, 240, 33, **BEGINNING), clip(512, 400, 1, SECOND, **BEGINNING)),
    ),
    Job(
        "wan21i-float8-33-b2", web_ui("wan 2.1 i2v"), (("long clips", [272], frames(33)),),
        {**quantised("float8"), **LOW_VRAM, **NO_CHECKPOINTING, **batch(2), **rank(8), **NO_PREVIEWS}, (),
    ),
    Job(
        "wan21i-uint4-33-b2", web_ui("wan 2.1 i2v"), (("long clips", [272], frames(33)),),
        {**quantised("uint4"), **NO_CHECKPOINTING, **batch(2), **rank(64)}, (clip(480, 272, 41, guidance_scale=1, **BEGINNING),),
    ),
    Job(
        "wan21i-uint4-81-low-vram", web_ui("wan 2.1 i2v"), (("clips", [256], frames(81)),),
        {**quantised("uint4"), **LOW_VRAM, **UNLOADED, **rank(16), **optimizer("adamw"), **NO_PREVIEWS, **NO_WORKERS}, (),
    ),
)  # fmt: skip
# Unquantised and with room: the trainer stops otherwise
OFFLOADED_JOBS = (
    Job("wan1b-offload-ui", web_ui("wan 1.3b"), (("clips", [320], frames(33)),), {**offloaded(1, 1), **rank(24)}, (clip(432, 240, 33),)),
    Job(
        "wan1b-offload-half-b2", web_ui("wan 1.3b"), (("long clips", [256], frames(33)), ("small", [384], {})),
        {**UNQUANTISED, **offloaded(0.5, 0.5), **CACHED, **NO_CHECKPOINTING, **batch(2), **rank(8)},
        (clip(400, 224, 17), clip(416, 304, 1, SECOND, guidance_scale=1)), seed=7,
    ),
)  # fmt: skip
JOBS = (*SMALL_JOBS, *LARGE_JOBS, *PICTURED_JOBS, *OFFLOADED_JOBS)
