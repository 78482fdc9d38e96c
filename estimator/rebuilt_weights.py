"""Steps, previews and texts in kinds of base weights that none were recorded in: qfloat8's, with what each layer makes of its weights anew.

A kind of weights changes nothing else in them:

- `qfloat8` (quanto) casts data and scales them, two tensors of two bytes a weight, of which the cast goes at once and the scaled one with
  the product, to which a bias is added in a further tensor; the layer's input is kept for its backward pass, where the weight is made anew;
- `float8` (torchao) makes the same two, and `uint4` (the trainer's own) unpacks codes (a byte a weight), casts them, and casts the zero
  points; `bf16` makes nothing. The input is not kept for the layer; the weight is, until the gradient of the input is there.

`uint4` may be made of `float8` as well. How long a tensor lives that no layer keeps is known from the same pass where nothing is kept
(estimator.unsaved_lives). Where each layer is used is known of recorded parts (estimator.layer_calls.Call). T5 asks for the weight of
one layer in each block twice before it uses it, to compare types, which makes it anew in uint4.
Source: optimum-quanto 0.2.4 QTensorLinear; torchao 0.10.0 AffineQuantizedTensor.dequantize; toolkit/util/uintx_quant.py, ostris_quant.py;
and recorded kinds of architectures that have all of them, which this gives tensor for tensor (tests/test_rebuilt_weights.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from estimator.adapter_sites import FORWARD, RECOMPUTED, RUNS, Makers, makers, node_of
from estimator.arrays import Bools, among, joined
from estimator.features import Ints
from estimator.layer_calls import NONE, STAYS, Uses
from estimator.offload import CODES_TO_WEIGHT, OWN, WRAPPED, Layer
from estimator.program import ALLOCATE, EventProgram, Program
from estimator.rewriting import widened, written
from estimator.unsaved_lives import Lives

PACKED_TO_CODES, ZEROS_TO_CAST = 2, 2
"""uint4: bytes of the unpacked codes for each of the packed ones, and of a cast zero point for each of a zero point."""
READ, FP32_TO_BF16 = 2, 2
"""Times that T5 asks for a weight, and its bytes in fp32 for each in bf16."""
ASKED_TENSORS, ASKED_AHEAD = 5, 1
"""The same of uint4's that is asked for once, before the layer's input is cast to its type (Approximator.forward of Chroma): tensors of it,
and those between them and the layer's own."""
CHECKPOINTED, GRAPH, QUANTO = "/checkpointed/", "/graph/", "/qfloat8/"
CONVOLUTION = "Convolution"
QUANTOS, PRODUCTS = "QTensorLinearBackward", "MmBackward0"
"""Node of a layer's backward pass: quanto's, and torch's own."""


@dataclass(frozen=True)
class _Way:
    """How a layer makes its weight: events (a tensor of its own, whether it is made), and the tensor that it multiplies with."""

    events: tuple[tuple[int, bool], ...]
    weight: int

    @property
    def tensors(self) -> int:
        return sum(born for _, born in self.events)


_SCALED = _Way(((0, True), (1, True), (0, False)), 1)  # cast, scaled
_UNPACKED = _Way(((0, True), (1, True), (2, True), (0, False), (2, False)), 1)  # codes, weight, cast zero points


def _read_before(way: _Way) -> _Way:
    """Each time that a weight is asked for, it is made anew in fp32 and brought back, and let go."""
    wide, narrow = way.tensors, way.tensors + 1
    once = (*way.events, (wide, True), (way.weight, False), (narrow, True), (wide, False), (narrow, False))
    events = [(tensor + n * (narrow + 1), born) for n in range(READ) for tensor, born in once]
    used = READ * (narrow + 1)
    return _Way((*events, *((used + tensor, born) for tensor, born in way.events)), used + way.weight)


_READ_UNPACKED = _read_before(_UNPACKED)


@dataclass(frozen=True)
class _Remade:
    """A layer's weight: how it is made, and the bytes of each tensor of that."""

    way: _Way
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class _Laid:
    """What is laid in between a base's events. `rows`: of each event the base's event that it comes before, the call, its turn there, the
    tensor, and whether it is made; of each further tensor its bytes, and the base's tensor that is made at the same moment."""

    rows: Ints
    sizes: Ints
    like: Ints

    def moving(self, ends: Mapping[int, int], made: Ints) -> _Laid:
        """With tensors of the base that are let go before others are made, behind all else that is laid there; in order."""
        tensors, others = (np.array([*numbers], dtype=np.int64) for numbers in (ends, ends.values()))
        behind = int(self.rows[:, 1].max(initial=0)) + 1 + np.arange(len(tensors))
        rows = np.concatenate([self.rows, _rows(made[others], behind, 0, tensors, born=False)])
        return _Laid(rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))], self.sizes, self.like)

    @property
    def places(self) -> Ints:
        return self.rows[:, 0]

    @property
    def tensors(self) -> Ints:
        return self.rows[:, 3]

    @property
    def births(self) -> Bools:
        births: Bools = self.rows[:, 4] == 1
        return births


