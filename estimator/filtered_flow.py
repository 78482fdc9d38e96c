"""A step's core as its backward pass goes: nodes, the blocks they are of, what each needs; and lives that nothing prolongs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from estimator.adapter_sites import BACKWARD, RECOMPUTED, Returned, Tape, never
from estimator.filtered_edit import AFTER
from estimator.program import ALLOCATE, EMPTY_CACHE

Block = tuple[str, int]
# Nodes through which a modulating layer's gradient passes unchanged in meaning: pieces put together, a gate's bound
JOINING = ("SplitBackward0", "TanhBackward0", "ToCopyBackward0", "ChunkBackward0", "UnbindBackward0", "CatBackward0", "StackBackward0")


@dataclass(frozen=True)
class Group:
    """A node of the backward pass, or a part of it: tensors made together, then those freed, and the place of the last event."""

    births: tuple[int, ...]
    frees: tuple[int, ...]
    end: int
    block: Block | None


class Flow:
    """A step's core as its backward pass goes: which groups follow one another, in which block, and what each needs.

    `twin`: the same core under checkpointing, for lives that nothing prolongs.
    """

    def __init__(self, tape: Tape, twin: Tape) -> None:
        self.tape, self.twin = tape, twin
        self.forward = next(k for k, made in enumerate(tape.made) if made.run in (BACKWARD, RECOMPUTED))
        self.checkpointed = tape is twin
        if tape.made[: self.forward] != twin.made[: self.forward]:
            raise never("the forward pass")
        self.made_in: dict[Block, list[int]] = defaultdict(list)
        self.remade: dict[Block, list[int]] = defaultdict(list)
        for k, made in enumerate(tape.made):
            if made.block is not None and made.run != BACKWARD:
                (self.made_in if k < self.forward else self.remade)[made.block].append(k)
        self.groups = list(self._groups())
        self.group_of = {k: n for n, group in enumerate(self.groups) for k in group.births}

    def _groups(self) -> Iterable[Group]:
        tape, block = self.tape, None
        births: list[int] = []
        frees: list[int] = []
        start = tape.born[self.forward]
        codes, tensors = tape.base.events[start:].tolist(), tape.base.tensor_of_event[start:].tolist()
        for place, (code, k) in enumerate(zip(codes, tensors, strict=True), start):
            if code == ALLOCATE:
                if births and (frees or tape.made[k] != tape.made[births[-1]]):
                    yield Group(tuple(births), tuple(frees), place - 1, block)
                    births, frees = [], []
                births.append(k)
                block = self._block_at(k, block)
            elif code != EMPTY_CACHE and k < tape.own:
                frees.append(k)
        yield Group(tuple(births), tuple(frees), start + len(codes) - 1, block)

    def _block_at(self, k: int, block: Block | None) -> Block | None:
        """The block whose backward pass it is. What no module claims belongs to the one before."""
        made = self.tape.made[k]
        if made.block is not None:
            return made.block
        return block if made.module == "" and made.run == BACKWARD else None

    # ---- lives that nothing prolongs

    def local(self, k: int) -> tuple[int, int] | None:
        """Where a tensor of the forward pass, or a recomputed one, is let go if nothing saves it; None: its block's caller holds it."""
        block = self.tape.made[k].block
        first = k
        if k >= self.forward:
            assert block is not None
            first = self.made_in[block][self._index[k]]
        died = self.twin.died[first]
        if died is None:
            return None
        last = self.twin.made_before(died)
        if last >= self.forward:
            return None
        if k < self.forward:
            return self.tape.born[last], AFTER
        assert block is not None
        remade, number = self.remade[block], self._index.get(last, len(self.remade[block]))
        return self.tape.born[remade[min(number, len(remade) - 1)]], AFTER

    @cached_property
    def _index(self) -> dict[int, int]:
        """The number of a tensor within its block's forward pass."""
        return {k: n for lists in (self.made_in, self.remade) for ks in lists.values() for n, k in enumerate(ks)}

    def number_in_block(self, k: int) -> int:
        """Of a tensor that is made again: the number of what was made first, among those of its block."""
        return self._index[k]

    def reader(self, k: int) -> Block | None:
        """The block that is given a tensor of the forward pass which its caller then lets go: the one behind the block that made it; of
        what no block made, the first that gives something as large."""
        own = self.tape.made[k].block
        if own is not None:
            blocks = list(self.made_in)
            following = blocks.index(own) + 1
            return blocks[following] if following < len(blocks) else None
        return next((block for block, made in self.made_in.items() if k < made[0] and self.tape.sizes[k] in self._given_sizes[block]), None)

    @cached_property
    def _given_sizes(self) -> dict[Block, set[int]]:
        out, end = {}, len(self.twin.base.events)
        for block, own in self.made_in.items():
            over = self.twin.next_birth(own[-1])
            out[block] = {self.tape.sizes[k] for k in own if (self.twin.died[k] or end) >= over}
        return out

    def output_end(self, block: Block) -> tuple[int, int]:
        return self.tape.born[self.made_in[block][-1]], AFTER

    # ---- what a modulating layer's gradient is made of

    def chain(self, back: Returned) -> tuple[set[int], list[int]]:
        """Of a layer whose input needs no gradient: the tensors that only lead to it, and the sums where they begin."""
        return self.chain_to(self.group_of[back.first])

    def chain_to(self, number: int) -> tuple[set[int], list[int]]:
        """The same of a node of such a layer, by its number."""
        side: set[int] = set()
        sums: list[int] = []
        todo = self.incoming(number)
        while todo:
            k = todo.pop()
            number = self.group_of[k]
            if self.tape.made[k].node in JOINING:
                side |= set(self.groups[number].births)
                todo += self.incoming(number)
            else:
                sums.append(k)
        return side, sums

    def incoming(self, number: int) -> list[int]:
        """What comes into a node of the backward pass and goes with it."""
        group = self.groups[number]
        return [k for k in group.frees if k not in group.births and k in self.group_of and self.tape.made[k].run == BACKWARD]

    def product(self, total: int) -> int | None:
        """The product that a sum is made of: it goes with the node, while the gradient of the other factor stays (either may be first)."""
        return next((k for k in self.before_sum(total) if k in self.groups[self.group_of[total]].frees), None)

    def before_sum(self, total: int) -> list[int]:
        """What a sum's node makes before it, the last first. Under checkpointing what it had saved is let go in between."""
        group, before = self.groups[self.group_of[total]], self._first_half(total)
        return [*reversed(group.births[: group.births.index(total)]), *(reversed(before.births) if before else ())]

    def let_go(self, total: int) -> list[int]:
        """What goes with a sum's node."""
        before = self._first_half(total)
        return [*self.groups[self.group_of[total]].frees, *(before.frees if before else ())]

    def _first_half(self, total: int) -> Group | None:
        number = self.group_of[total]
        group, before = self.groups[number], self.groups[number - 1]
        same = self.tape.made[before.births[-1]] == self.tape.made[total]
        return before if same and group.births[0] == total and any(k in group.frees for k in before.births) else None
