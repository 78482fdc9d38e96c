"""Occurrences of a part -> its memory program: aligned, sizes fitted exactly, and checked against every recording.

Where a recording has another structure in small things (one copy for each sample, padding that was not needed), the program
is the larger structure; what it then predicts for that recording must be within `PEAK_TOLERANCE` of what was recorded, or
the part is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from calibration.architectures.base import Layout
from calibration.extract.affine import solve
from calibration.extract.align import Misaligned, Sequence, canonical, overlay
from calibration.extract.parts import Occurrence
from calibration.extract.windows import joined
from estimator.allocator_state import UNIT_BYTES
from estimator.features import feature
from estimator.parameters import ELEMENT_BYTES

ENOUGH = 0.5  # of the recordings fit a reference: a longer search for a better one does not pay
PEAK_TOLERANCE = 0.01  # of a part's own peak; the resident weights around it make it far less of a job's
PEAK_SLACK_BYTES = 8 * 2**20
# A tensor without an exact formula may be no larger than this, of its part's peak or in bytes, and gets its largest recorded size.
SMALL_SHARE, SMALL_BYTES = 0.003, 2 * 2**20
RANKS = ("c", "r")  # of an adapter on convolutions, and on all other layers
BLOCK = 256  # elements of bitsandbytes' 8-bit states: a scale of 4 bytes for each 256 elements of 4 bytes: a 256th of the tensor


Matches: TypeAlias = list[list[int | None] | None]
"""Of each recording its tensor in place of each of the reference's (None: it has none), or None: another structure."""


class Refused(Exception):
    """A part whose recordings do not give an exact program; says which event and why."""


@dataclass
class Program:
    """`coefficients`: for each tensor, whole numbers over `features`. `inexact`: tensors held at their largest recorded size.

    `worst_error`: of the peak of any recording, a share of it; negative where the program is too low. `made_of`: the part that it was
    made of by rule (calibration.extract.requantised), whose recordings these are.
    """

    key: str
    sequence: Sequence
    features: tuple[str, ...]
    coefficients: list[tuple[int, ...]]
    recordings: int
    worst_error: float = 0.0
    inexact: list[str] = field(default_factory=list)
    made_of: str = ""

    def sizes(self, values: dict[str, int]) -> np.ndarray:
        row = np.array([feature(name, values) for name in self.features], dtype=np.int64)
        return np.array(self.coefficients, dtype=np.int64).reshape(-1, len(self.features)) @ row


def extract(key: str, parts: list[Occurrence], layout: Layout) -> Program:
    """The program of a part. Raises Refused.

    Where a reference gives none, the next one is tried: others may have been laid on it wrongly (attention in parts of the keys, whose
    results are of the kind of what is there without).
    """
    sequences = [joined(canonical(part)) for part in parts]
    left = {len(s.events) for s in sequences}
    refusal: Refused | None = None
    while left:
        reference, matches = _reference([s for s in sequences if len(s.events) in left], sequences)
        try:
            return _laid_on(reference, matches, key, parts, sequences, layout)
        except Refused as error:
            refusal = refusal or error
            left = {length for length in left if length < len(reference.events)}
    assert refusal is not None
    raise refusal


def _laid_on(
    reference: Sequence, matches: Matches, key: str, parts: list[Occurrence], sequences: list[Sequence], layout: Layout
) -> Program:
    """The program of a part with the structure of one of its recordings. Raises Refused."""
    given = {name for part in parts for name in part.values}
    features = tuple(f for f in layout.features(key) if not set(RANKS).intersection(f.split("*")) - given)  # of no adapter there are none
    rows = [
        (part.values, match, sequence) for part, match, sequence in zip(parts, matches, sequences, strict=True) if match is not None
    ]
    peak = max(_peak(s, np.array(s.sizes, dtype=np.int64)) for s in sequences)
    columns = [
        tuple(-1 if match[k] is None else sequence.sizes[match[k]] for _, match, sequence in rows) for k in range(len(reference.sizes))
    ]
    values = [part_values for part_values, _, _ in rows]
    inexact: list[str] = []
    once = {name: found.pop() for name in RANKS if len(found := {v[name] for v in values if name in v}) == 1}
    adapter: dict[tuple[int, ...], tuple[int, ...]] = {}
    if once:
        features = (*once, *(f for f in features if not once.keys() & f.split("*")))
        adapter = _of_the_adapter(features, once, columns, parts)
    factors = {v["f"] for v in values if "f" in v}
    if len(factors) == 1:
        adapter = _of_the_lokr(features, factors.pop(), columns)
    fitted = _fit(key, features, values, columns, reference.labels, peak, inexact, adapter)
    coefficients = [fitted[c] for c in columns]
    for k, name in enumerate(reference.names):  # a training adapter has a rank of its own, whatever the trained one has
        if name is not None and name.startswith("assistant:"):
            coefficients[k] = tuple(max(columns[k]) if f == "1" else 0 for f in features)
    program = Program(key, reference, features, coefficients, len(parts), 0.0, inexact)
    if any(s.workspace_at is not None for s in sequences):
        first = next(s for s in sequences if s.workspace_at is not None)
        reference.workspace_at, reference.workspace_thread = min(first.workspace_at or 0, len(reference.events)), first.workspace_thread
    program.worst_error = max((_check(program, part, sequence) for part, sequence in zip(parts, sequences, strict=True)), key=abs)
    return program


