"""How long a step takes beside another: from counted arithmetic and bytes moved. Rough: kernels, cards and loaders differ.

A training step multiplies each image's tokens with all weights: 2 operations for each weight and token, forward, backward, and once more
forward with gradient checkpointing (the frozen weights get no gradients of their own). Each pass reads the weights once; quantised ones
are read, written out in two bytes and read again. Besides, in each layer every token meets every other: 4 operations for each pair and
channel forward, 10 backward (attention; from some 10,000 tokens on it is most of the work). Operations are put into bytes by what cards do
of the one while they move the other.
"""

from __future__ import annotations

import re
from functools import cache

from estimator.archs import load_archs
from estimator.controls import CHANNELS, encoded_size
from estimator.errors import CannotTell, Problem
from estimator.estimate import Estimate
from estimator.features import image_values
from estimator.job import Job
from estimator.plans import plan_of
from estimator.programs import load_profile
from estimator.sizes import sizes_of

OPERATIONS_PER_BYTE = 150
"""Dense bf16 operations per byte of memory traffic: A100 312 T/s and 2.0 TB/s, RTX 4090 165 T/s and 1.0 TB/s (makers' data sheets)."""
OPERATIONS_PER_COPIED_BYTE = 6000
"""The same beside copies from the host: 25 GB/s of PCIe 4.0 x16."""
BF16_BYTES = 2
PASSES, PASSES_CHECKPOINTED = 2, 3
PAIR_FORWARD, PAIR_BACKWARD = 4, 10
"""Operations for a pair of tokens and a channel: two matrix products forward; five backward, as FlashAttention computes the first of the
two again (Dao, FlashAttention-2, 2023, section 3.1)."""
_UNQUANTISED = {"bf16": 2.0, "fp16": 2.0, "fp32": 4.0}


def _traffic(weights: str) -> float:
    """Bytes moved for each weight in a pass."""
    if weights in _UNQUANTISED:
        return _UNQUANTISED[weights]
    bits = int((re.findall(r"\d+", weights) or ["8"])[0])
    return bits / 8 + 2 * BF16_BYTES


@cache
def _weights_count(arch: str, component: str) -> float:
    prequantised = load_archs().archs[arch].prequantised  # in a byte each, but for a few
    return sum(load_profile(arch).resident(component, prequantised or "bf16")) / (1 if prequantised else BF16_BYTES)


def _attention(job: Job, tokens: int) -> float:
    """Operations of attention in a step of one image. Raises CannotTell for an architecture whose layers are not in archs.yaml."""
    found = load_archs().archs[job.arch].attention
    if found is None:
        raise CannotTell(Problem(f"{job.arch}: how much attention computes is not known", None, "archs.yaml has no attention", ""))
    layers, width = found
    each = PAIR_FORWARD * (2 if job.train.gradient_checkpointing else 1) + PAIR_BACKWARD
    return float(each * layers * width * tokens**2)


def work_per_image(job: Job) -> float:
    """Bytes' worth of work for one image of the job, the mean over its buckets; only good beside another. Raises CannotTell."""
    profile = load_profile(job.arch)
    plan = plan_of(job, profile)
    weights = _weights_count(job.arch, "transformer")
    passes = PASSES_CHECKPOINTED if job.train.gradient_checkpointing else PASSES
    moved = _traffic(job.model.weights)
    if job.model.layer_offloading:
        moved += job.model.layer_offloading_transformer_percent * BF16_BYTES * OPERATIONS_PER_COPIED_BYTE / OPERATIONS_PER_BYTE
    text = 0 if plan.text_away else sum(_weights_count(job.arch, name) for name in plan.encoders)
    total, images = 0.0, 0
    for dataset in job.datasets:
        for bucket in dataset.buckets:
            count = max(bucket.count, 1)
            caption = plan.tokens(bucket.text_tokens or dataset.text_tokens)
            target = (bucket.width, bucket.height) if job.model.match_target_res else None
            tokens = sizes_of(plan.arch, bucket)["T"] + caption
            behind = bucket.controls if plan.arch.control_images != CHANNELS else ()  # those of channels are no tokens
            tokens += sum(image_values(*encoded_size(plan.arch.control_images, picture, target))["T"] for picture in behind)
            step = passes * weights * (2 * tokens / OPERATIONS_PER_BYTE + moved / dataset.batch_size)
            step += _attention(job, tokens) / OPERATIONS_PER_BYTE
            step += text * (2 * caption / OPERATIONS_PER_BYTE + _traffic(job.model.te_weights) / dataset.batch_size)
            total, images = total + count * step, images + count
    return total / max(images, 1)


def time_ratio(before: Job, after: Job) -> float | None:
    """Time for each image trained on, after beside before; None where it cannot be counted."""
    try:
        old, new = work_per_image(before), work_per_image(after)
    except CannotTell:
        return None
    return new / old if old else None


def pace(ratio: float | None, clips: bool = False) -> str:
    """A ratio in words: "each image takes about 1.5 times as long", "about as fast". `clips`: of clips, not images."""
    if ratio is None:
        return ""
    if abs(ratio - 1) < 0.03:
        return "about as fast"
    each = "each clip" if clips else "each image"
    return f"{each} takes about {ratio:.2g} times as long" if ratio >= 1 else f"{each} takes about {ratio:.0%} of the time"


def headroom_bytes(estimate: Estimate) -> int:
    """What is left of the card in the likely case at the phase that fills it most; negative where the job lacks memory.

    A phase that fails, or whose cache has to give way, is counted with what it needs at the least: what is allocated, and what lies
    outside the allocator. (Behind a phase that fails, a phase's figure on the card has all the cache that a larger one would show.)
    """
    gpu, left = estimate.gpu, []
    for phase in estimate.phases:
        least = phase.allocated_bytes + gpu.context_bytes + gpu.desktop_bytes
        taken = least if phase.verdict == "oom" else min(phase.device.likely_bytes, max(least, gpu.total_bytes))
        left.append(gpu.total_bytes - taken)
    return min(left, default=gpu.total_bytes)
