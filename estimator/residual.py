"""What a real card's figure may be around a replayed one: the residual, as data, and the intervals it makes. Arithmetic only.

A `Spread` belongs to one figure (allocated or reserved) of one phase. Around a replayed figure of b bytes

    likely = b (1 + share) + bytes
    low    = likely - hypot(b low_share,  low_bytes)
    high   = likely + hypot(b high_share, high_bytes)

`high` is the one-sided 99 % bound, `low` the one-sided 1 % bound: the multiplicative and the additive part are independent, so
their distances add in quadrature. A `Residual` holds the spreads of all phases, and the workspace that cuDNN takes in the VAE; a calibrated
card's takes the place of the shipped one by `replace(gpu, residual=...)`, beside that card's own context (docs/design.md, Intervals).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

FIGURES = ("allocated", "reserved")
ANY_PHASE = "any"
"""Key of the spread for phases that have none of their own."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Low, likely and high bytes of the same quantity."""

    low_bytes: int
    likely_bytes: int
    high_bytes: int


NOTHING = Interval(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Spread:
    """Shares are of the replayed figure (0.01: 1 %). All distances are at least 0; `share` and `added_bytes`, the bias, may be negative."""

    low_share: float
    high_share: float
    low_bytes: int = 0
    high_bytes: int = 0
    share: float = 0.0
    added_bytes: int = 0

    def widened(self, factor: float, more_share: float = 0.0) -> Spread:
        """The distances times a factor, and a further independent share on either side; the bias stays."""
        low, high = (_hypot(factor * share, more_share) for share in (self.low_share, self.high_share))
        return Spread(low, high, round(factor * self.low_bytes), round(factor * self.high_bytes), self.share, self.added_bytes)


@dataclass(frozen=True, slots=True)
class Seen:
    """Step cells of one architecture on a card: how far a step of it may be from the replay there. `cells`: how many went through.

    Shares are carried over to the whole depth; `share` is the cells' middle, the distances hold their spread and how few they are.
    """

    arch: str
    cells: int
    allocated: Spread
    reserved: Spread

    def beside(self, runs: Spread, figure: str, trains: bool) -> Spread:
        """The spread of a figure on this card, where `runs` is that of the emulated runs alone. `trains`: of the phase that cells are of;
        elsewhere their middle is no bias, and adds to the distance on its side.
        """
        cells = self.allocated if figure == "allocated" else self.reserved
        bias = cells.share if trains else 0.0
        low, high = (0.0, 0.0) if trains else (max(0.0, -cells.share), max(0.0, cells.share))
        return replace(
            runs,
            low_share=_hypot(runs.low_share, cells.low_share + low),
            high_share=_hypot(runs.high_share, cells.high_share + high),
            low_bytes=round(_hypot(runs.low_bytes, cells.low_bytes)),
            high_bytes=round(_hypot(runs.high_bytes, cells.high_bytes)),
            share=runs.share + bias,
        )


@dataclass(frozen=True, slots=True)
class Residual:
    """How far a card may be from the replay, for one job on one card.

    `allocated`, `reserved`: phase -> its spread, with ANY_PHASE for the others. `cudnn_bytes_per_pixel`: cuDNN's workspace in
    the VAE per pixel of the image. `source`: what it rests on, in words for the report. `reasons`: why it is wider than what was checked.
    """

    allocated: Mapping[str, Spread]
    reserved: Mapping[str, Spread]
    cudnn_bytes_per_pixel: Interval
    source: str
    reasons: tuple[str, ...] = ()

    def with_chance(self, distance_bytes: int, reason: str) -> Residual:
        """With a further independent distance on either side, of any size of figure: what a random choice of the trainer may change."""
        wider = [
            {phase: replace(s, low_bytes=_hypot(s.low_bytes, distance_bytes), high_bytes=_hypot(s.high_bytes, distance_bytes))
             for phase, s in spreads.items()}
            for spreads in (self.allocated, self.reserved)
        ]  # fmt: skip
        return replace(self, allocated=wider[0], reserved=wider[1], reasons=(*self.reasons, reason))

    def lowered(self, share: float, phases: Iterable[str]) -> Residual:
        """With a further independent share on the low side alone, in some phases: of what can only take less."""
        allocated, reserved = dict(self.allocated), dict(self.reserved)
        for phase in phases:
            for figure, spreads in (("allocated", allocated), ("reserved", reserved)):
                one = self.spread(figure, phase)
                spreads[phase] = replace(one, low_share=_hypot(one.low_share, share))
        return replace(self, allocated=allocated, reserved=reserved)

    def spread(self, figure: str, phase: str) -> Spread:
        """`figure`: "allocated" or "reserved"."""
        spreads = self.allocated if figure == "allocated" else self.reserved
        return spreads[phase] if phase in spreads else spreads[ANY_PHASE]


def ends(size: Any, spread: Spread) -> tuple[Any, Any, Any]:
    """(low, likely, high) in bytes, not rounded, around a replayed figure in bytes: a number, or an array of them."""
    likely = size + size * spread.share + spread.added_bytes
    low = likely - _hypot(size * spread.low_share, spread.low_bytes)
    return low, likely, likely + _hypot(size * spread.high_share, spread.high_bytes)


def interval(size_bytes: int, spread: Spread, beside: Interval = NOTHING) -> Interval:
    """The figure on a real card, around the replayed one of `size_bytes`, and with what lies `beside` it at each end. Never below zero."""
    low, likely, high = (max(0, round(figure)) for figure in ends(size_bytes, spread))
    return Interval(low + beside.low_bytes, likely + beside.likely_bytes, high + beside.high_bytes)


def _hypot(one: Any, other: float) -> Any:
    return (one * one + other * other) ** 0.5
