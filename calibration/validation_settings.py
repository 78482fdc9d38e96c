"""What validation jobs are put together from: the trainer's example configs, what its web UI writes, pictures, captions and settings.

The modules `calibration.validation_jobs*`, which are tables of jobs, import all of it by a star.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FIRST = "woman with red hair, playing chess at the park, bomb going off in the background"
SECOND = "a bulldog, in a post apocalyptic world, with a shotgun, in a leather jacket, in a desert, with a motorcycle"
CAPTIONS = {
    "none": "", "tag": "p3rs0n", "short": "a photo of p3rs0n, smiling",
    "medium": "a photo of p3rs0n sitting on a wooden bench in a sunlit garden, wearing a green woollen jumper, looking at the camera",
    "long": "A detailed photograph shows p3rs0n standing at the edge of a harbour early in the morning. Behind them several fishing boats "
        "are moored along a stone quay, their hulls painted red, white and faded blue; coils of rope, plastic crates and nets lie between "
        "the bollards. The light is soft and comes from the left, so that one half of the face is in shadow. They wear a dark raincoat "
        "with the hood down, and hold a paper cup in both hands. The background is slightly out of focus, and the sky is overcast with a "
        "warm streak.",
}  # fmt: skip
CAPTIONS["very long"] = " ".join([CAPTIONS["long"], CAPTIONS["medium"] + ".", CAPTIONS["long"].replace("harbour", "railway station")])

# (width, height, caption) of each image, frames of a clip, 1 where it has sound; folders are made anew for every run: caching writes there
Images = tuple[tuple[int, int, str, *tuple[int, ...]], ...]
IMAGES: dict[str, Images] = {
    "square": ((1024, 1024, "medium"),),
    "big square": ((2048, 2048, "long"), (1600, 1600, "short")),
    "phone": ((3024, 4032, "short"), (4032, 3024, "long")),
    "portraits": ((832, 1216, "medium"), (1000, 1500, "long")),
    "screens": ((1920, 1080, "long"), (1366, 768, "tag")),
    "odd": ((777, 1031, "short"), (1291, 643, "long")),
    "small": ((500, 700, "medium"), (640, 427, "none")),
    "mixed": ((1200, 1600, "very long"), (1500, 1000, "short"), (997, 1003, "tag")),
    "wide": ((2560, 1080, "medium"),),
    "erased.inpaint.pngs": tuple((700, 500, "none") for _ in range(5)),
    "five": ((1080, 1350, "short"), (1080, 1350, "very long"), (1080, 1350, "medium"), (1350, 1080, "tag"), (1350, 1080, "long")),
}
FLUX = {"name_or_path": "black-forest-labs/FLUX.1-dev", "is_flux": True}
SCHNELL = {
    "name_or_path": "black-forest-labs/FLUX.1-schnell",
    "assistant_lora_path": "ostris/FLUX.1-schnell-training-adapter",
    "is_flux": True,
}
FLEX = {"name_or_path": "ostris/Flex.1-alpha", "is_flux": True}
TURBO_ADAPTER = "ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors"
UI_MODELS = {
    "flux": {"name_or_path": "black-forest-labs/FLUX.1-dev", "arch": "flux"},
    "schnell": {"name_or_path": "black-forest-labs/FLUX.1-schnell", "arch": "flux", "assistant_lora_path": SCHNELL["assistant_lora_path"]},
    "flex1": {"name_or_path": "ostris/Flex.1-alpha", "arch": "flex1"},
    "zimage": {"name_or_path": "Tongyi-MAI/Z-Image", "arch": "zimage", "low_vram": True},
    "turbo": {"name_or_path": "Tongyi-MAI/Z-Image-Turbo", "arch": "zimage:turbo", "low_vram": True, "assistant_lora_path": TURBO_ADAPTER},
}
CARDS_MIB = (12_282, 16_376, 24_080, 32_109)  # total capacity of a 12, 16, 24 and 32 GB card as torch reports it


@dataclass(frozen=True)
class Job:
    """`settings`: dotted keys (`datasets.` for every entry); `data`: (images, resolutions, own settings); `seed`: SEED of the trainer;
    `capability`: of the emulated card, where it is another one."""
    name: str
    base: dict[str, Any]
    data: tuple[tuple[str, list[int], dict[str, Any]], ...]
    settings: dict[str, Any] = field(default_factory=dict)
    samples: tuple[dict[str, Any], ...] = ({"prompt": FIRST},)
    cards: bool = False
    seed: int | None = None
    capability: str | None = None


def example(model: dict[str, Any]) -> dict[str, Any]:
    """The trainer's config/examples/train_lora_*_24gb.yaml of FLUX.1 dev, schnell and Flex.1."""
    schnell, flex = "assistant_lora_path" in model, "Flex" in model["name_or_path"]
    train: dict[str, Any] = {"batch_size": 1, "train_unet": True, "train_text_encoder": False, "gradient_checkpointing": True}
    train |= {"noise_scheduler": "flowmatch", "optimizer": "adamw8bit", "lr": 1e-4, "dtype": "bf16"}
    train |= {"ema_config": {"use_ema": True, "ema_decay": 0.99}}
    train |= {"gradient_accumulation": 1, "bypass_guidance_embedding": True} if flex else {"gradient_accumulation_steps": 1}
    excluded = {"quantize_kwargs": {"exclude": ["*time_text_embed*"]}} if flex else {}
    return {
        "type": "sd_trainer", "device": "cuda:0",
        "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
        "save": {"dtype": "float16", "save_every": 250, "max_step_saves_to_keep": 4, "push_to_hub": False},
        "datasets": [{"caption_ext": "txt", "caption_dropout_rate": 0.05, "shuffle_tokens": False, "cache_latents_to_disk": True}],
        "train": train, "model": {**model, "quantize": True, **excluded},
        "sample": {
            "sampler": "flowmatch", "width": 1024, "height": 1024, "prompts": [], "neg": "", "seed": 42, "walk_seed": True,
            "guidance_scale": 1 if schnell else 4,
        },
    }  # fmt: skip


