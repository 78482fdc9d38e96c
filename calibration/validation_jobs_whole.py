"""Validation jobs without an adapter: the whole transformer is trained (see validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_adapters import CACHED, SMALL_PREVIEW
from calibration.validation_jobs_flux2 import CHROMA, NO_WORKERS, klein
from calibration.validation_jobs_lumina2 import UI as LUMINA2
from calibration.validation_jobs_sd3 import LARGE, MEDIUM, by_key
from calibration.validation_jobs_unet import SD15_UI, XL_UI
from calibration.validation_jobs_wan import BEGINNING, begun, clip, frames
from calibration.validation_settings import *

WHOLE: dict[str, Any] = {"network": None, **UNQUANTISED}
WITHOUT_ADAPTER: dict[str, Any] = {"model.assistant_lora_path": None}


def flex_example() -> dict[str, Any]:
    """The trainer's config/examples/train_full_fine_tune_flex.yaml."""
    base = example(FLEX)
    base["model"] = {**FLEX, "quantize_te": True, "only_if_contains": FLEX_BLOCKS}
    base["save"] = {"dtype": "bf16", "save_every": 250, "max_step_saves_to_keep": 2, "save_format": "diffusers"}
    base["datasets"] = [{"caption_ext": "txt", "caption_dropout_rate": 0.05, "shuffle_tokens": False}]
    base["train"] |= {"timestep_type": "sigmoid", "optimizer": "adafactor", "lr": 3e-5}
    return {key: section for key, section in base.items() if key != "network"}


FLEX_BLOCKS = ["transformer.transformer_blocks.", "transformer.single_transformer_blocks."]


def part(only: list[str] | None = None, ignore: list[str] | None = None) -> dict[str, Any]:
    """Parameters with such words in their names are trained."""
    return {"model.only_if_contains": only, "model.ignore_if_contains": ignore}


