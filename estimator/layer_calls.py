"""Where a part uses each layer, as a profile says it: one by one, and by columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

import numpy as np

from estimator.features import Ints

NONE, STAYS = -1, -2


@dataclass(frozen=True, slots=True)
class Call:
    """A row of a profile's calls. Its places are numbers of tensors, in order of allocation.

    The layer's forward begins before `first` and is over before `last`, its backward begins before `backward`, and `input` would be kept
    until `until` if that needed it. NONE: it has none; STAYS: to the end.
    """

    layer: int
    first: int
    last: int
    input: int
    output: int
    backward: int
    until: int


@dataclass(frozen=True)
class Uses:
    """The same of all calls, by columns."""

    layer: Ints
    first: Ints
    last: Ints
    input: Ints
    output: Ints
    backward: Ints
    until: Ints


COLUMNS = tuple(each.name for each in fields(Call))


def by_columns(calls: Sequence[Call]) -> Uses:
    """The calls by columns."""
    return Uses(*np.array([*map(attrgetter(*COLUMNS), calls)], dtype=np.int64).reshape(-1, len(COLUMNS)).T)
