"""The slots of copied layers, as a program's events: each copy makes its tensors, and lets go of what the slot had.

Source: see estimator.offload.
"""

from __future__ import annotations

from collections.abc import Sequence

from estimator.offload import BACKWARD, FORWARD, HELD, SLOTS, Copied, Layer, copied_by, slot_name

COPY, MADE = 1, 2  # of tensors that the base has not: on the copies' stream, or on the default one
IMPORTED = -2  # the first tensor of the slots that was there before; the next is one less
FP32_TO_BF16 = 2
BIAS = "bias"
PARTS = "0", "1", "2", "3"  # of a weight
WEIGHT_PARTS = (*PARTS, HELD)  # all that a slot can hold besides a bias
SLOT_PARTS = (*WEIGHT_PARTS, BIAS)


class Slots:
    """`at`: the base's event before which is laid in; `first`: the number of the first tensor that is made here."""

    def __init__(self, layers: Sequence[Layer], first: int) -> None:
        self.layers, self.first, self.at = layers, first, 0
        self.laid: tuple[list[int], list[int], list[bool]] = ([], [], [])  # events: the base's before which it comes; tensor; made there?
        self.made: tuple[list[int], list[int]] = ([], [])  # tensors that the base has not: COPY or MADE, and bytes
        self.copies: dict[int, Copied] = {}  # by layer
        self.rings: dict[str, list[dict[str, int]]] = {FORWARD: [], BACKWARD: []}  # each copy's tensors, by part
        self.imports: dict[str, int] = {}  # names of slots' tensors that were there before -> number of import
        self.needed: dict[int, list[int]] = {}  # by call: codes that its backward needs
        self.held: set[int] = set()  # all of them
        self.passed: set[int] = set()  # those whose slot has been written anew

    def copy(self, ring: str, number: int, call: int | None = None) -> None:
        """A layer's weights come into the ring's next slot, and what was there goes. `call`: whose backward needs its codes."""
        if number not in self.copies:
            self.copies[number] = copied_by(self.layers[number])
        layer = self.copies[number]
        tensors = self._allocate(COPY, layer.sizes)
        made = tensors[layer.weight :]
        for passed in layer.gone:
            self.free(tensors[passed])
        if call is not None:
            self.needed[call] = [*made]
            self.held.update(made)
        if not layer.bounces:  # the bias is copied before the slot is written
            slot = dict(zip(PARTS, (*made, *self._allocate(COPY, layer.bias)), strict=False))
            self._replace(ring, slot, weights_only=False)
            return
        slot = dict(zip(PARTS, made, strict=False))
        self._replace(ring, slot, weights_only=True)
        if ring == FORWARD:
            for tensor in self._allocate(COPY, layer.bias):
                slot[BIAS] = tensor
            self._forget(ring, (BIAS,))

    def rebuild(self, weight: int, size: int) -> None:
        """OstrisLinear.weight of a layer that is stuck: on the card, by way of fp32, and then held by the slot."""
        (wide,) = self._allocate(MADE, (FP32_TO_BF16 * size,))
        self.free(weight)
        (made,) = self._allocate(MADE, (size,))
        self.free(wide)
        self._replace(FORWARD, {HELD: made}, weights_only=False)

    def _replace(self, ring: str, slot: dict[str, int], weights_only: bool) -> None:
        self.rings[ring].append(slot)
        self._forget(ring, WEIGHT_PARTS if weights_only else SLOT_PARTS)

    def _forget(self, ring: str, parts: Sequence[str]) -> None:
        """Free these tensors of the slot that has just been written anew."""
        at = len(self.rings[ring]) - 1 - SLOTS
        if at < 0:
            for part in parts:
                name = slot_name(ring, -at, part)  # the copy number -1 was the last one before this part
                self.free(IMPORTED - self.imports.setdefault(name, len(self.imports)))
            return
        slot = self.rings[ring][at]
        for part in parts:
            if part in slot:
                gone = slot.pop(part)
                if gone in self.held:
                    self.passed.add(gone)
                else:
                    self.free(gone)

    def let_go(self, call: int) -> None:
        """A layer's backward is over: codes go unless they lie in a slot still."""
        for tensor in self.needed.pop(call, ()):
            self.held.discard(tensor)
            if tensor in self.passed:
                self.free(tensor)

    def _allocate(self, kind: int, sizes: Sequence[int]) -> range:
        """Tensors of these bytes are made: their numbers."""
        kinds, made = self.made
        first = self.first + len(made)
        tensors = range(first, first + len(sizes))
        kinds += [kind] * len(sizes)
        made += sizes
        self._lay(tensors, born=True)
        return tensors

    def free(self, tensor: int) -> None:
        self._lay((tensor,), born=False)

    def _lay(self, tensors: Sequence[int], *, born: bool) -> None:
        places, laid, births = self.laid
        places += [self.at] * len(tensors)
        laid += tensors
        births += [born] * len(tensors)
