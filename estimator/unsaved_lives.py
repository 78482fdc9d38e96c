"""How long tensors of a forward pass live where nothing saves them, from the same pass where nothing is saved.

That is the first forward pass under gradient checkpointing, for a recomputed one and for one without checkpointing; and a text that is
encoded without gradients, for one with. It makes the same tensors in the same order, but for some that only a pass that saves makes.

Blocks that are not made again under checkpointing save in that pass too (refiners of Lumina2): there a preview's first forward tells.
"""

from __future__ import annotations

from collections.abc import Callable
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
_NONE: Ints = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class _Pairs:
    """The same tensors of a pass that does not save and of one that does, in the order in which they are made."""

    unsaved: Ints
    saved: Ints


class Lives:
    """`part`: one whose passes save; `twin`: one whose first pass does not (under checkpointing the same). `preview`: one of which nothing
    does, where there is any."""

    def __init__(self, part: Program, twin: Program, preview: Callable[[], Program | None] = lambda: None) -> None:
        self.modules = modules = dict[str, int]()
        self.twin, self.same, self.preview = twin, part is twin, preview
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
        block = int(self.made.block[k])
        if last >= self.twin_forward:
            return self._as_in_preview(k, block)
        known = self._remade[block] if k >= self.forward and block >= 0 else self._made
        place = int(np.searchsorted(known.unsaved, last, side="right"))
        return int(known.saved[place - 1]) if place else None

    def _as_in_preview(self, k: int, block: int) -> int | None:
        """Of a tensor of the first pass, by what becomes of the same block's in a preview, where the block is not made again."""
        if k >= self.forward or block < 0 or block in self._remade:
            return None
        pairs, deaths = self._previewed.get(block, (_Pairs(_NONE, _NONE), _NONE))
        place = int(np.searchsorted(pairs.saved, k))
        if place == len(pairs.saved) or pairs.saved[place] != k:
            return None
        last = int(deaths[pairs.unsaved[place]]) - 1
        if last > pairs.unsaved[-1]:  # it outlives the block
            return None
        return int(pairs.saved[np.searchsorted(pairs.unsaved, last, side="right") - 1])

    @cached_property
    def _previewed(self) -> dict[int, tuple[_Pairs, Ints]]:
        """Tensors of blocks as a preview's first forward makes them, by their modules alone (a preview is of one picture), and when each of
        its tensors goes."""
        preview = self.preview()
        if preview is None:
            return {}
        shown = makers(preview, self.modules)
        theirs, mine = _by_block(np.arange(len(shown.block)), shown.block), _by_block(np.arange(self.forward), self.made.block)
        both = ((block, own, theirs[block][: len(own)]) for block, own in mine.items() if block in theirs)
        return {
            block: (_paired(own, other, self.made.module[own], shown.module[other]), preview.deaths) for block, own, other in both
        }  # fmt: skip

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
        """Tensors of the same module and size."""
        return _paired(ours, theirs, self.kinds[ours], self.twin_kinds[theirs])


def _paired(ours: Ints, theirs: Ints, mine: Ints, others: Ints) -> _Pairs:
    """Tensors of the same kind, in order; what one side has more is passed over. `mine`, `others`: the kinds of each."""
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
