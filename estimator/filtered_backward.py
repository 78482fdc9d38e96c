"""What a step's core loses with gradients that nobody needs: sums and products of its backward pass, whole blocks of it, and the lives of
what these had saved."""

from __future__ import annotations

from collections.abc import Collection

from estimator.adapter_sites import BACKWARD
from estimator.filtered_edit import AFTER, Edit
from estimator.filtered_flow import Block, Flow

APART = {"context_refiner": ("context_refiner",)}  # lists of blocks that only some lists feed (Z-Image's text): others, all before them


class BackwardEdit:
    """An edit of a step's core, and what its backward pass is known by."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.tape, self.edit = flow, flow.tape, Edit(flow.tape)
        self.blocks = list(flow.made_in)

    def _without_sum(self, total: int) -> None:
        """Of a product's node the sum that is a modulation's gradient, and what the product had saved for it."""
        flow, group = self.flow, self.flow.groups[self.flow.group_of[total]]
        product, at = flow.product(total), group.births.index(total)
        self.edit.gone |= {total, *(() if product is None else (product,)), *(k for k in group.births[at + 1 :] if k in group.frees)}
        large = self.tape.sizes[total if product is None else product]
        for k in flow.let_go(total):
            if self._saved(k) and (product is not None and self.tape.sizes[k] == large):
                self._release(k)

    def _saved(self, k: int) -> bool:
        return self.tape.made[k].run != BACKWARD or k < self.flow.forward

    def _release(self, k: int) -> None:
        end = self.flow.local(k)
        if end is not None:
            self.edit.ends[k] = end

    def _groups(self, block: Block | None, after: int | None = None) -> set[int]:
        """Numbers of the groups of a block's backward pass (and recomputation), or of those behind one."""
        return {n for n, group in enumerate(self.flow.groups) if group.block == block and (after is None or n > after)}

    def _drop(self, numbers: Collection[int], after: int | None, spared: Collection[int] = ()) -> None:
        """Without groups of a block, all of them or those behind one, but for the tensors that are spared."""
        flow, live, spared = self.flow, -1, set(spared)
        for number, group in enumerate(flow.groups):
            if number not in numbers:
                live = group.end if not set(group.births) <= self.edit.gone else live
                continue
            if spared & set(group.births):
                live = group.end
                continue
            self.edit.gone |= set(group.births)
            for k in group.frees:
                if k in self.edit.gone or k in self.edit.ends:
                    continue
                if not self._saved(k):
                    self.edit.ends[k] = (live, AFTER)
                elif after is not None and flow.checkpointed and k < flow.forward:
                    self.edit.ends[k] = (flow.groups[after].end, AFTER)
                else:
                    self.edit.ends[k] = flow.local(k) or self._end_of_input(k, (live, AFTER))

    def _end_of_input(self, k: int, otherwise: tuple[int, int]) -> tuple[int, int]:
        reader = self.flow.reader(k)
        return otherwise if reader is None else self.flow.output_end(reader)
