"""Kinds of base weights that need no recording of their own: another kind's programs and residents, rewritten exactly.

- `qfloat8_e4m3fn` and `qfloat8_e5m2` (optimum-quanto): qfloat8 by another name, and the other 8-bit float. Same tensors, same steps.
- `qint8` (optimum-quanto): codes of the same size. Dequantising multiplies the codes by the scale at once, where qfloat8 first casts
  them: the tensor of the cast is not there.
- `uint2`, `uint3`, `uint5`, `uint6`, `uint7` (the trainer's own): uint4 but for the packed codes' bytes. Codes are kept in shards of 4, 2
  and 1 bits; unpacking needs a tensor of a byte a weight for each shard, added to the first and then freed.
Source: toolkit/util/uintx_quant.py and optimum-quanto 0.2.4 (QBytesTensor.dequantize), and events of single layers on the emulated device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from estimator.program import ALLOCATE, EMPTY_CACHE, PeakRow, Program

SHARDS = (4, 2, 1)  # bits
UINT4_BITS = 4
GROUP = 64  # weights that share a scale and a zero point
# In uint4: half a byte a weight; for each group a scale of two bytes and a zero point of one; cast to two bytes as a weight is rebuilt.
PACKED_TO_SCALE, PACKED_TO_ZERO = GROUP // 4, GROUP // 2
CODES_TO_WEIGHT, CODES_TO_ZERO = 2, GROUP // 2


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


def shards(bits: int) -> int:
    return sum(bool(bits & size) for size in SHARDS)


def base_key(key: str) -> tuple[str, Derivation] | None:
    """A part's key with the recorded kind of weights in place of a derived one; None if it names none."""
    name, *rest = key.split("/")
    derivation = DERIVED.get(rest[0]) if rest else None
    if derivation is None:
        return None
    return "/".join([name, derivation.base, *rest[1:]]), derivation


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


def program(base: Program, key: str, derivation: Derivation, resident: Sequence[int], component: str) -> Program:
    """The base's program rewritten. `resident`: of the base's `component` (transformer or text_encoder0) that the part loads or uses."""
    rows, own = base.coefficients, len(base.names) - base.imports
    scaled: set[int] = set()
    dropped: set[int] = set()
    extra: dict[int, int] = {}
    if derivation.bits is not None:
        packed = packed_places(resident)
        scaled = {k for k, name in enumerate(base.names) if _place(name, component) in packed}
        if shards(derivation.bits) > 1:
            extra = dict.fromkeys(_unpacked(base), shards(derivation.bits) - 1)
    elif not derivation.casts:
        dropped = _casts(base, {CODES_TO_WEIGHT * size for size in resident})
    coefficients = rows.copy() if scaled else rows
    for k in scaled:
        coefficients[k] = rows[k] * (derivation.bits or 0) // UINT4_BITS
    return _edited(base, key, coefficients, dropped, extra, own)


def _place(name: str | None, component: str) -> int | None:
    """A resident's number: `transformer:12` is the twelfth tensor, `transformer:12.1` a part of a wrapper (none in uintN)."""
    if name is None or not name.startswith(component + ":"):
        return None
    number = name.partition(":")[2]
    return int(number) if number.isdigit() else None


def _constant(base: Program, k: int) -> int:
    """Bytes of a tensor that depends on nothing; 0 for others."""
    row = base.coefficients[k]
    at = base.features.index("1") if "1" in base.features else -1
    return int(row[at]) if at >= 0 and np.count_nonzero(row) == (row[at] != 0) else 0


def _births(base: Program) -> list[int]:
    return [int(k) for event, k in zip(base.events.tolist(), base.tensor_of_event.tolist(), strict=True) if event == ALLOCATE]


def _unpacked(base: Program) -> list[int]:
    """Codes of one byte a weight, as they are unpacked: the weight and the cast zero points follow."""
    born = _births(base)
    sizes = [_constant(base, k) for k in born]
    found = zip(born, sizes, sizes[1:], sizes[2:], strict=False)
    return [k for k, codes, weight, zero in found if codes and weight == CODES_TO_WEIGHT * codes and codes == CODES_TO_ZERO * zero]


def _casts(base: Program, weights: set[int]) -> set[int]:
    """Tensors of qfloat8's cast: an equally large one, the scaled weight, is made next, and then the cast is freed.

    `weights`: bytes of rebuilt weights.
    """
    events, tensors = base.events.tolist(), base.tensor_of_event.tolist()
    out = set()
    for at in range(len(events) - 2):
        if events[at] == ALLOCATE and events[at + 1] == ALLOCATE and events[at + 2] > 0 and tensors[at + 2] == tensors[at]:
            size = _constant(base, tensors[at])
            if size in weights and size == _constant(base, tensors[at + 1]) and base.names[tensors[at]] is None:
                out.add(tensors[at])
    return out


def _highest(base: Program, coefficients: np.ndarray) -> tuple[PeakRow, ...]:
    """Peak rows of a part of loading, whose sizes are constants. Elsewhere the base's hold: further shards of codes lie below the weight
    that follows them, and without its cast qint8 needs at most one weight less."""
    events = base.events
    signs = np.where(events == ALLOCATE, 1, np.where(events == EMPTY_CACHE, 0, -1))
    totals = np.cumsum(coefficients[base.tensor_of_event] * signs[:, None], axis=0)
    at = int(totals.sum(axis=1).argmax())
    return (PeakRow(tuple(totals[at].tolist()), base.moments[base.labels[int(base.tensor_of_event[at])]]),)


def _edited(
    base: Program, key: str, coefficients: np.ndarray, dropped: set[int], extra: dict[int, int], own: int
) -> Program:  # fmt: skip
    """Events and tensors anew: without `dropped` ones, with so many further tensors as large as each of `extra`, freed together."""
    events: list[int] = []
    order: list[int] = []
    born: dict[int, int] = {}
    names: list[str | None] = []
    for event, k in zip(base.events.tolist(), base.tensor_of_event.tolist(), strict=True):
        if k in dropped:
            continue
        if event == EMPTY_CACHE or k >= own:
            events.append(event)
        elif event != ALLOCATE:
            events.append(len(order) - born[k])
        else:
            born[k] = len(order)
            order.append(k)
            names.append(base.names[k])
            events.append(ALLOCATE)
            for _ in range(extra.get(k, 0)):
                order.append(k)
                names.append(None)
                events.append(ALLOCATE)
            events += [n + 1 for n in range(extra.get(k, 0) - 1, -1, -1)]
    peaks = base.peaks if coefficients is base.coefficients else _highest(base, coefficients)
    imported = list(range(own, len(base.names)))
    order += imported
    return Program(
        key, base.features, coefficients[order], tuple(base.labels[k] for k in order), base.moments,
        (*names, *(base.names[k] for k in imported)), np.array(events, dtype=np.int64), base.imports, peaks, base.workspace_at,
    )  # fmt: skip
