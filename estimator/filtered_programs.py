"""Programs of an adapter that sits on some of the layers, from those of one on all.

Three things follow from a layer without its adapter. Its own tensors are gone. What only they needed of the backward pass is gone: of a
layer that modulates others (its input needs no gradient) the sums over gates, shifts and scales, and so what the products with these had
saved. And blocks whose input needs no gradient and that have no adapter keep nothing and have no backward pass.

How long a tensor lives that nothing saves any more is known from the first forward pass under gradient checkpointing, which saves nothing.
"""

from __future__ import annotations

from collections import defaultdict

from estimator.adapter_sites import Returned, Tape, layers_of, returned, sites
from estimator.filtered_backward import APART, BackwardEdit
from estimator.filtered_edit import renamed
from estimator.filtered_flow import Block, Flow
from estimator.program import Program


class _Editor(BackwardEdit):
    """Applies a filter to a step's core."""

    def __init__(self, flow: Flow, kept: frozenset[int]) -> None:
        super().__init__(flow)
        self.kept = kept
        self.layers = layers_of(flow.tape)
        names = flow.tape.base.names
        gradients = {name: k for k, name in enumerate(names[: flow.tape.own]) if name is not None}
        self.back = {n: returned(flow.tape, layer, gradients[f"gradient:{2 * n + 1}"]) for layer, n in self.layers.items()}
        self.sites = sites(flow.tape)
        self.kept_in: dict[Block | None, list[int]] = defaultdict(list)
        for n in self.layers.values():
            if n in kept:
                self.kept_in[flow.tape.made[self.back[n].first].block].append(n)

    def program(self) -> Program:
        for n in self.layers.values():
            if n not in self.kept and self.modulates(n):
                self._without_modulation(n)
        for block in self.blocks:
            if not self._entered(block):
                self._begin(block) if self.kept_in[block] else self._still(block)
        for site in self.sites:
            if self.layers[site.layer] not in self.kept:
                self.edit.without_adapter(site)
        for n, back in self.back.items():
            if n not in self.kept and back.first not in self.edit.gone:
                self.edit.without_gradients(back)
        return self.edit.program(renamed(self.tape.base.names, self.kept))

    def modulates(self, n: int) -> bool:
        """A layer over what is one row a sample (an embedding of the time): its input needs no gradient."""
        back = self.back[n]
        return back.passed is None and any(self.flow.chain(back)[1])

    def _entered(self, block: Block) -> bool:
        """Whether the block's input needs a gradient."""
        feeding = APART.get(block[0])
        before = self.blocks[: self.blocks.index(block)]
        if feeding is None:
            return any(self.kept_in[one] for one in before)
        return any(self.kept_in[one] for one in before if one[0] in feeding)

    def _without_modulation(self, n: int) -> None:
        back = self.back[n]
        side, sums = self.flow.chain(back)
        self.edit.gone |= side | set(back.tensors)
        for total in sums:
            self._without_sum(total)

    def _still(self, block: Block) -> None:
        """A block without a backward pass."""
        self._drop(self._groups(block), None)

    def _begin(self, block: Block) -> None:
        """The first block with adapters: its backward pass ends where the last of them has its gradients."""
        ends: list[tuple[int, int]] = []  # (the last tensor that is needed, of which sort: 0 an adapter's, 1 a sum)
        spared: set[int] = set()
        for n in self.kept_in[block]:
            back = self.back[n]
            if self.modulates(n):
                side, sums = self.flow.chain(back)
                spared |= side | set(back.tensors) | set(sums)
                ends += [(k, 1) for k in sums]
            else:
                ends.append((back.tensors[back.tensors.index(self._gradient(back)) + 2], 0))
        last, kind = max(ends)
        group = self.flow.groups[self.flow.group_of[last]]
        if kind == 0:
            self.edit.gone |= {k for k in group.births if k > last}
        else:
            product = self.flow.product(last)
            self.edit.gone |= {k for k in self.flow.before_sum(last) if k != product}
        after = self.flow.group_of[last]
        self._drop(self._groups(block, after), after, spared)

    def _gradient(self, back: Returned) -> int:
        return next(k for k in back.tensors if (self.tape.base.names[k] or "").startswith("gradient:"))


def core(base: Program, twin: Program, kept: frozenset[int]) -> Program:
    """A step's core with adapters on some layers, by number. `twin`: the same under checkpointing. Raises CannotTell."""
    tape = Tape(base)
    return _Editor(Flow(tape, tape if twin is base else Tape(twin)), kept).program()