JOBS = (
    Job("zimage-whole", web_ui("zimage"), (("phone", [512, 768], {}),), {**WHOLE, **CACHED}, SMALL_PREVIEW),
    Job(
        "zimage-whole-adamw-b2", web_ui("zimage"), (("five", [640], {}),),
        {**WHOLE, **CACHED_LATENTS, **HIGH_VRAM, **NO_CHECKPOINTING, **batch(2), **optimizer("adamw"), **EMA}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-whole-adafactor", web_ui("zimage"), (("portraits", [1024], {}),), {**WHOLE, **CACHED, **optimizer("adafactor")},
        SMALL_PREVIEW,
    ),
    Job("klein4b-whole", klein("4b"), (("phone", [512, 768], {}),), {**WHOLE, **CACHED}, SMALL_PREVIEW),
    Job(
        "klein4b-whole-adafactor-b2", klein("4b"), (("five", [640], {}),),
        {**WHOLE, **CACHED_LATENTS, **NO_CHECKPOINTING, **batch(2), **optimizer("adafactor"), **EMA}, SMALL_PREVIEW,
    ),
    Job(
        "klein9b-whole-adafactor", klein("9b"), (("portraits", [768], {}), ("phone", [512], {"batch_size": 2})),
        {**WHOLE, **CACHED, **optimizer("adafactor")}, SMALL_PREVIEW,
    ),
    Job("sdxl-whole", XL_UI, (("portraits", [1024], {}), ("wide", [768], {"batch_size": 2})), {**WHOLE, **CACHED_LATENTS}, SMALL_PREVIEW),
    Job(
        "klein9b-whole-ema", klein("9b"), (("portraits", [512], {}),),
        {**WHOLE, **CACHED_LATENTS, **UNLOADED, **EMA, **optimizer("adafactor")}, SMALL_PREVIEW,
    ),
    Job("sdxl-whole-ema", XL_UI, (("five", [640], {}),), {**WHOLE, **NO_CHECKPOINTING, **batch(2), **EMA}, SMALL_PREVIEW),
    Job(
        "flux-whole-adafactor", example(FLUX), (("portraits", [512, 1024], {}),),
        {**WHOLE, **CACHED_TEXT, **NO_EMA, **optimizer("adafactor")}, SMALL_PREVIEW,
    ),
    Job(
        "flux-whole-b2", web_ui("flux"), (("five", [512], {}),), {**WHOLE, **CACHED, **NO_CHECKPOINTING, **batch(2)}, SMALL_PREVIEW,
    ),
    Job(
        "sd15-whole", SD15_UI, (("portraits", [512], {}), ("wide", [448], {"batch_size": 2})), {**WHOLE, **CACHED_LATENTS}, SMALL_PREVIEW,
    ),
    Job(
        "sd15-whole-ema-b2", SD15_UI, (("five", [640], {}),),
        {**WHOLE, "model.quantize": True, **NO_CHECKPOINTING, **batch(2), **EMA, **optimizer("adamw")}, (preview(512, 704),),
    ),
    Job("flex1-whole", web_ui("flex1"), (("portraits", [512, 768], {}),), {**WHOLE, **CACHED_TEXT}, SMALL_PREVIEW),
    Job(
        "flex1-whole-adafactor-b2", web_ui("flex1"), (("five", [512], {}),),
        {**WHOLE, **CACHED, **NO_CHECKPOINTING, **batch(2), **optimizer("adafactor")}, SMALL_PREVIEW,
    ),
    Job("flex1-whole-example", flex_example(), (("portraits", [512, 768, 1024], {}),), {}, TWO_SIZES),
    Job(
        "wan1b-whole-33", web_ui("wan 1.3b"), (("clips", [368], frames(33)), ("portraits", [512], {})), {**WHOLE, **CACHED_LATENTS},
        (clip(416, 240, 17), clip(512, 400, 1, SECOND)),
    ),
    Job(
        "wan1b-whole-ema-b2", web_ui("wan 1.3b"), (("short clips", [320], frames(17)),),
        {**WHOLE, **UNLOADED, **NO_CHECKPOINTING, **EMA, **batch(2), **optimizer("adafactor"), **NO_WORKERS}, (clip(416, 240, 17),),
    ),
    Job(
        "lumina2-whole", LUMINA2, (("portraits", [768], {}), ("five", [640], {"batch_size": 2})), {**WHOLE, **CACHED_LATENTS},
        SMALL_PREVIEW,
    ),
    Job(
        "lumina2-whole-ema-b2", LUMINA2, (("five", [704], {}), ("odd", [576], {})),
        {**WHOLE, **NO_CHECKPOINTING, **EMA, **batch(2), **optimizer("adafactor")}, SMALL_PREVIEW,
    ),
    Job(
        "sd35-medium-whole", by_key(MEDIUM), (("portraits", [768], {}), ("five", [576], {"batch_size": 2})), {**WHOLE, **CACHED_TEXT},
        SMALL_PREVIEW,
    ),
    Job(
        "sd35-medium-whole-ema-b4", by_key(MEDIUM), (("five", [512], {}),),
        {**WHOLE, **UNLOADED, **NO_CHECKPOINTING, **EMA, **batch(4), **optimizer("adafactor")}, SMALL_PREVIEW,
    ),
    Job(
        "wan14b-whole-33", web_ui("wan 14b"), (("clips", [240], frames(33)), ("portraits", [448], {"batch_size": 2})),
        {**WHOLE, **CACHED, **NO_WORKERS, **optimizer("adafactor")}, (clip(416, 240, 17),),
    ),
    Job(
        "wan5b-whole-33", web_ui("wan 5b"), (("clips", [416], begun(33)), ("portraits", [640], {"batch_size": 2})),
        {**WHOLE, **CACHED_LATENTS, **NO_WORKERS, **HIGH_VRAM}, (clip(416, 256, 17, **BEGINNING), clip(512, 416, 1, SECOND)),
    ),
    Job(
        "wan5b-whole-b2", web_ui("wan 5b"), (("long clips", [448], frames(33)),),
        {**WHOLE, **NO_CHECKPOINTING, **batch(2), **optimizer("adafactor"), **CACHED, **NO_WORKERS}, (clip(416, 256, 17),),
    ),
    Job(
        "schnell-whole", web_ui("schnell"), (("portraits", [512, 768], {}),), {**WHOLE, **WITHOUT_ADAPTER, **CACHED_TEXT}, SMALL_PREVIEW,
    ),
    Job(
        "sd35-large-whole", by_key(LARGE), (("portraits", [768], {}), ("five", [576], {"batch_size": 2})), {**WHOLE, **CACHED_TEXT},
        SMALL_PREVIEW,
    ),
    Job("qwen-whole", web_ui("qwen"), (("phone", [512, 768], {}),), {**WHOLE, **CACHED, **optimizer("adafactor")}, SMALL_PREVIEW),
    Job(
        "qwen-whole-b2", web_ui("qwen"), (("five", [576], {}),), {**WHOLE, **CACHED, **HIGH_VRAM, **NO_CHECKPOINTING, **batch(2)},
        SMALL_PREVIEW,
    ),
    Job(
        "turbo-whole", web_ui("turbo"), (("phone", [512, 768], {}), ("five", [640], {"batch_size": 2})),
        {**WHOLE, **WITHOUT_ADAPTER, **CACHED}, SMALL_PREVIEW,
    ),
    Job("chroma-whole", CHROMA, (("portraits", [512, 768], {}),), {**WHOLE, **CACHED_LATENTS, **optimizer("adafactor")}, SMALL_PREVIEW),
    Job(
        "chroma-whole-b2", CHROMA, (("five", [512], {}),), {**WHOLE, **CACHED_LATENTS, **UNLOADED, **NO_CHECKPOINTING, **batch(2)},
        SMALL_PREVIEW,
    ),
    Job(
        "flex1-whole-part-b2", web_ui("flex1"), (("five", [512], {}),),
        {**WHOLE, **CACHED, **NO_CHECKPOINTING, **batch(2), **part(FLEX_BLOCKS, ["norm", ".ff.", "transformer_blocks.3."])}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-whole-attention-b2", web_ui("zimage"), (("five", [640], {}),),
        {**WHOLE, **CACHED_LATENTS, **HIGH_VRAM, **NO_CHECKPOINTING, **batch(2), **part(["layers."], ["feed_forward", "adaLN"])},
        SMALL_PREVIEW,
    ),
    Job(
        "flux-whole-late", example(FLUX), (("portraits", [512, 1024], {}),),
        {**WHOLE, **CACHED_TEXT, **NO_EMA, **optimizer("adafactor"), **part(["single_transformer_blocks.2"], [".norm"])}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-whole-late-adafactor", web_ui("zimage"), (("portraits", [768], {}), ("phone", [512], {"batch_size": 2})),
        {**WHOLE, **CACHED, **optimizer("adafactor"), **part(["layers.1", "layers.2"], ["attention"])}, SMALL_PREVIEW,
    ),
    *(
        Job(f"sd15-whole-{name}", SD15_UI, (("portraits", [512], {}),), {**WHOLE, **CACHED_LATENTS, **optimizer(name)}, SMALL_PREVIEW)
        for name in ("prodigy", "lion8bit", "adam8bit", "adam", "ademamix8bit")
    ),
    *(
        Job(f"lumina2-whole-{name}", LUMINA2, (("five", [576], {}),), {**WHOLE, **CACHED_LATENTS, **optimizer(name)}, SMALL_PREVIEW)
        for name in ("automagic", "automagic2")
    ),
    Job(
        "flex1-whole-guided", web_ui("flex1"), (("portraits", [512], {}),),
        {**WHOLE, **CACHED, **optimizer("adafactor"), "train.bypass_guidance_embedding": False}, SMALL_PREVIEW,
    ),
    Job(
        "flux-whole-bypassed", web_ui("flux"), (("portraits", [512], {}),),
        {**WHOLE, **CACHED, **optimizer("adafactor"), "train.bypass_guidance_embedding": True}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-whole-float8", web_ui("zimage"), (("phone", [512, 768], {}),),
        {"network": None, **CACHED, "model.qtype": "float8", "model.qtype_te": "float8"}, SMALL_PREVIEW,
    ),
    Job(
        "flux-whole-float8-b2", web_ui("flux"), (("five", [512], {}),),
        {"network": None, **CACHED, **NO_CHECKPOINTING, **batch(2), **optimizer("adafactor"), "model.qtype": "float8"}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-whole-qfloat8-b2", web_ui("zimage"), (("five", [576], {}), ("phone", [512], {"batch_size": 1})),
        {"network": None, **CACHED_LATENTS, **HIGH_VRAM, **batch(2)}, SMALL_PREVIEW,
    ),
    Job("flex1-whole-qfloat8", web_ui("flex1"), (("portraits", [512, 768], {}),), {"network": None, **CACHED_TEXT}, SMALL_PREVIEW),
)  # fmt: skip
