"""Kernels that a job's programs were recorded with and that a card's system may not have.

Source: ostris/ai-toolkit 27a03a91: toolkit/util/convrot_quant.py (_triton_available, _int8_act_quant_padded, int8_epilogue): int8 layers
run the trainer's own Triton kernels where Triton can be imported, and otherwise a chain of torch's operations with results in fp32.
So do OmniGen2's norms (extensions_built_in/diffusion_models/omnigen2/src/utils/import_utils.py), which are torch's own otherwise.
torch, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: check_flash_attention_hardware_support: FlashAttention-2 needs Ampere.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.errors import CannotTell, Problem
from estimator.estimate import BORDERLINE, SAFE, Estimate
from estimator.gpus import Gpu
from estimator.job import Job
from estimator.recipes import KINDS

BY_TRITON = frozenset({"convrot8", *(kind for kind in KINDS if kind.startswith(("convrotint", "convrotbitnet")))})
"""Kinds of weights whose layers run Triton kernels."""
FP4 = frozenset({"nvfp4", "convrot4"})
"""Kinds whose weights a Triton kernel unpacks where the card has e4m3 (convrot_quant.py: _e4m3_triton_ok)."""
E4M3_FROM = (8, 9)
MULTIPLIES_FP4 = frozenset({"convrot4"}), (10, 0)  # kinds that multiply such values, and from which cards on (_fp4_gemm_supported)
EAGER, BY_CARD = "-eager", "-fp4"  # behind such a kind, of the recipe without the kernel, and with that product
NORMS_BY_TRITON = frozenset({"omnigen2"})  # architectures whose norms are such kernels (measures_kernels in profiles/archs.yaml)
WITHOUT_TRITON = "windows"  # torch brings Triton on Linux alone
FLASH_FROM = 8  # major compute capability


def lacks_triton(job: Job, gpu: Gpu) -> bool:
    """Whether the job's layers run Triton kernels that the card's system does not have."""
    kinds = {job.model.weights, job.model.te_weights}
    multiplies = _numbers(gpu.compute_capability) >= MULTIPLIES_FP4[1] and bool(kinds & MULTIPLIES_FP4[0])
    by_triton = bool(BY_TRITON & kinds) or job.arch in NORMS_BY_TRITON or multiplies
    return gpu.os == WITHOUT_TRITON and by_triton


def on_card(job: Job, gpu: Gpu) -> Job:
    """The job with kinds of weights named by what the card has for them."""
    return by_capability(job, gpu.compute_capability, triton=gpu.os != WITHOUT_TRITON)


def by_capability(job: Job, capability: str, *, triton: bool = True) -> Job:
    """The same, for a compute capability ("8.9")."""
    model, found = job.model, _numbers(capability)
    if not {model.weights, model.te_weights} & FP4:
        return job
    weights, te_weights = (_kind(kind, found, triton) for kind in (model.weights, model.te_weights))
    return replace(job, model=replace(model, weights=weights, te_weights=te_weights))


def _kind(kind: str, capability: tuple[int, ...], triton: bool) -> str:
    if kind not in FP4:
        return kind
    if kind in MULTIPLIES_FP4[0] and capability >= MULTIPLIES_FP4[1]:
        return kind + BY_CARD
    return kind if triton and capability >= E4M3_FROM else kind + EAGER


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))


def require(job: Job, gpu: Gpu) -> None:
    """Raises CannotTell where the job would run other kernels than those that were recorded, with tensors that nothing models."""
    if lacks_triton(job, gpu):
        whose = job.arch if job.arch in NORMS_BY_TRITON else job.model.weights
        raise CannotTell(
            Problem(
                f"{whose} layers without Triton, which torch does not bring on Windows, are not modelled",
                why="the trainer then computes them by other operations, with other tensors",
                fix="with Triton installed there: as on Linux, without --os windows (which leaves out what the desktop takes)",
            )
        )


def without_flash(gpu: Gpu) -> bool:
    """Whether torch runs another attention kernel on the card than any that was recorded: nothing is called safe on it."""
    return int(gpu.compute_capability.split(".")[0]) < FLASH_FROM


def unsure_of_attention(estimate: Estimate) -> bool:
    """Whether nothing but the card's attention kernel keeps a job from being called safe: no smaller job would be."""
    fits = estimate.verdict == BORDERLINE and all(phase.verdict == SAFE for phase in estimate.phases)
    return fits and not estimate.retries and without_flash(estimate.gpu)
