"""docs/img/accuracy.png: predicted against measured. matplotlib is needed (extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calibration.residual_rows import PEAK, Row
from estimator.intervals import profile
from estimator.residual import ends

GIB = 2**30
# Okabe and Ito's colours, told apart by colour-blind readers; shapes differ as well. (kind, figure) -> label, colour, marker, size.
KINDS = {
    ("emulated", "reserved"): ("emulated run, reserved", "#56B4E9", "o", 10),
    ("emulated", "allocated"): ("emulated run, allocated", "#999999", ".", 8),
    ("step", "reserved"): ("published step of a real card, by the emulated device, reserved", "#D55E00", "^", 34),
    ("card", "allocated"): ("published peak of a real card, allocated", "#000000", "s", 40),
    ("card", "reserved"): ("published peak of a real card, reserved", "#009E73", "D", 40),
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Every peak: predicted over measured on the left, the error in per cent on the right, beside the bounds of training, reserved."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"font.size": 9})
    import numpy as np
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    for (kind, what), (label, colour, marker, size) in KINDS.items():
        chosen = [row for row in rows if row.outcome == PEAK and (row.kind, row.figure) == (kind, what)]
        if not chosen:
            continue
        measured = np.array([row.observed_bytes for row in chosen]) / GIB
        predicted = np.array([row.replayed_bytes for row in chosen]) / GIB
        style = {"s": size, "c": colour, "marker": marker, "linewidths": 0, "zorder": 2 if kind == "emulated" else 3}
        left.scatter(measured, predicted, label=label, **style)
        right.scatter(measured, 100 * (predicted / measured - 1), **style)
    span = np.geomspace(0.3, 110, 200)
    low, _, high = ends(span * GIB, profile().residual.spread("reserved", "train"))
    left.plot(span, span, color="black", linewidth=0.6, zorder=1)
    edges = 100 * (span * GIB / high - 1), 100 * (span * GIB / np.maximum(low, 1) - 1)
    right.fill_between(span, *edges, color="#F0E442", alpha=0.35, zorder=0, linewidth=0)
    right.text(100, 5.1, "1 % to 99 % bounds, training, reserved", ha="right", va="bottom", fontsize=8)
    right.axhline(0, color="black", linewidth=0.6, zorder=1)
    left.set(xscale="log", yscale="log", xlabel="measured [GiB]", ylabel="predicted [GiB]", xlim=(0.3, 110), ylim=(0.3, 110))
    right.set(xscale="log", xlabel="measured [GiB]", ylabel="predicted over measured [%]", xlim=(0.3, 110), ylim=(-9, 9))
    left.legend(loc="upper left", fontsize=7, frameon=False, handletextpad=0.3)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#DDDDDD", linewidth=0.4, zorder=0)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
