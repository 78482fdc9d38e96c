"""Fits the residual and writes profiles/residuals.json: what makes an estimate's low and high.

    python -m calibration.residual_rows                   # first, after estimates have changed: the rows (minutes)
    python -m calibration.fit [--write] [--check]         # scipy needed: pip install '.[calibrate]'

Two fits for each figure (residual_model says what is fitted, and with which priors):
- *replay*: estimates against whole runs on the emulated device, groups architecture, kind of weights, optimizer;
- *card*: the emulated device, or an estimate, against published figures of real cards, groups trainer and card generation. Few, so the
  priors matter.
A figure on a card is off by both. `--write` takes the 1 %, 50 % and 99 % points, drawn with the uncertainty of all parameters, into the
profile; beside it those of the replay alone (`runs`), which hold where a card's own step cells stand for the rest, and what is expected
of such cells before any is seen (`cells`). `--check` leaves out one source, or one architecture, after the other (residual_check).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from calibration import residual_model as model
from calibration.residual_model import CARD, MIB, REPLAY, Fitted, Floats
from calibration.residual_rows import Row, read

PROFILE = Path(__file__).resolve().parent.parent / "profiles" / "residuals.json"
PARAMETERS = Path(__file__).parent / "data" / "residual_fit.json"
CHECK = Path(__file__).parent / "data" / "interval_check.md"
FIGURES = ("allocated", "reserved")
PHASES = ("load", "cache_latents", "cache_text", "prepare", "sample", "train", "save")
# What an estimate of allocated bytes misses is a tensor, which is missed wherever it is alive: rows of one run are one observation, and
# phases have one spread. What it misses of reserved ones is how blocks lie, which is another thing in each phase.
FITTED = {"allocated": ("run",), "reserved": PHASES}
REPLAY_GROUPS, CARD_GROUPS = ("arch", "weights", "optimizer"), ("trainer", "generation")
DRAWS, SEED = 200_000, 5
LOW, HIGH = 0.01, 0.99
NORMAL_99 = 2.326  # 99 % point of the normal distribution, for a group's effect
# FluxPipeline's decoder at 1024 x 1024, batch 1, bf16: a real H100 peaked 2470.9 MiB over the model (diffusers-torchao's
# table), the emulated device 1573.0 MiB without workspaces and 2471.0 MiB with its `layout` estimate. For larger batches the
# real card took less than the estimate: so the estimate is the upper end, none the lower, and at batch 1 the likely figure.
CUDNN_BYTES_PER_PIXEL = (0, round((2471.0 - 1573.0) * MIB / 1024**2), round((2471.0 - 1573.0) * MIB / 1024**2))
# What a value that no whole run has gone through adds on either side, as a share of the figure (at the 99 % bound). Named assumptions, of
# the size of what validation found when such a thing was first run (docs/log.md: text caching under autograd, Prodigy's copy): an
# architecture or a kind of weights, 3 %; an optimizer's state, which is a share of the whole, 1 %; another trainer's step, 5 %; layer
# offloading, whose copies run in streams of their own while the emulated device completes everything at once, 3 %; compiled blocks, of
# which the compiler's choice of what is kept was seen on that device, but none of its kernels, 3 %.
UNCHECKED = {"arch": 0.03, "weights": 0.03, "optimizer": 0.01, "trainer": 0.05, "offloading": 0.03, "compiled": 0.03}
# By how much less compiled blocks may take: steps with the compiler's choice of what is kept took up to 24 % less (docs/log.md, Compiled
# blocks); what fused kernels save besides is not known.
COMPILED_LESS = 0.35


class Fits:
    """The fits, and draws of what a figure on a card is off by. `replay`: of each figure; `card`: of both, None without a row of a card.

    `beside`: fits whose rows of cards are the same: that of cards is taken from them.
    """

    def __init__(self, rows: Sequence[Row], beside: Fits | None = None) -> None:
        inner = {figure: [row for row in rows if row.kind == "emulated" and row.figure == figure] for figure in FIGURES}
        self.replay = {
            figure: model.fit(farthest(chosen, by_phase=len(FITTED[figure]) > 1), REPLAY_GROUPS, FITTED[figure], REPLAY[figure])
            for figure, chosen in inner.items()
        }
        # Of cards there is too little for each figure, and both are made by the same allocator: all peaks, and the outcomes.
        outer = [row for row in rows if row.kind != "emulated"]
        self.card = beside.card if beside is not None else None
        if beside is None and outer:
            self.card = model.fit(outer, CARD_GROUPS, ("card",), CARD, [self.known(row) for row in outer])
        self._drawn = {id(part): part.draws(DRAWS, SEED) for part in self.replay.values()}
        if self.card is not None:
            self._drawn[id(self.card)] = self.card.draws(DRAWS, SEED) if beside is None else beside._drawn[id(self.card)]

    def known(self, row: Row) -> float:
        """Spread in bytes that the replay adds to a row of a card; none where the device itself stands for the estimate."""
        if row.kind == "step":
            return 0.0
        replay = self.replay[row.figure]
        at = dict(zip(replay.names, replay.values, strict=True))
        added = math.exp(at["log_added"]) * MIB, replay.priors.least_bytes
        return float(math.hypot(math.exp(at[f"log_share/{_of(replay, row.phase)}"]) * row.replayed_bytes, *added))

    def spread(self, figure: str, phase: str, parts: str = "both") -> dict[str, float]:
        """Shares and bytes of a Spread (estimator.residual): of a job whose groups were checked. `parts`: both, replay or card.

        The points of both are found apart and added in quadrature, as all independent distances are: what a tail is beyond its own 99 %
        point, where there are no rows, then counts for nothing.
        """
        replay = self.replay[figure]
        chosen = [(replay, _of(replay, phase), _mix)] * (parts != "card")
        chosen += [(self.card, "card", _new)] if self.card is not None and parts != "replay" else []
        points = []
        for fitted, of, effect in chosen:
            share, added = _parts(fitted, self._drawn[id(fitted)], of, np.random.default_rng(SEED), effect)
            value, error = fitted.error(f"bias/{of}")
            points.append(_points(share, added, abs(value) > 2 * error))  # a bias counts where it is twice its error from zero
        out = {name: round(math.hypot(*(one[name] for one in points)), 5 if name.endswith("share") else None) for name in points[0]}
        return {**out, "share": round(sum(one["share"] for one in points), 5)}

    def expected_of_cells(self) -> dict[str, float]:
        """Of the step cells of one card, before any is seen: their `share`, the spread of rows of real cards about their common middle, and
        how many cells it is `worth`: a spread whose logarithm is known to a standard error of e is like one found from 1 / (2 e^2) rows.
        """
        if self.card is None:
            return {"share": CARD.share, "worth": round(1 / (2 * CARD.share_factor**2), 2)}
        logs = self._drawn[id(self.card)]["log_share/card"]
        return {"share": round(float(np.exp(np.median(logs))), 5), "worth": round(float(1 / (2 * np.var(logs))), 2)}


def _of(fitted: Fitted, phase: str) -> str:
    """The phase of a fit that holds for a phase."""
    return phase if phase in fitted.phases else fitted.phases[0]


def farthest(rows: Sequence[Row], by_phase: bool) -> list[Row]:
    """Of each run, or of each of its phases, the row that is farthest from its estimate: they are one observation, and a run fits where its
    worst does.
    """
    worst: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.source, row.phase if by_phase else "")
        known = worst.setdefault(key, row)
        if abs(row.observed_bytes / row.replayed_bytes - 1) > abs(known.observed_bytes / known.replayed_bytes - 1):
            worst[key] = row
    return list(worst.values())


Effect = Callable[[Fitted, Mapping[str, Floats], str, np.random.Generator], Floats]


def _mix(fitted: Fitted, drawn: Mapping[str, Floats], kind: str, generator: np.random.Generator) -> Floats:
    """The effect of a group that was checked: any of them."""
    members = fitted.groups[kind]
    chosen = generator.integers(len(members), size=DRAWS)
    effects = np.stack([drawn[f"{kind}/{group}"] for group in members])
    return np.asarray(effects[chosen, np.arange(DRAWS)] * np.exp(drawn[f"log_between/{kind}"]))


def _new(fitted: Fitted, drawn: Mapping[str, Floats], kind: str, generator: np.random.Generator) -> Floats:
    """The effect of a group of its own: no two cards or trainers are alike."""
    return np.asarray(generator.standard_normal(DRAWS) * np.exp(drawn[f"log_between/{kind}"]))


def _parts(
    fitted: Fitted, drawn: Mapping[str, Floats], phase: str, generator: np.random.Generator, effect: Effect
) -> tuple[Floats, Floats]:
    """Draws of the multiplicative part (a share) and of the additive one (bytes)."""
    freedom = np.exp(drawn["log_freedom"])
    share = drawn[f"bias/{phase}"] + np.exp(drawn[f"log_share/{phase}"]) * generator.standard_t(freedom)
    for kind in fitted.groups:
        share = share + effect(fitted, drawn, kind, generator)
    return share, np.hypot(np.exp(drawn["log_added"]) * MIB, fitted.priors.least_bytes) * generator.standard_t(freedom)


def _points(share: Floats, added: Floats, biased: bool) -> dict[str, float]:
    """Distances of the outer points from the middle; where there is no bias the middle is none."""
    low, middle, high = np.quantile(share, (LOW, 0.5, HIGH))
    middle = middle if biased else 0.0
    less, _, more = np.quantile(added, (LOW, 0.5, HIGH))
    return {
        "low_share": round(float(middle - low), 5),
        "high_share": round(float(high - middle), 5),
        "low_bytes": round(float(-less)),
        "high_bytes": round(float(more)),
        "share": round(float(middle), 5),
    }


def spreads_of(fits: Fits, parts: str) -> dict[str, dict[str, dict[str, float]]]:
    """Figure -> phase -> spread, with the widest for any other phase."""
    spreads = {figure: {phase: fits.spread(figure, phase, parts) for phase in PHASES} for figure in FIGURES}
    for phases in spreads.values():
        phases["any"] = max(phases.values(), key=lambda one: one["high_share"])
    return spreads


def profile(rows: Sequence[Row]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The profile as it is written, and the parameters that it was made of, with their standard errors."""
    fits = Fits(rows)
    emulated, real = [row for row in rows if row.kind == "emulated"], [row for row in rows if row.kind != "emulated"]
    checked = {kind: sorted({getattr(row, kind) for row in emulated}) for kind in ("weights", "optimizer", "trainer")}
    generations = sorted({row.generation for row in real if row.outcome == "peak"})
    between = 0.0 if fits.card is None else math.exp(fits.card.error("log_between/generation")[0])
    runs = f"{len({row.source for row in emulated})} emulated runs of the trainer"
    return {
        "schema": 1,
        "source": f"low and high are 1 % and 99 % bounds, from {runs} and {len(real)} published rows of real cards "
        f"({len({row.source for row in real})} sources)",
        "made": {
            "command": "python -m calibration.fit --write",
            "date": datetime.now(UTC).date().isoformat(),
            "versions": _versions(),
            "rows": {kind: sum(row.kind == kind for row in rows) for kind in ("emulated", "step", "card")},
            "sources": {kind: len({row.source for row in rows if row.kind == kind}) for kind in ("emulated", "step", "card")},
        },
        "spreads": spreads_of(fits, "both"),
        "runs": {"source": runs, **spreads_of(fits, "replay")},
        "cells": fits.expected_of_cells(),
        "cudnn_bytes_per_pixel": list(CUDNN_BYTES_PER_PIXEL),
        "checked": {**checked, "offloading": ["off"], "compiled": ["off"], "generation": generations},
        "compiled": COMPILED_LESS,
        "unchecked": {**UNCHECKED, "generation": round(NORMAL_99 * between, 5)},
    }, fitted(fits)


