"""What a part adds to what is resident, without its events: peak rows, and what stays or is freed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from estimator.features import feature


@dataclass(frozen=True)
class PeakRow:
    """A running total that can be the part's highest: bytes = coefficients . features; `moment` names where in the run."""

    coefficients: tuple[int, ...]
    moment: str


def highest(peaks: Sequence[PeakRow], features: Sequence[str], values: Mapping[str, int]) -> tuple[int, str]:
    """(bytes, moment) of the highest peak row: what a part adds to what is resident, without the allocator's rounding."""
    row = [feature(name, values) for name in features]
    totals = [(sum(c * f for c, f in zip(p.coefficients, row, strict=True)), p.moment) for p in peaks]
    return max(totals, default=(0, ""))


Rows = Mapping[str, Sequence[tuple[int, Mapping[str, int]]]]
"""Component -> (how many tensors, {feature: bytes} of each)."""


def sum_of(rows: Sequence[tuple[int, Mapping[str, int]]], values: Mapping[str, Any], unit_bytes: int) -> Any:
    """Bytes of so many tensors, each rounded up to the unit: a number, or an array where the variables are arrays."""
    total: Any = 0
    for count, row in rows:
        size: Any = 0
        for name, coefficient in row.items():
            size = size + coefficient * feature(name, values)
        total = total + count * -(-(size * (size > 0)) // unit_bytes)
    return total * unit_bytes


@dataclass(frozen=True)
class Footprint:
    """A part without its events: peak rows, and what stays or is freed. All that is needed where nothing is placed (estimator.rows).

    `rows`: of the tensors that stay and of the imports that are freed, by component ("" for unnamed ones); see `Rows`.
    """

    key: str
    features: tuple[str, ...]
    peaks: tuple[PeakRow, ...]
    rows: tuple[Rows, Rows]
    workspace_at: Mapping[str, int]
    copies: Mapping[str, int] = field(default_factory=dict, kw_only=True)

    def peak(self, values: Mapping[str, int]) -> tuple[int, str]:
        """See `highest`."""
        return highest(self.peaks, self.features, values)

    def sums(self, values: Mapping[str, int], unit_bytes: int) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes that stay and that are freed, by component, each tensor rounded up to the unit."""
        stays, freed = ({name: sum_of(rows, values, unit_bytes) for name, rows in side.items()} for side in self.rows)
        return stays, freed


def peaks_of(part: Mapping[str, Any], features: Sequence[str]) -> tuple[PeakRow, ...]:
    """Peak rows of a part as a profile's JSON has it, over some features."""
    return tuple(PeakRow(tuple(row["bytes"].get(name, 0) for name in features), row["moment"]) for row in part["peaks"])
