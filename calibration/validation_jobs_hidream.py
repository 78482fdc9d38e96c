"""Validation jobs of HiDream-I1 (see calibration.validation_jobs): squares and other pictures, which are padded to 4096 tokens."""

from __future__ import annotations

from typing import Any

from calibration.validation_settings import *

NAME = "HiDream-ai/HiDream-I1-Full"
EXPERTS = {"ignore_if_contains": ["ff_i.experts", "ff_i.gate"]}  # without an adapter, in the trainer's example and in its web UI


def hidream_example() -> dict[str, Any]:
    """The trainer's config/examples/train_lora_hidream_48.yaml."""
    base = example({"name_or_path": NAME, "extras_name_or_path": NAME, "arch": "hidream"})
    base["network"] = {"type": "lora", "linear": 32, "linear_alpha": 32, "network_kwargs": EXPERTS}
    base["datasets"] = [{"caption_ext": "txt", "caption_dropout_rate": 0.05}]
    base["save"]["dtype"] = "bfloat16"
    base["train"] |= {"timestep_type": "shift", "lr": 2e-4, "ema_config": {"use_ema": False, "ema_decay": 0.99}}
    base["model"] |= {"quantize_te": True, "model_kwargs": {"llama_model_path": "unsloth/Meta-Llama-3.1-8B-Instruct"}}
    return base


def hidream_ui() -> dict[str, Any]:
    """What the web UI writes for it."""
    base = web_ui("flux")
    base["train"] |= {"timestep_type": "shift", "lr": 2e-4}
    base["network"]["network_kwargs"] = EXPERTS
    return base | {"model": {**base["model"], "name_or_path": NAME, "arch": "hidream"}}


UI = hidream_ui()
JOBS = (
    Job("hidream-example", hidream_example(), (("square", [512, 1024], {}), ("wide", [768], {}))),
    Job("hidream-ui", UI, (("square", [768], {}), ("wide", [512], {})), LOW_VRAM, (preview(512, 512), preview(1280, 720, SECOND))),
    Job(
        "hidream-cached", UI, (("square", [896], {}), ("wide", [640], {})),
        {**CACHED_LATENTS, **CACHED_TEXT, **EMA, **rank(16), **optimizer("adamw")}, GUIDED,
    ),
    Job(
        "hidream-b2", UI, (("five", [640], {}), ("big square", [512], {})),
        {**LOW_VRAM, **batch(2), **CACHED_LATENTS, **rank(16), **optimizer("prodigy")}, (preview(832, 1216, guidance_scale=1),),
    ),
)  # fmt: skip
