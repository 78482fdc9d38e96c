"""Validation jobs of LoKr and DoRA on further architectures and kinds of weights (see validation_jobs)."""

from __future__ import annotations

from calibration.validation_jobs_adapters import CACHED, SMALL_PREVIEW, lokr
from calibration.validation_jobs_dora import DORA
from calibration.validation_jobs_edit import ONE, numbered
from calibration.validation_jobs_edit import edited as with_controls
from calibration.validation_jobs_flex2 import UI as FLEX2
from calibration.validation_jobs_flex2 import beside
from calibration.validation_jobs_flux2 import CHROMA, FLUX2, KONTEXT_UI, edit, edited, klein
from calibration.validation_jobs_hidream import UI as HIDREAM
from calibration.validation_jobs_ltx2 import UI as LTX2_UI
from calibration.validation_jobs_ltx2 import frames as with_sound
from calibration.validation_jobs_lumina2 import UI as LUMINA2
from calibration.validation_jobs_omnigen2 import UI as OMNIGEN2
from calibration.validation_jobs_qwen import WEIGHTED
from calibration.validation_jobs_sd3 import LARGE, MEDIUM, by_key
from calibration.validation_jobs_wan import BEGINNING, begun, clip, frames
from calibration.validation_settings import *

CLIP = (clip(320, 256, 17),)
QFLOAT8 = quantised("qfloat8")

