"""Steps of a model that is trained as a whole in qfloat8: optimum-quanto's layers give their weights gradients in bf16.

Of a step in bf16 each such layer makes its weight before it multiplies (a cast, the weight; the cast goes, and the weight with the
product, to which a bias is added in a further tensor), and makes it once more in the backward pass, where the input's gradient comes before
the weight's. Gradients of one input add up in place, where torch's own layers make a sum. When the model is saved, weights are made one
after the other in fp32.
Source: optimum-quanto 0.2.4 (QTensorLinear, QBytesTensor.dequantize); ostris/ai-toolkit 27a03a91, toolkit/dequantize.py; a recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from estimator.adapter_sites import BACKWARD, FORWARD, RECOMPUTED, Tape
from estimator.frozen_layers import LINEAR, WITH_BIAS
from estimator.laying import BEHIND, CONSTANT, Laid, Place
from estimator.program import ALLOCATE, EventProgram, Program

ADDED_UP = "ViewBackward0"
FP32_TO_BF16, SCALE_BYTES = 2, 4
SAVING = "save"
Size = Mapping[str, int]


class Remade:
    """A step's core in bf16 with weights that layers make anew. `weights`: bytes, by module."""

    def __init__(self, core: Program, weights: Mapping[str, int]) -> None:
        self.core, self.weights = core, weights
        self.tape = Tape(core)
        self.laid = Laid(self.tape)
        self.passed: set[int] = set()

    def program(self) -> Program:
        backward = self._backward()
        for k in self._uses():
            self._forward(k, any(self.tape.made[m].node == WITH_BIAS for m in backward.get(self.tape.made[k].module, ())))
        for module, made in backward.items():
            self._return(module, made)
        self._in_place()
        return self.laid.program(lambda event: (event, 0, 0))

    def _size(self, k: int) -> Size:
        """Bytes of a tensor of the base, by feature."""
        return {f: c for f, c in zip(self.core.features, self.core.coefficients[k].tolist(), strict=True) if c}

    def _weight(self, place: int, like: int, module: str) -> int:
        """Made before an event; what it is cast from is gone by then."""
        size = {CONSTANT: self.weights[module]}
        cast = self.laid.make(self.laid.before(place), size, like)
        weight = self.laid.make(self.laid.before(place), size, like)
        self.laid.free(self.laid.before(place), cast)
        return weight

    def _uses(self) -> list[int]:
        """The first tensor of each layer in each pass: its result."""
        seen: dict[tuple[str, str], int] = {}
        for k, made in enumerate(self.tape.made):
            if made.module in self.weights and made.run in (FORWARD, RECOMPUTED):
                seen.setdefault((made.module, made.run), k)
        return list(seen.values())

    def _forward(self, k: int, biased: bool) -> None:
        place = self.tape.born[k]
        weight = self._weight(place, k, self.tape.made[k].module)
        if biased:
            product = self.laid.make(self.laid.before(place), self._size(k), k)
            self.laid.free(self.laid.before(place), weight)
            self.laid.free(self.laid.behind(place), product)
        else:
            self.laid.free(self.laid.behind(place), weight)

    def _backward(self) -> dict[str, list[int]]:
        """What each layer's node makes, in order."""
        out: dict[str, list[int]] = {}
        for k, made in enumerate(self.tape.made):
            if made.module in self.weights and made.run == BACKWARD and made.node in LINEAR:
                out.setdefault(made.module, []).append(k)
        return out

    def _return(self, module: str, made: Sequence[int]) -> None:
        biased = self.tape.made[made[0]].node == WITH_BIAS
        passed = made[0] if biased else made[-1]
        if self.core.names[passed] is not None:
            return
        self.passed.add(passed)
        place = self.tape.born[passed]
        weight = self._weight(place, passed, module)
        self.laid.free(self.laid.behind(place), weight)
        if not biased:  # its gradient came first
            (own,) = (k for k in made if self.core.names[k] is not None)
            self.laid.gone.add(own)
            self.laid.names[self.laid.make(self.laid.behind(place), self._size(own), own)] = self.core.names[own]
        self._keep(made)

    def _keep(self, made: Sequence[int]) -> None:
        """What checkpointing lets go within the node is there to its end."""
        first, last = self.tape.born[made[0]], self.tape.born[made[-1]]
        inside = self.core.events[first:last], self.core.tensor_of_event[first:last]
        for code, k in zip(*(part.tolist() for part in inside), strict=True):
            if code != ALLOCATE and 0 <= k < self.tape.own and self.tape.made[k].run in (FORWARD, RECOMPUTED):
                self.laid.keep(k, self._end(made[-1]))

    def _end(self, k: int) -> Place:
        return self.tape.next_birth(k) - 1, BEHIND, 0

    def _in_place(self) -> None:
        """Sums of inputs' gradients that such layers pass on: the first takes the others."""
        freed: dict[int, list[int]] = {}
        for k in self.passed:
            died = self.tape.died[k]
            if died is not None:
                freed.setdefault(self.tape.made_before(died), []).append(k)
        for total, parts in freed.items():
            died = self.tape.died[total]
            if self.tape.made[total].node == ADDED_UP and len(parts) > 1 and died is not None:
                self.laid.gone.add(total)
                self.laid.ends[min(parts)] = (died, 0, 0)


def saving(weights: Sequence[tuple[int, int]]) -> Program:
    """`save/none`: each quantised weight in fp32 before the one before it goes. `weights`: rows and bytes in bf16 of each."""
    sizes: list[int] = []
    events: list[int] = []
    for rows, weight in weights:
        sizes += [SCALE_BYTES * rows, FP32_TO_BF16 * weight, FP32_TO_BF16 * weight]  # scales, a cast, the weight
        events += [0, 0, 0, 2, *((4,) if len(sizes) > 3 else ()), 3]
    events.append(1)
    table, labels = np.array(sizes, dtype=np.int64)[:, None], (0,) * len(sizes)
    codes = np.array(events, dtype=np.int64)
    return EventProgram("save/none", ("1",), table, labels, [SAVING], (None,) * len(sizes), codes, 0, (), {}).with_rows


def core(base: Program, weights: Mapping[str, int]) -> Program:
    """A step's core in qfloat8, of the same in bf16."""
    return Remade(base, weights).program()
