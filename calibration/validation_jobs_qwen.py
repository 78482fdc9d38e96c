"""Validation jobs of Qwen-Image: as the trainer's train_lora_qwen_image_24gb.yaml, and as its web UI writes them (see validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration.architectures.qwen import RECOVERED
from calibration.validation_settings import *

QWEN = {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image"}
QWEN_2512 = {"name_or_path": "Qwen/Qwen-Image-2512", "arch": "qwen_image:2512"}
WEIGHTED = {"train.timestep_type": "weighted"}  # the UI's, for Qwen


def example() -> dict[str, Any]:
    """The trainer's config/examples/train_lora_qwen_image_24gb.yaml, but for its accuracy recovery adapter: plain qfloat8 instead."""
    return {
        "type": "sd_trainer", "device": "cuda:0",
        "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
        "save": {"dtype": "float16", "save_every": 250, "max_step_saves_to_keep": 4},
        "datasets": [{"caption_ext": "txt", "caption_dropout_rate": 0.05, "shuffle_tokens": False, "cache_latents_to_disk": True}],
        "train": {
            "batch_size": 1, "cache_text_embeddings": True, "gradient_accumulation": 1, "train_unet": True, "train_text_encoder": False,
            "gradient_checkpointing": True, "noise_scheduler": "flowmatch", "optimizer": "adamw8bit", "lr": 1e-4, "dtype": "bf16",
        },
        "model": {**QWEN, "quantize": True, "qtype": "qfloat8", "quantize_te": True, "qtype_te": "qfloat8", "low_vram": True},
        "sample": {
            "sampler": "flowmatch", "sample_start_step": 0, "width": 1024, "height": 1024, "prompts": [], "neg": "", "seed": 42,
            "walk_seed": True, "guidance_scale": 3,
        },
    }  # fmt: skip


UI_MODELS["qwen"] = {**QWEN, "low_vram": True}
UI_MODELS["qwen 2512"] = {**QWEN_2512, "low_vram": True}
UNGUIDED = (preview(832, 1216, guidance_scale=1), preview(1280, 704, SECOND, guidance_scale=4, neg="blurry, low quality, text, watermark"))
JOBS = (
    Job("qwen-example", example(), (("portraits", [512, 768, 1024], {}),)),
    Job(  # the example itself
        "qwen-recovery", example(), (("portraits", [512, 768, 1024], {}),),
        {"model.qtype": RECOVERED}, ({"prompt": FIRST}, {"prompt": SECOND, "width": 768, "height": 1344}),
    ),
    Job(
        "qwen-recovery-b2", web_ui("qwen"), (("five", [512], {}), ("odd", [768], {})),
        {**WEIGHTED, **quantised(RECOVERED, "qfloat8"), **HIGH_VRAM, **UNCACHED, **batch(2), **rank(32), **optimizer("adamw")},
        ({"prompt": FIRST, "guidance_scale": 1},),
    ),
    Job("qwen-ui", web_ui("qwen"), (("phone", [512, 768, 1024], {}),), WEIGHTED, cards=True),
    Job(
        "qwen-bf16-b2", web_ui("qwen"), (("five", [768], {}),),
        {**WEIGHTED, **UNQUANTISED, **HIGH_VRAM, **batch(2), **CACHED_LATENTS, **EMA, **optimizer("prodigy"), **rank(16)}, UNGUIDED,
    ),
    Job(
        "qwen-no-checkpointing-r8", web_ui("qwen"), (("odd", [512], {}),),
        {**WEIGHTED, **NO_CHECKPOINTING, **HIGH_VRAM, **rank(8), **optimizer("adamw")}, UNGUIDED,
    ),
    Job(
        "qwen-float8-1280", example(), (("big square", [1280], {}), ("wide", [1280], {})),
        {**quantised("float8"), **rank(64), **optimizer("adafactor"), **EMA}, (preview(1344, 768), preview(1024, 1024, SECOND)),
    ),
    Job(
        "qwen-uint4-b4", web_ui("qwen 2512"), (("five", [512], {}), ("square", [512], {})),
        {**WEIGHTED, **quantised("uint4"), **UNLOADED, **batch(4), **CACHED_LATENTS, **rank(32), **optimizer("adafactor")},
    ),
    Job(
        "qwen-accumulated", web_ui("qwen"), (("mixed", [768], {}),),
        {**WEIGHTED, **quantised("uint4", "qfloat8"), **HIGH_VRAM, **batch(2, 2), **UNCACHED, **rank(48), **optimizer("adamw")},
        ({"prompt": FIRST, "guidance_scale": 1},),
    ),
    Job(
        "qwen-bf16-no-checkpointing", example(), (("small", [512], {}),),
        {**quantised("qfloat8"), **UNQUANTISED, **NO_CHECKPOINTING, **rank(24)}, (preview(640, 1536),),
    ),
)  # fmt: skip
