"""Validation jobs of FLUX.2 dev, klein 4B and 9B, Chroma and FLUX.1 Kontext (see calibration.validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration.validation_settings import *


def klein(size: str) -> dict[str, Any]:
    """What the web UI writes for FLUX.2 klein: quantised, low_vram."""
    base = web_ui("zimage")
    name = {"name_or_path": f"black-forest-labs/FLUX.2-klein-base-{size.upper()}", "arch": f"flux2_klein_{size}"}
    return base | {"model": {**base["model"], **name, "model_kwargs": {"match_target_res": False}}}


def flux2_dev() -> dict[str, Any]:
    """The same for FLUX.2 dev."""
    base = klein("4b")
    return base | {"model": {**base["model"], "name_or_path": "black-forest-labs/FLUX.2-dev", "arch": "flux2"}}


def of_flux(name_or_path: str, arch: str, **model_kwargs: Any) -> dict[str, Any]:
    """What the web UI writes for a relative of FLUX.1."""
    base = web_ui("flex1")
    base["train"]["bypass_guidance_embedding"] = arch == "flex2"
    return base | {"model": {**base["model"], "name_or_path": name_or_path, "arch": arch, "model_kwargs": model_kwargs}}


FLUX2 = flux2_dev()
NO_WORKERS = {"datasets.num_workers": 0}  # forking one counts the unloaded weights on the host a second time
CHROMA = of_flux("lodestones/Chroma1-Base", "chroma")
KONTEXT_UI = of_flux("black-forest-labs/FLUX.1-Kontext-dev", "flux_kontext")


def kontext_example() -> dict[str, Any]:
    """The trainer's config/examples/train_lora_flux_kontext_24gb.yaml."""
    base = example({"name_or_path": "black-forest-labs/FLUX.1-Kontext-dev", "arch": "flux_kontext"})
    base["train"] = {key: value for key, value in base["train"].items() if key != "ema_config"} | {"timestep_type": "weighted"}
    return base


KONTEXT = kontext_example()


def edited(images: str, resolutions: list[int], *controls: str) -> tuple[str, list[int], dict[str, Any]]:
    """A dataset entry with folders of control images; none named: its images are their own."""
    paths = [f"DATA/{name}" for name in controls or (images,)]
    return images, resolutions, {"control_path": paths if len(paths) > 1 else paths[0]}


def edit(width: int, height: int, images: str, prompt: str = FIRST) -> dict[str, Any]:
    return preview(width, height, prompt, ctrl_img=f"DATA/{images}/image0.png")

