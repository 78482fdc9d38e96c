"""A whole model's step by its layers: which node of the backward pass is whose, what each saved, and which layers modulate others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from estimator.adapter_sites import UNLIKE, block_of
from estimator.filtered_backward import BackwardEdit
from estimator.filtered_edit import AFTER
from estimator.filtered_flow import Block, Flow, Group
from estimator.optimizer_rules import GRADIENT

WITH_BIAS, PLAIN = "AddmmBackward0", "MmBackward0"  # the input's gradient is made first, or last
LINEAR = (WITH_BIAS, PLAIN)
# Parameters outside the blocks whose layers make what modulates all of them
TIMED = ("transformer.time_text_embed.", "transformer.t_embedder.")


@dataclass(frozen=True)
class Layer:
    """A linear layer in the backward pass. `parameters`: its weight and bias, by number; `groups`: those of its node, which checkpointing
    parts where it lets go of the input; `births`: all that these make; `passed`: the input's gradient (None: it needs none)."""

    module: str
    parameters: frozenset[int]
    groups: tuple[int, ...]
    births: tuple[int, ...]
    passed: int | None


class Layers(BackwardEdit):
    """`names`: what the trainer calls each parameter. `frozen`: those that are not trained, by number."""

    def __init__(self, flow: Flow, names: Sequence[str], frozen: frozenset[int]) -> None:
        super().__init__(flow)
        made = {name: k for k, name in enumerate(self.tape.base.names[: self.tape.own]) if name is not None}
        self.gradient = {n: made[key] for n in range(len(names)) if (key := f"{GRADIENT}:{n}") in made}  # others get none at all
        self.names, self.trained = names, self.gradient.keys() - frozen
        self.kept_in: dict[Block | None, list[int]] = defaultdict(list)
        for n in sorted(self.trained):
            self.kept_in[block_of(names[n])].append(n)
        self.timed = any(names[n].startswith(TIMED) for n in self.trained)

    def _group(self, n: int) -> int:
        return self.flow.group_of[self.gradient[n]]

    def _node(self, group: Group) -> str:
        return self.tape.made[group.births[0]].node

    def _module(self, n: int) -> str:
        return self.tape.made[self.gradient[n]].module

    def _is_vector(self, n: int) -> bool:
        return self.names[n].endswith(".bias")

    @cached_property
    def layer_of(self) -> dict[int, Layer]:
        """The linear layer of each parameter that is one's."""
        found: dict[str, list[int]] = defaultdict(list)
        for n in self.gradient:
            if self._node(self.flow.groups[self._group(n)]) in LINEAR:
                found[self._module(n)].append(n)
        return {n: layer for inside in found.values() for layer in [self._layer(inside)] for n in inside}

    def _layer(self, inside: Sequence[int]) -> Layer:
        numbers = [self._group(n) for n in inside]
        groups = tuple(range(min(numbers), max(numbers) + 1))
        births = tuple(k for number in groups for k in self.flow.groups[number].births)
        first = births[0] if self.tape.made[births[0]].node == WITH_BIAS else births[-1]
        passed = None if self.tape.base.names[first] else first
        return Layer(self._module(inside[0]), frozenset(inside), groups, births, passed)

    def incoming(self, layer: Layer) -> list[int]:
        """What comes into its node and goes with it."""
        return [k for number in layer.groups for k in self.flow.incoming(number) if k not in layer.births]

    # ---- inputs

    @cached_property
    def inputs(self) -> dict[int, int]:
        """Weight of a linear layer -> the tensor that is saved for it, where it is saved for such layers alone."""
        own: dict[int, int] = {}
        waiting: list[int] = []
        weights = [n for n in self.layer_of if not self._is_vector(n) and self.layer_of[n].passed is not None]
        for n in sorted(weights, key=self._group, reverse=True):  # the last of the backward pass first
            found = [k for k in self._let_go(self.layer_of[n].groups) if self._saved(k) and self.tape.sizes[k] == self._rows_in(n)]
            if len(found) == 1:
                own[n] = found[0]
            else:
                waiting.append(n)
        own |= {n: shared for n in waiting if (shared := self._shared(n, own)) is not None}
        return own

    def _let_go(self, numbers: Iterable[int]) -> list[int]:
        return [k for number in numbers for k in self.flow.groups[number].frees]

    def _rows_in(self, n: int) -> int:
        """Bytes of the layer's input: those of its gradient."""
        passed = self.layer_of[n].passed
        return 0 if passed is None else self.tape.sizes[passed]

    def _shared(self, n: int, own: dict[int, int]) -> int | None:
        """The input that another layer of the block, later in the backward pass, lets go: it was there when this layer was called."""
        block = block_of(self.names[n])
        for other, k in own.items():
            alike = block_of(self.names[other]) == block and self.tape.sizes[k] == self._rows_in(n)
            if alike and self._group(other) > self._group(n) and self._there(k, self._module(n)):
                return k
        return None

    def _there(self, k: int, module: str) -> bool:
        """Whether a tensor would be there yet, saved or not, when a layer makes its result."""
        end, called = self.flow.local(k), self._called(k, module)
        return called is not None and (end is None or self.tape.born[called] <= end[0])

    def _called(self, k: int, module: str) -> int | None:
        """The first result of a module behind a tensor, in the same pass."""
        made = self.tape.made
        return next((m for m in range(k + 1, self.tape.own) if made[m].module == module and made[m].run == made[k].run), None)

    def _release_input(self, k: int, layers: Sequence[Layer]) -> None:
        """Of a tensor that no layer saves. Outside the blocks the first forward pass saves too: its layers say until when it lives."""
        if self.tape.made[k].block is not None or k >= self.flow.forward:
            self._release(k)
            return
        called = [m for layer in layers if (m := self._called(k, layer.module)) is not None]
        if called:
            self.edit.ends[k] = (self.tape.born[max(called)], AFTER)

    def _release(self, k: int) -> None:
        """Outside the blocks the next tensor as large is what is made of it."""
        if self.tape.made[k].block is not None or k >= self.flow.forward:
            super()._release(k)
        elif (follows := next((m for m in range(k + 1, self.flow.forward) if self.tape.sizes[m] == self.tape.sizes[k]), None)) is not None:
            self.edit.ends[k] = (self.tape.born[follows], AFTER)

    # ---- layers that modulate others

    @cached_property
    def modulating(self) -> list[Layer]:
        """Those over what is one row a sample: what comes into their nodes is as large as the bias, or as many times that as there are
        samples."""
        out = []
        for layer in dict.fromkeys(self.layer_of.values()):
            biases = [self.tape.sizes[self.gradient[n]] for n in layer.parameters if self._is_vector(n)]
            incoming = [self.tape.sizes[k] for k in self.incoming(layer)]
            timed = any(self.names[n].startswith(TIMED) for n in layer.parameters)
            if biases and incoming and not timed and set(incoming) <= {biases[0], UNLIKE["B"] * biases[0]}:
                out.append(layer)
        return out

    def modulates(self, n: int) -> bool:
        return any(n in layer.parameters for layer in self.modulating)

    def sums_of(self, layer: Layer) -> tuple[set[int], list[int]]:
        """The tensors that only lead to such a layer's gradients, and the sums where they begin."""
        side, sums = set(layer.births), list[int]()
        for number in layer.groups:
            more, begun = self.flow.chain_to(number)
            side |= more
            sums += [k for k in begun if k not in layer.births]
        return side, sums

    def _without_modulation(self, layer: Layer) -> None:
        side, sums = self.sums_of(layer)
        self.edit.gone |= side
        for total in sums:
            self._without_sum(total)
