"""Kinds of base weights that need no recording of their own: another kind's programs and residents, rewritten exactly.

- `qfloat8_e4m3fn` and `qfloat8_e5m2` (optimum-quanto): qfloat8 by another name, and the other 8-bit float. Same tensors, same steps.
- `qint8` (optimum-quanto): codes of the same size. Dequantising multiplies the codes by the scale at once, where qfloat8 first casts
  them: the tensor of the cast is not there. Quantising rounds what was scaled before it is clamped: a tensor more, while loading.
- `uint2`, `uint3`, `uint5`, `uint6`, `uint7` (the trainer's own): uint4 but for the packed codes' bytes. Codes are kept in shards of 4, 2
  and 1 bits; unpacking needs a tensor of a byte a weight for each shard, added to the first and then freed.
Source: toolkit/util/uintx_quant.py and optimum-quanto 0.2.4 (QBytesTensor.dequantize), and events of single layers on the emulated device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from estimator.arrays import among
from estimator.features import Ints
from estimator.footprint import PeakRow
from estimator.offload import CODES_TO_WEIGHT
from estimator.program import ALLOCATE, EMPTY_CACHE, Program, peak_rows
from estimator.recipes import kind_named

SHARDS = (4, 2, 1)  # bits
UINT4_BITS = 4
GROUP = 64  # weights that share a scale and a zero point
# In uint4: half a byte a weight; for each group a scale of two bytes and a zero point of one; cast to two bytes as a weight is rebuilt.
PACKED_TO_SCALE, PACKED_TO_ZERO = GROUP // 4, GROUP // 2
CODES_TO_ZERO = GROUP // 2

UINT4 = "uint4"

NOTHING: Ints = np.array([], dtype=np.int64)


USING = ("step.core", "preview", "text")


@dataclass(frozen=True)
class Derivation:
    """`base`: the recorded kind. `bits`: of packed codes (uintN); `casts`: the base's cast before scaling is there."""

    base: str
    bits: int | None = None
    casts: bool = True


DERIVED = {
    "qfloat8_e4m3fn": Derivation("qfloat8"),
    "qfloat8_e5m2": Derivation("qfloat8"),
    "qint8": Derivation("qfloat8", casts=False),
    **{f"uint{bits}": Derivation("uint4", bits=bits) for bits in (2, 3, 5, 6, 7)},
}


def with_derived(table: Mapping[str, int]) -> dict[str, int]:
    """A table by recorded kind of weights, which holds for the kinds derived from them too."""
    return {**table, **{kind: table[one.base] for kind, one in DERIVED.items()}}


def recorded_kind(kind: str) -> str:
    """The recorded kind of weights that one is made of: itself, where it is no derived one and has no recipe."""
    return UINT4 if kind_named(kind) else DERIVED[kind].base if kind in DERIVED else kind


def shards(bits: int) -> int:
    return sum(bool(bits & size) for size in SHARDS)


def base_key(key: str) -> tuple[str, Derivation] | None:
    """A part's key with the recorded kind of weights in place of a derived one; None if it names none."""
    name, *rest = key.split("/")
    derivation = DERIVED.get(rest[0]) if rest else None
    if derivation is None:
        return None
    return "/".join([name, derivation.base, *rest[1:]]), derivation


def of_same_outline(key: str) -> str | None:
    """The recorded part whose peak rows and tensors that stay are this one's too: it uses weights, and neither makes nor frees any.

    Not of qint8, whose peak may be without a cast that the base has there.
    """
    found = base_key(key) if key.split("/")[0] in USING else None
    return None if found is None or not found[1].casts else found[0]


