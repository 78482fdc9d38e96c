"""Validation jobs whose steps make more passes than one, or between whose steps there are passes (see validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration import validation_jobs_flux2, validation_jobs_qwen, validation_jobs_wan
from calibration.validation_settings import *

SMALL_PREVIEW = (preview(512, 512),)
CACHED: dict[str, Any] = {**CACHED_LATENTS, **CACHED_TEXT}
GUIDED_LOSS = {"train.do_guidance_loss": True}
MEAN_FLOW = {"train.loss_type": "mean_flow"}
MASKED = {"train.inverted_mask_prior": True}


def checked(*pictures: str, **settings: Any) -> dict[str, Any]:
    """A validation batch of these pictures: after the first step, and each time `every` others are over."""
    items = [{"image_path": f"DATA/{one}.png", "prompt": CAPTIONS["medium"]} for one in pictures]
    return {"train.validation_config": {"validation_items": items, "validate_every_n_steps": 3, **settings}}


def slider(**settings: Any) -> dict[str, Any]:
    prompts = {"positive_prompt": "a photo of a smiling person", "negative_prompt": "a sad person", "target_class": "person", **settings}
    return {"type": "concept_slider", "slider": prompts}


JOBS = (
    Job(
        "flux-guidance-loss-validated", web_ui("flux"), (("portraits", [512, 768], {}),),
        {**GUIDED_LOSS, **CACHED, **checked("portraits/image0", "portraits/image1")}, SMALL_PREVIEW,
    ),
    Job(
        "zimage-guidance-loss-validated-b2", web_ui("zimage"), (("five", [512], {}),),
        {**GUIDED_LOSS, **CACHED_LATENTS, **batch(2), **checked("five/image0", resolution=768)}, SMALL_PREVIEW,
    ),
    Job(
        "flux-masked-prior", web_ui("flux"), (("mixed", [512, 768], {"mask_path": "DATA/mixed"}),),
        {**MASKED, **CACHED_LATENTS}, SMALL_PREVIEW,
    ),
    Job(
        "turbo-masked-prior-b2", web_ui("turbo"), (("five", [512], {"mask_path": "DATA/five"}),),
        {**MASKED, **CACHED, **batch(2), **rank(16)}, SMALL_PREVIEW,
    ),
    Job("flux-cfg", web_ui("flux"), (("odd", [512], {}),), {"train.do_cfg": True, "train.cfg_scale": 3.0, **CACHED}, SMALL_PREVIEW),
    Job(
        "zimage-cfg-encoded", web_ui("zimage"), (("mixed", [512], {}),),
        {"train.do_cfg": True, "train.cfg_scale": 3.0, **CACHED_LATENTS}, SMALL_PREVIEW,
    ),
    Job("flux-slider", web_ui("flux"), (("portraits", [512], {}),), {**slider(), **CACHED}, SMALL_PREVIEW),
    Job(
        "zimage-slider-anchored", web_ui("zimage"), (("portraits", [512], {}),), {**slider(anchor_class="a person"), **CACHED},
        SMALL_PREVIEW,
    ),
    Job(
        "turbo-guidance-loss-no-checkpointing", web_ui("turbo"), (("square", [512], {}),), {**GUIDED_LOSS, **CACHED, **NO_CHECKPOINTING},
        SMALL_PREVIEW,
    ),
    Job("flux-mean-flow", web_ui("flux"), (("square", [512], {}),), {**MEAN_FLOW, **CACHED}, SMALL_PREVIEW),
    Job("schnell-mean-flow", web_ui("schnell"), (("portraits", [512], {}),), {**MEAN_FLOW, **CACHED}, SMALL_PREVIEW),
    Job(
        "kontext-mean-flow", validation_jobs_flux2.KONTEXT_UI, (validation_jobs_flux2.edited("odd", [512]),),
        {**MEAN_FLOW, **CACHED_LATENTS}, (validation_jobs_flux2.edit(512, 512, "odd"),),
    ),
    Job("flex-mean-flow", web_ui("flex1"), (("portraits", [512], {}),), {**MEAN_FLOW, **CACHED}, SMALL_PREVIEW),
    Job(
        "qwen-validated", validation_jobs_qwen.example(), (("portraits", [512], {"mask_path": "DATA/portraits"}),),
        {**MASKED, **checked("portraits/image0")}, SMALL_PREVIEW,
    ),
    Job(
        "chroma-guidance-loss", validation_jobs_flux2.CHROMA, (("portraits", [512], {"mask_path": "DATA/portraits"}),),
        {**GUIDED_LOSS, **MASKED, **CACHED_LATENTS}, SMALL_PREVIEW,
    ),
    Job(
        "wan1b-passes", web_ui("wan 1.3b"), (("portraits", [512], {}),), {**GUIDED_LOSS, **CACHED, **checked("portraits/image0")},
        (validation_jobs_wan.clip(512, 512, 1),),
    ),
)  # fmt: skip