ARCH_JOBS = (
    Job("kontext-lokr-auto", KONTEXT_UI, (edited("portraits", [512]),), {**lokr(-1), **CACHED_LATENTS}, (edit(512, 512, "square"),)),
    Job(
        "kontext-dora-b2", KONTEXT_UI, (edited("five", [512]),), {**DORA, **CACHED_LATENTS, **batch(2), **rank(16)},
        (edit(512, 512, "square"),),
    ),
    Job(
        "edit11-lokr-auto", web_ui("edit 2511"), (("odd", [512], numbered(ONE)),), {**lokr(-1), **WEIGHTED, **CACHED},
        (with_controls(ONE, 512, 512),),
    ),
    Job("chroma-lokr-8-uint4", CHROMA, (("phone", [512], {}),), {**quantised("uint4"), **lokr(8), **CACHED_LATENTS}, SMALL_PREVIEW),
    Job("flux2dev-dora", FLUX2, (("phone", [512], {}),), {**DORA, **CACHED, **rank(16)}, SMALL_PREVIEW),
    Job("flex2-lokr-auto-b2", FLEX2, (("five", [512], beside("small")),), {**lokr(-1), **batch(2)}, SMALL_PREVIEW),
    Job("flex2-dora", FLEX2, (("portraits", [512], beside("small")),), {**DORA, **rank(16)}, SMALL_PREVIEW),
    Job("wan5b-lokr-auto", web_ui("wan 5b"), (("short clips", [256], begun(13)),), {**lokr(-1), **CACHED}, CLIP),
    Job("wan5b-dora", web_ui("wan 5b"), (("short clips", [256], begun(13)),), {**DORA, **CACHED, **rank(16)}, CLIP),
    Job(
        "wan21i-lokr-auto", web_ui("wan 2.1 i2v"), (("short clips", [256], frames(13)),), {**lokr(-1), **CACHED_TEXT},
        (clip(320, 256, 17, ctrl_img="DATA/portraits/image0.png"),),
    ),
    Job(
        "wan21i-dora", web_ui("wan 2.1 i2v"), (("short clips", [256], frames(13)),), {**DORA, **CACHED_TEXT, **rank(16)},
        (clip(320, 256, 17, ctrl_img="DATA/portraits/image0.png"),),
    ),
    Job(
        "flux-dora-uint4", web_ui("flux"), (("portraits", [512], {}),), {**DORA, **quantised("uint4"), **CACHED, **rank(16)},
        SMALL_PREVIEW,
    ),
    Job(
        "qwen-dora-uint4", web_ui("qwen"), (("portraits", [512], {}),), {**DORA, **WEIGHTED, **quantised("uint4"), **CACHED, **rank(16)},
        SMALL_PREVIEW,
    ),
    Job(
        "qwen-lokr-auto-uint4", web_ui("qwen"), (("portraits", [512], {}),), {**WEIGHTED, **quantised("uint4"), **lokr(-1), **CACHED},
        SMALL_PREVIEW,
    ),
    Job("hidream-lokr-auto", HIDREAM, (("square", [512], {}),), {**QFLOAT8, **lokr(-1), **CACHED}, SMALL_PREVIEW),
    Job("lumina2-lokr-auto-b2", LUMINA2, (("five", [512], {}),), {**QFLOAT8, **lokr(-1), **CACHED_LATENTS, **batch(2)}, SMALL_PREVIEW),
    Job("lumina2-dora", LUMINA2, (("five", [512], {}),), {**QFLOAT8, **DORA, **CACHED_LATENTS, **rank(16)}, SMALL_PREVIEW),
    Job("omnigen2-lokr-auto", OMNIGEN2, (("portraits", [512], {}),), {**QFLOAT8, **lokr(-1), **CACHED_LATENTS}, SMALL_PREVIEW),
    Job("omnigen2-dora", OMNIGEN2, (("portraits", [512], {}),), {**QFLOAT8, **DORA, **CACHED_LATENTS, **rank(16)}, SMALL_PREVIEW),
    Job("sd35-medium-lokr-auto-b2", by_key(MEDIUM), (("five", [512], {}),), {**lokr(-1), **CACHED, **batch(2)}, SMALL_PREVIEW),
    Job("sd35-medium-dora", by_key(MEDIUM), (("phone", [512], {}),), {**DORA, **CACHED}, SMALL_PREVIEW),
    Job("sd35-lokr-auto", by_key(LARGE), (("phone", [512], {}),), {**lokr(-1), **CACHED}, SMALL_PREVIEW),
    Job("sd35-dora", by_key(LARGE), (("phone", [512], {}),), {**DORA, **CACHED}, SMALL_PREVIEW),
    Job("ltx2-lokr-auto", web_ui("ltx2"), (("two of one size", [256], with_sound(9)),), {**LTX2_UI, **lokr(-1), **CACHED}, CLIP),
    Job("ltx23-lokr-auto", web_ui("ltx2.3"), (("two of one size", [256], with_sound(9)),), {**LTX2_UI, **lokr(-1), **CACHED}, CLIP),
    Job("wan22-lokr-auto", web_ui("wan 2.2 14b"), (("short clips", [256], frames(13)),), {**lokr(-1), **CACHED}, CLIP),
)  # fmt: skip
UINT4 = quantised("uint4")
AUTO, OF_16 = lokr(-1), {**DORA, **rank(16)}
SMALL, FEW_FRAMES = (("portraits", [512], {}),), (("short clips", [256], frames(13)),)
BEGUN = (clip(320, 256, 17, **BEGINNING),)
TO_EDIT, EDITED = (("odd", [512], numbered(ONE)),), (with_controls(ONE, 512, 512),)
KINDS_JOBS = (
    Job("zimage-lokr-auto-uint6", web_ui("zimage"), SMALL, {**quantised("uint6"), **AUTO, **CACHED}, SMALL_PREVIEW),
    Job("flex-lokr-auto-qint8", web_ui("flex1"), SMALL, {**quantised("qint8"), **AUTO, **CACHED}, SMALL_PREVIEW),
    Job("wan22-dora", web_ui("wan 2.2 14b"), FEW_FRAMES, {**OF_16, **CACHED}, CLIP),
    Job("wan22i-lokr-auto", web_ui("wan 2.2 i2v"), FEW_FRAMES, {**AUTO, **CACHED_TEXT}, BEGUN),
    Job("omnigen2-lokr-auto-bf16", OMNIGEN2, SMALL, {**AUTO, **CACHED_LATENTS}, SMALL_PREVIEW),
    Job("omnigen2-dora-bf16", OMNIGEN2, (edited("odd", [512]),), {**OF_16, **CACHED_LATENTS}, (edit(512, 512, "odd"),)),
    Job("lumina2-lokr-auto-bf16", LUMINA2, SMALL, {**AUTO, **CACHED_LATENTS}, SMALL_PREVIEW),
    Job("lumina2-dora-bf16-b2", LUMINA2, (("five", [512], {}),), {**OF_16, **CACHED_LATENTS, **batch(2)}, SMALL_PREVIEW),
    Job("kontext-lokr-auto-uint4", KONTEXT_UI, (edited("odd", [512]),), {**UINT4, **AUTO, **CACHED_LATENTS}, (edit(512, 512, "odd"),)),
    Job("kontext-dora-uint4", KONTEXT_UI, (edited("odd", [512]),), {**UINT4, **OF_16, **CACHED_LATENTS}, (edit(512, 512, "odd"),)),
    Job("chroma-dora-uint4", CHROMA, SMALL, {**UINT4, **OF_16, **CACHED_LATENTS}, SMALL_PREVIEW),
    Job("flex-lokr-auto-uint4", web_ui("flex1"), SMALL, {**UINT4, **AUTO, **CACHED}, SMALL_PREVIEW),
    Job("flex-dora-uint4", web_ui("flex1"), SMALL, {**UINT4, **OF_16, **CACHED}, SMALL_PREVIEW),
    Job("klein9b-dora-uint4", klein("9b"), SMALL, {**UINT4, **OF_16, **CACHED}, SMALL_PREVIEW),
    Job("edit11-lokr-auto-uint4", web_ui("edit 2511"), TO_EDIT, {**UINT4, **AUTO, **WEIGHTED, **CACHED}, EDITED),
)  # fmt: skip
JOBS = (*ARCH_JOBS, *KINDS_JOBS)
