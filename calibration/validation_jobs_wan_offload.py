"""Validation jobs of Wan with layer offloading (see validation_jobs_offload): both experts of Wan 2.2 14B, and what of Wan 2.1's class the
trainer does not stop on: the transformer's layers unquantised and with room, the text encoder's in any kind of weights.

`JOBS` begins with those of Wan 2.2.
"""

from __future__ import annotations

from typing import Any

from calibration import validation_jobs_wan22
from calibration.validation_jobs_flux2 import NO_WORKERS
from calibration.validation_jobs_offload import offloaded
from calibration.validation_jobs_wan import BEGINNING, WEIGHTED, begun, clip, frames
from calibration.validation_settings import *

IMAGES["odd clips"] = ((672, 528, "short", 90), (672, 528, "medium", 120))
CACHED: dict[str, Any] = {**CACHED_LATENTS, **CACHED_TEXT}
PLAIN: dict[str, Any] = {"model.quantize": False, **HIGH_VRAM, **NO_WORKERS}  # with the text encoder quantised
ADAMW = {**optimizer("adamw"), **NO_WORKERS}
BARE: dict[str, Any] = {**UNQUANTISED, **HIGH_VRAM, **NO_WORKERS}
T2V, I2V, TI2V = web_ui("wan 2.2 14b"), web_ui("wan 2.2 i2v"), web_ui("wan 5b")
# Wan 2.1 and Wan 2.2 5B unquantised and with room: the trainer stops otherwise
PLAIN_JOBS = (
    Job(
        "wan14b-offload-33", web_ui("wan 14b"), (("clips", [304], frames(33)),), {**PLAIN, **offloaded(1, 1), **rank(24)},
        (clip(448, 256, 17), clip(400, 400, 1, SECOND)),
    ),
    Job(
        "wan14b-offload-half-b2", web_ui("wan 14b"), (("odd clips", [208], frames(33)), ("small", [384], {})),
        {**BARE, **offloaded(0.5, 0.5), **CACHED, **NO_CHECKPOINTING, **EMA, **batch(2), **rank(8), **optimizer("adamw")},
        (clip(400, 224, 17, guidance_scale=1),), seed=7,
    ),
    Job(
        "wan21i-offload-33", web_ui("wan 2.1 i2v"), (("clips", [272], frames(33)),), {**PLAIN, **offloaded(1, 1), **rank(24)},
        (clip(432, 240, 33, **BEGINNING),),
    ),
    Job(
        "wan21i-offload-half-b2", web_ui("wan 2.1 i2v"), (("odd clips", [240], frames(33)),),
        {**BARE, **offloaded(0.5, 0.5), **UNLOADED, **EMA, **batch(2), **rank(12), **optimizer("adamw")},
        (clip(416, 240, 17, guidance_scale=1, **BEGINNING),), seed=5,
    ),
    Job(
        "wan5b-offload-33", TI2V, (("clips", [416], begun(33)),), {**WEIGHTED, **PLAIN, **offloaded(1, 1), **rank(12)},
        (clip(640, 448, 17), clip(512, 544, 9, SECOND, **BEGINNING)),
    ),
    Job(
        "wan5b-offload-half-b2", TI2V, (("odd clips", [384], frames(33)), ("portraits", [640], {})),
        {**WEIGHTED, **BARE, **offloaded(0.5, 0.5), **CACHED, **NO_CHECKPOINTING, **EMA, **batch(2), **rank(48), **optimizer("adamw")},
        (clip(640, 448, 17),), seed=3,
    ),
)  # fmt: skip
# Two experts, each with a choice of layers of its own; with low_vram one waits on the host besides
EXPERT_JOBS = (
    Job(
        "wan22-offload-ui", T2V, (("clips", [304], frames(33)),), {**offloaded(1, 1), **rank(12), **NO_WORKERS},
        (clip(448, 256, 17), clip(400, 400, 1, SECOND)),
    ),
    Job(
        "wan22-offload-half-uint4-b2", T2V, (("odd clips", [208], frames(33)), ("small", [448], frames(1))),
        {**quantised("uint4"), **HIGH_VRAM, **offloaded(0.5, 0.5), **CACHED, **EMA, **batch(2), **rank(48), **NO_WORKERS},
        (clip(416, 256, 9),), seed=7,
    ),
    Job(
        "wan22-offload-half-bf16", T2V, (("clips", [208], frames(33)),),
        {**UNQUANTISED, **offloaded(0.5, 1), **NO_CHECKPOINTING, **EMA, **UNLOADED, **rank(24), **optimizer("adamw"), **NO_WORKERS},
        (clip(416, 256, 9), clip(304, 400, 1, SECOND, guidance_scale=1)), seed=11,
    ),
    Job(
        "wan22i-offload-ui", I2V, (("clips", [272], frames(33)),), {**offloaded(1, 1), **rank(24), **NO_WORKERS},
        (clip(448, 256, 17, **BEGINNING),),
    ),
    Job(
        "wan22i-offload-half-b2", I2V, (("odd clips", [208], frames(33)),),
        {**quantised("float8"), **HIGH_VRAM, **offloaded(0.5, 0.5), **CACHED_TEXT, **batch(2), **rank(12), **ADAMW},
        (clip(416, 256, 9, **BEGINNING),), seed=9,
    ),
)  # fmt: skip
# The text encoder's layers alone: the transformer may be quantised then, and wait on the host
TEXT_JOBS = (
    Job(
        "wan14b-offload-text", web_ui("wan 14b"), (("clips", [304], frames(33)),), {**offloaded(0, 1), **rank(24), **NO_WORKERS},
        (clip(448, 256, 17), clip(400, 400, 1, SECOND)),
    ),
    Job(
        "wan5b-offload-half-text-uint4", TI2V, (("clips", [416], begun(33)),),
        {**WEIGHTED, **quantised("uint4"), **offloaded(0, 0.5), **CACHED_TEXT, **rank(12), **NO_WORKERS}, (clip(640, 448, 17),), seed=5,
    ),
)  # fmt: skip
JOBS = (*validation_jobs_wan22.JOBS, *PLAIN_JOBS, *EXPERT_JOBS, *TEXT_JOBS)