def residents(sizes: Sequence[int], derivation: Derivation) -> list[int]:
    """Bytes of a component's tensors, from those of the recorded kind."""
    if derivation.bits is None:
        return list(sizes)
    packed = packed_places(sizes)
    return [size * derivation.bits // UINT4_BITS if place in packed else size for place, size in enumerate(sizes)]


def packed_places(sizes: Sequence[int]) -> set[int]:
    """Where packed codes stand among uint4 residents: each is followed by its scales and zero points."""
    triples = zip(range(len(sizes)), sizes, sizes[1:], sizes[2:], strict=False)
    return {n for n, codes, scale, zero in triples if codes == PACKED_TO_SCALE * scale == PACKED_TO_ZERO * zero}


def program(base: Program, key: str, derivation: Derivation, resident: Sequence[int]) -> Program:
    """The base's program rewritten. `resident`: bytes of the base's tensors of all components that the part loads or uses."""
    if derivation.bits is not None:
        scaled, coefficients = packed_tensors(base), base.coefficients
        if scaled:
            coefficients = coefficients.copy()
            coefficients[scaled] = coefficients[scaled] * derivation.bits // UINT4_BITS
        return _edited(base, key, coefficients, set(), _unpacked(base), shards(derivation.bits) - 1)
    if not derivation.casts and key.startswith("load."):
        return _rounded(base, key)
    dropped = set() if derivation.casts else _casts(base, {CODES_TO_WEIGHT * size for size in resident})
    return _edited(base, key, base.coefficients, dropped, NOTHING, 0)


def _rounded(base: Program, key: str) -> Program:
    """Loading, with what was scaled rounded before it is clamped: one tensor more for each weight, gone when the rounded one is there."""
    events, tensors, sizes = base.events.tolist(), base.tensor_of_event.tolist(), base.constants.tolist()
    scaled = set()
    for at in range(len(events) - 2):
        if events[at : at + 3] != [ALLOCATE] * 3:
            continue
        first, second, codes = tensors[at : at + 3]
        plain = base.names[first] is None and base.names[second] is None and base.names[codes] is not None
        if plain and sizes[first] == sizes[second] == CODES_TO_WEIGHT * sizes[codes] > 0:
            scaled.add(first)
    if not scaled:  # a part of loading that quantises nothing
        return replace(base, key=key)
    made, order, number = list[int](), list[int](), dict[int, int]()
    for event, tensor in zip(events, tensors, strict=True):
        if event != ALLOCATE:
            made.append(len(order) - number[tensor] if event > 0 else event)
            continue
        order += [tensor] * (1 + (tensor in scaled))
        number[tensor] = len(order) - 1
        made += [ALLOCATE, ALLOCATE, 2] if tensor in scaled else [ALLOCATE]
    order += range(len(base.names) - base.imports, len(base.names))
    labels, names = tuple(base.labels[k] for k in order), tuple(base.names[k] for k in order)
    coefficients, codes_of = base.coefficients[order], np.array(made, dtype=np.int64)
    rounded = replace(base, key=key, coefficients=coefficients, labels=labels, names=names, events=codes_of)
    return replace(rounded, peaks=highest(rounded, coefficients))


def packed_tensors(base: Program) -> list[int]:
    """Packed codes among the tensors that a part leaves behind: `transformer:12`, say, with its scales and zero points as the next two.

    Numbers are not places among residents: a tensor of two names, as T5's embedding, has two of them.
    """
    numbers: dict[tuple[str, int], int] = {}
    for k, name in enumerate(base.names):
        if name is None:
            continue
        component, _, number = name.partition(":")
        if number.isdigit():  # `transformer:12.1` is a part of a wrapper, of which uintN has none
            numbers[component, int(number)] = k
    sizes = base.constants
    triples = ((k, numbers.get((name, n + 1)), numbers.get((name, n + 2))) for (name, n), k in numbers.items())
    return [
        k for k, scale, zero in triples
        if scale is not None and zero is not None and 0 < sizes[k] == PACKED_TO_SCALE * sizes[scale] == PACKED_TO_ZERO * sizes[zero]
    ]  # fmt: skip


def _unpacked(base: Program) -> Ints:
    """Codes of one byte a weight, as they are unpacked: the weight and the cast zero points follow. (Tensors are in order of birth.)"""
    sizes = base.constants[: len(base.names) - base.imports]
    codes, weight, zero = sizes[:-2], sizes[1:-1], sizes[2:]
    return np.flatnonzero((codes > 0) & (weight == CODES_TO_WEIGHT * codes) & (codes == CODES_TO_ZERO * zero))


def _casts(base: Program, weights: set[int]) -> set[int]:
    """Tensors of qfloat8's cast: an equally large one, the scaled weight, is made next, and then the cast is freed.

    `weights`: bytes of rebuilt weights.
    """
    events, tensors, constants = base.events.tolist(), base.tensor_of_event.tolist(), base.constants.tolist()
    out = set()
    for at in range(len(events) - 2):
        if events[at] == ALLOCATE and events[at + 1] == ALLOCATE and events[at + 2] > 0 and tensors[at + 2] == tensors[at]:
            size = constants[tensors[at]]
            if size in weights and size == constants[tensors[at + 1]] and base.names[tensors[at]] is None:
                out.add(tensors[at])
    return out


def highest(base: Program, coefficients: Ints) -> tuple[PeakRow, ...]:
    """Peak rows of a part of loading, whose sizes are constants. Elsewhere the base's hold: further shards of codes lie below the weight
    that follows them. qint8's are its own (`_edited`)."""
    events = base.events
    signs = np.where(events == ALLOCATE, 1, np.where(events == EMPTY_CACHE, 0, -1))
    totals = np.cumsum(coefficients[base.tensor_of_event] * signs[:, None], axis=0)
    at = int(totals.sum(axis=1).argmax())
    return (PeakRow(tuple(totals[at].tolist()), base.moments[base.labels[int(base.tensor_of_event[at])]]),)


def _edited(base: Program, key: str, coefficients: Ints, dropped: set[int], doubled: Ints, extra: int) -> Program:
    """Events and tensors anew: without `dropped`; `extra` further tensors follow each of `doubled`, as large, freed together."""
    peaks = base.peaks if coefficients is base.coefficients else highest(base, coefficients)
    if not dropped and not (len(doubled) and extra):
        return replace(base, key=key, coefficients=coefficients, peaks=peaks)
    own, tensors = len(base.names) - base.imports, base.tensor_of_event
    births = base.events == ALLOCATE
    times = np.where(births & among(tensors, doubled), 1 + 2 * extra, 1)
    times[among(tensors, dropped)] = 0
    at = np.repeat(np.arange(len(times)), times)  # the old event that each new one comes of, and which of its own it is
    nth = np.arange(len(at)) - np.repeat(np.cumsum(times) - times, times)
    events = np.where(nth == 0, base.events[at], np.where(nth <= extra, ALLOCATE, 2 * extra + 1 - nth))
    made = events == ALLOCATE
    number = np.zeros(own, dtype=np.int64)  # of each old tensor, among the new ones
    first = made & (nth == 0)
    number[tensors[at[first]]] = (np.cumsum(made) - 1)[first]
    freed = (nth == 0) & (events > ALLOCATE)
    events[freed] = np.cumsum(made)[freed] - number[tensors[at[freed]]]
    imported = np.arange(own, len(base.names))
    order = np.append(tensors[at[made]], imported)
    names = np.array(base.names, dtype=object)[order]
    names[: len(order) - len(imported)][nth[made] > 0] = None
    labels = tuple(base.label_rows[order].tolist())
    if dropped:
        peaks = peak_rows(base.features, coefficients[order], events, labels, base.moments, len(order) - len(imported))
    return replace(
        base, key=key, coefficients=coefficients[order], labels=labels, names=tuple(names.tolist()), events=events, peaks=peaks,
        workspace_at={thread: int(np.searchsorted(at, event)) for thread, event in base.workspace_at.items()},
        streams=None if base.streams is None else base.streams[order],
    )  # fmt: skip


# Tensors of one linear layer with a bias on the card, by kind of weights (from the recorded tables of residents): weight and bias;
# quanto's 8-bit data, its scale, bias, and two scales of activations; torchao's float8 data, scale and bias; torchao's uint4: bias, data,
# scales, zeros.
TENSORS_OF_LINEAR = with_derived({"bf16": 2, "qfloat8": 5, "float8": 3, "uint4": 4})
# Parameters and buffers of it, as the names in the programs of loading count them: a quantised weight is one, of several tensors.
PLACES_OF_LINEAR = with_derived({"qfloat8": 4, "float8": 2, "uint4": 4})
