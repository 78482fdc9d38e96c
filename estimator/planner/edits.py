"""Edits of a config, as `--set` takes them, and alternatives of one setting in the order of what they cost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """`value` at `key`, a path below the process ("train.batch_size", "datasets.0.resolution"); a plain value, or a tuple of them."""

    key: str
    value: object

    @property
    def override(self) -> str:
        """As `--set` takes it. JSON is YAML, and has one way to write each value."""
        return f"{self.key}={json.dumps(self.value)}"


def merged(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    """One edit for each key: the last one's value."""
    return tuple({edit.key: edit for edit in edits}.values())


@dataclass(frozen=True, slots=True)
class Loss:
    """What an edit costs, in the order that counts: what is aimed at, what is learned, then trouble.

    `aimed`: steps back in the aimed direction. `learned`: steps that change what the adapter learns (buckets, frames, captions).
    `trouble`: all the rest - precision of frozen weights, previews, speed - in points of the planner's own scale (estimator.planner.space).
    """

    aimed: int = 0
    learned: int = 0
    trouble: int = 0

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.aimed + other.aimed, self.learned + other.learned, self.trouble + other.trouble)

    @property
    def order(self) -> tuple[int, int, int]:
        return self.aimed, self.learned, self.trouble


NOTHING = Loss()


@dataclass(frozen=True, slots=True)
class Level:
    """One alternative of a setting. `why`: what it costs the user, in plain words; empty for the setting as it is."""

    edits: tuple[Edit, ...] = ()
    loss: Loss = NOTHING
    why: str = ""


@dataclass(frozen=True, slots=True)
class Dimension:
    """A setting with its alternatives, cheapest first; `levels[0]` is the config as it stands."""

    name: str
    levels: tuple[Level, ...]
