"""Kernels that a job's programs were recorded with and that a card's system may not have.

Source: ostris/ai-toolkit 27a03a91: toolkit/util/convrot_quant.py (_triton_available, _int8_act_quant_padded, int8_epilogue): int8 layers
run the trainer's own Triton kernels where Triton can be imported, and otherwise a chain of torch's operations with results in fp32.
So do OmniGen2's norms (extensions_built_in/diffusion_models/omnigen2/src/utils/import_utils.py), which are torch's own otherwise.
torch, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: check_flash_attention_hardware_support: FlashAttention-2 needs Ampere.
"""

from __future__ import annotations

from estimator.errors import CannotTell, Problem
from estimator.estimate import BORDERLINE, SAFE, Estimate
from estimator.gpus import Gpu
from estimator.job import Job

BY_TRITON = frozenset({"convrot8"})  # kinds of weights whose layers run Triton kernels
NORMS_BY_TRITON = frozenset({"omnigen2"})  # architectures whose norms are such kernels (measures_kernels in profiles/archs.yaml)
WITHOUT_TRITON = "windows"  # torch brings Triton on Linux alone
FLASH_FROM = 8  # major compute capability


def lacks_triton(job: Job, gpu: Gpu) -> bool:
    """Whether the job's layers run Triton kernels that the card's system does not have."""
    by_triton = bool(BY_TRITON & {job.model.weights, job.model.te_weights}) or job.arch in NORMS_BY_TRITON
    return gpu.os == WITHOUT_TRITON and by_triton


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
