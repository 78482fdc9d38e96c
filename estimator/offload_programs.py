"""Memory programs with offloaded layers, from those without: copies laid in, and inputs of layers kept for their backward pass.

A profile says of each part where in it each layer is used (`calls`): before which allocation its forward begins and is over, before
which its backward begins, and until which its input would be kept if its backward needed it. Recorded in runs without offloading,
it holds for any choice of layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from estimator.derived_weights import highest
from estimator.offload import BACKWARD, CODES_TO_WEIGHT, FORWARD, HELD, SLOTS, STREAM, STUCK, WRAPPED, Layer, slot_name
from estimator.program import ALLOCATE, EMPTY_CACHE, FIRST_IMPORT, Program, peak_rows

NONE, STAYS = -1, -2
COPY, MADE = -1, -2  # of tensors that the base has not: on the copies' stream, or on the default one
REBUILD = "rebuild"
FP32_TO_BF16 = 2
MOMENT = "layer offloading: a layer's weights are copied in"
PARTS = 4  # the most tensors that a slot holds besides a bias


@dataclass(frozen=True, slots=True)
class Call:
    """A row of a profile's calls (see the module): its places are numbers of tensors, in order of allocation."""

    layer: int
    first: int
    last: int
    input: int
    output: int
    backward: int
    until: int


@dataclass(frozen=True)
class Offloaded:
    """What a part's layers are. `resident`: as the part's program has them; `layers`: as they really are (other weights' program may
    stand for it); `taken`: those that wait on the host."""

    resident: Sequence[Layer]
    layers: Sequence[Layer]
    taken: frozenset[int]


def offloaded(base: Program, calls: Sequence[Call], what: Offloaded) -> Program:
    """The program with those layers offloaded."""
    return _Editor(base, what).program(calls)


def loaded(base: Program, component: str, layers: Sequence[Layer], taken: frozenset[int]) -> Program:
    """A part of loading without the weights that wait on the host: they were taken before the move that would bring them to the card."""
    return _without(base, _leaves(base, component, layers, taken), base.names)


def loaded_first(base: Program, component: str, layers: Sequence[Layer], taken: frozenset[int]) -> Program:
    """A part of loading after which the weights that wait on the host are taken off the card."""
    gone = _leaves(base, component, layers, taken)
    own = len(base.names) - base.imports
    names = tuple(None if k in gone else name for k, name in enumerate(base.names))
    return replace(base, events=np.append(base.events, [own - k for k in sorted(gone)]).astype(np.int64), names=names)


def _leaves(base: Program, component: str, layers: Sequence[Layer], taken: frozenset[int]) -> set[int]:
    """Tensors of offloaded layers that the part leaves on the card."""
    gone = _names(component, (layers[k] for k in taken))
    return {k for k in base.exported if (base.names[k] or "").split(".")[0] in gone}


def loaded_late(base: Program, component: str, plain: Sequence[Layer], layers: Sequence[Layer], taken: frozenset[int]) -> Program:
    """A part of loading whose layers are taken before they are moved and quantised: neither happens on the card.

    The part begins with the move of all weights (those of `plain`, in the order of residents). What quantising a layer needs stands before
    what it leaves. Layers that are stuck keep both; theirs is another name then, since they do not move with the component.
    """
    moved = max((layer.place + len(layer.sizes) for layer in plain), default=0)
    dropped = {k for n in taken for k in range(plain[n].place, plain[n].place + len(plain[n].sizes))}
    gone = _names(component, (layers[n] for n in taken if not layers[n].stuck))
    stuck = _names(component, (layers[n] for n in taken if layers[n].stuck))
    following = False
    for k in range(len(base.names) - base.imports - 1, moved - 1, -1):
        name = (base.names[k] or "").split(".")[0]
        following = name in gone if name else following
        if following:
            dropped.add(k)
    names = tuple(STUCK + name[len(component) :] if name and name.split(".")[0] in stuck else name for name in base.names)
    return _without(base, dropped, names)


def _without(base: Program, dropped: set[int], names: tuple[str | None, ...]) -> Program:
    """Tensors of no bytes in place of some: the allocator gives them no block."""
    if not len(base.names):
        return base
    coefficients = base.coefficients.copy()
    coefficients[sorted(dropped)] = 0
    return replace(base, coefficients=coefficients, names=names, peaks=highest(base, coefficients))


def _names(component: str, layers: Iterable[Layer]) -> set[str]:
    return {f"{component}:{n}" for layer in layers for n in range(layer.number, layer.number + layer.numbers)}


