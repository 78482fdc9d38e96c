"""Fits the residual and writes profiles/residuals.json: what makes an estimate's low and high.

    python -m calibration.residual_rows                   # first, after estimates have changed: the rows (minutes)
    python -m calibration.fit [--write] [--check]         # scipy needed: pip install vram-preflight[calibrate]

Two fits for each figure (residual_model says what is fitted, and with which priors):
- *replay*: estimates against whole runs on the emulated device, groups architecture, kind of weights, optimizer;
- *card*: the emulated device, or an estimate, against published figures of real cards, groups trainer and card generation. Few, so the
  priors matter.
A figure on a card is off by both. `--write` takes the sum's 1 %, 50 % and 99 % points, drawn with the uncertainty of all parameters, into
the profile; `--check` leaves out one source, or one architecture, after the other (residual_check).
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
# offloading, whose copies run in streams of their own while the emulated device completes everything at once, 3 %.
UNCHECKED = {"arch": 0.03, "weights": 0.03, "optimizer": 0.01, "trainer": 0.05, "offloading": 0.03}


class Fits:
    """The fits, and draws of what a figure on a card is off by. `replay`: of each figure; `card`: of both, None without a row of a card."""

    def __init__(self, rows: Sequence[Row]) -> None:
        inner = {figure: [row for row in rows if row.kind == "emulated" and row.figure == figure] for figure in FIGURES}
        self.replay = {figure: model.fit(chosen, REPLAY_GROUPS, PHASES, REPLAY[figure]) for figure, chosen in inner.items()}
        # Of cards there is too little for each figure, and both are made by the same allocator: all peaks, and the outcomes.
        outer = [row for row in rows if row.kind != "emulated"]
        self.card = model.fit(outer, CARD_GROUPS, ("card",), CARD, [self.known(row) for row in outer]) if outer else None
        self._drawn = {id(part): part.draws(DRAWS, SEED) for part in (*self.replay.values(), self.card) if part is not None}

    def known(self, row: Row) -> float:
        """Spread in bytes that the replay adds to a row of a card; none where the device itself stands for the estimate."""
        if row.kind == "step":
            return 0.0
        replay = self.replay[row.figure]
        at = dict(zip(replay.names, replay.values, strict=True))
        return float(math.hypot(math.exp(at[f"log_share/{row.phase}"]) * row.replayed_bytes, math.exp(at["log_added"]) * MIB))

    def spread(self, figure: str, phase: str, parts: str = "both") -> dict[str, float]:
        """Shares and bytes of a Spread (estimator.residual): of a job whose groups were checked. `parts`: both, replay or card."""
        generator, replay = np.random.default_rng(SEED), self.replay[figure]
        share, added = np.zeros(DRAWS), np.zeros(DRAWS)
        if parts != "card":
            share, added = _parts(replay, self._drawn[id(replay)], phase, generator, _mix)
        if parts != "replay" and self.card is not None:
            more, further = _parts(self.card, self._drawn[id(self.card)], "card", generator, _new)
            share, added = share + more, added + further
        used = [(replay, phase)] * (parts != "card") + ([(self.card, "card")] if self.card and parts != "replay" else [])
        # A bias counts where it is twice its standard error from zero.
        errors = (part.error(f"bias/{name}") for part, name in used)
        return _points(share, added, any(abs(value) > 2 * error for value, error in errors))


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
    freedom = np.exp(np.clip(drawn["log_freedom"], math.log(2), math.log(30)))
    share = drawn[f"bias/{phase}"] + np.exp(drawn[f"log_share/{phase}"]) * generator.standard_t(freedom)
    for kind in fitted.groups:
        share = share + effect(fitted, drawn, kind, generator)
    return share, np.exp(drawn["log_added"]) * MIB * generator.standard_t(freedom)


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


def profile(rows: Sequence[Row]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The profile as it is written, and the parameters that it was made of, with their standard errors."""
    fits = Fits(rows)
    spreads = {figure: {phase: fits.spread(figure, phase) for phase in PHASES} for figure in FIGURES}
    for phases in spreads.values():
        phases["any"] = max(phases.values(), key=lambda one: one["high_share"])
    emulated, real = [row for row in rows if row.kind == "emulated"], [row for row in rows if row.kind != "emulated"]
    checked = {kind: sorted({getattr(row, kind) for row in emulated}) for kind in ("weights", "optimizer", "trainer")}
    generations = sorted({row.generation for row in real if row.outcome == "peak"})
    between = 0.0 if fits.card is None else math.exp(fits.card.error("log_between/generation")[0])
    return {
        "schema": 1,
        "source": f"low and high are 1 % and 99 % bounds, from {len({row.source for row in emulated})} emulated runs of the trainer and "
        f"{len(real)} published rows of real cards ({len({row.source for row in real})} sources)",
        "made": {
            "command": "python -m calibration.fit --write",
            "date": datetime.now(UTC).date().isoformat(),
            "versions": _versions(),
            "rows": {kind: sum(row.kind == kind for row in rows) for kind in ("emulated", "step", "card")},
            "sources": {kind: len({row.source for row in rows if row.kind == kind}) for kind in ("emulated", "step", "card")},
        },
        "spreads": spreads,
        "cudnn_bytes_per_pixel": list(CUDNN_BYTES_PER_PIXEL),
        "checked": {**checked, "offloading": ["off"], "generation": generations},
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