@dataclass(frozen=True)
class Base:
    """A recorded part of which others are made. `kept`: of each call whether its weight stays for the backward pass, where it does; `ends`:
    of each tensor that the base's layers alone keep, the one before whose birth it is let go where none does."""

    program: Program
    calls: Ints
    kept: Bools
    ends: Mapping[int, int]


def base_of(base: Program, twin: Program, calls: Ints, preview: Callable[[], Program | None] = lambda: None) -> Base:
    """A recorded part with its calls (rows of estimator.layer_calls.Call). `twin`: a step's core under checkpointing, a text without
    a graph (else the base itself). `preview`: of the same weights, where there is any."""
    uses, own = Uses(*calls.T), len(base.names) - base.imports
    kept: Bools = uses.until != NONE
    if CHECKPOINTED in base.key:
        kept &= ~_passed(makers(base, {}))[uses.output]
    if QUANTO not in base.key:
        return Base(base, calls, kept, {})
    held = kept & (uses.first < uses.output) & ~_convolved(base, uses)  # keep their inputs
    return Base(base, calls, kept, _ends(base, Lives(base, twin, preview), (uses.input[held], uses.last[held], uses.until[held]), own))


def program(
    source: Base, key: str, layers: tuple[Mapping[int, Layer], Mapping[int, Layer]], read: Collection[int] = (), asked: Collection[int] = ()
) -> tuple[EventProgram, Ints]:
    """The base's part as `key`, and where it uses each layer, as the base's calls.

    `layers`: in the base's kind of weights, and in the key's; `read`: those whose weight is asked for before it is used; `asked`: those of
    which the base's was, and the key's is not.
    """
    was, now = layers
    base, uses, ends = source.program, Uses(*source.calls.T), source.ends
    made = np.append(np.flatnonzero(base.events == ALLOCATE), len(base.events))
    gone = np.where(source.kept, made[uses.until], made[uses.output] + 1)  # where the weight is let go
    remade = {number: way for number, layer in now.items() if (way := _remade(layer, read=number in read)) is not None}
    laid = _laid(uses, remade, (made[uses.first], gone), len(base.names)).moving(ends, made)
    dropped = _dropped(base, uses, was)
    for first in uses.first[among(uses.layer, [number for number in asked if was[number].what == OWN])].tolist():
        dropped[first - ASKED_AHEAD - ASKED_TENSORS : first - ASKED_AHEAD] = True
    return _joined(base, key, laid, dropped, list(ends)), _renumbered(uses, made, laid, dropped)


def _renumbered(uses: Uses, made: Ints, laid: _Laid, dropped: Bools) -> Ints:
    """The calls by the tensors' new numbers."""
    left = np.append(0, np.cumsum(~dropped[: len(made) - 1]))
    further = laid.places[laid.births]
    new = left + np.searchsorted(further, made)  # of what is made first from each place on
    own = left + np.searchsorted(further, made, side="right")
    places = ((uses.first, new), (uses.last, new), (uses.input, own), (uses.output, own), (uses.backward, new), (uses.until, new))
    return np.stack([uses.layer, *(np.where(row < 0, row, table[row]) for row, table in places)], axis=1)


def _dropped(base: Program, uses: Uses, was: Mapping[int, Layer]) -> Bools:
    """The base's tensors that its layers make of their weights, in a forward pass and in the backward one."""
    count = len(base.names)
    starts = np.bincount(uses.first, minlength=count + 1) - np.bincount(uses.output, minlength=count + 1)
    dropped: Bools = np.cumsum(starts)[:count] > 0
    own, constants = count - base.imports, base.constants
    behind = uses.backward != NONE
    for layer, start, until in np.stack([uses.layer, uses.backward, uses.until], axis=1)[behind].tolist():
        end = until if until > 0 else own
        dropped[start:end] |= constants[start:end] == CODES_TO_WEIGHT * was[layer].sizes[0]
    return dropped


def _passed(made: Makers) -> Bools:
    """Of a part's tensors, those of the first forward pass of a checkpointed block, in which nothing is kept. (OmniGen2's refiners are
    not.)"""
    again = made.block[made.run == RUNS[RECOMPUTED]]
    passed: Bools = (made.run == RUNS[FORWARD]) & (made.block >= 0) & among(made.block, again)
    return passed


def _convolved(base: Program, uses: Uses) -> Bools:
    """Whether each one's backward pass is a convolution's, which keeps the input in every kind of weights."""
    convolves = _convolves(tuple(base.moments))
    convolved: Bools = convolves[base.label_rows[uses.backward]] & (uses.backward != NONE)
    return convolved


@lru_cache(maxsize=16)  # parts of a profile have their moments in common
def _convolves(moments: tuple[str, ...]) -> Bools:
    return np.array([CONVOLUTION in node_of(moment) for moment in moments])