def fitted(fits: Fits) -> dict[str, dict[str, list[float]]]:
    """Every parameter with its standard error."""
    parts = {f"replay {figure}": part for figure, part in fits.replay.items()} | ({"card": fits.card} if fits.card is not None else {})
    return {name: {each: [round(value, 5) for value in part.error(each)] for each in part.names} for name, part in parts.items()}


def _versions() -> dict[str, str]:
    """What the emulated runs were made with."""
    from calibration.accuracy_rows import read_rows

    return dict(next(iter(read_rows())).versions)


def written(made: Mapping[str, Any], leaves: int) -> str:
    """JSON with a line for each member, down to a depth of `leaves`."""

    def lines(value: Any, depth: int) -> str:
        if not isinstance(value, dict) or depth == leaves:
            return json.dumps(value)
        inner = (f"{' ' * (depth + 1)}{json.dumps(name)}: {lines(each, depth + 1)}" for name, each in value.items())
        return "{\n" + ",\n".join(inner) + "\n" + " " * depth + "}"

    return lines(made, 0) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.fit", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write profiles/residuals.json")
    parser.add_argument("--check", action="store_true", help="leave out every source and every architecture in turn")
    args = parser.parse_args()
    rows = read()
    made, parameters = profile(rows)
    for figure, phases in made["spreads"].items():
        for phase, one in phases.items():
            print(
                f"{figure:10} {phase:14} bias {one['share']:+.3%}  -{one['low_share']:.2%} {one['low_bytes'] / MIB:.0f} MiB"
                f"  +{one['high_share']:.2%} {one['high_bytes'] / MIB:.0f} MiB"
            )
    if args.write:
        PROFILE.write_text(written(made, 3), encoding="utf-8")
        PARAMETERS.write_text(written({"made": made["made"], **parameters}, 2), encoding="utf-8")
        print(f"written: {PROFILE.name}, {PARAMETERS.name}")
    if args.check:
        from calibration import residual_check

        found = residual_check.check(rows)
        print("\n" + residual_check.text(found))
        if args.write:
            CHECK.write_text(residual_check.markdown(found), encoding="utf-8")
            print(f"written: {CHECK.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
