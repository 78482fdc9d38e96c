"""Validation jobs of Wan: as the trainer's web UI writes them, on clips of 33 and 81 frames and on images (see validation_jobs)."""

from __future__ import annotations

from typing import Any

from calibration.architectures.wan import RECOVERED
from calibration.validation_settings import *

IMAGES["clips"] = ((832, 480, "medium", 90), (480, 832, "long", 41))
IMAGES["short clips"] = ((640, 480, "short", 24), (640, 480, "tag", 30))
IMAGES["clips and stills"] = ((848, 464, "medium", 50), (1024, 768, "short"))
UI_MODELS["wan 1.3b"] = {"name_or_path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "arch": "wan21:1b", "quantize": False}
UI_MODELS["wan 14b"] = {"name_or_path": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "arch": "wan21:14b", "low_vram": True}
WAN22 = {"low_vram": True, "model_kwargs": {"train_high_noise": True, "train_low_noise": True}}  # as the web UI has it
UI_MODELS["wan 2.2 14b"] = {"name_or_path": "ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16", "arch": "wan22_14b:t2v", **WAN22}
UI_MODELS["wan 2.2 i2v"] = {"name_or_path": "ai-toolkit/Wan2.2-I2V-A14B-Diffusers-bf16", "arch": "wan22_14b_i2v", **WAN22}
UI_MODELS["wan 2.1 i2v"] = {"name_or_path": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "arch": "wan21_i2v:14b480p"}
UI_MODELS["wan 5b"] = {"name_or_path": "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "arch": "wan22_5b", "low_vram": True}
WEIGHTED = {"train.timestep_type": "weighted"}  # as the web UI has it for 5B
BEGINNING = {"ctrl_img": "DATA/portraits/image0.png"}  # what a preview begins with
LOW_VRAM = {"model.low_vram": True}


def clip(width: int, height: int, frames: int, prompt: str = FIRST, **more: Any) -> dict[str, Any]:
    return preview(width, height, prompt, num_frames=frames, **more)


def frames(count: int) -> dict[str, Any]:
    """A dataset's own settings: clips of so many frames, at the 16 a second that the UI sets for Wan."""
    return {"num_frames": count, "fps": 16}


def begun(count: int) -> dict[str, Any]:
    """The same for Wan 2.2 5B: at 24 a second, each beginning with its own first frame; images (1) in such a dataset too."""
    return {"num_frames": count, "fps": 24, "do_i2v": True}


def example() -> dict[str, Any]:
    """The trainer's config/examples/train_lora_wan22_14b_24gb.yaml."""
    return {
        "type": "sd_trainer", "device": "cuda:0",
        "network": {"type": "lora", "linear": 32, "linear_alpha": 32},
        "save": {"dtype": "float16", "save_every": 250, "max_step_saves_to_keep": 4},
        "datasets": [{"caption_ext": "txt", "caption_dropout_rate": 0.05, "num_frames": 1}],
        "train": {
            "batch_size": 1, "gradient_accumulation": 1, "train_unet": True, "train_text_encoder": False, "gradient_checkpointing": True,
            "noise_scheduler": "flowmatch", "timestep_type": "linear", "optimizer": "adamw8bit", "lr": 1e-4,
            "optimizer_params": {"weight_decay": 1e-4}, "dtype": "bf16", "switch_boundary_every": 10, "cache_text_embeddings": True,
        },
        "model": {
            "name_or_path": "ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16", "arch": "wan22_14b", "quantize": True, "qtype": RECOVERED,
            "quantize_te": True, "qtype_te": "qfloat8", **WAN22,
        },
        "sample": {
            "sampler": "flowmatch", "sample_start_step": 0, "width": 1024, "height": 1024, "num_frames": 1, "fps": 16, "prompts": [],
            "neg": "", "seed": 42, "walk_seed": True, "guidance_scale": 3.5,
        },
    }  # fmt: skip


AT_THEIR_LENGTH = {"num_frames": 1, "fps": 16, "auto_frame_count": True}
JOBS = (
    Job("wan1b-ui", web_ui("wan 1.3b"), (("clips", [480], frames(33)),), {}, (clip(832, 480, 41),)),
    Job(
        "wan1b-images", web_ui("wan 1.3b"), (("portraits", [512, 768], {}),),
        {**LOW_VRAM, **CACHED_LATENTS, **CACHED_TEXT, **EMA, **rank(16)}, (clip(512, 768, 1), clip(256, 256, 1, SECOND)),
    ),
    Job(
        "wan1b-81-low-vram", web_ui("wan 1.3b"), (("clips", [480], frames(81)),),
        {**LOW_VRAM, **CACHED_LATENTS, **UNLOADED}, (clip(640, 368, 81), clip(480, 480, 17)),
    ),
    Job(
        "wan1b-no-checkpointing", web_ui("wan 1.3b"), (("short clips", [320], frames(21)), ("clips and stills", [256], AT_THEIR_LENGTH)),
        {**UNQUANTISED, **NO_CHECKPOINTING, **batch(2), **rank(64), **CACHED_TEXT, **CACHED_LATENTS}, (clip(480, 320, 33),),
    ),
    Job("wan14b-ui", web_ui("wan 14b"), (("clips", [480], frames(33)),), {}, (clip(832, 480, 41),)),
    Job(
        "wan14b-81-cached", web_ui("wan 14b"), (("clips", [368], frames(81)),),
        {**CACHED_LATENTS, **CACHED_TEXT, **EMA, **rank(16), **optimizer("adamw")}, (clip(480, 272, 81),),
    ),
    Job(
        "wan14b-images", web_ui("wan 14b"), (("portraits", [512, 768], {}),),
        {**HIGH_VRAM, **UNLOADED, **CACHED_LATENTS, **batch(2), **optimizer("adamw")}, (clip(512, 768, 1), clip(320, 256, 33, SECOND)),
    ),
    Job(
        "wan14b-uint4", web_ui("wan 14b"), (("clips", [320], frames(17)), ("small", [384], {})),
        {**quantised("uint4"), **HIGH_VRAM, **CACHED_LATENTS, **optimizer("adamw")}, (clip(416, 240, 21), clip(512, 384, 1, SECOND)),
    ),
    Job("wan22-ui", web_ui("wan 2.2 14b"), (("clips", [480], frames(33)),), {}, (clip(832, 480, 41),)),
    Job(
        "wan22-images-cached", web_ui("wan 2.2 14b"), (("portraits", [512, 768], {}),),
        {**CACHED_LATENTS, **CACHED_TEXT, **EMA, **rank(16), "train.switch_boundary_every": 2},
        (clip(512, 768, 1), clip(304, 256, 9, SECOND)),
    ),
    Job(
        "wan22-high-vram-81", web_ui("wan 2.2 14b"), (("clips", [368], frames(81)),),
        {**HIGH_VRAM, **CACHED_LATENTS, **CACHED_TEXT, **rank(16), **optimizer("adamw")}, (clip(480, 272, 33),),
    ),
    Job(
        "wan22-high-noise-b2", web_ui("wan 2.2 14b"), (("short clips", [320], frames(21)),),
        {**UNLOADED, **CACHED_LATENTS, **batch(2), **optimizer("adamw"), "model.model_kwargs.train_low_noise": False}, (clip(320, 256, 5),),
    ),
    Job(  # the example itself; of 12 batches the last two are the other expert's
        "wan22-recovery", example(), (("portraits", [512, 768, 1024], {}),), {}, ({"prompt": FIRST}, {"prompt": SECOND}),
    ),
    Job(
        "wan22-uint4-b2", web_ui("wan 2.2 14b"), (("portraits", [512], {}), ("short clips", [256], frames(13))),
        {**quantised("uint4"), **HIGH_VRAM, **CACHED_LATENTS, **CACHED_TEXT, **EMA, **batch(2), **rank(16)}, (clip(480, 272, 9),),
    ),
    Job(
        "wan22-recovery-b2", web_ui("wan 2.2 14b"), (("short clips", [320], frames(21)),),
        {**quantised(RECOVERED, "qfloat8"), **HIGH_VRAM, **batch(2), **rank(16), **optimizer("adamw")}, (clip(480, 320, 33),),
    ),
    Job(
        "wan22-recovery-no-checkpointing", web_ui("wan 2.2 14b"), (("clips and stills", [256], AT_THEIR_LENGTH),),
        {**quantised(RECOVERED, "qfloat8"), **NO_CHECKPOINTING, **CACHED_LATENTS, **UNLOADED, **EMA, **rank(16)},
        (clip(416, 304, 9, guidance_scale=1),),
    ),
    Job("wan22i-ui", web_ui("wan 2.2 i2v"), (("clips", [368], frames(33)),), {}, (clip(480, 272, 41, **BEGINNING),)),
    Job(
        "wan22i-recovery", web_ui("wan 2.2 i2v"), (("clips", [256], frames(21)),),
        {**quantised(RECOVERED.replace("t2i", "i2v"), "qfloat8"), **CACHED_TEXT, "model.model_kwargs.train_high_noise": False},
        (clip(480, 272, 17, **BEGINNING),),
    ),
    Job(
        "wan22i-high-vram-b2", web_ui("wan 2.2 i2v"), (("short clips", [320], frames(21)),),
        {**HIGH_VRAM, **CACHED_TEXT, **batch(2), **rank(16), **optimizer("adamw")}, (clip(320, 256, 5, **BEGINNING),),
    ),
    Job(
        "wan5b-ui", web_ui("wan 5b"), (("clips", [480], begun(33)),), WEIGHTED,
        (clip(832, 480, 41), clip(768, 768, 17, SECOND, **BEGINNING)),
    ),
    Job(
        "wan5b-81-cached", web_ui("wan 5b"), (("clips", [512], begun(81)),),
        {**HIGH_VRAM, **CACHED_LATENTS, **CACHED_TEXT, **EMA, **rank(16), **optimizer("adamw")}, (clip(640, 352, 81, **BEGINNING),),
    ),
    Job(
        "wan5b-images", web_ui("wan 5b"), (("portraits", [512, 768], {}),),
        {**UNLOADED, **CACHED_LATENTS, **batch(2), **rank(64)}, (clip(512, 768, 1), clip(320, 256, 33, SECOND)),
    ),
    Job(
        "wan5b-no-checkpointing", web_ui("wan 5b"), (("short clips", [320], begun(21)), ("portraits", [512], begun(1))),
        {**WEIGHTED, **HIGH_VRAM, **NO_CHECKPOINTING, **batch(2)}, (clip(480, 320, 33), clip(512, 512, 1, SECOND)),
    ),
    Job("wan21i-ui", web_ui("wan 2.1 i2v"), (("clips", [480], frames(33)),), WEIGHTED, (clip(832, 480, 41, **BEGINNING),)),
    Job(
        "wan21i-low-vram-b2", web_ui("wan 2.1 i2v"), (("short clips", [320], frames(21)),),
        {**LOW_VRAM, **CACHED_TEXT, **batch(2), **rank(16), **optimizer("adamw"), "train.disable_sampling": True}, (),
    ),
    Job(
        "wan21i-81-no-checkpointing", web_ui("wan 2.1 i2v"), (("clips", [256], frames(81)), ("portraits", [512], {})),
        {**UNLOADED, **NO_CHECKPOINTING, **EMA, **rank(16)}, (clip(480, 272, 33, **BEGINNING), clip(512, 512, 1, SECOND, **BEGINNING)),
    ),
)  # fmt: skip
