"""Triton kernels that are measured when they are first called (OmniGen2's norms), and the buffer that this takes.

`triton.autotune` runs each of a kernel's configurations, and between runs clears the card's L2 cache by filling a buffer of 256 MiB,
which is made for each configuration and let go with it. The norms have two kernels, forward and backward, and are measured anew for each
width: 2048 of the text, 2520 of the stream. So a process has the buffer three times: in its first preview or step, where the text comes
in and where it is refined, and in its first backward pass, at the first norm. Programs were recorded without it; here it is laid in. How
often it is made at one place does not matter: each time it gets the block of the time before.

Source: ostris/ai-toolkit 27a03a91, extensions_built_in/diffusion_models/omnigen2/src/ops/triton/layer_norm.py (autotune, keys: N and
types); triton 3.8.0, python/triton/testing.py (do_bench), backends/nvidia/driver.py (get_empty_cache_for_benchmark: 256 MB). What was
measured is not kept from run to run unless TRITON_CACHE_AUTOTUNING is set.
"""

from __future__ import annotations

import re

import numpy as np

from estimator import operations as op
from estimator.allocator import FREE
from estimator.archs import load_archs
from estimator.features import Ints
from estimator.part_events import PartRun
from estimator.program import Program
from estimator.residents import State

BUFFER_BYTES = 256 * 2**20
GROUP = "measuring"
# Kernel and width -> the layer that calls it first, and how many tensors that has made by then: the result and each row's root mean square;
# in the backward pass the gradient, and the weight's gradient by blocks
PLACES = {
    "text": (re.compile(r"\.caption_embedder\.0\|forward$"), 2), "stream": (re.compile(r"\.context_refiner\.0\.norm1\|forward$"), 2),
    "backward": (re.compile(r"\|backward LayerNormFnBackward$"), 2),
}  # fmt: skip
FORWARD = (op.PREVIEW, op.CORE)  # beginnings of parts that the transformer runs in


def laid(arch: str, program: Program, part: op.Part, run: PartRun, state: State) -> tuple[PartRun, list[int]]:
    """The events with the buffer where a kernel of this part was not measured yet, and the events that make it."""
    if not load_archs().archs[arch].measures_kernels or not part.key.startswith(FORWARD):
        return run, []
    made = list[int]()
    for kernel, (moments, tensors) in PLACES.items():
        first = program.first_in(moments)
        if first is None or state.holds(f"{GROUP}:{kernel}"):
            continue
        key = state.take_keys(1)
        state.named.setdefault(GROUP, {})[f"{GROUP}:{kernel}"] = key, 0
        at = _behind(run.keys, run.events, run.base + first + tensors - 1)
        run = run.inserting([at, at], key, [BUFFER_BYTES, FREE])
        made = [event + 2 * (event >= at) for event in made] + [at]
    return run, made


def _behind(keys: Ints, events: Ints, key: int) -> int:
    """The event behind the one that allocates a tensor."""
    return int(np.flatnonzero((keys == key) & (events >= 0))[0]) + 1
