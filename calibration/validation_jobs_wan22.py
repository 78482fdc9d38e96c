"""Validation jobs of Wan 2.2 in the kinds of weights that were recorded behind the first: on clips of 33 and 81 frames, and on images."""

from __future__ import annotations

from calibration.validation_jobs_flux2 import NO_WORKERS
from calibration.validation_jobs_wan import AT_THEIR_LENGTH, BEGINNING, WEIGHTED, begun, clip, frames
from calibration.validation_settings import *

CACHED = {**CACHED_LATENTS, **CACHED_TEXT}
FLOAT8, UINT4 = quantised("float8"), quantised("uint4")
T2V, I2V, TI2V = web_ui("wan 2.2 14b"), web_ui("wan 2.2 i2v"), web_ui("wan 5b")
JOBS = (
    Job(
        "wan22-bf16-b2", T2V, (("clips", [256], frames(33)),), {**UNQUANTISED, **CACHED, **EMA, **batch(2), **rank(48), **NO_WORKERS},
        (clip(448, 256, 17), clip(400, 400, 1, SECOND)),
    ),
    Job(
        "wan22-bf16-81-no-checkpointing", T2V, (("clips", [208], frames(81)), ("small", [448], frames(1))),
        {**UNQUANTISED, **HIGH_VRAM, **NO_CHECKPOINTING, **UNLOADED, **rank(12), **optimizer("adamw"), **NO_WORKERS}, (clip(416, 256, 9),),
    ),
    Job(
        "wan22-float8-33", T2V, (("clips", [304], frames(33)),), {**FLOAT8, **CACHED_TEXT, **rank(12), **optimizer("adamw")},
        (clip(448, 256, 17), clip(400, 400, 1, SECOND)),
    ),
    Job(
        "wan22-float8-b2-no-checkpointing", T2V, (("clips", [192], frames(81)), ("portraits", [448], frames(1))),
        {**FLOAT8, **HIGH_VRAM, **NO_CHECKPOINTING, **CACHED_LATENTS, **UNLOADED, **EMA, **batch(2), **rank(48), **NO_WORKERS},
        (clip(416, 256, 9),),
    ),
    Job(
        "wan22i-bf16-33", I2V, (("clips", [240], frames(33)),), {**UNQUANTISED, **CACHED_TEXT, **batch(2), **rank(12), **NO_WORKERS},
        (clip(448, 256, 17, **BEGINNING),),
    ),
    Job(
        "wan22i-float8-81", I2V, (("clips", [208], frames(81)), ("small", [448], frames(1))),
        {**FLOAT8, **HIGH_VRAM, **NO_CHECKPOINTING, **UNLOADED, **rank(24), **optimizer("adamw"), **NO_WORKERS},
        (clip(416, 256, 9, **BEGINNING),),
    ),
    Job(
        "wan5b-bf16-33", TI2V, (("clips", [416], begun(33)),), {**WEIGHTED, **UNQUANTISED, **EMA, **rank(12)},
        (clip(640, 448, 17), clip(512, 544, 9, SECOND, **BEGINNING)),
    ),
    Job(
        "wan5b-bf16-81-no-checkpointing", TI2V, (("clips", [384], frames(81)), ("portraits", [640], frames(1))),
        {**WEIGHTED, **UNQUANTISED, **HIGH_VRAM, **NO_CHECKPOINTING, **CACHED, **batch(2), **rank(48), **optimizer("adamw")},
        (clip(640, 448, 17),),
    ),
    Job(
        "wan5b-float8-33-b2", TI2V, (("clips", [416], begun(33)), ("portraits", [640], begun(1))),
        {**WEIGHTED, **FLOAT8, **CACHED_TEXT, **batch(2), **rank(12)}, (clip(640, 448, 17), clip(512, 544, 9, SECOND, **BEGINNING)),
    ),
    Job(
        "wan5b-float8-81-no-checkpointing", TI2V, (("clips", [384], begun(81)),),
        {**WEIGHTED, **FLOAT8, **HIGH_VRAM, **NO_CHECKPOINTING, **UNLOADED, **CACHED_LATENTS, **EMA, **rank(48), **NO_WORKERS},
        (clip(640, 448, 17),),
    ),
    Job(
        "wan5b-uint4-33", TI2V, (("clips", [416], begun(33)),), {**WEIGHTED, **UINT4, **HIGH_VRAM, **CACHED, **EMA, **rank(12)},
        (clip(640, 448, 17), clip(512, 544, 9, SECOND, **BEGINNING)),
    ),
    Job(
        "wan5b-uint4-b2-no-checkpointing", TI2V, (("clips and stills", [384], {**AT_THEIR_LENGTH, "fps": 24}),),
        {**UINT4, **NO_CHECKPOINTING, **CACHED_LATENTS, **UNLOADED, **batch(2), **rank(48), **optimizer("adamw"), **NO_WORKERS},
        (clip(640, 448, 33),),
    ),
)  # fmt: skip
