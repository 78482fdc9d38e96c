"""Validation jobs whose blocks are compiled: the compiler's choice of what is kept, without its kernels (see validation_jobs).

Their rows are kept apart (calibration/data/compiled_runs). Compiling takes minutes: one size, and few previews.
"""

from __future__ import annotations

from typing import Any

from calibration.validation_jobs_adapters import lokr
from calibration.validation_jobs_dora import DORA
from calibration.validation_jobs_edit import FEW, numbered
from calibration.validation_jobs_flux2 import CHROMA, klein
from calibration.validation_jobs_hidream import UI as HIDREAM
from calibration.validation_jobs_ltx2 import UI as LTX2_UI
from calibration.validation_jobs_ltx2 import frames as with_sound
from calibration.validation_jobs_lumina2 import UI as LUMINA2
from calibration.validation_jobs_omnigen2 import UI as OMNIGEN2
from calibration.validation_jobs_pixels import L2P, RADIANCE
from calibration.validation_jobs_qwen import WEIGHTED
from calibration.validation_jobs_sd3 import MEDIUM, by_key
from calibration.validation_jobs_wan import begun, frames
from calibration.validation_settings import *

CACHED: dict[str, Any] = {**CACHED_LATENTS, **CACHED_TEXT}
ONE_PREVIEW = (preview(512, 512),)
COMPILE: dict[str, Any] = {"model.compile": True, "model.block_compile": True}
BLOCKS: dict[str, Any] = {**COMPILE, **CACHED, **rank(16)}
BF16: dict[str, Any] = {**UNQUANTISED, **HIGH_VRAM}
ONE_SIZE, TWO_SIZES = (("square", [512], {}),), (("portraits", [512], {}),)
KLEIN = klein("4b")
JOBS = (
    Job("turbo-compiled", web_ui("turbo"), (("five", [512], {}),), {**CACHED, **COMPILE}, ONE_PREVIEW),
    Job("turbo-compiled-no-checkpointing", web_ui("turbo"), (("five", [512], {}),), {**CACHED, **COMPILE, **NO_CHECKPOINTING}, ()),
    Job("flux-bf16-compiled", web_ui("flux"), TWO_SIZES, {**BLOCKS, **BF16}, ONE_PREVIEW),
    Job("flux-uint4-compiled", web_ui("flux"), ONE_SIZE, {**BLOCKS, **quantised("uint4")}, ()),
    Job("qwen-qfloat8-compiled", web_ui("qwen"), ONE_SIZE, {**BLOCKS, **WEIGHTED}, ()),
    Job("klein4b-bf16-compiled", KLEIN, TWO_SIZES, {**BLOCKS, **BF16}, ONE_PREVIEW),
    Job("klein4b-qfloat8-compiled", KLEIN, ONE_SIZE, BLOCKS, ()),
    Job("wan1b-bf16-compiled", web_ui("wan 1.3b"), (("clips", [288], frames(17)),), {**BLOCKS, **BF16}, ()),
    Job("zimage-qfloat8-compiled", web_ui("zimage"), ONE_SIZE, BLOCKS, ()),
    Job("turbo-uint4-compiled", web_ui("turbo"), ONE_SIZE, {**BLOCKS, **quantised("uint4")}, ()),
    Job("chroma-qfloat8-compiled", CHROMA, ONE_SIZE, {**COMPILE, **CACHED_LATENTS, **UNLOADED, **rank(16)}, ()),
    Job("edit11-qfloat8-compiled", web_ui("edit 2511"), (("small", [512], numbered(FEW)),), {**BLOCKS, **WEIGHTED}, ()),
    Job("ltx2-qfloat8-compiled", web_ui("ltx2"), (("sounding clips", [512], with_sound(81)),), {**LTX2_UI, **BLOCKS}, ()),
    Job(
        "wan21i-qfloat8-compiled", web_ui("wan 2.1 i2v"), (("short clips", [256], frames(17)),),
        {**COMPILE, **CACHED_TEXT, **rank(16), **WEIGHTED}, (),
    ),
    Job("wan5b-qfloat8-compiled", web_ui("wan 5b"), (("clips", [480], begun(49)),), {**BLOCKS, **WEIGHTED}, ()),
    Job("sd35-medium-qfloat8-compiled", by_key(MEDIUM), ONE_SIZE, {**COMPILE, **UNLOADED, **rank(16)}, ()),
    Job("lumina2-qfloat8-compiled", LUMINA2, ONE_SIZE, {**COMPILE, **quantised("qfloat8"), **CACHED_LATENTS, **UNLOADED, **rank(16)}, ()),
    Job("omnigen2-qfloat8-compiled", OMNIGEN2, ONE_SIZE, {**COMPILE, **quantised("qfloat8"), **CACHED_LATENTS, **UNLOADED, **rank(16)}, ()),
    Job("hidream-qfloat8-compiled", HIDREAM, ONE_SIZE, {**BLOCKS, **quantised("qfloat8")}, ()),
    Job("radiance-qfloat8-compiled", RADIANCE, ONE_SIZE, {**COMPILE, **CACHED_LATENTS, **UNLOADED, **rank(16)}, ()),
    Job("l2p-qfloat8-compiled", L2P, ONE_SIZE, BLOCKS, ()),
    Job("zimage-lokr-compiled", web_ui("zimage"), ONE_SIZE, {**BLOCKS, **lokr(-1)}, ()),
    Job("zimage-dora-compiled", web_ui("zimage"), ONE_SIZE, {**BLOCKS, **DORA}, ()),
    Job("flux-lokr-bf16-compiled", web_ui("flux"), ONE_SIZE, {**BLOCKS, **BF16, **lokr(-1)}, ()),
    Job("flux-dora-uint4-compiled", web_ui("flux"), ONE_SIZE, {**BLOCKS, **quantised("uint4"), **DORA}, ()),
    Job("ltx23-qfloat8-compiled", web_ui("ltx2.3"), (("sounding clips", [512], with_sound(81)),), {**LTX2_UI, **BLOCKS}, ()),
)  # fmt: skip
