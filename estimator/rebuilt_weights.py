"""Steps, previews and texts in kinds of base weights that none were recorded in: qfloat8's, with what each layer makes of its weights anew.

A kind of weights changes nothing else in them:

- `qfloat8` (quanto) casts data and scales them, two tensors of two bytes a weight, of which the cast goes at once and the scaled one with
  the product, to which a bias is added in a further tensor; the layer's input is kept for its backward pass, where the weight is made anew;
- `float8` (torchao) makes the same two, and `uint4` (the trainer's own) unpacks codes (a byte a weight), casts them, and casts the zero
  points; `bf16` makes nothing. The input is not kept for the layer; the weight is, until the gradient of the input is there.

How long a tensor lives that no layer keeps is known from the first forward pass under checkpointing, in which nothing is kept. Where each
layer is used is known of recorded parts (estimator.offload_programs.Call).
Source: optimum-quanto 0.2.4 QTensorLinear; torchao 0.10.0 AffineQuantizedTensor.dequantize; toolkit/util/uintx_quant.py, ostris_quant.py;
and recorded kinds of architectures that have all of them, which this gives tensor for tensor (tests/test_rebuilt_weights.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from estimator.adapter_sites import BACKWARD, FORWARD, RECOMPUTED, Made, made_by
from estimator.features import Ints
from estimator.offload import CODES_TO_WEIGHT, OWN, WRAPPED, Layer
from estimator.offload_programs import NONE, STAYS, Call
from estimator.program import ALLOCATE, EventProgram, Program
from estimator.rewriting import widened, written

PACKED_TO_CODES, ZEROS_TO_CAST = 2, 2
"""uint4: bytes of the unpacked codes for each of the packed ones, and of a cast zero point for each of a zero point."""
QUANTOS, PRODUCTS = "QTensorLinearBackward", "MmBackward0"
"""Node of a layer's backward pass: quanto's, and torch's own."""


