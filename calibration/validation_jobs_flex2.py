"""Validation jobs of Flex.2 (see calibration.validation_jobs): with control images and masks, which chance gives a step or not."""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_flux2 import NO_WORKERS, of_flux
from calibration.validation_settings import *

NAME = "ostris/Flex.2-preview"
CHANCES = {  # of ui/src/app/jobs/new/options.tsx
    "invert_inpaint_mask_chance": 0.2, "inpaint_dropout": 0.5, "control_dropout": 0.5, "inpaint_random_chance": 0.2,
    "do_random_inpainting": True, "random_blur_mask": True, "random_dialate_mask": True,
}  # fmt: skip
ALWAYS = {"model.model_kwargs": {"inpaint_dropout": 0.0, "control_dropout": 0.0}}
NEVER = {"model.model_kwargs": {"inpaint_dropout": 1.0, "control_dropout": 1.0, "do_random_inpainting": True}}
EXCLUDED = {"model.quantize_kwargs": {"exclude": ["*time_text_embed*"]}}  # as in the trainer's example of Flex.1
ERASED = "erased.inpaint.pngs"  # pictures with a mask: those of a preview are told by their path


def flex2_example() -> dict[str, Any]:
    """The trainer's config/examples/train_lora_flex2_24gb.yaml."""
    base = example({"name_or_path": NAME, "arch": "flex2"})
    base["network"] = {"type": "lora", "linear": 32, "linear_alpha": 32}
    base["datasets"] = [{"controls": ["depth", "line", "pose", "inpaint"], "caption_ext": "txt", "caption_dropout_rate": 0.05}]
    base["train"] |= {
        "timestep_type": "shift", "optimizer_params": {"weight_decay": 1e-5}, "ema_config": {"use_ema": False, "ema_decay": 0.99},
    }  # fmt: skip
    kwargs = {**CHANCES, "invert_inpaint_mask_chance": 0.5, "inpaint_random_chance": 0.5, "do_random_inpainting": False}
    base["model"] |= {"quantize_te": True, "model_kwargs": kwargs}
    base["model"].pop("quantize_kwargs")  # that of Flex.1's
    return base


def beside(control: str | list[str] | None = None, inpaint: str | None = None, **more: Any) -> dict[str, Any]:
    """Of a dataset entry: folders of control images and of masks."""
    folders = [f"DATA/{one}" for one in control] if isinstance(control, list) else f"DATA/{control}"
    masks = {} if inpaint is None else {"inpaint_path": f"DATA/{inpaint}"}
    return {**({} if control is None else {"control_path": folders}), **masks, **more}


UI = of_flux(NAME, "flex2", **CHANCES)
PICTURED = (
    preview(1024, 1024, ctrl_img="DATA/phone/image0.png", ctrl_idx=1), preview(768, 1344, SECOND),
    preview(832, 1216, ctrl_img=f"DATA/{ERASED}/image0.png"),
)  # fmt: skip
JOBS = (
    Job("flex2-example", flex2_example(), (("phone", [512, 768, 1024], {}),)),
    Job("flex2-excluded", flex2_example(), (("phone", [512, 768, 1024], {}),), EXCLUDED),
    Job("flex2-ui", UI, (("portraits", [512, 1024], {}),), {}, PICTURED),
    Job(
        "flex2-bf16-no-checkpointing", UI, (("odd", [512], {}),),
        {**UNQUANTISED, **NO_CHECKPOINTING, **CACHED_LATENTS, **optimizer("adamw"), **rank(8)},
    ),
    Job(
        "flex2-bf16-b2", UI, (("five", [640], beside("portraits")),),
        {**UNQUANTISED, **batch(2), **LOW_VRAM, **rank(16), **optimizer("adafactor")}, PICTURED[:1],
    ),
    Job(
        "flex2-float8-b2", UI, (("five", [896], beside(["screens", "phone"], ERASED)),),
        {**quantised("float8"), **LOW_VRAM, **batch(2), **ALWAYS, **rank(64), **optimizer("adafactor"), **EMA}, PICTURED[1:],
    ),
    Job(
        "flex2-uint4-unloaded", UI, (("mixed", [512, 640], {}), ("wide", [1280], {})),
        {**quantised("uint4"), **UNLOADED, **CACHED_LATENTS, **NO_WORKERS, **batch(4), **NEVER, **rank(24)}, (preview(1344, 768, SECOND),),
    ),
    Job(
        "flex2-accumulated", UI, (("five", [512], beside("small", full_size_control_images=False)), ("square", [768], beside("square"))),
        {**batch(2, 2), **ALWAYS, **rank(8), **optimizer("prodigy")}, (preview(640, 960, SECOND),),
    ),
)  # fmt: skip
