"""Drawing with matplotlib, readable in print and by the colour-blind: Okabe and Ito's colours, and lines that differ in dashes too."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from estimator.errors import InputError, Problem
from estimator.estimate import OOM, SAFE, Estimate, PhaseEstimate
from estimator.gpus import GIB
from estimator.job import Place
from estimator.kernels import without_flash
from estimator.plots.curves import OVERS, Curve, Curves
from estimator.report_words import component, row_name

ENDINGS = (".png", ".svg", ".pdf")
INSTALL = "pip install matplotlib"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999")
COLOUR_OF = dict(zip(("transformer", "text_encoder", "activations", "adapter", "optimizer"), COLOURS, strict=False))
"""The same component has the same colour in every picture."""
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")
SIZE_INCHES, DOTS_PER_INCH = (8.0, 5.0), 150
TOP = 1.6  # curves are shown up to so many times the card
MOST_COMPONENTS = 6
MOST_PHASES = 14


def check_picture(target: str) -> None:
    """Raises InputError, before any work, where the picture could not be written."""
    place, folder = Place("--out", ""), os.path.dirname(target) or "."
    if not target.endswith(ENDINGS):
        raise InputError(Problem(f"{target}: must end in {', '.join(ENDINGS)}", place, "it tells the kind of picture", "rename it"))
    if not os.path.isdir(folder):
        raise InputError(Problem(f"{folder}: no such folder", place, "", "make it first, or write somewhere else"))
    _figure_class()


def _figure_class() -> Any:
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        why = f"{error.name} is not installed"
        raise InputError(Problem("pictures are drawn with matplotlib", None, why, INSTALL)) from None


def _new(title: str, pad: float = 6) -> tuple[Any, Any]:
    figure = _figure_class()(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, pad=pad)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, target: str) -> None:
    try:
        figure.savefig(target)
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(Problem(f"{target}: cannot be written", Place("--out", ""), why, "check the path")) from None


def draw_curves(made: Curves, target: str) -> None:
    """Lines over a setting, the interval as a band, the card as a line, what is safe below it shaded, the config's own point."""
    figure, axes = _new(f"{_short(made.name)} on {made.gpu.name}: memory over {made.over}", pad=20)
    total, last = made.gpu.total_bytes / GIB, OVERS[made.over][0][-1]
    for number, line in enumerate(made.lines):
        colour = COLOURS[number % len(COLOURS)]
        x = [point.value for point in line.points]
        axes.fill_between(x, [p.low_gib for p in line.points], [p.high_gib for p in line.points], color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, [p.likely_gib for p in line.points], DASHES[number % len(DASHES)], color=colour, label=_label(line, last))
        if line.last_safe is not None:
            point = line.last_safe
            axes.plot(point.value, point.likely_gib, MARKERS[number % len(MARKERS)], color=colour, markersize=7, clip_on=False)
    if made.own is not None:
        axes.plot(*made.own, "*", color="black", markersize=13, label=f"the config, replayed: {made.verdict}", zorder=5, clip_on=False)
    axes.axhspan(0, total, color="#009E73", alpha=0.06, linewidth=0)
    axes.axhline(total, color="black", linewidth=1.2)
    axes.annotate(
        f"{made.gpu.name}: {total:.2f} GiB", (0.01, total), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points",
        fontsize=9, bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
    )  # fmt: skip
    highest = max([total * 1.15, *(p.high_gib for line in made.lines for p in line.points), made.own[1] if made.own else 0])
    axes.set_ylim(0, min(highest, total * TOP))
    axes.set_xlim(OVERS[made.over][0][0], last)
    axes.set_xlabel(OVERS[made.over][1])
    axes.set_ylabel("GiB the card must have")
    axes.grid(axis="y", alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    markers = "No markers: nothing is called safe here." if without_flash(made.gpu) else "Markers: the last value that is safe by replay."
    note = f"Lines: peak rows and context; bands: low to high. {markers}"
    axes.annotate(note, (0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points", fontsize=8, color="#444444")
    _save(figure, target)


def _label(line: Curve, end: int) -> str:
    if line.last_safe is None:
        return f"{line.label}: not safe here"
    return f"{line.label}: safe up to {line.last_safe.value}{' at least' if line.last_safe.value == end else ''}"


def draw_timeline(estimate: Estimate, target: str) -> None:
    """Each phase's bytes by component, torch's cache and what lies outside torch, under the card's line."""
    gpu = estimate.gpu
    phases = list({row_name(phase): phase for phase in estimate.phases}.values())[:MOST_PHASES]
    figure, axes = _new(f"{_short(estimate.job.name)} on {gpu.name}: {estimate.verdict}, phase by phase")
    places, total = range(len(phases)), gpu.total_bytes / GIB
    bottom = [0.0] * len(phases)

    def stack(label: str, sizes: list[float], colour: str, hatch: str = "") -> None:
        axes.bar(places, sizes, 0.75, bottom, label=label, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4)
        bottom[:] = [low + size for low, size in zip(bottom, sizes, strict=True)]

    names = _largest({name: max(p.components.get(name, 0) for p in phases) for p in phases for name in p.components})
    spare = iter(colour for colour in COLOURS if colour not in {COLOUR_OF.get(name) for name in names})
    for name in names:
        stack(component(name), [p.components.get(name, 0) / GIB for p in phases], COLOUR_OF.get(name) or next(spare))
    rest = [sum(size for name, size in p.components.items() if name not in names) / GIB for p in phases]
    stack("smaller parts", rest, "#BBBBBB")
    outside = gpu.context_bytes + gpu.desktop_bytes
    slack = [min(p.device.likely_bytes, gpu.total_bytes) - p.allocated_bytes - outside for p in phases]  # cache gives way on a full card
    cache = [max(size, 0) / GIB if p.verdict != OOM else 0.0 for p, size in zip(phases, slack, strict=True)]
    stack("torch's cache", cache, "#DDDDDD", "///")
    stack("outside torch", [outside / GIB] * len(phases), "#444444")
    high = [b if p.verdict == OOM else _high(p, gpu.total_bytes) for p, b in zip(phases, bottom, strict=True)]
    axes.errorbar(
        places, bottom, [[0] * len(phases), [max(h - b, 0) for h, b in zip(high, bottom, strict=True)]], fmt="none", ecolor="black",
        capsize=3, linewidth=1, label="up to high",
    )  # fmt: skip
    axes.axhline(total, color="black", linewidth=1.2, label=f"the card: {total:.2f} GiB")
    axes.set_xticks(places, [row_name(phase) for phase in phases], rotation=40, ha="right", fontsize=8)
    axes.set_ylabel("GiB on the card at the phase's peak")
    axes.set_ylim(0, max(total, *bottom, *high) * 1.1)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    _save(figure, target)


def _high(phase: PhaseEstimate, total_bytes: int) -> float:
    """A safe phase takes no more than the card has: torch's cache gives way."""
    return (min(phase.device.high_bytes, total_bytes) if phase.verdict == SAFE else phase.device.high_bytes) / GIB


def _largest(sizes: Mapping[str, int]) -> list[str]:
    """The largest components, those with a colour of their own first."""
    largest = sorted(sizes, key=lambda name: -sizes[name])[:MOST_COMPONENTS]
    return sorted(largest, key=lambda name: list(COLOUR_OF).index(name) if name in COLOUR_OF else len(COLOUR_OF))


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:37]}..."
