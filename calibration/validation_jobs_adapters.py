"""Validation jobs of other adapters than a LoRA on all layers, and of steps that preserve outputs (see validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration.validation_settings import *

SMALL_PREVIEW = (preview(512, 512),)
CACHED: dict[str, Any] = {**CACHED_LATENTS, **CACHED_TEXT}
# The two examples of the trainer's README
TWO_LAYERS = [f"transformer.single_transformer_blocks.{n}.proj_out" for n in (7, 20)]
SINGLE_BLOCKS = ["transformer.single_transformer_blocks."]


def only(*words: str) -> dict[str, Any]:
    return {"network.network_kwargs": {"only_if_contains": list(words)}}


def ignored(*words: str) -> dict[str, Any]:
    return {"network.network_kwargs": {"ignore_if_contains": list(words)}}


def lokr(factor: int) -> dict[str, Any]:
    return {"network.type": "lokr", "network.lokr_factor": factor, "network.lokr_full_rank": True}


PRESERVED = {
    "trigger_word": "p3rs0n", "train.diff_output_preservation": True, "train.diff_output_preservation_class": "person",
}  # fmt: skip
BLANK = {"train.blank_prompt_preservation": True}
JOBS = (
    Job(
        "flux-two-layers", example(FLUX), (("portraits", [512, 1024], {}),), {**only(*TWO_LAYERS), **CACHED_TEXT, **rank(128)},
        SMALL_PREVIEW,
    ),
    Job(
        "flux-without-single-blocks-b2", web_ui("flux"), (("five", [512], {}),),
        {**ignored(*SINGLE_BLOCKS), **CACHED, **UNQUANTISED, **NO_CHECKPOINTING, **batch(2), **rank(32)}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-attention-only", web_ui("zimage"), (("phone", [768], {}),), {**only("attention."), **CACHED, **rank(16), **EMA},
        SMALL_PREVIEW,
    ),
    Job(
        "zimage-some-layers-no-checkpointing-b2", web_ui("zimage"), (("five", [512], {}),),
        {
            **only("layers.12.attention.to_k", "layers.12.feed_forward", "layers.13.", "layers.20.adaLN"), **CACHED, **UNQUANTISED,
            **NO_CHECKPOINTING, **HIGH_VRAM, **batch(2), **rank(24), **optimizer("adamw"),
        },
        SMALL_PREVIEW,
    ),
    Job("turbo-attention-only", web_ui("turbo"), (("phone", [512], {}),), {**only("attention."), **CACHED, **rank(16)}, SMALL_PREVIEW),
    Job("turbo-lokr-8", web_ui("turbo"), (("phone", [512, 768], {}),), {**lokr(8), **CACHED}, SMALL_PREVIEW),
    Job(
        "turbo-lokr-auto-no-checkpointing-b2", web_ui("turbo"), (("five", [512], {}),),
        {**lokr(-1), **CACHED, **NO_CHECKPOINTING, **batch(2), **EMA, **optimizer("adamw")}, SMALL_PREVIEW,
    ),
    Job("flux-lokr-auto", web_ui("flux"), (("phone", [512, 768], {}),), {**lokr(-1), **CACHED}, SMALL_PREVIEW),
    Job(
        "flux-lokr-16-no-checkpointing-b2", example(FLUX), (("five", [512], {}),),
        {**lokr(16), **CACHED, **NO_CHECKPOINTING, **batch(2)}, SMALL_PREVIEW,
    ),
    Job("zimage-preserved", web_ui("zimage"), (("mixed", [512], {}),), {**PRESERVED, **CACHED_LATENTS}, SMALL_PREVIEW),
    Job("zimage-blank-preserved-encoded", web_ui("zimage"), (("mixed", [512], {}),), {**BLANK, **CACHED_LATENTS}, SMALL_PREVIEW),
    Job(
        "flux-blank-preserved-b2", web_ui("flux"), (("five", [512], {}),),
        {**BLANK, **CACHED, **batch(2), **rank(16)}, SMALL_PREVIEW,
    ),
    Job(
        "turbo-blank-preserved-no-checkpointing", web_ui("turbo"), (("portraits", [512], {}),),
        {**BLANK, **CACHED, **NO_CHECKPOINTING, **rank(16)}, SMALL_PREVIEW,
    ),
)  # fmt: skip