@dataclass
class _Laid:
    """What is laid in between a base's events: each event's place, tensor and whether it is made there; of each further tensor its bytes,
    and the base's tensor that is made at the same moment. `dropped`: tensors of the base that are not there; `moved`: freed elsewhere."""

    tensors: int
    places: list[int] = field(default_factory=list)
    events: list[tuple[int, bool]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    like: list[int] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    moved: set[int] = field(default_factory=set)

    def make(self, place: int, size: int, like: int) -> int:
        self.sizes.append(size)
        self.like.append(like)
        tensor = self.tensors + len(self.sizes) - 1
        self._event(place, tensor, made=True)
        return tensor

    def free(self, place: int, tensor: int) -> None:
        self._event(place, tensor, made=False)

    def move(self, place: int, tensor: int) -> None:
        self.moved.add(tensor)
        self.free(place, tensor)

    def _event(self, place: int, tensor: int, *, made: bool) -> None:
        self.places.append(place)
        self.events.append((tensor, made))


def program(
    base: Program, twin: Program, key: str, calls: Sequence[Call], layers: tuple[Sequence[Layer], Sequence[Layer]]
) -> tuple[EventProgram, tuple[Call, ...]]:
    """The base's part as `key`, and where it uses each layer. `twin`: a step's core under checkpointing (else the base itself);
    `layers`: in qfloat8, and in the key's kind of weights."""
    was, now = layers
    made = np.append(np.flatnonzero(base.events == ALLOCATE), len(base.events)).tolist()
    whose = [made_by(base.moments[row]) for row in base.labels[: len(made) - 1]]
    laid, constants = _Laid(len(base.names)), base.constants
    kept = {call for call in calls if call.until != NONE and not _passed(base.key, call, whose)}
    for call in calls:
        laid.dropped |= set(range(call.first, call.output))
        if call.backward != NONE:
            until, weight_bytes = call.until if call.until > 0 else len(whose), CODES_TO_WEIGHT * was[call.layer].sizes[0]
            laid.dropped |= {k for k in range(call.backward, until) if constants[k] == weight_bytes}
        weight = _rebuilt(laid, now[call.layer], made[call.first], call.output)
        if weight is not None and call.until != STAYS:
            laid.free(made[call.until] if call in kept else made[call.output] + 1, weight)
    for tensor, end in _ends(base, twin, kept, whose).items():
        laid.move(made[end], tensor)
    return _joined(base, key, laid), _renumbered(calls, made, laid)


def _renumbered(calls: Sequence[Call], made: Sequence[int], laid: _Laid) -> tuple[Call, ...]:
    """The calls by the tensors' new numbers."""
    left = np.array([k not in laid.dropped for k in range(len(made) - 1)])
    further = np.sort([place for place, (_, born) in zip(laid.places, laid.events, strict=True) if born])
    new = np.append(0, np.cumsum(left)) + np.searchsorted(further, made)  # of what is made first from each place on
    own = new + [np.searchsorted(further, place, side="right") - np.searchsorted(further, place) for place in made]

    def at(k: int) -> int:
        return k if k < 0 else int(new[k])

    def of(k: int) -> int:
        return k if k < 0 else int(own[k])

    return tuple(
        Call(call.layer, at(call.first), at(call.last), of(call.input), of(call.output), at(call.backward), at(call.until))
        for call in calls
    )


def _passed(key: str, call: Call, whose: Sequence[Made]) -> bool:
    """Whether it is the first forward pass of a checkpointed block, in which nothing is kept."""
    made = whose[call.output]
    return "/checkpointed/" in key and made.run == FORWARD and made.block is not None


def _ends(base: Program, twin: Program, calls: Iterable[Call], whose: Sequence[Made]) -> dict[int, int]:
    """Tensors that layers alone keep -> the tensor before whose birth each is let go where none does."""
    until, last = defaultdict[int, int](int), dict[int, int]()
    for call in calls:
        if call.input != NONE:
            until[call.input] = max(until[call.input], call.until if call.until != STAYS else len(whose))
            last[call.input] = max(last.get(call.input, 0), call.last)
    forward = next((k for k, made in enumerate(whose) if made.run in (BACKWARD, RECOMPUTED)), len(whose))
    lives = _Lives(twin, forward, whose)
    deaths = base.deaths
    return {k: min(lives.end(k, last[k]), int(deaths[k])) for k, end in until.items() if deaths[k] == end}


class _Lives:
    """When tensors are let go that nothing keeps."""

    def __init__(self, twin: Program, forward: int, whose: Sequence[Made]) -> None:
        self.twin, self.forward, self.whose = twin, forward, whose
        self.made_in: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.remade: dict[tuple[str, int], list[int]] = defaultdict(list)
        for k, made in enumerate(whose):
            if made.block is not None and made.run != BACKWARD:
                (self.made_in if k < forward else self.remade)[made.block].append(k)
        self.index = {k: n for lists in (self.made_in, self.remade) for ks in lists.values() for n, k in enumerate(ks)}

    def end(self, k: int, last: int) -> int:
        """`last`: the tensor before which the last layer that is given it is over."""
        block = self.whose[k].block
        first = k if k < self.forward or block is None else self.made_in[block][self.index[k]]
        died = int(self.twin.deaths[first])
        if block is None or died > self.forward:  # kept there as well, or by the block's caller
            return last
        if k < self.forward:
            return died
        remade, number = self.remade[block], self.index.get(died)
        inside = number is not None and self.whose[died].block == block and number < len(remade)
        return remade[number] if inside and number is not None else remade[-1] + 1


def _rebuilt(laid: _Laid, layer: Layer, at: int, like: int) -> int | None:
    """The weight that the layer multiplies with, made before an event of the base; None of a plain layer."""
    if layer.what == WRAPPED:
        size = CODES_TO_WEIGHT * layer.sizes[0]
        cast, weight = laid.make(at, size, like), laid.make(at, size, like)
        laid.free(at, cast)
        return weight
    if layer.what == OWN:
        packed = max(layer.sizes)
        zeros = layer.sizes[layer.sizes.index(packed) + 2]
        codes = laid.make(at, PACKED_TO_CODES * packed, like)
        weight = laid.make(at, CODES_TO_WEIGHT * PACKED_TO_CODES * packed, like)
        cast = laid.make(at, ZEROS_TO_CAST * zeros, like)
        laid.free(at, codes)
        laid.free(at, cast)
        return weight
    return None


def _joined(base: Program, key: str, laid: _Laid) -> EventProgram:
    """The base's events with what is laid in between them, and without what is gone."""
    tensors, births = base.tensor_of_event, base.events == ALLOCATE
    left = ~np.isin(tensors, list(laid.dropped)) & (births | ~np.isin(tensors, list(laid.moved)))
    before: Ints = np.append(0, np.cumsum(left))
    order = np.argsort(laid.places, kind="stable")
    places, events = np.array(laid.places, dtype=np.int64)[order], np.array(laid.events, dtype=np.int64).reshape(-1, 2)[order]
    features = base.features if "1" in base.features else (*base.features, "1")
    rows = widened(base, features, len(laid.sizes))
    rows[len(base.names) :, features.index("1")] = laid.sizes
    joined = np.insert(tensors[left], before[places], events[:, 0]), np.insert(births[left], before[places], events[:, 1] == 1)
    workspace_at = {thread: int(before[at] + np.searchsorted(places, at)) for thread, at in base.workspace_at.items()}
    moments = [moment.replace(QUANTOS, PRODUCTS) for moment in base.moments]
    one = written(base, key, joined, (features, rows), laid.like)
    return EventProgram(
        key, one.features, one.coefficients, one.labels, moments, one.names, one.events, one.imports, (), workspace_at, streams=one.streams
    )
