"""The validation jobs: whole training jobs as users write them, never used for extraction, against which estimates are judged.

Each begins as one of two shapes - the trainer's example configs for 24 GB cards, or what its web UI writes for a new job - and changes what
its table entry says (calibration.validation_settings). Sizes, ranks and combinations are others than in `calibration.probes`. To keep a run
short it saves and samples at the start and the end only, in two sampling steps, and meets every bucket twice. Here: FLUX.1, Z-Image, Flex.
"""

from __future__ import annotations

from calibration.validation_settings import *

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
        "schnell-without-adapter", web_ui("schnell"), (("phone", [768], {}), ("odd", [512], {})),
        {"model.assistant_lora_path": None, **LOW_VRAM, **CACHED_LATENTS, **rank(16)}, TWO_SIZES,
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
