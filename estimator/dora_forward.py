"""What a DoRA makes behind a LoRA's result in a forward pass, and how large it is (estimator.dora_programs says what each is)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

HALF, FULL = 2, 4  # bytes of an element in the model's type, and in fp32
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


def weighed(make: Maker, free: Freer, size: Sizes, unpacked: int, saves: bool, passes: bool) -> Weighed:
    """One pass. `unpacked`: tensors that the layer's weight is unpacked by; `saves`: for the backward pass; `passes`: the input needs a
    gradient, for which the weight is saved."""
    update, mean, scaled = make(size.weight(FULL)), make({"1": FULL}), make(size.weight(FULL))
    steps = [make(size.weight(HALF)) for _ in range(unpacked)]
    free(*steps[:-1])
    known = make(size.weight(FULL))
    free(*steps[-1:])
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
