"""Steps, previews and texts in kinds of base weights that none were recorded in: qfloat8's, with what each layer makes of its weights anew.

A kind of weights changes nothing else in them:

- `qfloat8` (quanto) casts data and scales them, two tensors of two bytes a weight, of which the cast goes at once and the scaled one with
  the product, to which a bias is added in a further tensor; the layer's input is kept for its backward pass, where the weight is made anew;
- `float8` (torchao) makes the same two, and `uint4` (the trainer's own) unpacks codes (a byte a weight), casts them, and casts the zero
  points; `bf16` makes nothing. The input is not kept for the layer; the weight is, until the gradient of the input is there.

`uint4` may be made of `float8` as well. How long a tensor lives that no layer keeps is known from the same pass where nothing is kept
(estimator.unsaved_lives). Where each layer is used is known of recorded parts (estimator.offload_programs.Call). T5 asks for the weight of
one layer in each block twice before it uses it, to compare types, which makes it anew in uint4.
Source: optimum-quanto 0.2.4 QTensorLinear; torchao 0.10.0 AffineQuantizedTensor.dequantize; toolkit/util/uintx_quant.py, ostris_quant.py;
and recorded kinds of architectures that have all of them, which this gives tensor for tensor (tests/test_rebuilt_weights.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from estimator.adapter_sites import FORWARD, Made, Tape, made_by
from estimator.arrays import among
from estimator.features import Ints
from estimator.offload import CODES_TO_WEIGHT, OWN, WRAPPED, Layer
from estimator.offload_programs import NONE, STAYS, Call
from estimator.program import ALLOCATE, EventProgram, Program
from estimator.rewriting import widened, written
from estimator.unsaved_lives import Lives

PACKED_TO_CODES, ZEROS_TO_CAST = 2, 2
"""uint4: bytes of the unpacked codes for each of the packed ones, and of a cast zero point for each of a zero point."""
READ, FP32_TO_BF16 = 2, 2
"""Times that T5 asks for a weight, and its bytes in fp32 for each in bf16."""
GRAPH, QUANTO = "/graph/", "/qfloat8/"
CONVOLUTION = "Convolution"
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
    base: Program, twin: Program, key: str, calls: Sequence[Call], layers: tuple[Mapping[int, Layer], Mapping[int, Layer]],
    read: Collection[int] = (),
) -> tuple[EventProgram, tuple[Call, ...]]:  # fmt: skip
    """The base's part as `key`, and where it uses each layer. `twin`: a step's core under checkpointing, a text without a graph (else the
    base itself); `layers`: in the base's kind of weights, and in the key's; `read`: those whose weight is asked for before it is used."""
    was, now = layers
    made = np.append(np.flatnonzero(base.events == ALLOCATE), len(base.events)).tolist()
    makers = [made_by(moment) for moment in base.moments]
    whose = [makers[row] for row in base.labels[: len(made) - 1]]
    laid, constants = _Laid(len(base.names)), base.constants
    kept = {call for call in calls if call.until != NONE and not _passed(base.key, call, whose)}
    held = {call for call in kept if QUANTO in base.key and call.first < call.output and not _convolves(call, whose)}  # keep their inputs
    for call in calls:
        laid.dropped |= set(range(call.first, call.output))
        if call.backward != NONE:
            until, weight_bytes = call.until if call.until > 0 else len(whose), CODES_TO_WEIGHT * was[call.layer].sizes[0]
            laid.dropped.update((call.backward + np.flatnonzero(constants[call.backward : until] == weight_bytes)).tolist())
        for _ in range(READ * (call.layer in read)):
            _read(laid, now[call.layer], made[call.first], call.output)
        weight = _rebuilt(laid, now[call.layer], made[call.first], call.output)
        if weight is not None and call.until != STAYS:
            laid.free(made[call.until] if call in kept else made[call.output] + 1, weight)
    for tensor, end in _ends(base, twin, held, whose).items():
        laid.move(made[end], tensor)
    return _joined(base, key, laid), _renumbered(calls, made, laid)


def _renumbered(calls: Sequence[Call], made: Sequence[int], laid: _Laid) -> tuple[Call, ...]:
    """The calls by the tensors' new numbers."""
    left = np.append(0, np.cumsum(~among(np.arange(len(made) - 1), laid.dropped)))
    further = np.sort([place for place, (_, born) in zip(laid.places, laid.events, strict=True) if born])
    new = left + np.searchsorted(further, made)  # of what is made first from each place on
    own = left + np.searchsorted(further, made, side="right")

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


def _convolves(call: Call, whose: Sequence[Made]) -> bool:
    """Whether its backward pass is a convolution's, which keeps the input in every kind of weights."""
    return call.backward != NONE and CONVOLUTION in whose[call.backward].node


def _ends(base: Program, twin: Program, calls: Iterable[Call], whose: Sequence[Made]) -> dict[int, int]:
    """Tensors that layers alone keep -> the tensor before whose birth each is let go where none does."""
    until, last = defaultdict[int, int](int), dict[int, int]()
    stays = len(whose) + 1
    for call in calls:
        if call.input != NONE:
            until[call.input] = max(until[call.input], call.until if call.until != STAYS else stays)
            last[call.input] = max(last.get(call.input, 0), call.last)
    alone = {k for k, end in until.items() if base.deaths[k] == end}
    if not alone:
        return {}
    tape, text = Tape(base), GRAPH in base.key
    ends = Lives(tape, tape if twin is base else Tape(twin))
    out = {}
    for k in alone:
        # what attention gives is kept by its own node: behind it stands what a text without a graph has not
        end = None if text and k + 1 not in ends.alike else ends.end(k)
        if end is not None or not text:
            out[k] = min(last[k] if end is None else end + 1, int(base.deaths[k]))
    return out


def _read(laid: _Laid, layer: Layer, at: int, like: int) -> None:
    """A weight that is asked for is made anew in fp32 and brought back, and let go."""
    weight = _rebuilt(laid, layer, at, like) if layer.what == OWN else None
    if weight is None:
        return
    wide = laid.make(at, FP32_TO_BF16 * laid.sizes[weight - laid.tensors], like)
    laid.free(at, weight)
    narrow = laid.make(at, laid.sizes[weight - laid.tensors], like)
    laid.free(at, wide)
    laid.free(at, narrow)


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
    left = ~among(tensors, laid.dropped) & (births | ~among(tensors, laid.moved))
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
