"""The tables of the accuracy check, as text for a screen and as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from calibration.accuracy_compare import ALLOCATED_BAR, RESERVED_BAR, Capacity, Different, Row
from calibration.accuracy_rows import GIB, MIB

PHASES = ("load", "cache_latents", "cache_text", "prepare", "sample", "train", "save")
BIG_BYTES = 20 * GIB  # rows from here on say at which moment the estimate peaks


@dataclass(frozen=True)
class Table:
    """`numeric`: which columns are set flush right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int]

    def text(self) -> str:
        widths = [max(len(line[column]) for line in (self.header, *self.rows)) for column in range(len(self.header))]
        lines = (self.header, tuple("-" * width for width in widths), *self.rows)
        return "\n".join("  ".join(self._set(cell, index, widths[index]) for index, cell in enumerate(line)).rstrip() for line in lines)

    def _set(self, cell: str, index: int, width: int) -> str:
        return cell.rjust(width) if index in self.numeric else cell.ljust(width)

    def markdown(self) -> str:
        rule = ["---:" if index in self.numeric else "---" for index in range(len(self.header))]
        return "\n".join("| " + " | ".join(line) + " |" for line in (self.header, rule, *self.rows))


def mib(value: int) -> str:
    return f"{value / MIB:,.0f}"


def percent(error: float) -> str:
    return f"{100 * error:+.2f}"


def phase_table(rows: Sequence[Row]) -> Table:
    """One line for each phase of one run; figures in MiB."""
    header = ("phase", "", "allocated", "estimate", "%", "reserved", "estimate", "%", "moment of the estimate")
    lines = tuple(
        (
            row.phase, row.label, mib(row.allocated_bytes), mib(row.estimated_allocated_bytes), percent(row.allocated_error),
            mib(row.reserved_bytes), mib(row.estimated_reserved_bytes), percent(row.reserved_error),
            row.moment if row.misses or row.allocated_bytes >= BIG_BYTES else "",
        )
        for row in rows
    )  # fmt: skip
    return Table(header, lines, frozenset(range(2, 8)))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


def summary_table(rows: Sequence[Row]) -> Table:
    """Errors by architecture and phase, in per cent; both figures. "within" counts the rows inside the bar."""
    header = ("architecture", "phase", "figure", "rows", "median", "95th", "worst over", "worst under", "within")
    lines = []
    keys = sorted({(row.arch, row.phase) for row in rows}, key=lambda key: (key[0], PHASES.index(key[1])))
    for arch, phase in (*keys, ("all", "all")):
        chosen = [row for row in rows if arch == "all" or (row.arch, row.phase) == (arch, phase)]
        for figure, bar in (("allocated", ALLOCATED_BAR), ("reserved", RESERVED_BAR)):
            errors = [getattr(row, f"{figure}_error") for row in chosen]
            sizes = [abs(error) for error in errors]
            within = sum(size <= bar for size in sizes)
            lines.append((
                arch, phase, figure, str(len(errors)), f"{100 * median(sizes):.3f}", f"{100 * quantile(sizes, 0.95):.3f}",
                percent(max(0.0, *errors)), percent(min(0.0, *errors)), f"{within} of {len(errors)} ({bar:.0%})",
            ))  # fmt: skip
    return Table(header, tuple(lines), frozenset(range(3, 8)))


def capacity_table(found: Sequence[Capacity]) -> Table:
    header = ("run", "card MiB", "emulated", "estimate", "", "retries", "estimate")
    lines = tuple(
        (
            one.run.split("@")[0], mib(one.total_bytes), one.failed or "fits", one.estimated_failed or "fits",
            "DIFFERENT" if one.misses else "same", str(one.retries), str(one.estimated_retries),
        )
        for one in found
    )  # fmt: skip
    return Table(header, lines, frozenset({1, 5, 6}))


def misses(rows: Sequence[Row]) -> Table:
    """The rows outside the bars, worst first."""
    header = ("run", "phase", "", "allocated %", "reserved %", "moment of the estimate")
    outside = [row for row in rows if row.misses]
    chosen = sorted(outside, key=lambda row: -max(abs(row.allocated_error) / ALLOCATED_BAR, abs(row.reserved_error) / RESERVED_BAR))
    lines = tuple((row.run, row.phase, row.label, percent(row.allocated_error), percent(row.reserved_error), row.moment) for row in chosen)
    return Table(header, lines, frozenset({3, 4}))


def different_table(found: Sequence[Different]) -> Table:
    return Table(
        ("run", "phases", "phases of the estimate"), tuple((one.run, one.phases, one.estimated_phases) for one in found), frozenset()
    )
