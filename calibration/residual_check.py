"""Do the intervals hold? Every source, or every architecture, left out in turn and predicted from the others; verdicts beside what happened.

`python -m calibration.fit --check` prints it; docs/accuracy.md has it. Rates come with the interval of Clopper and Pearson (95 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from calibration.accuracy_tables import Table, percent, quantile
from calibration.fit import FIGURES, UNCHECKED, Both
from calibration.residual_rows import PEAK, Row
from estimator.residual import Spread, ends

CONFIDENCE = 0.95
PAST = 0.03  # an under-prediction beyond this must be explained by name (DESIGN, section 6)


@dataclass(frozen=True)
class Held:
    """A row predicted without its source or architecture, bytes. `high`: the 99 % bound; `wider`: with what the product adds unchecked."""

    row: Row
    likely_bytes: float
    high_bytes: float
    wider_bytes: float

    @property
    def error(self) -> float:
        return self.likely_bytes / self.row.observed_bytes - 1

    @property
    def holds(self) -> bool:
        """Whether the figure is at most the bound; for an outcome: it does not contradict the likely figure at its bound."""
        return self.row.observed_bytes <= self.high_bytes


def clopper_pearson(hits: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of a rate of `hits` in `count`."""
    from scipy.stats import beta

    if not count:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(1 - tail, hits + 1, count - hits)) if hits < count else 1.0


def rate(hits: int, count: int) -> str:
    """ "49 of 50, 98.0 % (89.4 to 99.9)" """
    if not count:
        return "none"
    low, high = clopper_pearson(hits, count)
    return f"{hits} of {count}, {100 * hits / count:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def sources_left_out(rows: Sequence[Row]) -> list[Held]:
    """Peaks of real cards, each predicted from all sources but its own."""
    held = []
    for source in sorted({row.source for row in rows if row.kind != "emulated" and row.outcome == PEAK}):
        others = [row for row in rows if row.source != source]
        for figure in FIGURES:
            left = [row for row in rows if row.source == source and row.figure == figure and row.outcome == PEAK]
            if not left:
                continue
            both = Both(others, figure)
            held += [_held(row, both.spread(row.phase, parts="card" if row.kind == "step" else "both"), 0.0) for row in left]
    return held


def architectures_left_out(rows: Sequence[Row]) -> list[Held]:
    """Phases of emulated runs, each predicted from all architectures but its own."""
    held = []
    for arch in sorted({row.arch for row in rows if row.kind == "emulated"}):
        others = [row for row in rows if row.kind == "emulated" and row.arch != arch]
        for figure in FIGURES:
            both = Both(others, figure)
            for row in rows:
                if row.kind == "emulated" and row.arch == arch and row.figure == figure:
                    held.append(_held(row, both.spread(row.phase, parts="replay"), UNCHECKED["arch"]))
    return held


def _held(row: Row, spread: dict[str, float], more: float) -> Held:
    one = Spread(**{**spread, "low_bytes": int(spread["low_bytes"]), "high_bytes": int(spread["high_bytes"])})
    _, likely, high = ends(row.replayed_bytes, one)
    return Held(row, likely, high, ends(row.replayed_bytes, one.widened(1.0, more))[2])


def coverage_table(held: Sequence[Held], what: str) -> Table:
    """By source or architecture (`what`: a field of Row), and all together."""
    header = (what, "figure", "rows", "median %", "95th %", "worst under", "within 5 %", "99 % bound holds", "bound above the truth, median")
    lines = []
    groups = sorted({(getattr(one.row, what), one.row.figure) for one in held})
    for group, figure in [*groups, *(("all", figure) for figure in FIGURES)]:
        chosen = [one for one in held if one.row.figure == figure and group in ("all", getattr(one.row, what))]
        if not chosen:
            continue
        sizes = [abs(one.error) for one in chosen]
        lines.append((
            group, figure, str(len(chosen)), f"{100 * median(sizes):.2f}", f"{100 * quantile(sizes, 0.95):.2f}",
            percent(min(0.0, *(one.error for one in chosen), 0.0)), rate(sum(size <= 0.05 for size in sizes), len(sizes)),
            rate(sum(one.holds for one in chosen), len(chosen)),
            percent(median(one.high_bytes / one.row.observed_bytes - 1 for one in chosen)),
        ))  # fmt: skip
    return Table(header, tuple(lines), frozenset(range(2, 6)) | {8})


def exceptions(held: Sequence[Held]) -> list[str]:
    """Rows under-predicted beyond PAST, or beyond their bound."""
    return [
        f"{one.row.source} {one.row.row} ({one.row.figure}): {percent(one.error)} %, bound {'holds' if one.holds else 'missed'}"
        for one in sorted(held, key=lambda one: one.error)
        if one.error < -PAST or not one.holds
    ]


def report(rows: Sequence[Row]) -> str:
    """Both checks as text."""
    real, emulated = sources_left_out(rows), architectures_left_out(rows)
    parts = [
        "Real cards, each source left out in turn\n" + coverage_table(real, "source").text(),
        "Emulated runs, each architecture left out in turn (replay's part alone)\n" + coverage_table(emulated, "arch").text(),
        "Under-predicted beyond 3 %, or beyond the bound\n" + ("\n".join(exceptions([*real, *emulated])) or "none"),
    ]
    return "\n\n".join(parts)
