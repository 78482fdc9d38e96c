"""Where the backward pass of a partly frozen model ends: in the first block with something trained, whose input needs no gradient."""

from __future__ import annotations

from collections.abc import Sequence

from estimator.adapter_sites import block_of
from estimator.filtered_edit import AFTER
from estimator.filtered_flow import Block, Group
from estimator.frozen_layers import LINEAR, Layers

NORM, GATE, ATTENTION = "NativeLayerNormBackward0", "MulBackward0", "ScaledDotProduct"
ADDED_UP = ("ViewBackward0", "AddBackward0")  # of gradients that several layers pass on
# Lists of blocks that only some lists feed, and what of the parameters outside feeds them (Z-Image's text): others, all before them
FED_BY = {"context_refiner": ("context_refiner", "cap_embedder"), "cap_embedder": ("cap_embedder",)}
FED_FROM = "transformer.cap_"


class Beginning(Layers):
    """What goes with blocks whose input needs no gradient."""

    def _without_beginnings(self) -> None:
        unentered = [block for block in self.blocks if not self._entered(block)]
        for block in unentered:
            if self.kept_in[block]:
                self._begin(block)
        for block in unentered:
            if not self.kept_in[block]:
                self._drop(self._groups(block), None)
        last = max(self._group(n) for n in self.trained)
        first = min(n for block in self.blocks for n in self._groups(block))
        self._drop({n for n in self._groups(None) if n > max(last, first)}, None)

    def _entered(self, block: Block) -> bool:
        """Whether the block's input needs a gradient."""
        feeding = FED_BY.get(block[0])
        before = self.blocks[: self.blocks.index(block)]
        outside = self.kept_in[None]
        if feeding is None:
            behind = max(self._groups(block), default=0)
            return self.timed or any(self._group(n) > behind for n in outside) or any(self.kept_in[one] for one in before)
        fed = block[0] != feeding[-1] and any(self.names[n].startswith(FED_FROM) for n in outside)
        return fed or any(self.kept_in[one] for one in before if one[0] in feeding)

    def _begin(self, block: Block) -> None:
        """The first block with something trained: its backward pass ends where the last of that has its gradient."""
        spared: set[int] = set()
        ends: list[int] = []
        for n in self.kept_in[block]:
            if self.modulates(n):
                side, sums = self.sums_of(self.layer_of[n])
                spared |= side | set(sums)
                ends += sums
            else:
                ends.append(self.gradient[n])
        last = max(ends)
        after = self.flow.group_of[last]
        if last in self.gradient.values():
            self.edit.gone |= {k for k in self._passed_on(self.flow.groups[after]) if not self.tape.base.names[k]}
        else:
            product = self.flow.product(last)
            self.edit.gone |= {k for k in self.flow.before_sum(last) if k != product}
        self._without_inputs_gradients(block)
        needless = self._needless(block, after)
        self._let_go_of_residuals(block, after)
        self._drop(self._groups(block, after) | needless, after, spared)
        end = self.flow.groups[max(after, *(self._group(n) for n in self.kept_in[block]))].end
        self.edit.ends |= dict.fromkeys(self._given(block), (end, AFTER))

    def _passed_on(self, group: Group) -> list[int]:
        """Gradients that a node makes for those behind it."""
        if self._node(group) in LINEAR:
            return [layer.passed for layer in self.layer_of.values() if layer.passed in group.births and layer.passed is not None]
        return [k for k in group.births if k not in group.frees]

    # ---- what nothing trained has a part in

    def _first_calls(self, block: Block) -> dict[str, int]:
        """The first tensor of each module's forward pass."""
        called: dict[str, int] = {}
        for k in self.flow.made_in[block]:
            called.setdefault(self.tape.made[k].module, k)
        return called

    def _without_inputs_gradients(self, block: Block) -> None:
        """Of layers whose input was there before anything trained was called."""
        called, made_in = self._first_calls(block), self.flow.made_in[block]
        trained = min(called.get(self._module(n), 0) for n in self.kept_in[block])
        for n, k in self.inputs.items():
            if block_of(self.names[n]) != block:
                continue
            first = made_in[self.flow.number_in_block(k)] if k >= self.flow.forward else k
            passed = self.layer_of[n].passed
            if first < trained and passed is not None:
                self.edit.gone.add(passed)

    def _needless(self, block: Block, after: int) -> set[int]:
        """Nodes of the norms that the block begins with; what comes into them is gone, and sums of gradients that are."""
        called, norms = self._first_calls(block), set[int]()
        plain = [n for n in self.gradient if block_of(self.names[n]) == block and not self.modulates(n)]
        mixing = min(called.get(self._module(n), 0) for n in plain)
        for number in sorted(self._groups(block) - self._groups(block, after)):
            group, incoming = self.flow.groups[number], set(self.flow.incoming(number))
            if self._node(group) == NORM and called.get(self.tape.made[group.births[0]].module, 0) < mixing:
                norms.add(number)
                self.edit.gone |= incoming
            elif self._node(group) in ADDED_UP and incoming and incoming <= self.edit.gone:
                self.edit.gone |= set(group.births)
        return norms

    # ---- lives that end here

    def _let_go_of_residuals(self, block: Block, after: int) -> None:
        """Gradients of what the block adds to are read last by the gates in front of attention, and go no further."""
        read = self._last_gate(sorted(self._groups(block) - self._groups(block, after)))
        for group in self.flow.groups[after + 1 :] if read is not None else ():
            for k in group.frees:
                if not self._saved(k) and read is not None and self.flow.group_of.get(k, after) < read:
                    self.edit.ends[k] = (self.flow.groups[read].end, AFTER)

    def _last_gate(self, kept: Sequence[int]) -> int | None:
        """The node that it is, of those of the block that stay. Under checkpointing a block's first one has no name, which is that of a
        block with one gate: what comes before its first linear layer."""
        nodes = [self._node(self.flow.groups[n]) for n in kept]
        attention = next((i for i, node in enumerate(nodes) if node.startswith(ATTENTION)), None)
        if attention is None:
            return None
        gates = [i for i in range(attention) if nodes[i] == GATE]
        linear = next((i for i in range(attention) if nodes[i] in LINEAR), attention)
        return kept[gates[-1] if gates else max(linear - 1, 0)]

    def _given(self, block: Block) -> list[int]:
        """What checkpointing keeps of the tensors that a block is given."""
        if not self.flow.checkpointed:
            return []
        end, place = len(self.tape.base.events), self.tape.born[self.flow.forward]
        return [k for k in range(self.flow.forward) if (self.tape.died[k] or end) >= place and self.flow.reader(k) == block]
