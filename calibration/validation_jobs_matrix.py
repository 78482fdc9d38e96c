"""Validation jobs that each meet several settings which no other run of their architecture has (calibration.accuracy_matrix)."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_edit import FEW, NO_PREVIEWS
from calibration.validation_jobs_flex2 import UI as FLEX2_UI
from calibration.validation_jobs_flux2 import FLUX2, NO_WORKERS, edit, edited, klein
from calibration.validation_jobs_offload import offloaded
from calibration.validation_jobs_qwen import WEIGHTED
from calibration.validation_jobs_wan import BEGINNING, clip, frames
from calibration.validation_settings import *

SMALL_PREVIEW = (preview(640, 448),)
CACHED: dict[str, Any] = {**CACHED_LATENTS, **CACHED_TEXT}
SQUARES = ["portraits", "big square", "screens"]
TEXT_JOBS = (
    Job("flux-only-text-cached", web_ui("flux"), (("odd", [512], {}),), {**CACHED_TEXT, **rank(8)}, SMALL_PREVIEW),
)
# Layer offloading of the classes that never attach the trainer's memory manager: nothing is moved, and qfloat8 becomes float8
UNMOVED_JOBS = (
    Job(
        "flux-offload-nothing", web_ui("flux"), (("small", [640], {}),), {**offloaded(0.5, 1), **LOW_VRAM, **CACHED_TEXT, **rank(24)},
        SMALL_PREVIEW,
    ),
    Job(
        "schnell-offload-nothing", web_ui("schnell"), (("five", [640], {}),),
        {**offloaded(1, 1), **NO_CHECKPOINTING, **UNLOADED, **batch(2), **CACHED_LATENTS, **rank(12)}, SMALL_PREVIEW,
    ),
    Job(
        "flex-offload-nothing", web_ui("flex1"), (("wide", [640], {}), ("small", [384], {})),
        {**offloaded(0.5, 0.5), **NO_CHECKPOINTING, **CACHED, **EMA, **rank(48)}, SMALL_PREVIEW,
    ),
    Job(
        "flex2-offload-nothing", FLEX2_UI, (("small", [640], {}),), {**offloaded(1, 1), **NO_CHECKPOINTING, **UNLOADED, **NO_WORKERS},
        SMALL_PREVIEW,
    ),
)  # fmt: skip
FIRST_EDIT = (preview(640, 448, ctrl_img=f"{FEW[0]}/image0.png"),)
EDIT_JOBS = (
    Job(
        "first-edit-bf16-no-checkpointing", web_ui("first edit"), (("small", [384], {"control_path": FEW[0]}),),
        {**WEIGHTED, **UNQUANTISED, **NO_CHECKPOINTING, **NO_PREVIEWS, **rank(24)}, (),
    ),
    Job(
        "first-edit-offload-half-uint4", web_ui("first edit"), (("small", [640], {"control_path": FEW[0]}),),
        {**WEIGHTED, **offloaded(0.5, 0), **quantised("uint4", "qfloat8"), **HIGH_VRAM, **CACHED, **rank(8), **optimizer("adafactor")},
        FIRST_EDIT, seed=8,
    ),
    Job(
        "edit11-unloaded", web_ui("edit 2511"), (("small", [768], {}),),
        {**WEIGHTED, **UNLOADED, **NO_PREVIEWS, **rank(24), **NO_WORKERS}, (),
    ),
    Job(
        "flux2dev-offload-half-three", FLUX2, (edited("odd", [512], *SQUARES), edited("small", [448], "phone")),
        {**offloaded(0.5, 0), **CACHED_TEXT, **rank(8)}, (edit(640, 448, "odd"),), seed=12,
    ),
    Job(
        "klein4b-edit-three", klein("4b"), (edited("odd", [512], *SQUARES), edited("small", [640], "phone")),
        {**UNQUANTISED, **NO_CHECKPOINTING, **CACHED_TEXT, **rank(12)}, (edit(640, 448, "odd"),),
    ),
    Job(
        "klein9b-edit-three", klein("9b"), (edited("odd", [512], *SQUARES), edited("small", [640], "phone")),
        {**quantised("float8"), **HIGH_VRAM, **rank(24), **optimizer("adamw")}, (edit(640, 448, "odd"),),
    ),
)  # fmt: skip
VIDEO_JOBS = (
    Job(
        "wan14b-bf16-no-checkpointing", web_ui("wan 14b"), (("short clips", [256], frames(13)), ("small", [384], {})),
        {**UNQUANTISED, **HIGH_VRAM, **NO_CHECKPOINTING, **CACHED, **rank(8)}, (clip(416, 240, 9),),
    ),
    Job(
        "wan22i-uint4-no-checkpointing", web_ui("wan 2.2 i2v"), (("clips", [256], frames(81)), ("small", [384], frames(1))),
        {**quantised("uint4"), **NO_CHECKPOINTING, **UNLOADED, **rank(8), **NO_WORKERS}, (clip(416, 240, 9, **BEGINNING),),
    ),
)  # fmt: skip
JOBS = (*TEXT_JOBS, *UNMOVED_JOBS, *EDIT_JOBS, *VIDEO_JOBS)