def _of_the_adapter(
    features: tuple[str, ...], ranks: dict[str, int], columns: list[tuple[int, ...]], parts: list[Occurrence]
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Recorded at one rank only: what is as large as a tensor of that run's adapter is proportional to the rank (copies, EMA, gradients).

    So are the 8-bit states of a tensor, a quarter of it, and their scales, one for each 256 (bitsandbytes' blocks). Convolutions have a
    rank of their own, a prime that divides no other tensor's size.
    """
    adapter = {t.size for part in parts for t in part.run.tensors if (t.name or "").startswith("adapter:")}
    out = {}
    for column in set(columns):
        sizes = {size for size in column if size >= 0}
        name = next((one for one, rank in ranks.items() if len(sizes) == 1 and max(sizes) % rank == 0), None)
        if name is not None and any(max(sizes) * part in adapter for part in (1, 4, BLOCK)):
            out[column] = tuple(next(iter(sizes)) // ranks[name] if f == name else 0 for f in features)
    return out


def _of_the_lokr(features: tuple[str, ...], factor: int, columns: list[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Recorded at one factor only: what is as large as one of the adapter's matrices is one of that kind."""
    matrices = {ELEMENT_BYTES * feature(name, {"f": factor}): name for name in reversed(features) if name.startswith(("kron1", "kron2"))}
    found = {column: matrices.get(column[0]) for column in columns if len(set(column)) == 1}
    return {column: tuple(ELEMENT_BYTES * (name == f) for f in features) for column, name in found.items() if name is not None}


def _reference(candidates: list[Sequence], sequences: list[Sequence]) -> tuple[Sequence, Matches]:
    """Of the candidates the one that most recordings fit on, the longer of equals; and their matches (None: another structure)."""
    best: tuple[int, int, Sequence, list[list[int | None] | None]] | None = None
    tried: set[int] = set()
    for candidate in sorted(candidates, key=lambda s: -len(s.events)):
        if len(candidate.events) in tried or len(tried) >= 4:  # the longest few structures
            continue
        tried.add(len(candidate.events))
        matches: list[list[int | None] | None] = []
        for other in sequences:
            try:
                matches.append(overlay(candidate, other))
            except Misaligned:
                matches.append(None)
        count = sum(m is not None for m in matches)
        if best is None or count > best[0]:
            best = (count, len(candidate.events), candidate, matches)
        if count >= ENOUGH * len(sequences):
            break
    assert best is not None
    return best[2], best[3]


def _fit(
    key: str, features: tuple[str, ...], values: list[dict[str, int]], columns: list[tuple[int, ...]], labels: list[str], peak: int,
    inexact: list[str], known: dict[tuple[int, ...], tuple[int, ...]],
) -> dict[tuple[int, ...], tuple[int, ...]]:  # fmt: skip
    """Coefficients of each column of sizes; -1 stands for a recording without the tensor: 0 bytes there, or not counted.

    0 bytes is tried first: no formula of the wide grid's kind touches 0 by chance, only one that is 0 there by nature does (padding
    that was not needed, partial results of a sum that one block makes).
    """
    fitted = dict(known)
    open_columns = sorted(set(columns) - set(known))
    usable = tuple(f for f in features if f not in RANKS) if features[0] in RANKS else features  # of one rank: nothing may claim it
    pad = (0,) * (len(features) - len(usable))
    for column, answer in zip(open_columns, solve(usable, values, [tuple(max(s, 0) for s in c) for c in open_columns]), strict=True):
        if answer is not None:
            fitted[column] = pad + answer
    for column in (c for c in open_columns if c not in fitted and -1 in c):
        there = [i for i, size in enumerate(column) if size >= 0]
        (answer,) = solve(usable, [values[i] for i in there], [tuple(column[i] for i in there)])
        if answer is not None:
            fitted[column] = pad + answer
    for column in (c for c in open_columns if c not in fitted):
        label = labels[columns.index(column)]
        if max(column) > max(SMALL_SHARE * peak, SMALL_BYTES):
            raise Refused(f"{key}: sizes {column} of {label!r} at {values} are no whole-number combination of {features}")
        inexact.append(f"{label}: {max(column)} bytes at most")
        fitted[column] = tuple(max(column) if name == "1" else 0 for name in features)
    return fitted


def _rounded(sizes: np.ndarray) -> np.ndarray:
    return -(-sizes // UNIT_BYTES) * UNIT_BYTES


def _peak(sequence: Sequence, sizes: np.ndarray) -> int:
    """Largest running total of the part's own allocations less its frees, in bytes."""
    rounded = _rounded(sizes)
    total = best = 0
    for event in sequence.events:
        if event is not None:
            total += int(rounded[event]) if event >= 0 else -int(rounded[~event])
            best = max(best, total)
    return best


def _check(program: Program, part: Occurrence, sequence: Sequence) -> float:
    """How far the program's peak is from the recorded one, a share of it; negative where it is too low. Raises Refused beyond the bound."""
    recorded = _peak(sequence, np.array(sequence.sizes, dtype=np.int64))
    predicted = _peak(program.sequence, program.sizes(part.values))
    if abs(predicted - recorded) > PEAK_TOLERANCE * recorded + PEAK_SLACK_BYTES:
        raise Refused(f"{program.key}: at {part.values} the program peaks at {predicted} bytes, recorded were {recorded}")
    return (predicted - recorded) / recorded if recorded else 0.0
