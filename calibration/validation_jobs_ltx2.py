"""Validation jobs of LTX-2, LTX-2.3 and LTX-2.5: as the trainer's web UI writes them, on clips with and without sound and on images."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs import (
    CACHED_LATENTS,
    CACHED_TEXT,
    EMA,
    HIGH_VRAM,
    IMAGES,
    NO_CHECKPOINTING,
    SECOND,
    UI_MODELS,
    UNLOADED,
    UNQUANTISED,
    Job,
    batch,
    optimizer,
    quantised,
    rank,
    web_ui,
)
from calibration.validation_jobs_offload import offloaded
from calibration.validation_jobs_wan import clip

IMAGES["sounding clips"] = ((960, 540, "medium", 90, 1), (540, 960, "long", 60, 1))
IMAGES["short sounding clips"] = ((640, 480, "short", 24, 1), (640, 480, "tag", 30, 1))
UI_MODELS["ltx2"] = {"name_or_path": "Lightricks/LTX-2", "arch": "ltx2", "low_vram": True}
UI_MODELS["ltx2.3"] = {"name_or_path": "Lightricks/LTX-2.3/ltx-2.3-22b-dev.safetensors", "arch": "ltx2.3", "low_vram": True}
UI_MODELS["ltx2.5"] = {
    "name_or_path": "Lightricks/LTX-2.5", "arch": "ltx2.5", "low_vram": True, "qtype": "convrot8", "qtype_te": "convrot8",
}  # fmt: skip


def frames(count: int, **more: Any) -> dict[str, Any]:
    """A dataset's own settings as the UI has them for LTX-2: clips of so many frames, their sound trained."""
    return {"num_frames": count, "fps": 24, "do_i2v": False, "do_audio": True, "auto_frame_count": False, **more}