JOBS = (
    Job("klein4b-ui", klein("4b"), (("phone", [512, 768, 1024], {}),), cards=True),
    Job("klein4b-ui-cached", klein("4b"), (("mixed", [512, 1024], {}),), {**CACHED_LATENTS, **CACHED_TEXT, **EMA}, TWO_SIZES, cards=True),
    Job(
        "klein4b-bf16-no-checkpointing", klein("4b"), (("odd", [512], {}),),
        {**UNQUANTISED, **NO_CHECKPOINTING, **HIGH_VRAM, **rank(8), **optimizer("adamw")}, GUIDED,
    ),
    Job(
        "klein4b-bf16-b2", klein("4b"), (("five", [1024], {}),),
        {**UNQUANTISED, **batch(2), **UNLOADED, **CACHED_LATENTS, **optimizer("prodigy"), **rank(16)},
    ),
    Job(
        "klein4b-float8-b4", klein("4b"), (("five", [512], {}), ("square", [512], {})),
        {**quantised("float8"), **HIGH_VRAM, **batch(4), **rank(64), **optimizer("adafactor"), **CACHED_LATENTS},
    ),
    Job(
        "klein4b-uint4-1280", klein("4b"), (("big square", [1280], {}), ("wide", [1280], {})),
        {**quantised("uint4", "qfloat8"), **CACHED_LATENTS, **CACHED_TEXT}, cards=True,
    ),
    Job(
        "klein4b-uint4-b2", klein("4b"), (("mixed", [768], {}),),
        {**quantised("uint4"), **batch(2, 2), **rank(16), **HIGH_VRAM, **UNCACHED}, (preview(1216, 832, SECOND, guidance_scale=1),),
    ),
    Job(
        "klein4b-float8-no-checkpointing", klein("4b"), (("portraits", [768], {}),),
        {**quantised("float8", "qfloat8"), **NO_CHECKPOINTING, **HIGH_VRAM, **UNLOADED, **EMA, **rank(64)},
    ),
    Job("klein9b-ui", klein("9b"), (("phone", [512, 768, 1024], {}),), cards=True),
    Job("klein9b-ui-cached", klein("9b"), (("odd", [768, 1024], {}),), {**CACHED_LATENTS, **CACHED_TEXT, **rank(64)}, TWO_SIZES),
    Job(
        "klein9b-bf16-b2", klein("9b"), (("five", [768], {}),),
        {**UNQUANTISED, **HIGH_VRAM, **batch(2), **UNLOADED, **EMA, **optimizer("adafactor"), **rank(16)}, GUIDED,
    ),
    Job(
        "klein9b-bf16-no-checkpointing", klein("9b"), (("small", [512], {}),),
        {**UNQUANTISED, **NO_CHECKPOINTING, **CACHED_LATENTS, **CACHED_TEXT, **rank(8), **optimizer("prodigy")},
    ),
    Job(
        "klein9b-qfloat8-256", klein("9b"), (("square", [256], {}),), {**HIGH_VRAM, **rank(4), **optimizer("adamw")},
        (preview(256, 256, guidance_scale=1),),
    ),
    Job(
        "klein9b-uint4-b4", klein("9b"), (("mixed", [512], {}),),
        {**quantised("uint4"), **batch(4), **CACHED_LATENTS, **UNLOADED}, (preview(1344, 768, SECOND),),
    ),
    Job(
        "klein9b-float8-no-checkpointing", klein("9b"), (("screens", [768], {}),),
        {**quantised("float8"), **NO_CHECKPOINTING, **HIGH_VRAM, **rank(16)}, GUIDED,
    ),
    Job(
        "klein9b-uint4-1280", klein("9b"), (("wide", [1280], {}), ("big square", [1280], {})),
        {**quantised("uint4", "qfloat8"), **UNCACHED, **EMA}, (preview(1024, 1024),),
    ),
    Job("flux2dev-ui", FLUX2, (("phone", [512, 768, 1024], {}),)),
    Job(
        "flux2dev-ui-cached", FLUX2, (("odd", [512, 1024], {}),), {**CACHED_LATENTS, **CACHED_TEXT, **EMA, **rank(64)}, TWO_SIZES,
    ),
    Job(
        "flux2dev-bf16-b2", FLUX2, (("five", [768], {}),),
        {**UNQUANTISED, **batch(2), **UNLOADED, **CACHED_LATENTS, **optimizer("adafactor"), **rank(16), **NO_WORKERS},
    ),
    Job(
        "flux2dev-bf16-high-vram", FLUX2, (("small", [512], {}),),
        {**UNQUANTISED, **HIGH_VRAM, **rank(8), **optimizer("adamw")}, (preview(1280, 720, guidance_scale=1),),
    ),
    Job(
        "flux2dev-uint4-no-checkpointing", FLUX2, (("screens", [512], {}),),
        {**quantised("uint4"), **NO_CHECKPOINTING, **HIGH_VRAM, **rank(16), **CACHED_LATENTS}, GUIDED,
    ),
    Job(
        "flux2dev-uint4-b4", FLUX2, (("mixed", [512], {}),),
        {**quantised("uint4"), **batch(4), **UNLOADED, **optimizer("prodigy"), **NO_WORKERS}, (preview(1344, 768, SECOND),),
    ),
    Job("flux2dev-edit-ui", FLUX2, (edited("odd", [768], "portraits"),), {}, (edit(1024, 1024, "phone"),)),
    Job("klein4b-edit-ui", klein("4b"), (edited("odd", [512, 768], "portraits"),), {}, (edit(1024, 1024, "phone"),)),
    Job(
        "klein4b-edit-b2", klein("4b"), (edited("five", [512]),),
        {**quantised("float8"), **HIGH_VRAM, **batch(2), **CACHED_LATENTS, **CACHED_TEXT, **rank(16)},
        ({**edit(768, 1024, "five"), "ctrl_img_2": "DATA/five/image3.png", "guidance_scale": 1},),
    ),
    Job(
        "klein9b-edit-two", klein("9b"), (edited("odd", [768], "portraits", "big square"),),
        {**quantised("uint4"), **UNLOADED, **CACHED_LATENTS, "model.model_kwargs": {"match_target_res": True}}, (edit(832, 1216, "odd"),),
    ),
    Job("chroma-ui", CHROMA, (("phone", [512, 768, 1024], {}),), cards=True),
    Job("chroma-ui-unloaded", CHROMA, (("odd", [768], {}),), {**CACHED_LATENTS, **UNLOADED, **EMA, **rank(64)}, TWO_SIZES),
    Job(
        "chroma-bf16-no-checkpointing", CHROMA, (("small", [512], {}),),
        {**UNQUANTISED, **NO_CHECKPOINTING, **rank(8), **optimizer("adamw")}, GUIDED,
    ),
    Job(
        "chroma-bf16-b2", CHROMA, (("five", [768], {}),),
        {**UNQUANTISED, **batch(2), **UNLOADED, **CACHED_LATENTS, **optimizer("prodigy"), **rank(16)},
    ),
    Job(
        "chroma-float8-b4", CHROMA, (("mixed", [512], {}),),
        {**quantised("float8"), **LOW_VRAM, **batch(4), **CACHED_LATENTS, **optimizer("adafactor")},
        (preview(1344, 768, guidance_scale=1),),
    ),
    Job(
        "chroma-uint4-1280", CHROMA, (("wide", [1280], {}), ("square", [1280], {})),
        {**quantised("uint4"), **CACHED_LATENTS, **UNLOADED}, (preview(1024, 1024),),
    ),
    Job("chroma-uint4-b2", CHROMA, (("screens", [768], {}),), {**quantised("uint4"), **batch(2, 2), **rank(16), **UNCACHED, **EMA}),
    Job(
        "chroma-float8-no-checkpointing", CHROMA, (("portraits", [768], {}),),
        {**quantised("float8"), **NO_CHECKPOINTING, **UNLOADED, **rank(16)}, (preview(832, 1216, SECOND),),
    ),
    Job("kontext-example", KONTEXT, (edited("portraits", [512, 768]),), {}, (edit(1024, 1024, "portraits"),), cards=True),
    Job("kontext-ui", KONTEXT_UI, (edited("phone", [512, 768, 1024]),), {}, (edit(1024, 1024, "phone"), edit(832, 1216, "phone", SECOND))),
    Job(
        "kontext-bf16-no-checkpointing", KONTEXT_UI, (edited("small", [512]),),
        {**UNQUANTISED, **NO_CHECKPOINTING, **CACHED_LATENTS, **UNLOADED, **rank(8), **optimizer("adamw")}, (edit(1280, 720, "small"),),
    ),
    Job(
        "kontext-float8-b2", KONTEXT, (edited("five", [768]), ("odd", [512], {})),
        {**quantised("float8"), **batch(2), **EMA, **rank(48), **optimizer("adafactor")}, (edit(768, 768, "five"),),
    ),
    Job(
        "kontext-uint4-b4", KONTEXT_UI, (edited("mixed", [512]),),
        {**quantised("uint4"), **LOW_VRAM, **batch(4), **UNLOADED, **CACHED_LATENTS, **rank(64)}, (edit(1344, 768, "mixed"),),
    ),
    Job(
        "kontext-uint4-1280-low-vram", KONTEXT_UI, (edited("wide", [1280]), ("screens", [1024], {})),
        {**quantised("uint4", "qfloat8"), **LOW_VRAM, **UNLOADED, **EMA}, (edit(1024, 1024, "wide"), edit(640, 1536, "wide")), cards=True,
    ),
    Job(
        "kontext-plain-b2", KONTEXT, (("five", [512, 768], {}),), {**UNCACHED, **batch(2, 2), **rank(24), **optimizer("prodigy")},
        (edit(896, 1152, "five"),),
    ),
    Job(
        "kontext-float8-no-checkpointing", KONTEXT_UI, (edited("screens", [512]),),
        {**quantised("float8"), **NO_CHECKPOINTING, **rank(16), "train.disable_sampling": True}, (),
    ),
)  # fmt: skip
