"""How long tensors of a forward pass live where nothing saves them, from the same pass where nothing is saved.

That is the first forward pass under gradient checkpointing, for a recomputed one and for one without checkpointing; and a text that is
encoded without gradients, for one with. It makes the same tensors in the same order, but for some that only a pass that saves makes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from estimator.adapter_sites import BACKWARD, RECOMPUTED, Tape

Block = tuple[str, int]


@dataclass(frozen=True)
class _Pairs:
    """The same tensors of a pass that does not save and of one that does, in the order in which they are made."""

    unsaved: list[int]
    saved: list[int]


class Lives:
    """`tape`: of a part whose passes save; `twin`: of one whose first pass does not (under checkpointing the same)."""

    def __init__(self, tape: Tape, twin: Tape) -> None:
        self.tape, self.twin = tape, twin
        self.forward, self.twin_forward = _forward(tape), _forward(twin)

    def end(self, k: int) -> int | None:
        """The last tensor that is born before one goes if nothing saves it; None: that is not known."""
        first = self._first.get(k)
        died = None if first is None else self.twin.died[first]
        if died is None:
            return None
        last = self.twin.made_before(died)
        if last >= self.twin_forward:
            return None
        block = self.tape.made[k].block
        known = self._remade[block] if k >= self.forward and block is not None else self._made
        place = bisect_right(known.unsaved, last)
        return known.saved[place - 1] if place else None

    @cached_property
    def alike(self) -> frozenset[int]:
        """Tensors of the first pass that the twin makes too."""
        return frozenset(self._made.saved)

    @cached_property
    def _made(self) -> _Pairs:
        """Each tensor of the first forward pass."""
        if self.tape is self.twin:
            return _Pairs([*range(self.forward)], [*range(self.forward)])
        return self._matched(range(self.forward), range(self.twin_forward))

    @cached_property
    def _remade(self) -> dict[Block, _Pairs]:
        """The same of each block's recomputed pass."""
        again, first = defaultdict(list), defaultdict(list)
        for k, made in enumerate(self.tape.made[self.forward :], self.forward):
            if made.run == RECOMPUTED and made.block is not None:
                again[made.block].append(k)
        for k, made in enumerate(self.twin.made[: self.twin_forward]):
            if made.block is not None:
                first[made.block].append(k)
        return {block: self._matched(remade, first[block]) for block, remade in again.items()}

    @cached_property
    def _first(self) -> dict[int, int]:
        """Of each tensor of a pass that saves, the twin's."""
        every = (self._made, *self._remade.values())
        return {k: twin for pairs in every for twin, k in zip(pairs.unsaved, pairs.saved, strict=True)}

    @cached_property
    def _kinds(self) -> tuple[list[int], list[int]]:
        """A number for each tensor of the part, and of the twin: equal where module and size are."""
        numbers: dict[tuple[str, int], int] = {}

        def kinds(tape: Tape) -> list[int]:
            return [numbers.setdefault((made.module, size), len(numbers)) for made, size in zip(tape.made, tape.sizes, strict=True)]

        mine = kinds(self.tape)
        return mine, mine if self.twin is self.tape else kinds(self.twin)

    def _matched(self, ours: Sequence[int], theirs: Sequence[int]) -> _Pairs:
        """Tensors of the same module and size, in order; what one side has more is passed over."""
        mine, others = self._kinds
        out, n = _Pairs([], []), 0
        for k in ours:
            kind = mine[k]
            for m in range(n, min(n + AHEAD, len(theirs))):
                if others[theirs[m]] == kind:
                    out.unsaved.append(theirs[m])
                    out.saved.append(k)
                    n = m + 1
                    break
        return out


AHEAD = 6
"""The most tensors that a pass without saving makes and one that saves does not, in a row."""


def _forward(tape: Tape) -> int:
    """How many tensors the first forward pass makes."""
    return next((k for k, made in enumerate(tape.made) if made.run in (BACKWARD, RECOMPUTED)), tape.own)
