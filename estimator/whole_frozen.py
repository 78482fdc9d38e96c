"""Steps of a model of which some parameters are trained, from those of the whole model.

Four things follow from a parameter that is frozen. Its gradient is not made, nor what only that needed: partial results of a bias's sum,
the product that a norm's is the sum of. A linear layer whose weight is frozen does not save what goes into it (another layer on the same
input may), nor does a norm. Of a layer that modulates others (over an embedding of the time, which needs no gradient) nothing is left, nor
of the sums over gates, shifts and scales. And blocks in front of the first one with something trained keep nothing and have no backward
pass (estimator.frozen_beginning). All this is read off the recorded core: which node of the backward pass made a tensor, and what was let
go with it (estimator.frozen_layers).
Source: torch's autograd formulas (tools/autograd/derivatives.yaml: addmm, mm, mul, _fused_rms_norm), as recorded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from estimator.adapter_sites import Tape
from estimator.filtered_edit import AFTER
from estimator.filtered_flow import Flow
from estimator.frozen_beginning import Beginning
from estimator.frozen_layers import LINEAR
from estimator.program import Program

FUSED_NORM = "FusedRmsNormBackward0"  # of a frozen weight it makes the input's gradient alone


class Frozen(Beginning):
    """A core of which some parameters are frozen."""

    def program(self) -> Program:
        for layer in self.modulating:
            if not self.timed and not layer.parameters & self.trained:
                self._without_modulation(layer)
        self._without_inputs()
        for n in self.gradient.keys() - self.trained:
            self._without_gradient(n)
        self._without_beginnings()
        return self.edit.program(self.tape.base.names)

    def _without_gradient(self, n: int) -> None:
        k, group = self.gradient[n], self.flow.groups[self._group(n)]
        node = self._node(group)
        if node in LINEAR:
            behind = group.births[group.births.index(k) + 1 :]
            sums = {m for m in behind if m in group.frees and m != self.layer_of[n].passed}
            self.edit.gone |= {k, *(sums if self._is_vector(n) else ())}
        elif node == FUSED_NORM:
            self.edit.gone |= set(group.births[1:])
        else:
            self._without_sum(k)

    def _without_inputs(self) -> None:
        """Inputs live until the backward pass of the last layer that is trained on them."""
        users: dict[int, list[int]] = defaultdict(list)
        for n, k in self.inputs.items():
            users[k].append(n)
        for k, weights in users.items():
            trained = [self._group(n) for n in weights if n in self.trained]
            if not trained:
                self._release_input(k, [self.layer_of[n] for n in weights])
            elif max(trained) < max(self._group(n) for n in weights):
                self.edit.ends[k] = (self.flow.groups[max(trained)].end, AFTER)


def core(base: Program, twin: Program, names: Sequence[str], frozen: frozenset[int]) -> Program:
    """A step's core with parameters frozen, by number. `names`: what the trainer calls each; `twin`: the same under checkpointing. Raises
    CannotTell."""
    tape = Tape(base)
    return Frozen(Flow(tape, tape if twin is base else Tape(twin)), names, frozen).program()
