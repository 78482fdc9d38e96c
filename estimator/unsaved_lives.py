"""How long tensors of a forward pass live where nothing saves them, from the same pass where nothing is saved.

That is the first forward pass under gradient checkpointing, for a recomputed one and for one without checkpointing; and a text that is
encoded without gradients, for one with. It makes the same tensors in the same order, but for some that only a pass that saves makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from estimator.adapter_sites import BACKWARD, RECOMPUTED, RUNS, UNLIKE, Makers, makers
from estimator.arrays import among
from estimator.features import Ints
from estimator.program import Program

AHEAD = 6
"""The most tensors that a pass without saving makes and one that saves does not, in a row."""
SIZES = 2**40
"""More than any tensor's bytes."""


@dataclass(frozen=True)
class _Pairs:
    """The same tensors of a pass that does not save and of one that does, in the order in which they are made."""

    unsaved: Ints
    saved: Ints


class Lives:
    """`part`: one whose passes save; `twin`: one whose first pass does not (under checkpointing the same)."""

    def __init__(self, part: Program, twin: Program) -> None:
        modules: dict[str, int] = {}
        self.twin, self.same = twin, part is twin
        self.made = makers(part, modules)
        self.twin_made = self.made if self.same else makers(twin, modules)
        self.forward, self.twin_forward = _forward(self.made), _forward(self.twin_made)
        self.kinds = _kinds(self.made, part)
        self.twin_kinds = self.kinds if self.same else _kinds(self.twin_made, twin)

    def end(self, k: int) -> int | None:
        """The last tensor that is born before one goes if nothing saves it; None: that is not known."""
        first = int(self._first[k])
        if first < 0:
            return None
        last = int(self.twin.deaths[first]) - 1  # of those that stay beyond all tensors
        if last >= self.twin_forward:
            return None
        block = int(self.made.block[k])
        known = self._remade[block] if k >= self.forward and block >= 0 else self._made
        place = int(np.searchsorted(known.unsaved, last, side="right"))
        return int(known.saved[place - 1]) if place else None

    @cached_property
    def alike(self) -> frozenset[int]:
        """Tensors of the first pass that the twin makes too."""
        return frozenset(self._made.saved.tolist())

    @cached_property
    def _made(self) -> _Pairs:
        """Each tensor of the first forward pass."""
        mine, theirs = np.arange(self.forward), np.arange(self.twin_forward)
        return _Pairs(mine, mine) if self.same else self._matched(mine, theirs)

    @cached_property
    def _remade(self) -> dict[int, _Pairs]:
        """The same of each block's recomputed pass."""
        again = _by_block(np.flatnonzero(self.made.run == RUNS[RECOMPUTED]), self.made.block)
        first = _by_block(np.arange(self.twin_forward), self.twin_made.block)
        none = np.zeros(0, dtype=np.int64)
        return {block: self._matched(remade, first.get(block, none)) for block, remade in again.items()}

    @cached_property
    def _first(self) -> Ints:
        """Of each tensor of a pass that saves, the twin's; -1 where it has none."""
        first = np.full(len(self.made.module), -1)
        for pairs in (self._made, *self._remade.values()):
            first[pairs.saved] = pairs.unsaved
        return first

    def _matched(self, ours: Ints, theirs: Ints) -> _Pairs:
        """Tensors of the same module and size, in order; what one side has more is passed over."""
        mine, others = self.kinds[ours], self.twin_kinds[theirs]
        unsaved, saved, k, n = [], [], 0, 0
        while k < len(mine) and n < len(others):
            alike = mine[k : k + len(others) - n] == others[n : n + len(mine) - k]
            run = len(alike) if alike.all() else int(alike.argmin())
            if not run:  # the next that is like it, if it is not far
                found = np.flatnonzero(others[n : n + AHEAD] == mine[k])
                n, run = (n + int(found[0]), 1) if len(found) else (n, 0)
            unsaved.append(theirs[n : n + run])
            saved.append(ours[k : k + run])
            k, n = k + max(run, 1), n + run
        return _Pairs(np.concatenate(unsaved or [theirs[:0]]), np.concatenate(saved or [ours[:0]]))


def _forward(made: Makers) -> int:
    """How many tensors the first forward pass makes."""
    behind = np.flatnonzero(among(made.run, [RUNS[BACKWARD], RUNS[RECOMPUTED]]))
    return int(behind[0]) if len(behind) else len(made.run)


def _kinds(made: Makers, part: Program) -> Ints:
    """A number for each tensor: equal where module and size are."""
    return made.module * SIZES + part.sizes(UNLIKE)[: len(made.module)]


def _by_block(tensors: Ints, block: Ints) -> dict[int, Ints]:
    """Of these tensors those of each block, in order."""
    tensors = tensors[block[tensors] >= 0]
    ordered = tensors[np.argsort(block[tensors], kind="stable")]
    numbers = block[ordered]
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    return {int(numbers[start]): part for start, part in zip(starts, np.split(ordered, starts[1:]), strict=True)} if len(starts) else {}
