"""Do the intervals hold? Every source, or every architecture, left out in turn and predicted from the others.

`python -m calibration.fit --check` prints it; docs/accuracy.md has it. Rates come with the interval of Clopper and Pearson (95 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from calibration.accuracy_published import explanations
from calibration.accuracy_tables import Table, percent, quantile
from calibration.fit import FIGURES, PHASES, Fits
from calibration.residual_rows import PEAK, Row
from estimator.residual import Spread, ends

CONFIDENCE = 0.95
PAST = 0.03  # an under-prediction beyond this must be explained by name (DESIGN, section 6)


@dataclass(frozen=True)
class Held:
    """A row predicted without its source or architecture, bytes. `high`: the 99 % bound of the parts that lie between the figures.

    `wider`: the bound that the product uses, of all parts: for emulated runs that of cards besides.
    """

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
        fits = Fits([row for row in rows if row.source != source])
        for row in rows:
            if row.source == source and row.outcome == PEAK:
                spread = fits.spread(row.figure, row.phase, parts="card" if row.kind == "step" else "both")
                held.append(_held(row, spread, spread))
    return held


def architectures_left_out(rows: Sequence[Row]) -> list[Held]:
    """Phases of emulated runs, each predicted from all architectures but its own."""
    held, whole = [], Fits(rows)
    for arch in sorted({row.arch for row in rows if row.kind == "emulated"}):
        fits = Fits([row for row in rows if row.arch != arch or row.kind != "emulated"], whole)
        places = [(figure, phase) for figure in FIGURES for phase in PHASES]
        spreads = {place: (fits.spread(*place, parts="replay"), fits.spread(*place)) for place in places}
        held += [_held(row, *spreads[row.figure, row.phase]) for row in rows if row.kind == "emulated" and row.arch == arch]
    return held


def _held(row: Row, spread: dict[str, float], whole: dict[str, float]) -> Held:
    likely, high, wider = (
        ends(row.replayed_bytes, Spread(**{**each, "low_bytes": int(each["low_bytes"]), "high_bytes": int(each["high_bytes"])}))[end]
        for each, end in ((spread, 1), (spread, 2), (whole, 2))
    )
    return Held(row, likely, high, wider)


def coverage_table(held: Sequence[Held], what: str) -> Table:
    """By source or architecture (`what`: a field of Row), and all together. "above the truth": the bound, median, in %."""
    header = (
        what, "figure", "rows", "median %", "95th %", "worst under", "within 5 %", "99 % bound holds", "above the truth",
        "bound of the product holds",
    )  # fmt: skip
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
            rate(sum(one.row.observed_bytes <= one.wider_bytes for one in chosen), len(chosen)),
        ))  # fmt: skip
    return Table(header, tuple(lines), frozenset(range(2, 6)) | {8})


def exceptions(found: Check) -> list[str]:
    """Rows under-predicted beyond PAST, or beyond their bound; of a run only the worst in each phase and figure."""
    worst: dict[tuple[str, str, str], Held] = {}
    for one in (*found.real, *found.emulated):
        if one.error < -PAST or not one.holds:
            key = (one.row.source, one.row.phase, one.row.figure) if one.row.kind == "emulated" else (one.row.row, "", one.row.figure)
            worst[key] = min(worst.get(key, one), one, key=lambda each: each.error)
    why = explanations()
    return [
        f"{one.row.source} {one.row.row} ({one.row.figure}): {percent(one.error)} %, bound {'holds' if one.holds else 'missed'}"
        + (f": {why[one.row.row]}" if one.row.kind == "card" and one.row.row in why else "")
        for one in sorted(worst.values(), key=lambda one: one.error)
    ]


@dataclass(frozen=True)
class Check:
    """Both checks."""

    real: Sequence[Held]
    emulated: Sequence[Held]

    def parts(self) -> list[tuple[str, Table]]:
        alone = "Emulated runs, each architecture left out in turn; the bound is that of the replay alone"
        return [
            ("Real cards, each source left out in turn", coverage_table(self.real, "source")),
            (alone, coverage_table(self.emulated, "arch")),
        ]


def check(rows: Sequence[Row]) -> Check:
    """Leave every source, and every architecture, out in turn."""
    return Check(sources_left_out(rows), architectures_left_out(rows))


def text(found: Check) -> str:
    """For a screen."""
    parts = [f"{title}\n{table.text()}" for title, table in found.parts()]
    return "\n\n".join([*parts, "Under-predicted beyond 3 %, or beyond the bound\n" + ("\n".join(exceptions(found)) or "none")])


def markdown(found: Check) -> str:
    """For the page."""
    parts = [f"{title}:\n\n{table.markdown()}\n" for title, table in found.parts()]
    worst = "\n".join(f"- {line}" for line in exceptions(found)) or "None."
    return "\n".join([*parts, f"Under-predicted beyond 3 %, or beyond the bound:\n\n{worst}\n"])
