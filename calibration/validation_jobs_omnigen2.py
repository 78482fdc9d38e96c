"""Validation jobs of OmniGen2 (see calibration.validation_jobs): with and without control images, in steps and in previews."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_flux2 import edit, edited
from calibration.validation_jobs_offload import offloaded
from calibration.validation_settings import *

NAME = "OmniGen2/OmniGen2"
NO_SAMPLING = {"train.disable_sampling": True}


def omnigen2_example() -> dict[str, Any]:
    """The trainer's config/examples/train_lora_omnigen2_24gb.yaml, with the quotation mark that it lacks."""
    base = example({"name_or_path": NAME, "arch": "omnigen2"})
    train = {key: value for key, value in base["train"].items() if key not in ("ema_config", "gradient_accumulation_steps")}
    base["train"] = train | {"gradient_accumulation": 1, "timestep_type": "sigmoid"}
    base["model"] = {"name_or_path": NAME, "arch": "omnigen2", "quantize_te": True}
    return base


def omnigen2_ui() -> dict[str, Any]:
    """What the web UI writes for it: the text encoder is quantised, the transformer is not."""
    base = web_ui("flux")
    return base | {"model": {**base["model"], "name_or_path": NAME, "arch": "omnigen2", "quantize": False}}


EXAMPLE, UI = omnigen2_example(), omnigen2_ui()
JOBS = (
    Job("omnigen2-example", EXAMPLE, (("portraits", [512, 1024], {}), ("square", [768], {}))),
    Job(
        "omnigen2-ui-edit", UI, (edited("odd", [640]), ("small", [512], {})), {},
        (preview(832, 1216), edit(768, 960, "odd", SECOND), edit(640, 640, "odd"), preview(1280, 720, guidance_scale=1)),
    ),
    Job(
        "omnigen2-qfloat8-low-vram-b2", UI, (("five", [768], {}), ("mixed", [512], {})),
        {**quantised("qfloat8"), **LOW_VRAM, **batch(2), **CACHED_LATENTS, **EMA, **rank(12), **optimizer("adamw")}, TWO_SIZES,
    ),
    Job(
        "omnigen2-cached-no-checkpointing", UI, (edited("small", [512]), ("screens", [448], {})),
        {**quantised("qfloat8"), **NO_CHECKPOINTING, **CACHED_LATENTS, **CACHED_TEXT, **rank(8), **NO_SAMPLING},
    ),
    Job(
        "omnigen2-float8-offload-nothing", UI, (edited("five", [576]),),
        {**quantised("float8"), **offloaded(1, 0.5), **batch(3), **UNLOADED, **rank(48), **optimizer("prodigy"), **NO_SAMPLING},
    ),
    Job(
        "omnigen2-uint4", UI, (("wide", [896], {}), ("phone", [512], {})),
        {**quantised("uint4"), **LOW_VRAM, **NO_CHECKPOINTING, **UNCACHED, **rank(24), **optimizer("adafactor")}, (preview(1024, 1024),),
    ),
    Job(
        "omnigen2-bf16-b2", UI, (edited("mixed", [640]), ("square", [512], {})),
        {**UNQUANTISED, **batch(2), **CACHED_LATENTS, **EMA, **rank(16)}, (preview(960, 960), edit(1024, 576, "mixed")),
    ),
    Job(
        "omnigen2-unloaded", UI, (edited("odd", [512]), ("square", [640], {})),
        {**quantised("qfloat8"), **UNLOADED, **CACHED_LATENTS, **EMA, **rank(16)}, (preview(768, 1024), edit(640, 800, "odd", SECOND)),
    ),
)  # fmt: skip
