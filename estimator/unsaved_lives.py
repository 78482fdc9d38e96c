"""How long tensors of a forward pass live where nothing saves them, from the same pass where nothing is saved.

That is the first forward pass under gradient checkpointing, for a recomputed one and for one without checkpointing; and a text that is
encoded without gradients, for one with. It makes the same tensors in the same order, but for some that only a pass that saves makes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from operator import itemgetter

from estimator.adapter_sites import BACKWARD, RECOMPUTED, Tape

Block = tuple[str, int]


class Lives:
    """`tape`: of a part whose passes save; `twin`: of one whose first pass does not (under checkpointing the same)."""

    def __init__(self, tape: Tape, twin: Tape) -> None:
        self.tape, self.twin = tape, twin
        self.forward, self.twin_forward = _forward(tape), _forward(twin)

    def end(self, k: int) -> int | None:
        """The last tensor that is born before one goes if nothing saves it; None: that is not known."""
        first = self._first.get(k)
        if first is None or self.twin.died[first] is None:
            return None
        last = self.twin.made_before(self.twin.died[first] or 0)
        if last >= self.twin_forward:
            return None
        block = self.tape.made[k].block
        known = self._remade[block] if k >= self.forward and block is not None else self._made
        place = bisect_right(known, last, key=itemgetter(0))
        return known[place - 1][1] if place else None

    @cached_property
    def alike(self) -> frozenset[int]:
        """Tensors of the first pass that the twin makes too."""
        return frozenset(k for _, k in self._made)

    @cached_property
    def _made(self) -> list[tuple[int, int]]:
        """(In the twin, in the part) of each tensor of the first forward pass."""
        if self.tape is self.twin:
            return [(k, k) for k in range(self.forward)]
        return sorted(self._matched(range(self.forward), range(self.twin_forward)))

    @cached_property
    def _remade(self) -> dict[Block, list[tuple[int, int]]]:
        """The same of each block's recomputed pass."""
        again, first = defaultdict(list), defaultdict(list)
        for k in range(self.forward, self.tape.own):
            made = self.tape.made[k]
            if made.run == RECOMPUTED and made.block is not None:
                again[made.block].append(k)
        for k in range(self.twin_forward):
            block = self.twin.made[k].block
            if block is not None:
                first[block].append(k)
        return {block: self._matched(remade, first[block]) for block, remade in again.items()}

    @cached_property
    def _first(self) -> dict[int, int]:
        """Of each tensor of a pass that saves, the twin's."""
        pairs = [*self._made, *(pair for listed in self._remade.values() for pair in listed)]
        return {k: twin for twin, k in pairs}

    def _matched(self, ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int]]:
        """Pairs of tensors of the same module and size, in order; what one side has more is passed over."""
        out, n = list[tuple[int, int]](), 0
        for k in ours:
            ahead = next((m for m in range(n, min(n + AHEAD, len(theirs))) if self._alike(k, theirs[m])), None)
            if ahead is not None:
                out.append((theirs[ahead], k))
                n = ahead + 1
        return out

    def _alike(self, k: int, other: int) -> bool:
        return self.tape.made[k].module == self.twin.made[other].module and self.tape.sizes[k] == self.twin.sizes[other]


AHEAD = 6
"""The most tensors that a pass without saving makes and one that saves does not, in a row."""


def _forward(tape: Tape) -> int:
    """How many tensors the first forward pass makes."""
    return next((k for k, made in enumerate(tape.made) if made.run in (BACKWARD, RECOMPUTED)), tape.own)
