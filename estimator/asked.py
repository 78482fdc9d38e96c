"""Weights that the trainer asks for only to see whether they have gradients, which makes the trainer's own quantised kinds rebuild them.

Each time a preset of devices is set, StableDiffusion notes the state of all components first, and of Gemma-2 looks at
`layers[0].mlp.gate_proj.weight.requires_grad`. Of a layer in uintN `weight` is a property: codes are unpacked, made a weight in bf16, cast
to fp32 and back, and let go. quanto's and torchao's weights are there as they are.
Source: ostris/ai-toolkit 27a03a91, toolkit/stable_diffusion_model.py (save_device_state, set_device_state_preset, generate_images),
toolkit/util/ostris_quant.py (OstrisLinear.weight), toolkit/util/uintx_quant.py (UIntXQuantizer.dequantize).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from estimator.derived_weights import DERIVED, GROUP, UINT4_BITS, shards
from estimator.footprint import PeakRow
from estimator.program import ALLOCATE, Program

ASKED = "asked.weight"  # part, with the text encoder's kind of weights behind it: no product is made, and so no workspace of cuBLAS
GEMMA2_2B = 9216 * 2304  # weights of gate_proj: the feed-forward's width by the stream's (transformers' Gemma2Config)
MOMENT = "the text encoder is asked for a weight"
BITS = {"uint4": UINT4_BITS, **{kind: one.bits for kind, one in DERIVED.items() if one.bits is not None}}
BF16, FP32 = 2, 4


def rebuilt(key: str, bits: int, weights: int = GEMMA2_2B) -> Program:
    """The part: a byte a weight for each shard of codes, the weight, zero points of its groups, and the casts."""
    count = shards(bits)
    sizes = [*[weights] * count, BF16 * weights, BF16 * weights // GROUP, FP32 * weights, BF16 * weights]
    together = range(count - 1, 0, -1)  # further shards are added to the first one's codes, and go before the weight is made
    codes = [*[ALLOCATE] * count, *together, ALLOCATE, ALLOCATE, count + 2, 1]  # then codes and zero points go
    events = np.array([*codes, ALLOCATE, 3, ALLOCATE, 2, 1], dtype=np.int64)
    rows = np.array(sizes, dtype=np.int64)[:, None]
    peak = PeakRow(((FP32 + BF16) * weights,), MOMENT)
    return Program(key, ("1",), rows, (0,) * len(sizes), [MOMENT], (None,) * len(sizes), events, 0, (peak,), {})


PROGRAMS: Mapping[str, Program] = {f"{ASKED}/{kind}": rebuilt(f"{ASKED}/{kind}", bits) for kind, bits in BITS.items()}
