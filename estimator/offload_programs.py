"""Memory programs with offloaded layers, from those without: copies laid in, and inputs of layers kept for their backward pass.

A profile says of each part where in it each layer is used (`calls`): before which allocation its forward begins and is over, before
which its backward begins, and until which its input would be kept if its backward needed it. Recorded in runs without offloading,
it holds for any choice of layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from estimator import adapter_sites
from estimator.adapter_sites import made_by
from estimator.arrays import Bools, among, joined
from estimator.features import Ints
from estimator.layer_calls import NONE, STAYS, Call, Uses
from estimator.offload import (
    BACKWARD,
    CODES_TO_WEIGHT,
    FORWARD,
    HELD,
    MOMENT,
    OWN,
    SLOTS,
    STREAM,
    WRAPPED,
    Layer,
    slot_name,
)
from estimator.offload_slots import COPY, IMPORTED, Slots
from estimator.program import ALLOCATE, EMPTY_CACHE, FIRST_IMPORT, EventProgram, Program

REBUILD = "rebuild"
KEEP, LET_GO = "keep", "let go"  # a copy whose codes the layer's backward needs; that this one is over
CHECKPOINTED = "/checkpointed/"


@dataclass(frozen=True)
class Offloaded:
    """What a part's layers are. `resident`: as the part's program has them; `layers`: as they really are (other weights' program may
    stand for it); `taken`: those that wait on the host."""

    resident: Sequence[Layer]
    layers: Sequence[Layer]
    taken: frozenset[int]


def offloaded(base: Program, uses: Uses, what: Offloaded) -> Program:
    """The program with those layers offloaded."""
    return _Editor(base, what).program(uses.calls())


class _Editor:
    """Lays a program's own events in between the base's. A tensor is the base's by its number there, or one that is made here."""

    def __init__(self, base: Program, what: Offloaded) -> None:
        self.base, self.what = base, what
        self.own = len(base.names) - base.imports
        self.constants = base.constants.tolist()
        self.dropped: set[int] = set()
        self.dropped_free: set[int] = set()  # freed elsewhere than the base does
        self.slots = Slots(what.layers, len(base.names))
        self.calls: Sequence[Call] = ()

    def program(self, calls: Sequence[Call]) -> Program:
        base, self.calls = self.base, calls
        before: dict[int, list[tuple[str, int]]] = defaultdict(list)
        kept = self._plan(calls, before)
        made = np.append(np.flatnonzero(base.events == ALLOCATE), len(base.events))
        for k in sorted(before):
            self.slots.at = int(made[k])
            self._actions(before[k])
        tensors, births = base.tensor_of_event, base.events == ALLOCATE
        gone = among(tensors, self.dropped) | (among(tensors, kept | self.dropped_free) & ~births)
        return self._finished(tensors, births, gone)

    # ---- what is done before which allocation

    def _plan(self, calls: Sequence[Call], before: dict[int, list[tuple[str, int]]]) -> set[int]:
        """Actions by the base's tensor before which they happen. Returns the tensors that the base would free too early."""
        until: dict[int, int] = {}
        copies: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for n, call in enumerate(calls):
            self._rebuilt(call)
            if call.layer not in self.what.taken:
                continue
            layer = self.what.layers[call.layer]
            if layer.stuck and layer.plain_bytes is not None:
                weight = max((k for k in range(call.first, call.last) if k != call.output), key=self.constants.__getitem__)
                self.dropped_free.add(weight)
                copies[call.output].append((REBUILD, weight))
            elif layer.saves and call.until != NONE:
                copies[call.first].append((KEEP, n))
                if call.until != STAYS:
                    before[call.until].append((LET_GO, n))
            else:
                copies[call.first].append((FORWARD, call.layer))
            if layer.bounces and call.until != NONE and not self._passed(call):
                if call.backward != NONE:
                    copies[call.backward].append((BACKWARD, call.layer))
                if call.input != NONE:
                    known = until.get(call.input, 0)
                    until[call.input] = STAYS if STAYS in (known, call.until) else max(known, call.until)
        deaths = self.base.deaths
        kept = {k for k, end in until.items() if end == STAYS or deaths[k] < end}
        for k in kept:
            if until[k] != STAYS:
                before[until[k]].append(("free", k))
        for place, listed in copies.items():
            before[place] += listed
        return kept

    def _passed(self, call: Call) -> bool:
        """Whether it is in the first forward pass of a checkpointed block, in which nothing is kept, though its node may never be run (text
        in Qwen-Image's last block)."""
        if CHECKPOINTED not in self.base.key:
            return False
        made = made_by(self.base.moments[self.base.labels[call.output]])
        return made.run == adapter_sites.FORWARD and made.block is not None

    def _rebuilt(self, call: Call) -> None:
        """Leave out the weight that the base rebuilds, where the layer is another kind or rebuilds it as it is copied."""
        layer, real = self.what.resident[call.layer], self.what.layers[call.layer]
        if real.plain_bytes is not None and not real.stuck and call.layer in self.what.taken:  # rebuilt on the host
            self.dropped |= set(range(call.first, call.last)) - {call.output}
        elif layer.what == real.what == OWN and not real.stuck and call.layer in self.what.taken:
            self.dropped |= set(self._read_before(call, max(layer.sizes)))
        same = self.what.layers[call.layer].what == WRAPPED and call.layer not in self.what.taken
        if layer.what == WRAPPED and not same:
            weight = CODES_TO_WEIGHT * layer.sizes[0]
            self.dropped |= {k for k in range(call.first, call.last) if k != call.output and self.constants[k] == weight}

    def _read_before(self, call: Call, packed: int) -> Iterator[int]:
        """What asking for a weight's type rebuilds (the module around a layer does, in T5): on the host, where the layer waits."""
        around = self.base.moments[self.base.labels[call.first]].rpartition(".")[0]
        sizes, k = {packed * 2, packed * 4, packed * 8, packed // 16}, call.first - 1
        while k >= 0 and self.constants[k] in sizes and self.base.moments[self.base.labels[k]] == f"{around}|forward":
            yield k
            k -= 1

    # ---- events

    def _actions(self, actions: Sequence[tuple[str, int]]) -> None:
        for action, k in actions:
            if action == "free":
                self.slots.free(k)
            elif action == REBUILD:
                self.slots.rebuild(k, self.constants[k])
            elif action == KEEP:
                self.slots.copy(FORWARD, self.calls[k].layer, k)
            elif action == LET_GO:
                self.slots.let_go(k)
            else:
                self.slots.copy(action, k)

    # ---- the program

    def _finished(self, tensors: Ints, births: Bools, gone: Bools) -> Program:
        """From the base's events: the tensor of each, whether it is made there, and whether the event is left out."""
        base, count = self.base, len(self.base.names)
        places, own, born = (np.array(each, dtype=np.int64) for each in self.slots.laid)
        before = np.append(0, np.cumsum(~gone))  # events of the base that are left in, before each
        workspace_at = {thread: int(before[at] + np.searchsorted(places, at)) for thread, at in base.workspace_at.items()}
        tensors, births = joined((tensors[~gone], births[~gone]), before[places], (own, born == 1))
        imported = np.array([*range(self.own, count), *(IMPORTED - n for n in range(len(self.slots.imports)))], dtype=np.int64)
        order = np.append(tensors[births], imported)
        features, coefficients, labels, streams = self._rows(order)
        names = self._names(order)
        number = np.zeros(self._count, dtype=np.int64)
        number[order] = np.arange(len(order))
        foreign = (tensors <= IMPORTED) | ((tensors >= self.own) & (tensors < count))
        first = len(order) - len(imported)
        codes = np.where(foreign, FIRST_IMPORT + first - number[tensors], np.cumsum(births) - number[tensors])
        codes[births] = ALLOCATE
        codes[tensors == EMPTY_CACHE] = EMPTY_CACHE
        copies = {ring: len(listed) for ring, listed in self.slots.rings.items()}
        made = EventProgram(
            base.key, features, coefficients, tuple(labels.tolist()), [*base.moments, MOMENT], names, codes, len(imported), (),
            workspace_at, streams=streams if streams.any() else None, copies=copies,
        )  # fmt: skip
        return made.known(label_rows=labels)

    @property
    def _count(self) -> int:
        """Places for all tensors, and for what EMPTY_CACHE's -1 is: those below 0 count from the end."""
        return len(self.base.names) + len(self.slots.made[1]) + len(self.slots.imports) + 1

    def _rows(self, order: Ints) -> tuple[tuple[str, ...], Ints, Ints, Ints]:
        """Features; of each tensor in order its bytes over them, its label and its stream."""
        base, count = self.base, len(self.base.names)
        kinds, made = self.slots.made
        features = base.features if "1" in base.features or not made else (*base.features, "1")
        wide = np.zeros((self._count, len(features)), dtype=np.int64)
        wide[:count, : len(base.features)] = base.coefficients
        labels, streams = np.full(self._count, len(base.moments)), np.zeros(self._count, dtype=np.int64)
        labels[:count] = base.label_rows
        for n, name in enumerate(self.slots.imports):
            streams[IMPORTED - n] = 0 if name.startswith(HELD) else STREAM
        if made:
            wide[count : count + len(made), features.index("1")] = made
            streams[count : count + len(made)] = np.where(np.array(kinds) == COPY, STREAM, 0)
        return features, wide.take(order, axis=0), labels[order], streams[order]

    def _names(self, order: Ints) -> tuple[str | None, ...]:
        """Of each tensor in order: what lies in a slot at the end, and those of the base."""
        known = np.full(self._count, None, dtype=object)
        named = self.base.named
        known[named] = [self.base.names[k] for k in named.tolist()]
        for n, name in enumerate(self.slots.imports):
            known[IMPORTED - n] = name
        for ring, copies in self.slots.rings.items():
            for age, slot in enumerate(reversed(copies[-SLOTS:]), 1):
                for part, tensor in slot.items():
                    known[tensor] = slot_name(ring, age, part)
        return tuple(known[order].tolist())
