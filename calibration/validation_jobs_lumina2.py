"""Validation jobs of Lumina-Image 2.0 (see calibration.validation_jobs): captions of one length and of several in a batch."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_offload import offloaded
from calibration.validation_settings import *

NAME = "Alpha-VLLM/Lumina-Image-2.0"
CACHED = {**CACHED_TEXT, "train.disable_sampling": True}  # the trainer stops on previews then


def lumina2_example() -> dict[str, Any]:
    """The trainer's config/examples/train_lora_lumina.yaml."""
    base = example({"name_or_path": NAME, "is_lumina2": True})
    train = {key: value for key, value in base["train"].items() if key != "gradient_accumulation_steps"}
    base["train"] = train | {"gradient_accumulation": 1, "timestep_type": "lumina2_shift"}
    base["save"] = {"dtype": "bf16", "save_every": 250, "max_step_saves_to_keep": 2, "save_format": "diffusers"}
    base["datasets"] = [{"caption_ext": "txt", "caption_dropout_rate": 0.05, "shuffle_tokens": False}]
    base["model"] = {"name_or_path": NAME, "is_lumina2": True, "quantize_te": True}
    return base


def lumina2_ui() -> dict[str, Any]:
    """What the web UI writes for it: the text encoder is quantised, the transformer is not."""
    base = web_ui("flux")
    return base | {"model": {**base["model"], "name_or_path": NAME, "arch": "lumina2", "quantize": False}}


EXAMPLE, UI = lumina2_example(), lumina2_ui()
JOBS = (
    Job("lumina2-example", EXAMPLE, (("portraits", [512, 1024], {}), ("square", [768], {})), {}, TWO_SIZES),
    Job(
        "lumina2-ui-b2", UI, (("five", [704], {}), ("odd", [512], {})), {**batch(2), **CACHED_LATENTS, **rank(12)},
        (preview(832, 1216), preview(1280, 720, SECOND, guidance_scale=1)),
    ),
    Job(
        "lumina2-qfloat8-low-vram-cached-b2", UI, (("five", [640], {}), ("big square", [832], {})),
        {**quantised("qfloat8"), **LOW_VRAM, **batch(2), **CACHED_LATENTS, **CACHED, **EMA, **rank(8), **optimizer("adamw")},
    ),
    Job(
        "lumina2-qfloat8-no-checkpointing", UI, (("small", [576], {}), ("screens", [960], {})),
        {**quantised("qfloat8"), **NO_CHECKPOINTING, **rank(48), **optimizer("adafactor")}, (preview(1024, 1024),),
    ),
    Job(
        "lumina2-bf16-unloaded-no-checkpointing-b3", UI, (("five", [544], {}),),
        {**UNQUANTISED, **NO_CHECKPOINTING, **UNLOADED, **batch(3), **rank(16)}, (preview(768, 960),),
    ),
    Job(
        "lumina2-float8-b2", UI, (("mixed", [736], {}), ("phone", [512], {})),
        {**quantised("float8"), **batch(2), **NO_CHECKPOINTING, **CACHED, **rank(24)},
    ),
    Job(
        "lumina2-float8-offload-nothing", UI, (("square", [528], {}),),
        {**quantised("qfloat8"), **offloaded(1, 0.5), **UNLOADED, **rank(8), "train.disable_sampling": True},
    ),
    Job(
        "lumina2-uint4-low-vram", UI, (("wide", [896], {}), ("five", [608], {})),
        {**quantised("uint4"), **LOW_VRAM, **UNCACHED, **batch(3), **rank(32), **optimizer("prodigy")}, (preview(896, 1024),),
    ),
    Job(
        "lumina2-uint4-offload-nothing-b2", UI, (("portraits", [768], {}),),
        {**quantised("uint4"), **offloaded(0.5, 0.5), **LOW_VRAM, **NO_CHECKPOINTING, **batch(2), **CACHED_LATENTS, **CACHED, **EMA,
         **rank(12)},
    ),
)  # fmt: skip
