"""Validation jobs with layer offloading (see validation_jobs). Where a part of the layers is offloaded, `seed` makes the trainer's choice.

Previews are small, so that training steps, and what the copies add there, are among the peaks.
"""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_edit import BOTH, FEW, NO_PREVIEWS, ONE, TWO, edited, numbered
from calibration.validation_jobs_flux2 import FLUX2, NO_WORKERS, klein
from calibration.validation_jobs_qwen import WEIGHTED
from calibration.validation_settings import *


def offloaded(transformer: float, text_encoder: float) -> dict[str, Any]:
    return {
        "model.layer_offloading": True, "model.layer_offloading_transformer_percent": transformer,
        "model.layer_offloading_text_encoder_percent": text_encoder,
    }  # fmt: skip


ONE_PREVIEW = (preview(768, 512, guidance_scale=1),)
JOBS = (
    Job("zimage-offload-ui", web_ui("zimage"), (("phone", [512, 768], {}),), offloaded(1, 1)),
    Job(
        "zimage-offload-half-float8-b2", web_ui("zimage"), (("five", [768], {}),),
        {**offloaded(0.5, 0.5), **HIGH_VRAM, **batch(2), **rank(16), **UNCACHED, **optimizer("adafactor")},
        (preview(832, 1216, SECOND),), seed=7,
    ),
    Job(
        "zimage-offload-half-bf16", web_ui("zimage"), (("odd", [1024], {}),),
        {**offloaded(0.5, 1), **UNQUANTISED, **CACHED_LATENTS, **CACHED_TEXT, **rank(64), **EMA}, ONE_PREVIEW, seed=3,
    ),
    Job(
        "zimage-offload-bf16-no-checkpointing-b2", web_ui("zimage"), (("five", [512], {}),),
        {**offloaded(1, 1), **UNQUANTISED, **NO_CHECKPOINTING, **HIGH_VRAM, **batch(2), **UNLOADED, **rank(8), **optimizer("adamw")},
        ONE_PREVIEW,
    ),
    Job(
        "zimage-offload-uint4", web_ui("zimage"), (("portraits", [1024], {}),),
        {**offloaded(1, 1), **quantised("uint4"), **HIGH_VRAM, **CACHED_LATENTS}, ONE_PREVIEW,
    ),
    Job(
        "zimage-offload-half-uint4-b2", web_ui("zimage"), (("mixed", [512], {}),),
        {**offloaded(0.5, 0), **quantised("uint4", "qfloat8"), **batch(2), **CACHED_TEXT, **CACHED_LATENTS, **optimizer("prodigy")},
        ONE_PREVIEW, seed=11,
    ),
    Job("klein4b-offload-ui", klein("4b"), (("phone", [512, 768], {}),), offloaded(1, 1)),
    Job(
        "klein4b-offload-half-bf16-b2", klein("4b"), (("five", [768], {}),),
        {**offloaded(0.5, 1), **UNQUANTISED, **HIGH_VRAM, **batch(2), **UNCACHED, **rank(16)}, ONE_PREVIEW, seed=5,
    ),
    Job(
        "klein4b-offload-uint4", klein("4b"), (("odd", [768], {}),),
        {**offloaded(1, 0), **quantised("uint4", "qfloat8"), **CACHED_LATENTS, **CACHED_TEXT, **rank(64)}, ONE_PREVIEW,
    ),
    Job("klein9b-offload-ui", klein("9b"), (("phone", [512, 768], {}),), offloaded(1, 1)),
    Job(
        "klein9b-offload-half-bf16-b2", klein("9b"), (("five", [512], {}),),
        {**offloaded(0.5, 1), **UNQUANTISED, **batch(2), **CACHED_LATENTS, **CACHED_TEXT, **rank(16)}, ONE_PREVIEW, seed=5,
    ),
    Job(
        "klein9b-offload-uint4", klein("9b"), (("odd", [768], {}),),
        {**offloaded(1, 1), **quantised("uint4"), **HIGH_VRAM, **UNLOADED, **rank(64), **optimizer("adafactor")}, ONE_PREVIEW,
    ),
    Job("qwen-offload-ui", web_ui("qwen"), (("phone", [512, 768], {}),), {**WEIGHTED, **offloaded(1, 1)}, ONE_PREVIEW),
    Job(
        "qwen-offload-half-bf16-b2", web_ui("qwen"), (("five", [512], {}),),
        {**WEIGHTED, **offloaded(0.5, 1), **UNQUANTISED, **batch(2), **CACHED_LATENTS, **CACHED_TEXT, **rank(16)}, ONE_PREVIEW, seed=5,
    ),
    Job(
        "qwen-offload-half-uint4", web_ui("qwen 2512"), (("odd", [768], {}),),
        {**WEIGHTED, **offloaded(0.5, 0.5), **quantised("uint4"), **HIGH_VRAM, **rank(64), **optimizer("adafactor")}, ONE_PREVIEW, seed=9,
    ),
    Job(
        "edit-offload-ui", web_ui("edit"), (("odd", [512, 768], numbered(ONE)),), {**WEIGHTED, **offloaded(1, 1)},
        (edited(ONE, 768, 512, guidance_scale=1),),
    ),
    Job(
        "edit-offload-half-bf16", web_ui("edit"), (("odd", [512], numbered(ONE)),),
        {**WEIGHTED, **offloaded(0.5, 0.5), **UNQUANTISED, **CACHED_TEXT, **rank(16)}, (edited(ONE, 768, 512, guidance_scale=1),), seed=2,
    ),
    Job(
        "edit11-offload-ui", web_ui("edit 2511"), (("screens", [512], numbered(BOTH)),), {**WEIGHTED, **CACHED_TEXT, **offloaded(1, 1)},
        (edited(BOTH, 768, 512, guidance_scale=1),),
    ),
    Job(
        "edit11-offload-half-b2", web_ui("edit 2511"), (("five", [512], numbered(TWO[:1])),),
        {**WEIGHTED, **batch(2), **CACHED_LATENTS, **CACHED_TEXT, **rank(16), **offloaded(0.5, 0.5)},
        (edited(TWO[:1], 768, 512, guidance_scale=1),), seed=6,
    ),
    Job(
        "first-edit-offload-ui", web_ui("first edit"), (("small", [512], {"control_path": FEW[0]}),), {**WEIGHTED, **offloaded(1, 1)},
        (preview(768, 512, guidance_scale=1, ctrl_img=f"{FEW[0]}/image0.png"),),
    ),
    Job("turbo-offload-ui", web_ui("turbo"), (("phone", [512, 768], {}),), offloaded(1, 1), ONE_PREVIEW),
    Job(
        "turbo-offload-half-bf16-b2", web_ui("turbo"), (("five", [768], {}),),
        {**offloaded(0.5, 0.5), **UNQUANTISED, **HIGH_VRAM, **batch(2), **CACHED_LATENTS, **CACHED_TEXT, **rank(16), **EMA}, ONE_PREVIEW,
        seed=4,
    ),
    Job(  # batches that are accumulated find the slots of the batch before them
        "turbo-offload-accumulated", web_ui("turbo"), (("phone", [512], {}),),
        {**offloaded(1, 0), **quantised("uint4"), **CACHED_TEXT, **rank(16), "train.gradient_accumulation": 2}, ONE_PREVIEW,
    ),
    Job(
        "turbo-accumulated", web_ui("turbo"), (("phone", [512], {}),),
        {**quantised("uint4"), **CACHED_TEXT, **rank(16), "train.gradient_accumulation": 2}, ONE_PREVIEW,
    ),
    Job("flux2dev-offload-ui", FLUX2, (("phone", [512, 768], {}),), {**offloaded(1, 0), **NO_WORKERS}, ONE_PREVIEW),
    Job(  # the trainer stops at the first preview if its text encoder is offloaded
        "flux2dev-offload-no-previews", FLUX2, (("odd", [512], {}),), {**offloaded(1, 1), **NO_PREVIEWS, **CACHED_LATENTS, **rank(16)}, (),
    ),
    Job(
        "flux2dev-offload-half-bf16", FLUX2, (("odd", [512], {}),),
        {**offloaded(0.5, 0), **UNQUANTISED, **CACHED_LATENTS, **CACHED_TEXT, **rank(16)}, ONE_PREVIEW, seed=6,
    ),
)  # fmt: skip