class _Editor:
    """Goes through the base's events and writes its own."""

    def __init__(self, base: Program, what: Offloaded) -> None:
        self.base, self.what = base, what
        self.own = len(base.names) - base.imports
        self.dropped: set[int] = set()
        self.dropped_free: set[int] = set()  # freed elsewhere than the base does
        self.events: list[int] = []
        self.tensors: list[tuple[int, int]] = []  # (tensor of the base, 0), or (COPY or MADE, bytes)
        self.streams: list[int] = []
        self.slots: dict[str, list[dict[str, int]]] = {FORWARD: [], BACKWARD: []}  # each copy's tensors, by part
        self.imports: dict[str, int] = {}  # names of slots' tensors that were there before -> number of import
        self.born: dict[int, int] = {}
        self.workspace_at = dict(base.workspace_at)

    def program(self, calls: Sequence[Call]) -> Program:
        base = self.base
        before: dict[int, list[tuple[str, int]]] = defaultdict(list)
        kept = self._plan(calls, before)
        for n, (event, k) in enumerate(zip(base.events.tolist(), base.tensor_of_event.tolist(), strict=True)):
            self.workspace_at |= {thread: len(self.events) for thread, at in base.workspace_at.items() if at == n}
            if event == EMPTY_CACHE:
                self.events.append(event)
            elif event == ALLOCATE:
                self._actions(before.pop(k, ()))
                if k not in self.dropped:
                    self.born[k] = self._allocate((k, 0))
            elif k >= self.own:
                self.events.append(FIRST_IMPORT - (k - self.own))
            elif k not in self.dropped and k not in kept and k not in self.dropped_free:
                self._free(self.born[k])
        self._actions(before.pop(self.own, ()))
        return self._finished()

    # ---- what is done before which allocation

    def _plan(self, calls: Sequence[Call], before: dict[int, list[tuple[str, int]]]) -> set[int]:
        """Actions by the base's tensor before which they happen. Returns the tensors that the base would free too early."""
        until: dict[int, int] = {}
        copies: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for call in calls:
            self._rebuilt(call)
            if call.layer not in self.what.taken:
                continue
            layer = self.what.layers[call.layer]
            if layer.stuck and layer.plain_bytes is not None:
                weight = max((k for k in range(call.first, call.last) if k != call.output), key=self._constant)
                self.dropped_free.add(weight)
                copies[call.output].append((REBUILD, weight))
            else:
                copies[call.first].append((FORWARD, call.layer))
            if layer.bounces and call.until != NONE:
                if call.backward != NONE:
                    copies[call.backward].append((BACKWARD, call.layer))
                if call.input != NONE:
                    known = until.get(call.input, 0)
                    until[call.input] = STAYS if STAYS in (known, call.until) else max(known, call.until)
        deaths = self._deaths()
        kept = {k for k, end in until.items() if end == STAYS or deaths.get(k, self.own + 1) < end}
        for k in kept:
            if until[k] != STAYS:
                before[until[k]].append(("free", k))
        for place, listed in copies.items():
            before[place] += listed
        return kept

    def _rebuilt(self, call: Call) -> None:
        """Leave out the weight that the base rebuilds, where the layer is another kind or rebuilds it as it is copied."""
        layer, real = self.what.resident[call.layer], self.what.layers[call.layer]
        if real.plain_bytes is not None and not real.stuck and call.layer in self.what.taken:  # rebuilt on the host
            self.dropped |= set(range(call.first, call.last)) - {call.output}
        same = self.what.layers[call.layer].what == WRAPPED and call.layer not in self.what.taken
        if layer.what == WRAPPED and not same:
            weight = CODES_TO_WEIGHT * layer.sizes[0]
            self.dropped |= {k for k in range(call.first, call.last) if k != call.output and self._constant(k) == weight}

    def _constant(self, k: int) -> int:
        row = self.base.coefficients[k]
        if "1" not in self.base.features:
            return 0
        at = self.base.features.index("1")
        return int(row[at]) if np.count_nonzero(row) == 1 else 0

    def _deaths(self) -> dict[int, int]:
        """For each tensor the allocation before which the base frees it."""
        out, born = {}, 0
        for event, k in zip(self.base.events.tolist(), self.base.tensor_of_event.tolist(), strict=True):
            if event == ALLOCATE:
                born = k + 1
            elif event != EMPTY_CACHE:
                out[k] = born
        return out

    # ---- events

    def _actions(self, actions: Sequence[tuple[str, int]]) -> None:
        for action, k in actions:
            if action == "free":
                self._free(self.born[k])
            elif action == REBUILD:
                self._rebuild(k)
            else:
                self._copy(action, self.what.layers[k])

    def _copy(self, ring: str, layer: Layer) -> None:
        """A layer's weights come into the ring's next slot, and what was there goes."""
        weight, bias = layer.copied
        passing = [self._allocate((COPY, size)) for size in layer.passing]
        rebuilt = [self._allocate((COPY, size)) for size in weight if layer.rebuilt]  # the cast, before the scaled one
        made = [self._allocate((COPY, size)) for size in weight]
        for tensor in (*rebuilt, *passing):
            self._free(tensor)
        if not layer.bounces:  # the bias is copied before the slot is written
            slot = {f"{n}": tensor for n, tensor in enumerate([*made, *(self._allocate((COPY, size)) for size in bias)])}
            self._replace(ring, slot, weights_only=False)
            return
        slot = {f"{n}": tensor for n, tensor in enumerate(made)}
        self._replace(ring, slot, weights_only=True)
        if ring == FORWARD:
            for size in bias:
                slot["bias"] = self._allocate((COPY, size))
            self._forget(ring, "bias")

    def _rebuild(self, weight: int) -> None:
        """OstrisLinear.weight of a layer that is stuck: on the card, by way of fp32, and then held by the slot."""
        size = self._constant(weight)
        wide = self._allocate((MADE, FP32_TO_BF16 * size))
        self._free(self.born[weight])
        made = self._allocate((MADE, size))
        self._free(wide)
        self._replace(FORWARD, {HELD: made}, weights_only=False)

    def _replace(self, ring: str, slot: dict[str, int], weights_only: bool) -> None:
        self.slots[ring].append(slot)
        for part in (*map(str, range(PARTS)), HELD):
            self._forget(ring, part)
        if not weights_only:
            self._forget(ring, "bias")

    def _forget(self, ring: str, part: str) -> None:
        """Free that tensor of the slot that has just been written anew."""
        at = len(self.slots[ring]) - 1 - SLOTS
        if at >= 0:
            if part in self.slots[ring][at]:
                self._free(self.slots[ring][at].pop(part))
            return
        name = slot_name(ring, -at, part)  # the copy number -1 was the last one before this part
        self.events.append(FIRST_IMPORT - self.base.imports - self.imports.setdefault(name, len(self.imports)))

    def _allocate(self, tensor: tuple[int, int]) -> int:
        self.tensors.append(tensor)
        self.events.append(ALLOCATE)
        return len(self.tensors) - 1

    def _free(self, tensor: int) -> None:
        self.events.append(len(self.tensors) - tensor)

    # ---- the program

    def _finished(self) -> Program:
        base, features = self.base, self.base.features
        if any(k < 0 for k, _ in self.tensors) and "1" not in features:
            features = (*features, "1")
        one = features.index("1") if "1" in features else 0
        wide = np.zeros((len(base.names) + 1, len(features)), dtype=np.int64)
        wide[:-1, : len(base.features)] = base.coefficients
        order = [k for k, _ in self.tensors] + list(range(self.own, len(base.names)))
        order += [MADE if name.startswith(HELD) else COPY for name in self.imports]
        coefficients = wide[[max(k, -1) for k in order]]
        for n, (k, size) in enumerate(self.tensors):
            if k < 0:
                coefficients[n, one] = size
        names: list[str | None] = [base.names[k] if k >= 0 else None for k in order[: len(order) - len(self.imports)]]
        for ring, copies in self.slots.items():
            for age, slot in enumerate(reversed(copies[-SLOTS:]), 1):
                for part, tensor in slot.items():
                    names[tensor] = slot_name(ring, age, part)
        labels = tuple(base.labels[k] if k >= 0 else len(base.moments) for k in order)
        moments = [*base.moments, MOMENT]
        streams = np.array([STREAM if k == COPY else 0 for k in order], dtype=np.int64)
        counts = {ring: len(listed) for ring, listed in self.slots.items()}
        events = np.array(self.events, dtype=np.int64)
        return Program(
            base.key, features, coefficients, labels, moments, (*names, *self.imports), events, base.imports + len(self.imports),
            peak_rows(features, coefficients, events, labels, moments, len(self.tensors)), self.workspace_at,
            streams=streams if streams.any() else None, copies=counts,
        )  # fmt: skip
