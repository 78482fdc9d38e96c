"""What a DoRA makes behind a LoRA's result in a forward pass, and how large it is (estimator.dora_programs says what each is)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

HALF, FULL = 2, 4  # bytes of an element in the model's type, and in fp32
Steps: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]
PARTS = 32  # of a byte for each element of a weight: what steps are counted in
# Kind of weights -> what a weight is unpacked by, one after another: its size, and which of those before it are freed behind it. The last
# is the weight in the model's type. quanto: the values cast, times their scales; the trainer's own kinds (toolkit/util/ostris_quant.py,
# OstrisLinear.weight): a byte for each value, in the model's type, zero points of 64 values each; in fp32, and cast back
UNPACKING: Mapping[str, Steps] = {
    "bf16": (), "qfloat8": ((64, ()), (64, (0,))), "uint4": ((32, ()), (64, ()), (1, (0, 2)), (128, (1,)), (64, (3,))),
}  # fmt: skip
Bytes: TypeAlias = Mapping[str, int]
Maker: TypeAlias = Callable[[Bytes], int]  # its bytes -> the tensor's number
Freer: TypeAlias = Callable[..., None]


@dataclass(frozen=True)
class Sizes:
    """Of one layer's tensors. `rows`: how many it goes over, by feature."""

    inputs: int
    outputs: int
    rows: Bytes

    @property
    def vector(self) -> Bytes:
        return {"1": FULL * self.outputs}

    def weight(self, element: int) -> Bytes:
        return {"1": element * self.inputs * self.outputs}

    def step(self, parts: int) -> Bytes:
        return {"1": parts * self.inputs * self.outputs // PARTS}

    def given(self, element: int) -> Bytes:
        return {name: element * count * self.inputs for name, count in self.rows.items()}

    def result(self, element: int) -> Bytes:
        return {name: element * count * self.outputs for name, count in self.rows.items()}


@dataclass(frozen=True)
class Weighed:
    """`both`: the LoRA's result with the DoRA's. `passing`: goes when the layer is through; `saved`: magnitudes by norms, norms, product,
    input, multiplier's mean, and perhaps the weight (empty where nothing is)."""

    both: int
    passing: tuple[int, ...]
    saved: tuple[int, ...]


def unpacked(make: Maker, free: Freer, size: Sizes, steps: Steps) -> list[int]:
    """Unpacks a weight: the tensor that it is (none of one that is not packed)."""
    made = list[int]()
    for parts, gone in steps:
        made.append(make(size.step(parts)))
        free(*(made[n] for n in gone))
    return made[-1:]


def weighed(make: Maker, free: Freer, size: Sizes, steps: Steps, saves: bool, passes: bool) -> Weighed:
    """One pass. `steps`: the layer's weight is unpacked by; `saves`: for the backward pass; `passes`: the input needs a
    gradient, for which the weight is saved."""
    update, mean, scaled = make(size.weight(FULL)), make({"1": FULL}), make(size.weight(FULL))
    whole = unpacked(make, free, size, steps)
    known = make(size.weight(FULL))
    free(*whole)
    summed, norm = make(size.weight(FULL)), make(size.vector)
    free(summed)
    adapted, ratio, less = make(size.weight(FULL)), make(size.vector), make(size.vector)
    free(ratio)
    given, product = make(size.given(FULL)), make(size.result(FULL))
    free(*([] if saves else [given]))
    times = make(size.result(FULL))
    free(known, *([] if saves else [product, less, norm]), *([] if saves and passes else [adapted]))
    half = make(size.result(HALF))
    free(times)
    both = make(size.result(HALF))
    free(half)
    if not saves:
        return Weighed(both, (both, update, scaled, mean), ())
    return Weighed(both, (both, update, scaled), (less, norm, product, given, mean, *((adapted,) if passes else ())))
