"""Rows of a calibration -> an overlay: the card's context, torch's workspace, and how far measured and predicted were apart. Pure.

A step cell is shallow, so that its weights are few and its activations much: a difference between measured and predicted is carried over to
the whole depth by the program (difference x activations of the whole / of the cell) before it is a share of anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from calibration.oncard import cells
from calibration.oncard.reduced import whole_activations_bytes, whole_bytes
from calibration.oncard.rows import NOT_MEASURED, digest, measured
from estimator.intervals import profile
from estimator.overlay import Overlay, Range
from estimator.residents import workspace_bytes_for
from estimator.residual import ANY_PHASE, FIGURES, Interval, Residual, Seen, Spread

PHASES_OF = {cells.STEP: "train"}
"""Phases whose residual step cells tell."""
BOUND, STRIPS = 0.99, 4000
CONTEXT_SLACK_BYTES = 64 * 2**20
"""Above the largest context seen: kernels of a real job that no cell launches (assumed)."""


def overlay_of(header: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], rows_file: str) -> Overlay:
    """The overlay. Raises ValueError where no cell went through."""
    kept = list(measured(rows).values())
    done = [row for row in kept if row["outcome"] == "ok"]
    outside = [int(row["outside_bytes"]) for row in done if row["part"] != cells.LIMIT]
    if not outside:
        raise ValueError("no cell went through")
    shares = {figure: train_shares(done, figure) for figure in FIGURES}
    archs = dict.fromkeys(str(row["arch"]) for row in done if row["part"] == cells.STEP)
    ratios = [Range(1 + min(found), 1 + median(found), 1 + max(found)) if found else Range(1, 1, 1) for found in shares.values()]
    card = header["card"]
    return Overlay(
        card=card["name"], device=card["device"], total_bytes=card["total_bytes"], compute_capability=card["compute_capability"],
        os=card["os"], emulated=card["emulated"], made={**header["made"], "date": header["date"], "command": header["command"]},
        context=context(done, outside), workspace_bytes=workspace(done, card["compute_capability"]), others_bytes=header["others_bytes"],
        allocated=ratios[0], reserved=ratios[1], cells=len(done), residual=residual(shares, done, card["emulated"]),
        seen=tuple(one for arch in archs if (one := seen_of(arch, done)) is not None),
        rows={"file": rows_file, "sha256": digest([_identity(header), *kept]), "count": len(kept)},
    )  # fmt: skip


def _identity(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in header.items() if name not in NOT_MEASURED}


def context(done: Sequence[Mapping[str, Any]], outside: Sequence[int]) -> Range:
    """Lowest seen; the largest of a cell with all its kernels loaded, which is what a job comes to; and some more."""
    bare = [int(row["context_bare_bytes"]) for row in done if "context_bare_bytes" in row]
    lowest, largest = max(0, min([*outside, *bare])), max(0, *outside)
    return Range(lowest, largest, largest + CONTEXT_SLACK_BYTES)


def workspace(done: Sequence[Mapping[str, Any]], compute_capability: str) -> int:
    found = [int(row["workspace_bytes"]) for row in done if row.get("workspace_bytes")]
    return found[0] if found else workspace_bytes_for(compute_capability)


def train_shares(done: Iterable[Mapping[str, Any]], figure: str) -> list[float]:
    """Measured / predicted - 1 of each step cell, carried over to the whole depth. `figure`: "allocated" or "reserved"."""
    out = []
    for row in done:
        if row["part"] == cells.STEP and row.get(f"predicted_{figure}_bytes"):
            cell = cells.of_row(row)
            more = int(row[f"max_{figure}_bytes"]) - int(row[f"predicted_{figure}_bytes"])
            own = int(row["predicted_allocated_bytes"]) - int(row["allocated_start_bytes"])
            out.append(round(more * whole_activations_bytes(cell) / max(own, 1) / whole_bytes(cell), 6))
    return out


def residual(shares: Mapping[str, Sequence[float]], done: Sequence[Mapping[str, Any]], emulated: bool) -> Residual | None:
    """The shipped residual, with training's and cuDNN's workspace as found on this card; None where no step cell went through.

    Training's spread is about the median of the cells, and wider than the shipped one by the farthest of them.
    """
    if not all(shares.values()):
        return None
    shipped = profile().residual
    spreads: dict[str, dict[str, Spread]] = {}
    for figure, found in shares.items():
        own = dict(shipped.allocated if figure == "allocated" else shipped.reserved)
        for phase in PHASES_OF.values():
            old, bias = shipped.spread(figure, phase), median(found)
            low, high = (max(0.0, bias - min(found)), max(0.0, max(found) - bias))
            low, high = (round(math.hypot(*sides), 6) for sides in ((low, old.low_share), (high, old.high_share)))
            own[phase] = Spread(low, high, old.low_bytes, old.high_bytes, round(bias, 6), old.added_bytes)
        own.setdefault(ANY_PHASE, shipped.spread(figure, ANY_PHASE))
        spreads[figure] = own
    pixel = cudnn_per_pixel(done) or shipped.cudnn_bytes_per_pixel
    where = "the emulated device" if emulated else "this card"
    words = f"{shipped.source}; and {len(shares['allocated'])} step cells on {where}"
    return Residual(spreads["allocated"], spreads["reserved"], pixel, words)


def seen_of(arch: str, done: Sequence[Mapping[str, Any]]) -> Seen | None:
    """What the step cells of an architecture say of it on this card; None where none was predicted."""
    found = {figure: train_shares([row for row in done if row.get("arch") == arch], figure) for figure in FIGURES}
    if not all(found.values()):
        return None
    return Seen(arch, len(found["allocated"]), *(spread_of_cells(found[figure]) for figure in FIGURES))


def spread_of_cells(shares: Sequence[float]) -> Spread:
    """How far another step may be from the middle of such cells: the 1 % and 99 % points of Student's distribution that is left when the
    spread that is expected of cells (the profile's `cells`: a share, and how many cells it is worth) is brought together with theirs, and
    wide enough for all of them.

    Squares of spreads are averaged by how many cells each is worth; the middle is itself uncertain by their spread over the root of them.
    """
    expected, count, middle = profile().cells, len(shares), sum(shares) / len(shares)
    worth = expected["worth"] + count - 1
    square = (expected["worth"] * expected["share"] ** 2 + sum((share - middle) ** 2 for share in shares)) / worth
    distance = student_quantile(BOUND, worth) * math.sqrt(square * (1 + 1 / count))
    low, high = max(distance, middle - min(shares)), max(distance, max(shares) - middle)
    return Spread(round(low, 6), round(high, 6), share=round(middle, 6))


def student_quantile(chance: float, freedom: float) -> float:
    """The point below which Student's distribution of so many degrees of freedom lies with this chance, at least one half."""
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)

    def above(point: float) -> float:  # from the point on: in u = point / x, which is finite
        places = (np.arange(STRIPS) + 0.5) / STRIPS
        at = point / places
        return float(np.mean(constant * (1 + at**2 / freedom) ** (-(freedom + 1) / 2) * point / places**2))

    low, high = 1e-9, 1.0
    while above(high) > 1 - chance:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) > 1 - chance else (low, middle)
    return high


def cudnn_per_pixel(done: Iterable[Mapping[str, Any]]) -> Interval | None:
    """What the VAE's convolutions took beside what is predicted without cuDNN's workspaces, per pixel: least, likely, most.

    Likely is the decoder's at the largest image: it takes more than the encoder, for which the figure serves as well. None without one.
    """
    found: dict[str, list[tuple[int, int]]] = {part: [] for part in cells.OF_IMAGES}
    for row in done:
        if row["part"] in found and row.get("predicted_allocated_bytes"):
            pixels, more = int(row["width"]) * int(row["height"]), int(row["max_allocated_bytes"]) - int(row["predicted_allocated_bytes"])
            found[str(row["part"])].append((pixels, max(0, round(more / pixels))))
    if not found[cells.DECODE]:
        return None
    likely, every = max(found[cells.DECODE])[1], [size for sizes in found.values() for _, size in sizes]
    return Interval(min(every), likely, max(every))
