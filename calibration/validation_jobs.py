"""The validation jobs: whole training jobs as users write them, never used for extraction, against which estimates are judged.

Each begins as one of two shapes - the trainer's example configs for 24 GB cards, or what its web UI writes for a new job - and changes what
its table entry says. Sizes, ranks and combinations are others than in `calibration.probes`. To keep a run short it saves and samples at
the start and the end only, in two sampling steps, and meets every bucket twice.
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

# (width, height, caption) of each image, and the frames of a clip; folders are made anew for every run, since caching writes into them
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
    """`settings`: dotted keys (`datasets.` for every entry); `data`: (images, resolutions, own settings); `seed`: SEED of the trainer."""
    name: str
    base: dict[str, Any]
    data: tuple[tuple[str, list[int], dict[str, Any]], ...]
    settings: dict[str, Any] = field(default_factory=dict)
    samples: tuple[dict[str, Any], ...] = ({"prompt": FIRST},)
    cards: bool = False
    seed: int | None = None


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

FLUX_JOBS = (
    Job("flux-example", example(FLUX), (("portraits", [512, 768, 1024], {}),), cards=True),
    Job("flux-ui", web_ui("flux"), (("phone", [512, 768, 1024], {}),)),
    Job(
        "flux-ui-low-vram-unloaded", web_ui("flux"), (("odd", [768], {}),), {**LOW_VRAM, **CACHED_LATENTS, **UNLOADED}, TWO_SIZES,
        cards=True,
    ),
    Job("flux-text-cached-r64-adamw", example(FLUX), (("odd", [1024], {}),), {**CACHED_TEXT, **NO_EMA, **rank(64), **optimizer("adamw")}),
    Job(
        "flux-bf16-no-checkpointing", example(FLUX), (("odd", [512], {}),),
        {**UNQUANTISED, **NO_CHECKPOINTING, **rank(8), **optimizer("adafactor")}, (preview(1152, 896),),
    ),
    Job(
        "flux-bf16-b2-prodigy", example(FLUX), (("five", [768, 1024], {}),),
        {**UNQUANTISED, **UNLOADED, **batch(2), **rank(32), **optimizer("prodigy"), **NO_EMA},
    ),
    Job(
        "flux-float8-no-checkpointing", web_ui("flux"), (("screens", [768], {}),),
        {**quantised("float8"), **NO_CHECKPOINTING, **CACHED_LATENTS, **CACHED_TEXT, **rank(16)}, (preview(896, 1152),),
    ),
    Job(
        "flux-uint4-b4", web_ui("flux"), (("five", [512], {}),),
        {**quantised("uint4"), **LOW_VRAM, **batch(4), **rank(64), **EMA}, TWO_SIZES,
    ),
    Job(
        "flux-uint4-1280", example(FLUX), (("big square", [1280], {}), ("wide", [1280], {})),
        {**quantised("uint4"), **LOW_VRAM, **CACHED_TEXT, **rank(32), **optimizer("adafactor")}, (preview(1536, 640),), cards=True,
    ),
    Job(
        "flux-accumulated-b2", example(FLUX), (("mixed", [512, 768], {"cache_latents_to_disk": False, "cache_latents": True}),),
        {**batch(2, 2), **optimizer("prodigy"), **NO_EMA},
    ),
    Job(
        "flux-float8-1280-r128", web_ui("flux"), (("mixed", [1280], {}),),
        {**quantised("float8"), **CACHED_LATENTS, **rank(128), **optimizer("adamw"), "train.disable_sampling": True},
    ),
    Job(
        "flux-no-checkpointing-1024", example(FLUX), (("screens", [1024], {}),),
        {**NO_CHECKPOINTING, **rank(32), "train.skip_first_sample": True},
    ),
)  # fmt: skip
SCHNELL_JOBS = (
    Job("schnell-example", example(SCHNELL), (("mixed", [512, 768, 1024], {}),), cards=True),
    Job("schnell-bf16-b2", example(SCHNELL), (("portraits", [768], {}),), {**UNQUANTISED, **batch(2), **optimizer("adamw"), **rank(8)}),
    Job(
        "schnell-low-vram", web_ui("schnell"), (("phone", [1024], {}), ("odd", [512], {})),
        {**LOW_VRAM, **CACHED_LATENTS, **CACHED_TEXT}, TWO_SIZES, cards=True,
    ),
    Job(
        "schnell-float8-no-checkpointing", example(SCHNELL), (("odd", [512], {}),),
        {**quantised("float8"), **NO_CHECKPOINTING, **NO_EMA, **rank(8), **optimizer("adafactor")}, (preview(640, 1536),),
    ),
    Job(
        "schnell-uint4-b4", example(SCHNELL), (("portraits", [768], {}),),
        {**quantised("uint4"), **UNLOADED, **batch(4), **optimizer("prodigy"), **rank(64)},
    ),
    Job("schnell-ui-two-folders", web_ui("schnell"), (("small", [768], {"cache_latents_to_disk": True}), ("wide", [1280], {})), {**EMA}),
)  # fmt: skip
FLEX_JOBS = (
    Job("flex-example", example(FLEX), (("phone", [512, 768, 1024], {}),), cards=True),
    Job("flex-ui", web_ui("flex1"), (("portraits", [512, 768, 1024], {}),)),
    Job(
        "flex-bf16-no-checkpointing", web_ui("flex1"), (("mixed", [768], {}),),
        {**UNQUANTISED, **NO_CHECKPOINTING, **CACHED_LATENTS, **CACHED_TEXT, **optimizer("adamw")},
    ),
    Job(
        "flex-float8-1280", web_ui("flex1"), (("big square", [1280], {}), ("screens", [1280], {})),
        {**quantised("float8"), **LOW_VRAM, **CACHED_LATENTS, **rank(64), **optimizer("adafactor"), **EMA}, TWO_SIZES, cards=True,
    ),
    Job(
        "flex-uint4-b2", example(FLEX), (("five", [768], {}),), {**quantised("uint4"), **batch(2, 2), **optimizer("prodigy"), **UNCACHED},
    ),
    Job("flex-b4", web_ui("flex1"), (("odd", [512], {}),), {**batch(4), **rank(8), **UNLOADED, **CACHED_LATENTS}, (preview(1344, 768),)),
)  # fmt: skip
ZIMAGE_JOBS = (
    Job("zimage-ui", web_ui("zimage"), (("phone", [512, 768, 1024], {}),), cards=True),
    Job("zimage-ui-cached", web_ui("zimage"), (("mixed", [512, 768, 1024], {}),), {**CACHED_LATENTS, **CACHED_TEXT}, TWO_SIZES, cards=True),
    Job(
        "zimage-bf16-no-checkpointing", web_ui("zimage"), (("odd", [512], {}),),
        {**UNQUANTISED, **NO_CHECKPOINTING, **HIGH_VRAM, **rank(8), **optimizer("adamw")}, GUIDED,
    ),
    Job(
        "zimage-bf16-b2-1024", web_ui("zimage"), (("five", [1024], {}),),
        {**UNQUANTISED, **HIGH_VRAM, **batch(2), **UNLOADED, **CACHED_LATENTS, **EMA, **optimizer("prodigy"), **rank(16)},
    ),
    Job("zimage-no-checkpointing-r8", web_ui("zimage"), (("screens", [768], {}),), {**NO_CHECKPOINTING, **rank(8), **HIGH_VRAM}, GUIDED),
    Job(
        "zimage-float8-b4", web_ui("zimage"), (("five", [512], {}), ("square", [512], {})),
        {**quantised("float8"), **HIGH_VRAM, **batch(4), **rank(64), **optimizer("adafactor"), **CACHED_LATENTS},
    ),
    Job(
        "zimage-uint4-1280", web_ui("zimage"), (("big square", [1280], {}), ("wide", [1280], {})),
        {**quantised("uint4", "qfloat8"), **CACHED_LATENTS, **CACHED_TEXT, **EMA}, cards=True,
    ),
    Job(
        "zimage-uint4-b2", web_ui("zimage"), (("mixed", [768], {}),),
        {**quantised("uint4"), **batch(2, 2), **rank(16), **optimizer("adamw"), **HIGH_VRAM},
    ),
    Job(
        "zimage-float8-no-checkpointing-1024", web_ui("zimage"), (("portraits", [1024], {}),),
        {**quantised("float8", "qfloat8"), **NO_CHECKPOINTING, **CACHED_LATENTS, **CACHED_TEXT, **rank(64)},
        (preview(1024, 1024, guidance_scale=1),),
    ),
    Job(
        "zimage-text-bf16", web_ui("zimage"), (("small", [512, 1024], {}),),
        {"model.quantize_te": False, **HIGH_VRAM, **rank(8), **optimizer("adafactor")}, GUIDED,
    ),
)  # fmt: skip
TURBO_JOBS = (
    Job("turbo-ui", web_ui("turbo"), (("portraits", [512, 768, 1024], {}),), cards=True),
    Job(
        "turbo-12gb-preset", web_ui("turbo"), (("mixed", [512, 768], {}),),
        {**quantised("float8"), **CACHED_LATENTS, **CACHED_TEXT}, TWO_SIZES, cards=True,
    ),
    Job(
        "turbo-bf16-b2", web_ui("turbo"), (("odd", [1024], {}),),
        {**UNQUANTISED, **HIGH_VRAM, **batch(2), **rank(16), **optimizer("adamw")},
    ),
    Job(
        "turbo-bf16-no-checkpointing", web_ui("turbo"), (("mixed", [512], {}),),
        {**UNQUANTISED, **NO_CHECKPOINTING, **CACHED_LATENTS, **CACHED_TEXT, **rank(64), **optimizer("prodigy")},
    ),
    Job(
        "turbo-uint4-b4", web_ui("turbo"), (("phone", [512], {}),),
        {**quantised("uint4"), **batch(4), **UNLOADED, **CACHED_LATENTS, **EMA, **optimizer("adafactor")}, TWO_SIZES,
    ),
    Job(
        "turbo-1280-r8", web_ui("turbo"), (("screens", [1024, 1280], {}),), {**HIGH_VRAM, **rank(8)},
        (preview(1024, 1024), preview(1280, 768, SECOND, guidance_scale=4)),
    ),
    Job(
        "turbo-float8-no-checkpointing", web_ui("turbo"), (("odd", [768], {}),),
        {**quantised("float8"), **NO_CHECKPOINTING, **batch(1, 2), **EMA, **CACHED_LATENTS}, (preview(1216, 832),),
    ),
    Job(
        "turbo-uint4-1536", web_ui("turbo"), (("big square", [1536], {}), ("wide", [1536], {})),
        {**quantised("uint4", "qfloat8"), **CACHED_LATENTS, **CACHED_TEXT, **rank(16), "train.disable_sampling": True}, cards=True,
    ),
)  # fmt: skip
JOBS = (*FLUX_JOBS, *ZIMAGE_JOBS, *SCHNELL_JOBS, *FLEX_JOBS, *TURBO_JOBS)
