"""Validation jobs of Qwen-Image-Edit: as the trainer's example for 32 GB, and as its web UI writes them (see validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration import validation_jobs_qwen as qwen
from calibration.validation_settings import *

WEIGHTED = qwen.WEIGHTED
EDIT = {"name_or_path": "Qwen/Qwen-Image-Edit-2509", "arch": "qwen_image_edit_plus"}
EDIT_2511 = {"name_or_path": "Qwen/Qwen-Image-Edit-2511", "arch": "qwen_image_edit_plus:2511"}
UI_MODELS["edit"] = {**EDIT, "low_vram": True, "model_kwargs": {"match_target_res": False}}
UI_MODELS["edit 2511"] = {**EDIT_2511, "low_vram": True, "model_kwargs": {"match_target_res": False}}
UI_MODELS["first edit"] = {"name_or_path": "Qwen/Qwen-Image-Edit", "arch": "qwen_image_edit", "low_vram": True}
MATCHED = {"model.model_kwargs": {"match_target_res": True}}
RECOVERED_2511 = "uint3|ostris/accuracy_recovery_adapters/qwen_image_edit_2511_torchao_uint3.safetensors"  # the web UI's
NO_PREVIEWS = {"train.disable_sampling": True}
SQUARE, WIDE, PHOTO, SMALL = (1024, 1024), (1280, 720), (3024, 4032), (640, 480)


def controls(images: str, *sizes: tuple[int, int]) -> list[str]:
    """Folders of control images for each image of `images`, all of a folder of one size."""
    names = [f"{images} control {k} of {width}x{height}" for k, (width, height) in enumerate(sizes, 1)]
    for name, (width, height) in zip(names, sizes, strict=True):
        IMAGES[name] = tuple((width, height, "none") for _ in IMAGES[images])
    return [f"DATA/{name}" for name in names]


def numbered(paths: list[str]) -> dict[str, Any]:
    """As the web UI has them."""
    return {f"control_path_{k}": paths[k - 1] if k <= len(paths) else None for k in (1, 2, 3)}


def edited(paths: list[str], width: int, height: int, prompt: str = FIRST, **more: Any) -> dict[str, Any]:
    """A preview of the first of the control images."""
    images = {f"ctrl_img_{k}": f"{path}/image0.png" for k, path in enumerate(paths, 1)}
    return preview(width, height, prompt, **images, **more)


THREE, ONE = controls("portraits", SQUARE, WIDE, PHOTO), controls("odd", PHOTO)
TWO, FEW, BOTH = controls("five", WIDE, SMALL), controls("small", WIDE), controls("screens", SQUARE, SMALL)
EXAMPLE = qwen.example()
EXAMPLE |= {"model": {**EXAMPLE["model"], **EDIT}}
JOBS = (
    Job(
        "edit-example", EXAMPLE, (("portraits", [512, 768, 1024], {"control_path": THREE}),), WEIGHTED,
        (edited(THREE[:2], 1024, 1024, guidance_scale=3), edited(THREE, 1024, 1024, SECOND, guidance_scale=3)),
    ),
    Job(  # the trainer's config/examples/train_lora_qwen_image_edit_2509_32gb.yaml, with one control image and one bucket
        "edit-recovery", EXAMPLE, (("small", [1024], {"control_path": FEW}),),
        {"model.qtype": "uint3|ostris/accuracy_recovery_adapters/qwen_image_edit_2509_torchao_uint3.safetensors"},
        (edited(FEW, 1024, 1024, guidance_scale=3),),
    ),
    Job("edit-ui", web_ui("edit"), (("odd", [512, 768, 1024], numbered(ONE)),), WEIGHTED, (edited(ONE, 1024, 1024),), cards=True),
    Job(
        "edit-bf16-b2", web_ui("edit"), (("five", [768], numbered(TWO)),),
        {**WEIGHTED, **UNQUANTISED, **HIGH_VRAM, **CACHED_LATENTS, **CACHED_TEXT, **batch(2), **EMA, **optimizer("prodigy"), **rank(16)},
        (edited(TWO, 832, 1216, guidance_scale=1), edited(TWO[:1], 1280, 704, SECOND, guidance_scale=4)),
    ),
    Job(
        "edit-no-checkpointing", web_ui("edit"), (("small", [512], numbered(FEW)),),
        {**WEIGHTED, **NO_CHECKPOINTING, **HIGH_VRAM, **MATCHED, **rank(8), **optimizer("adamw")}, (edited(FEW, 640, 960),),
    ),
    Job(
        "edit-uint4-no-controls", web_ui("edit"), (("five", [512], {}),),
        {**WEIGHTED, **quantised("uint4"), **UNLOADED, **NO_PREVIEWS, **batch(4), **rank(48), **optimizer("adafactor")}, (),
    ),
    Job(
        "edit-float8-b2", web_ui("edit"), (("five", [640], numbered(TWO[:1])),),
        {**WEIGHTED, **quantised("float8"), **LOW_VRAM, **CACHED_TEXT, **batch(2), **rank(24)}, (edited(TWO[1:], 512, 768),),
    ),
    Job(
        "edit11-ui", web_ui("edit 2511"), (("screens", [512, 1024], numbered(BOTH)),), {**WEIGHTED, **CACHED_TEXT},
        (edited(BOTH, 1024, 1024),), cards=True,
    ),
    Job(
        "edit11-recovery", web_ui("edit 2511"), (("odd", [512, 768], numbered(ONE)),),
        {**WEIGHTED, **quantised(RECOVERED_2511, "qfloat8"), **CACHED_TEXT}, (edited(ONE, 1024, 1024), edited(ONE, 832, 1216, SECOND)),
    ),
    Job(
        "edit11-no-checkpointing", web_ui("edit 2511"), (("small", [512], numbered(FEW)),),
        {**WEIGHTED, **quantised("uint4"), **NO_CHECKPOINTING, **HIGH_VRAM, **MATCHED, **rank(16)}, (edited(FEW, 640, 960),),
    ),
    Job(
        "edit11-bf16-b2", web_ui("edit 2511"), (("five", [768], numbered(TWO)),),
        {**WEIGHTED, **UNQUANTISED, **CACHED_LATENTS, **CACHED_TEXT, **batch(2), **optimizer("adafactor"), **rank(64)},
        (edited(TWO, 1216, 832),),
    ),
    Job(
        "edit11-three-resident", web_ui("edit 2511"), (("portraits", [768], numbered(THREE)),),
        {**WEIGHTED, **rank(48), **optimizer("adamw")}, (edited(THREE, 832, 1216, guidance_scale=1), edited(THREE[1:], 1280, 704, SECOND)),
    ),
    Job(
        "edit11-qfloat8-no-checkpointing", web_ui("edit 2511"), (("small", [640], numbered(FEW)),),
        {**WEIGHTED, **NO_CHECKPOINTING, **HIGH_VRAM, **MATCHED, **EMA, **rank(16), **optimizer("adamw")}, (edited(FEW, 640, 960),),
    ),
    Job(
        "edit11-float8-no-checkpointing", web_ui("edit 2511"), (("small", [512], numbered(FEW)),),
        {**WEIGHTED, **quantised("float8"), **NO_CHECKPOINTING, **CACHED_TEXT, **rank(24)}, (edited(FEW, 640, 960),),
    ),
    Job(
        "edit11-one-cached-b2", web_ui("edit 2511"), (("five", [512], numbered(TWO[:1])),),
        {**WEIGHTED, **HIGH_VRAM, **CACHED_TEXT, **batch(2), **rank(12), **optimizer("prodigy")}, (edited(TWO[:1], 512, 768),),
    ),
    Job(
        "first-edit-ui", web_ui("first edit"), (("odd", [512, 768], {"control_path": ONE[0]}),), WEIGHTED,
        (preview(768, 512, ctrl_img=f"{ONE[0]}/image0.png"),),
    ),
    Job(
        "first-edit-float8-cached", web_ui("first edit"), (("small", [512], {"control_path": FEW[0]}),),
        {**WEIGHTED, **quantised("float8"), **HIGH_VRAM, **CACHED_LATENTS, **CACHED_TEXT, **rank(16), **optimizer("adamw")},
        (preview(640, 960, guidance_scale=1, ctrl_img=f"{FEW[0]}/image0.png"),),
    ),
)  # fmt: skip
