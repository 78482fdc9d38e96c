"""Validation jobs of kinds of weights, batches and layer offloading of models beside the best known ones (see validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_edit import BOTH, FEW, NO_PREVIEWS, TWO, edited, numbered
from calibration.validation_jobs_flux2 import CHROMA, KONTEXT_UI, NO_WORKERS, edit
from calibration.validation_jobs_hidream import UI as HIDREAM
from calibration.validation_jobs_offload import ONE_PREVIEW, offloaded
from calibration.validation_jobs_pixels import L2P, RADIANCE
from calibration.validation_jobs_qwen import WEIGHTED
from calibration.validation_settings import *

CACHED: dict[str, Any] = {**CACHED_LATENTS, **CACHED_TEXT}
SMALL_PREVIEW = (preview(640, 448),)
# Classes that never attach the trainer's memory manager: nothing is moved, and qfloat8 becomes float8
UNMOVED_JOBS = (
    Job("chroma-offload-nothing", CHROMA, (("small", [640], {}),), {**offloaded(0.5, 1), **LOW_VRAM, **rank(24)}, SMALL_PREVIEW),
    Job(
        "kontext-offload-nothing", KONTEXT_UI, (("small", [448], {"control_path": "DATA/small"}),),
        {**offloaded(1, 0.5), **UNLOADED, **CACHED_LATENTS, **rank(12)}, (edit(640, 448, "small"),),
    ),
    Job(
        "radiance-offload-nothing", RADIANCE, (("portraits", [640], {}),), {**offloaded(0.5, 0.5), **LOW_VRAM, **CACHED, **rank(24)},
        SMALL_PREVIEW,
    ),
    Job(
        "hidream-offload-nothing", HIDREAM, (("square", [640], {}), ("small", [512], {})),
        {**offloaded(1, 1), **LOW_VRAM, **rank(8), **optimizer("adamw")}, (preview(960, 640),),
    ),
)
PIXEL_JOBS = (
    Job("radiance-uint4", RADIANCE, (("odd", [640], {}),), {**quantised("uint4"), **UNLOADED, **NO_WORKERS, **rank(48)}, ONE_PREVIEW),
    Job(
        "radiance-float8-b2", RADIANCE, (("five", [448], {}),),
        {**quantised("float8"), **NO_CHECKPOINTING, **batch(2), **CACHED_LATENTS, **EMA, **rank(16)},
        (preview(832, 1216, guidance_scale=1),),
    ),
    Job(
        "radiance-bf16-b2", RADIANCE, (("mixed", [512], {}),), {**UNQUANTISED, **batch(2), **CACHED, **rank(8), **optimizer("adamw")},
        (preview(608, 352),),
    ),
    Job("l2p-uint4", L2P, (("odd", [640], {}),), {**quantised("uint4"), **HIGH_VRAM, **EMA, **rank(48)}, (preview(832, 704),)),
    Job(
        "l2p-float8-b2", L2P, (("five", [448], {}),),
        {**quantised("float8"), **NO_CHECKPOINTING, **batch(2), **CACHED_LATENTS, **UNLOADED, **rank(16)}, ONE_PREVIEW,
    ),
    Job("l2p-offload-ui", L2P, (("phone", [512, 768], {}),), offloaded(1, 1), ONE_PREVIEW),
    Job(
        "l2p-offload-half-bf16-b2", L2P, (("five", [512], {}),),
        {**offloaded(0.5, 0.5), **UNQUANTISED, **batch(2), **CACHED, **rank(16)}, ONE_PREVIEW, seed=5,
    ),
    Job(
        "l2p-offload-half-uint4", L2P, (("small", [640], {}),),
        {**offloaded(0.5, 1), **quantised("uint4"), **HIGH_VRAM, **NO_CHECKPOINTING, **rank(24), **optimizer("adafactor")}, SMALL_PREVIEW,
        seed=9,
    ),
)
HIDREAM_JOBS = (
    Job(
        "hidream-uint4", HIDREAM, (("square", [896], {}), ("wide", [640], {})),
        {**quantised("uint4"), **rank(16), **optimizer("adafactor")}, (preview(1024, 1024),),
    ),
    Job(
        "hidream-bf16-cached", HIDREAM, (("square", [640], {}), ("odd", [512], {})), {**UNQUANTISED, **CACHED, **EMA, **rank(24)},
        (preview(832, 1216),),
    ),
)
EDIT_JOBS = (
    Job(
        "edit11-uint4-b2", web_ui("edit 2511"), (("five", [640], numbered(TWO)),),
        {**WEIGHTED, **quantised("uint4"), **batch(2), **CACHED, **rank(24), **optimizer("adamw")}, (edited(TWO, 768, 512),),
    ),
    Job(
        "edit11-offload-half-uint4", web_ui("edit 2511"), (("small", [512], numbered(FEW)),),
        {**WEIGHTED, **offloaded(0.5, 0), **quantised("uint4", "qfloat8"), **CACHED, **rank(16), **optimizer("adafactor")},
        (edited(FEW, 768, 512, guidance_scale=1),), seed=6,
    ),
    Job(
        "edit11-offload-bf16", web_ui("edit 2511"), (("screens", [512], numbered(BOTH)),),
        {**WEIGHTED, **offloaded(1, 1), **UNQUANTISED, **CACHED, **NO_WORKERS, **rank(16)}, (edited(BOTH, 768, 512),),
    ),
    Job(
        "first-edit-b2", web_ui("first edit"), (("five", [512], {"control_path": "DATA/five"}),),
        {**WEIGHTED, **quantised("uint4", "qfloat8"), **batch(2), **CACHED_TEXT, **rank(24)},
        (preview(640, 768, ctrl_img="DATA/five/image0.png"),),
    ),
    Job(
        "first-edit-b2-encoded", web_ui("first edit"), (("five", [512], {"control_path": "DATA/five"}),),
        {**WEIGHTED, **quantised("uint4", "qfloat8"), **batch(2), **NO_WORKERS, **rank(24)},
        (preview(640, 768, ctrl_img="DATA/five/image0.png"),),
    ),
    Job(
        "first-edit-b3-cached", web_ui("first edit"), (("five", [384], {"control_path": "DATA/five"}),),
        {**WEIGHTED, **quantised("float8"), **batch(3), **CACHED, **HIGH_VRAM, **NO_PREVIEWS, **rank(16), **optimizer("adamw")}, (),
    ),
)
JOBS = (*UNMOVED_JOBS, *PIXEL_JOBS, *HIDREAM_JOBS, *EDIT_JOBS)