def web_ui(name: str) -> dict[str, Any]:
    """What the trainer's web UI writes for a new job (ui/src/app/jobs/new: jobConfig.ts and options.tsx)."""
    model, flex, zimage = UI_MODELS[name], name == "flex1", name in ("zimage", "turbo")
    return {
        "type": "diffusion_trainer", "sqlite_db_path": "./aitk_db.db", "device": "cuda", "trigger_word": None, "performance_log_every": 10,
        "network": {
            "type": "lora", "linear": 32, "linear_alpha": 32, "conv": 16, "conv_alpha": 16, "lokr_full_rank": True, "lokr_factor": -1,
            "network_kwargs": {"ignore_if_contains": []},
        },
        "save": {"dtype": "bf16", "save_every": 250, "max_step_saves_to_keep": 4, "save_format": "diffusers", "push_to_hub": False},
        "datasets": [{
            "mask_path": None, "mask_min_value": 0.1, "default_caption": "", "caption_ext": "txt", "caption_dropout_rate": 0.05,
            "cache_latents_to_disk": False, "is_reg": False, "network_weight": 1, "controls": [], "shrink_video_to_frames": True,
            "num_frames": 1, "flip_x": False, "flip_y": False, "num_repeats": 1,
        }],
        "train": {
            "batch_size": 1, "bypass_guidance_embedding": flex, "gradient_accumulation": 1, "train_unet": True, "train_text_encoder": False,
            "gradient_checkpointing": True, "noise_scheduler": "flowmatch", "optimizer": "adamw8bit",
            "optimizer_params": {"weight_decay": 1e-4}, "timestep_type": "weighted" if zimage else "sigmoid",
            "content_or_style": "balanced", "unload_text_encoder": False, "cache_text_embeddings": False, "lr": 1e-4,
            "ema_config": {"use_ema": False, "ema_decay": 0.99},
            "skip_first_sample": False, "force_first_sample": False, "disable_sampling": False, "dtype": "bf16",
            "diff_output_preservation": False, "diff_output_preservation_multiplier": 1.0, "diff_output_preservation_class": "person",
            "switch_boundary_every": 1, "loss_type": "mse",
        },
        "logging": {"log_every": 1, "use_ui_logger": True},
        "model": {
            "quantize": True, "qtype": "qfloat8", "quantize_te": True, "qtype_te": "qfloat8", "low_vram": False, "model_kwargs": {},
            "compile": False, **model,
        },
        "sample": {
            "sampler": "flowmatch", "sample_start_step": 0, "width": 1024, "height": 1024, "samples": [], "neg": "", "seed": 42,
            "walk_seed": True, "guidance_scale": 1 if name == "turbo" else 4, "num_frames": 1, "fps": 1,
        },
    }  # fmt: skip


def quantised(transformer: str, text_encoder: str | None = None) -> dict[str, Any]:
    return {"model.quantize": True, "model.quantize_te": True, "model.qtype": transformer, "model.qtype_te": text_encoder or transformer}


UNQUANTISED = {"model.quantize": False, "model.quantize_te": False}
NO_CHECKPOINTING = {"train.gradient_checkpointing": False}
NO_EMA, EMA = {"train.ema_config.use_ema": False}, {"train.ema_config.use_ema": True}
CACHED_LATENTS, CACHED_TEXT = {"datasets.cache_latents_to_disk": True}, {"train.cache_text_embeddings": True}
UNCACHED = {"datasets.cache_latents_to_disk": False}
UNLOADED, LOW_VRAM, HIGH_VRAM = {"train.unload_text_encoder": True}, {"model.low_vram": True}, {"model.low_vram": False}


def rank(value: int) -> dict[str, Any]:
    return {"network.linear": value, "network.linear_alpha": value}


def optimizer(name: str) -> dict[str, Any]:
    return {"train.optimizer": name}


def batch(size: int, accumulation: int | None = None) -> dict[str, Any]:
    if accumulation is None:
        return {"train.batch_size": size}
    return {"train.batch_size": size, "train.gradient_accumulation": accumulation, "train.gradient_accumulation_steps": None}


def preview(width: int, height: int, prompt: str = FIRST, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "width": width, "height": height, **more}


TWO_SIZES = (preview(1024, 1024), preview(768, 1344, SECOND))
GUIDED = (preview(832, 1216, guidance_scale=1), preview(1280, 720, SECOND, guidance_scale=4))