UI = {"sample.fps": 24, "sample.width": 768, "sample.height": 768, "sample.num_frames": 121, "train.timestep_type": "weighted"}
LTX2_JOBS = (
    Job("ltx2-ui", web_ui("ltx2"), (("sounding clips", [512], frames(33)),), UI, (clip(768, 768, 121),)),
    Job(
        "ltx2-images", web_ui("ltx2"), (("portraits", [512], frames(1)),),
        {**UI, **CACHED_LATENTS, **CACHED_TEXT, **EMA, **rank(16)}, (clip(512, 768, 1), clip(544, 320, 49, SECOND)),
    ),
    Job(
        "ltx2-81-cached", web_ui("ltx2"), (("sounding clips", [384], frames(81)),),
        {**UI, **CACHED_LATENTS, **CACHED_TEXT, **optimizer("adamw")}, (clip(480, 288, 81),),
    ),
    Job(
        "ltx2-high-vram", web_ui("ltx2"), (("short sounding clips", [320], frames(25)), ("portraits", [384], frames(1))),
        {**UI, **HIGH_VRAM, **UNLOADED, **batch(2), **CACHED_LATENTS}, (clip(480, 320, 33),),
    ),
    Job(
        "ltx2-no-checkpointing", web_ui("ltx2"),
        (("short sounding clips", [256], frames(17, do_audio=False)), ("sounding clips", [320], frames(41))),
        {**UI, **NO_CHECKPOINTING, **rank(64)}, (clip(384, 384, 1, SECOND, guidance_scale=1),),
    ),
)  # fmt: skip
UI_23 = {**UI, **CACHED_LATENTS}  # the UI sets it for LTX-2.3
LTX23_JOBS = (
    Job("ltx23-ui", web_ui("ltx2.3"), (("sounding clips", [512], frames(33)),), UI_23, (clip(768, 768, 121),)),
    Job(
        "ltx23-images", web_ui("ltx2.3"), (("portraits", [512], frames(1)),),
        {**UI_23, **CACHED_TEXT, **EMA, **rank(16)}, (clip(512, 768, 1), clip(544, 320, 49, SECOND, guidance_scale=1)),
    ),
    Job(
        "ltx23-81-uncached", web_ui("ltx2.3"), (("sounding clips", [384], frames(81)),), {**UI, **optimizer("adamw")},
        (clip(480, 288, 81),),
    ),
    Job(
        "ltx23-high-vram", web_ui("ltx2.3"), (("short sounding clips", [320], frames(25)), ("portraits", [384], frames(1))),
        {**UI_23, **HIGH_VRAM, **UNLOADED, **batch(2)}, (clip(480, 320, 33),),
    ),
    Job(
        "ltx23-no-checkpointing", web_ui("ltx2.3"),
        (("short sounding clips", [256], frames(17, do_audio=False)), ("sounding clips", [320], frames(41))),
        {**UI_23, **NO_CHECKPOINTING, **rank(64)}, (clip(384, 384, 9, SECOND),),
    ),
)  # fmt: skip
LTX25_JOBS = (
    Job("ltx25-ui", web_ui("ltx2.5"), (("sounding clips", [512], frames(33)),), UI_23, (clip(768, 768, 121),)),
    Job(
        "ltx25-images", web_ui("ltx2.5"), (("portraits", [512], frames(1)),),
        {**UI_23, **CACHED_TEXT, **EMA, **rank(16)}, (clip(512, 768, 1), clip(544, 320, 49, SECOND)),
    ),
    Job(
        "ltx25-81-uncached", web_ui("ltx2.5"), (("sounding clips", [384], frames(81)),), {**UI, **optimizer("adamw")},
        (clip(480, 288, 81),),
    ),
    Job(
        "ltx25-high-vram", web_ui("ltx2.5"), (("short sounding clips", [320], frames(25)), ("portraits", [384], frames(1))),
        {**UI_23, **HIGH_VRAM, **UNLOADED, **batch(2)}, (clip(480, 320, 33),),
    ),
    Job(
        "ltx25-no-checkpointing", web_ui("ltx2.5"),
        (("short sounding clips", [256], frames(17, do_audio=False)), ("sounding clips", [320], frames(41))),
        {**UI_23, **NO_CHECKPOINTING, **rank(64)}, (clip(384, 384, 9, SECOND),),
    ),
)  # fmt: skip
IMAGES["long sounding clips"] = ((640, 480, "short", 90, 1), (640, 480, "tag", 85, 1))
CACHED: dict[str, Any] = {**CACHED_LATENTS, **CACHED_TEXT}
SMALL = (clip(320, 256, 17),)
LAST_PREVIEW: dict[str, Any] = {"train.skip_first_sample": True}
# Kinds of base weights whose steps are qfloat8's by rule
KINDS_JOBS = (
    Job(
        "ltx2-bf16-b2", web_ui("ltx2"), (("long sounding clips", [256], frames(33)),),
        {**UI, **UNQUANTISED, **batch(2), **rank(16), **CACHED_LATENTS, **LAST_PREVIEW}, SMALL,
    ),
    Job(
        "ltx2-float8-81", web_ui("ltx2"), (("long sounding clips", [256], frames(81)),),
        {**UI, **quantised("float8"), **CACHED, **rank(32)}, SMALL,
    ),
    Job(
        "ltx2-uint4-no-checkpointing", web_ui("ltx2"), (("long sounding clips", [256], frames(9)),),
        {**UI, **quantised("uint4"), **NO_CHECKPOINTING, **UNLOADED, **rank(8), **LAST_PREVIEW}, SMALL,
    ),
    Job(
        "ltx23-uint4-33", web_ui("ltx2.3"), (("long sounding clips", [256], frames(33)),),
        {**UI_23, **quantised("uint4"), **UNLOADED, **EMA, **rank(16), **LAST_PREVIEW}, SMALL,
    ),
    Job(
        "ltx23-float8-b2", web_ui("ltx2.3"), (("long sounding clips", [256], frames(33)),),
        {**UI_23, **quantised("float8"), **batch(2), **rank(32), **LAST_PREVIEW}, SMALL,
    ),
    Job(
        "ltx23-bf16-81", web_ui("ltx2.3"), (("long sounding clips", [256], frames(81)),),
        {**UI_23, **UNQUANTISED, **UNLOADED, **rank(32), **LAST_PREVIEW}, SMALL,
    ),
)  # fmt: skip
IMAGES["still and moving"] = ((700, 500, "medium", 40, 1), (700, 500, "none", 30, 1))
IMAGES["two of one size"] = ((320, 256, "short", 9, 1), (256, 256, "tag", 9, 1))
IMAGES["one moving"] = ((700, 500, "medium", 40, 1),)
MORE_KINDS_JOBS = (
    Job(
        "ltx23-uint4-high-vram", web_ui("ltx2.3"), (("one moving", [288], frames(17)),),
        {**UI_23, **quantised("uint4"), **HIGH_VRAM, **rank(24), **LAST_PREVIEW}, SMALL,
    ),
    Job(
        "ltx23-bf16-ema", web_ui("ltx2.3"), (("still and moving", [256], frames(17)),), {**UI_23, **UNQUANTISED, **EMA, **rank(24)},
        SMALL,
    ),
)  # fmt: skip
# Layer offloading: layers are taken once they are quantised, on the host
SMALL_SOUND = ("two of one size", [256], frames(9))
FEW_CLIPS = ("short sounding clips", [288], frames(17))
OFFLOADED_JOBS = (
    Job(
        "ltx2-offload-small", web_ui("ltx2"), (SMALL_SOUND,), {**UI, **quantised("float8"), **offloaded(1, 1), **rank(8)}, SMALL, seed=3,
    ),
    Job(
        "ltx23-offload-small", web_ui("ltx2.3"), (SMALL_SOUND,), {**UI, **quantised("float8"), **offloaded(1, 1), **rank(8)}, SMALL, seed=3,
    ),
    Job("ltx25-offload-small", web_ui("ltx2.5"), (SMALL_SOUND,), {**UI, **offloaded(1, 1), **rank(8)}, SMALL, seed=3),
    Job(
        "ltx23-offload-ui", web_ui("ltx2.3"), (("sounding clips", [384], frames(33)),), {**UI_23, **offloaded(1, 1)},
        (clip(480, 320, 25),),
    ),
    Job(
        "ltx2-offload-half-bf16-b2", web_ui("ltx2"), (FEW_CLIPS,),
        {**UI, **UNQUANTISED, **offloaded(0.5, 0.5), **HIGH_VRAM, **CACHED, **NO_CHECKPOINTING, **batch(2), **rank(24)},
        (clip(384, 352, 9, SECOND, guidance_scale=1),), seed=4,
    ),
    Job(
        "ltx23-offload-half-bf16-b2", web_ui("ltx2.3"), (FEW_CLIPS,),
        {**UI_23, **UNQUANTISED, **offloaded(0.5, 0.5), **HIGH_VRAM, **CACHED, **NO_CHECKPOINTING, **batch(2), **rank(24)},
        (clip(384, 352, 9, SECOND),), seed=4,
    ),
    Job(
        "ltx25-offload-half-b2", web_ui("ltx2.5"), (FEW_CLIPS,),
        {**UI_23, **offloaded(0.5, 0.5), **HIGH_VRAM, **CACHED_TEXT, **NO_CHECKPOINTING, **batch(2), **rank(24)},
        (clip(384, 352, 9, SECOND),), seed=4,
    ),
    Job(
        "ltx2-offload-half-uint4", web_ui("ltx2"), (("one moving", [320], frames(25)),),
        {
            **UI, **quantised("uint4"), **offloaded(0.5, 1), **HIGH_VRAM, **UNLOADED, **CACHED_LATENTS, **LAST_PREVIEW, **rank(16),
            **optimizer("adafactor"),
        },
        SMALL, seed=6,
    ),
    Job(
        "ltx23-offload-half-uint4", web_ui("ltx2.3"), (("one moving", [320], frames(25)),),
        {
            **UI_23, **quantised("uint4"), **offloaded(0.5, 1), **HIGH_VRAM, **UNLOADED, **CACHED_LATENTS, **LAST_PREVIEW, **rank(16),
            **optimizer("adafactor"),
        },
        SMALL, seed=6,
    ),
)  # fmt: skip
JOBS = (*LTX2_JOBS, *LTX23_JOBS, *KINDS_JOBS, *LTX25_JOBS, *MORE_KINDS_JOBS, *OFFLOADED_JOBS)
