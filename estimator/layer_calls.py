"""Where a part uses each layer, as a profile says it: one by one, and by columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from estimator.features import Ints

NONE, STAYS = -1, -2


class Call(NamedTuple):
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


@dataclass(frozen=True, eq=False)
class Uses:
    """The same of all calls, by columns."""

    layer: Ints
    first: Ints
    last: Ints
    input: Ints
    output: Ints
    backward: Ints
    until: Ints

    @property
    def rows(self) -> Ints:
        """[call, column]."""
        return np.stack([self.layer, self.first, self.last, self.input, self.output, self.backward, self.until], axis=1)

    def calls(self) -> list[Call]:
        """One by one."""
        return list(map(Call._make, self.rows.tolist()))

    def behind(self, tensors: int, layers: int = 0) -> Uses:
        """The calls behind so many tensors more, of the layers behind so many. Numbers below 0 say something else."""
        rows = self.rows
        rows[:, 1:] += np.where(rows[:, 1:] >= 0, tensors, 0)
        rows[:, 0] += layers
        return of_rows(rows)


def of_rows(rows: Ints) -> Uses:
    """By columns, of a table of calls."""
    return Uses(*np.ascontiguousarray(rows.T))


def by_columns(calls: Iterable[Call]) -> Uses:
    """The calls by columns."""
    return of_rows(np.array(list(calls), dtype=np.int64).reshape(-1, len(Call._fields)))


def together(*uses: Uses) -> Uses:
    """One behind the other."""
    return of_rows(np.concatenate([each.rows for each in uses]))