@lru_cache(maxsize=16)
def _products(moments: tuple[str, ...]) -> tuple[str, ...]:
    """The moments as they are with layers that are torch's own."""
    return tuple(moment.replace(QUANTOS, PRODUCTS) if QUANTOS in moment else moment for moment in moments)


def _ends(base: Program, ends: Lives, held: tuple[Ints, Ints, Ints], own: int) -> dict[int, int]:
    """Tensors that layers alone keep -> the tensor before whose birth each is let go where none does. `held`: of the calls that keep
    their inputs, these, the last tensor made in each, and until when; `own`: how many tensors the part makes."""
    until, last = defaultdict[int, int](int), dict[int, int]()
    stays = own + 1
    for k, done, end in zip(*(row.tolist() for row in held), strict=True):
        if k != NONE:
            until[k] = max(until[k], end if end != STAYS else stays)
            last[k] = max(last.get(k, 0), done)
    alone = {k for k, end in until.items() if base.deaths[k] == end}
    if not alone:
        return {}
    text, out = GRAPH in base.key, {}
    for k in sorted(alone):
        # what attention gives is kept by its own node: behind it stands what a text without a graph has not
        end = None if text and k + 1 not in ends.alike else ends.end(k)
        if end is not None or not text:
            out[k] = min(last[k] if end is None else end + 1, int(base.deaths[k]))
    return out


def _laid(uses: Uses, remade: Mapping[int, _Remade], places: tuple[Ints, Ints], count: int) -> _Laid:
    """Each call's weight, made before the layer's first tensor and let go. `places`: of both, of each call; `count`: the base's tensors."""
    starts, ends = places
    rows, sizes, like = [np.zeros((0, 5), dtype=np.int64)], [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for way in dict.fromkeys(one.way for one in remade.values()):
        known = {number: one.sizes for number, one in remade.items() if one.way is way}
        calls = np.flatnonzero(among(uses.layer, known))
        tensors = count + sum(map(len, sizes)) + np.arange(len(calls) * way.tensors).reshape(-1, way.tensors)
        sizes.append(np.array([known[number] for number in uses.layer[calls].tolist()], dtype=np.int64).ravel())
        like.append(np.repeat(uses.output[calls], way.tensors))
        rows += [_rows(starts[calls], calls, turn, tensors[:, tensor], born) for turn, (tensor, born) in enumerate(way.events)]
        goes = uses.until[calls] != STAYS
        rows.append(_rows(ends[calls[goes]], calls[goes], len(way.events), tensors[goes, way.weight], born=False))
    return _Laid(np.concatenate(rows), np.concatenate(sizes), np.concatenate(like))


def _rows(places: Ints, calls: Ints, turn: int, tensors: Ints, born: bool) -> Ints:
    """Events as rows of a table: see _Laid."""
    return np.stack([places, calls, np.full(len(calls), turn), tensors, np.full(len(calls), born)], axis=1)


def _remade(layer: Layer, *, read: bool) -> _Remade | None:
    """How the weight that a layer multiplies with is made; None of a plain layer. `read`: it is asked for before."""
    if layer.what == WRAPPED:
        return _Remade(_SCALED, 2 * (CODES_TO_WEIGHT * layer.sizes[0],))
    if layer.what == OWN:
        packed = max(layer.sizes)
        codes, zeros = PACKED_TO_CODES * packed, layer.sizes[layer.sizes.index(packed) + 2]
        weight = CODES_TO_WEIGHT * codes
        once = codes, weight, ZEROS_TO_CAST * zeros
        return _Remade(_READ_UNPACKED, READ * (*once, FP32_TO_BF16 * weight, weight) + once) if read else _Remade(_UNPACKED, once)
    return None


def _joined(base: Program, key: str, laid: _Laid, dropped: Bools, moved: Sequence[int]) -> EventProgram:
    """The base's events with what is laid in between them, and without what is gone. `moved`: tensors of it that are freed elsewhere."""
    tensors, births = base.tensor_of_event, base.events == ALLOCATE
    left = ~(dropped[tensors] & (tensors >= 0)) & (births | ~among(tensors, moved))
    before: Ints = np.append(0, np.cumsum(left))
    features = base.features if "1" in base.features else (*base.features, "1")
    rows = widened(base, features, len(laid.sizes))
    rows[len(base.names) :, features.index("1")] = laid.sizes
    events = joined((tensors[left], births[left]), before[laid.places], (laid.tensors, laid.births))
    workspace_at = {thread: int(before[at] + np.searchsorted(laid.places, at)) for thread, at in base.workspace_at.items()}
    moments = list(_products(tuple(base.moments)))
    one = written(base, key, events, (features, rows), laid.like)
    made = EventProgram(
        key, one.features, one.coefficients, one.labels, moments, one.names, one.events, one.imports, (), workspace_at, streams=one.streams
    )
    return made.known(label_rows=one.label_rows, named=one.named)
