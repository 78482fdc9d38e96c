"""An optimizer's step on an adapter, as a program: its rule (optimizer_rules) gone through for the adapter's parameters.

The parameters are those of the profile's `setup.network`, in order: of each adapted layer the first matrix, rank x inputs, then the
second, outputs x rank, which is zero when training starts. Of a LoKr the small matrix, then the large one, zero likewise. Of a DoRA the
magnitudes, the second matrix and the first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from estimator.features import Ints
from estimator.footprint import PeakRow
from estimator.optimizer_rules import ALL, CONDITIONS, GRADIENT, Event, Shape, expand, load_rules, size_of, size_of_list
from estimator.parameters import LOKR, LORA, WHOLE, Convolved, Fixed, Magnified, Size, shapes_of
from estimator.program import ALLOCATE, EventProgram, Program

SIZE = {LORA: "r", LOKR: "f", WHOLE: "r"}  # the variable that an adapter's shapes depend on
NOMINAL = {LORA: 16, LOKR: 4, WHOLE: 0}  # rank, factor: decide only where tensors that are made once (two of 1 KiB) come in the first step
PARTS = ("step.update/", "setup.optimizer/")
DECAY, ON_HOST = "+weight_decay", "+host"
FUSED = "+"  # between the key of a step's core and that of an optimizer that updates in its backward pass
STAGE_OF = {"setup.optimizer": "created", "first": "first", "later": "later"}


@dataclass(frozen=True)
class OptimizerProgram(EventProgram):
    """`places`: slot and parameter of each tensor. `widths`: bytes of each adapter parameter at rank 1.

    `kind`: of the adapter. `idle`: parameters without gradients, which lists of all leave out. `core`: the program that a fused optimizer's
    updates were laid into; `of_core`: for each tensor its number there, or -1.
    """

    slots: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[tuple[str, int], ...] = ()
    widths: tuple[int, ...] = ()
    kind: str = LORA
    idle: frozenset[int] = field(default=frozenset(), kw_only=True)
    core: Program | None = None
    of_core: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _known: dict[Size, Ints] = field(default_factory=dict)

    def sizes(self, values: Mapping[str, int]) -> Ints:
        """Bytes of each tensor."""
        own = self._own(self.size_in(values))
        if self.core is None:
            return own
        return np.where(self.of_core >= 0, np.append(self.core.sizes(values), 0)[self.of_core], own)

    @property
    def variable(self) -> str:
        return SIZE[self.kind]

    def size_in(self, values: Mapping[str, int]) -> Size:
        return (values["r"], values["c"]) if isinstance(self.widths, Convolved) else values[self.variable]

    @cached_property
    def _alike(self) -> tuple[list[tuple[str, int]], Ints]:
        """Tensors of one size whatever the rank: slot and parameter of one of each sort, and the sort of each tensor."""
        sorts: dict[tuple[Any, ...], int] = {}
        chosen: list[tuple[str, int]] = []
        which = np.zeros(len(self.places), dtype=np.int64)
        for i, (slot, k) in enumerate(self.places):
            first = k - k % 2  # shapes depend on both parameters of a pair
            convolved = isinstance(self.widths, Convolved) and k in self.widths.places
            if isinstance(self.widths, Fixed):
                key: tuple[Any, ...] = (slot, *self.widths.shapes[k]) if slot and k >= 0 else (slot,)
            elif isinstance(self.widths, Magnified):
                key = (slot, k % 3, self.widths[k]) if slot and k >= 0 else (slot,)
            else:
                key = (slot, k % 2, *self.widths[first : first + 2], convolved) if slot and k >= 0 else (slot,)
            if key not in sorts:
                sorts[key] = len(chosen)
                chosen.append((slot, k))
            which[i] = sorts[key]
        return chosen, which

    def _own(self, size: Size) -> Ints:
        if size not in self._known:
            shapes, (chosen, which) = shapes_of(self.widths, size, self.kind), self._alike
            listed = [shape for k, shape in enumerate(shapes) if k not in self.idle]
            each = [_bytes(self.slots[slot], shapes if k >= 0 else listed, k) if slot else 0 for slot, k in chosen]
            self._known[size] = np.array(each, dtype=np.int64)[which]
        return self._known[size]

    def peak(self, values: Mapping[str, int]) -> tuple[int, str]:
        """By its events; with a core around, by peak rows, as of other cores."""
        return Program.peak(self, values) if self.core is not None else super().peak(values)

    def own_sizes(self, tensors: Ints, size: Size) -> Ints:
        """Bytes of some of the optimizer's own tensors, as requested, at a rank (or factor)."""
        return self._own(size)[tensors]


def _bytes(slot: Mapping[str, Any], shapes: list[Shape], k: int) -> int:
    if slot["kind"] == "each":
        return size_of(slot["size"], shapes[k])
    if slot["kind"] == "one":
        return size_of_list(slot["size"], shapes)
    return sum(size for condition, _, size in slot["size"] if any(CONDITIONS[condition](shape) for shape in shapes))


def known(optimizer: str) -> bool:
    return optimizer in load_rules()


def rule_name(optimizer: str, decays: bool, dtype: str = "fp32") -> str:
    """The rule that holds with or without weight decay, for parameters in fp32 or (`adamw+bf16`) another type."""
    named = optimizer if dtype == "fp32" else f"{optimizer}+{dtype}"
    return named + DECAY if decays and known(named + DECAY) else named


def makes_state_at_once(optimizer: str) -> bool:
    """The constructor already makes the state (adagrad)."""
    return known(optimizer) and any(stretch["events"] for stretch in load_rules()[optimizer]["stages"]["created"])


def is_fused(optimizer: str) -> bool:
    """Each parameter is updated, and its gradient freed, in the backward pass."""
    return known(optimizer) and bool(load_rules()[optimizer]["fused"])


def copies_gradients(optimizer: str) -> bool:
    """A hook of the backward pass copies each gradient, and lets go of it; a second batch adds to the copies by way of fp32."""
    return is_fused(optimizer) and any(slot.get("holds") == GRADIENT for slot in load_rules()[optimizer]["slots"].values())


def core_key(key: str, optimizer: str, when: str) -> str:
    """The key of a step's core, with the updates of a fused optimizer laid in. `when`: "first" or "later"."""
    return f"{key}{FUSED}{optimizer}/{when}" if is_fused(optimizer) else key


def _events(optimizer: str, stage: str, widths: tuple[int, ...], kind: str, stretches: slice = ALL) -> list[Event]:
    rule = load_rules()[optimizer]
    made = frozenset(s for s, slot in rule["slots"].items() if slot["kind"] == "once") if stage == "later" else frozenset()
    return expand(rule["stages"][stage], rule["slots"], shapes_of(widths, NOMINAL[kind], kind), made, stretches)


def program(key: str, widths: tuple[int, ...], adapter: str = LORA, idle: Collection[int] = ()) -> Program:
    """`setup.optimizer/<optimizer>` or `step.update/<optimizer>/first|later`, without what a fused optimizer does in the backward pass.

    `idle`: parameters that get no gradient, and so no state.
    """
    kind, optimizer, *when = key.split("/")
    stage = STAGE_OF[when[0] if when else kind]
    stretches = slice(1, None) if is_fused(optimizer) and when else ALL
    listed = _events(optimizer, stage, widths, adapter, stretches)
    coded = _Coded()
    for event in listed:
        if event[2] not in idle:
            coded.take(*event)
    return replace(coded.program(key, load_rules()[optimizer]["slots"], widths, adapter), idle=frozenset(idle))


def fused(core: Program, update: str, widths: tuple[int, ...], adapter: str = LORA) -> Program:
    """A step's core with the updates that a fused optimizer makes in its backward pass: each as soon as its gradient is there.

    `update`: `<optimizer>/first|later`. The position is exact but for what the gradient's own operation frees after it; of a model that is
    trained as a whole, where these are large, it is behind all that the operation makes and frees.
    """
    optimizer, when = update.split("/")
    blocks: dict[int, list[Event]] = {}
    number = -1
    for event in _events(optimizer, when, widths, adapter, slice(0, 1)):
        number = max(event[2], number)
        blocks.setdefault(max(number, 0), []).append(event)
    coded, waiting = _Coded(), list[int]()
    own = len(core.names) - core.imports
    for event, tensor in zip(core.events.tolist(), core.tensor_of_event.tolist(), strict=True):
        if waiting and event == ALLOCATE and core.labels[tensor] != core.labels[waiting[0]]:
            coded.update(waiting, core.names, blocks)
        coded.core(event, tensor, own)
        if event == ALLOCATE and (core.names[tensor] or "").startswith(f"{GRADIENT}:"):
            waiting.append(tensor)
            if not isinstance(widths, Fixed):
                coded.update(waiting, core.names, blocks)
    coded.update(waiting, core.names, blocks)
    return coded.program(f"{core.key}+{update}", load_rules()[optimizer]["slots"], widths, adapter, core)


class _Coded:
    """Events in the form of a recorded program: tensors by order of allocation, imports last. Tensors of 0 bytes stay in."""

    def __init__(self) -> None:
        self.events: list[int] = []
        self.tensors: list[tuple[str, int]] = []  # slot and parameter, or ("", tensor of the core)
        self.imports: dict[tuple[str, int], int] = {}
        self.born: dict[tuple[str, int], int] = {}
        self.freed: set[int] = set()
        self.gradient: int | None = None

    def _allocate(self, what: tuple[str, int]) -> None:
        self.born[what] = len(self.tensors)
        self.tensors.append(what)
        self.events.append(ALLOCATE)

    def _free(self, what: tuple[str, int], imported: bool) -> None:
        if imported:
            self.events.append(-2 - self.imports.setdefault(what, len(self.imports)))
        else:
            self.freed.add(self.born[what])
            self.events.append(len(self.tensors) - self.born[what])

    def core(self, event: int, tensor: int, own: int) -> None:
        """An event of the program around."""
        if event == ALLOCATE:
            self._allocate(("", tensor))
        elif tensor < 0:
            self.events.append(event)
        else:
            self._free(("", tensor), tensor >= own)

    def update(self, waiting: list[int], names: Sequence[str | None], blocks: Mapping[int, Sequence[Event]]) -> None:
        """What a fused optimizer does with gradients that are there: the last one's first, as a layer's bias is before its weight."""
        while waiting:
            self.gradient = waiting.pop()
            for event in blocks.get(int((names[self.gradient] or "").partition(":")[2]), ()):
                self.take(*event)
        self.gradient = None

    def take(self, kind: str, slot: str, k: int) -> None:
        """An event of the optimizer."""
        if kind == "a":
            self._allocate((slot, k))
        elif slot == GRADIENT and self.gradient is not None:
            self._free(("", self.gradient), False)
        else:
            self._free((slot, k), kind == "i" or (slot, k) not in self.born)

    def program(
        self, key: str, slots: Mapping[str, Any], widths: tuple[int, ...], kind: str, core: Program | None = None
    ) -> OptimizerProgram:
        everything = [*self.tensors, *self.imports]
        of_core = [n if slot == "" else -1 for slot, n in everything]
        places = list(dict.fromkeys(slot for slot, _ in everything if slot))
        moments = [*(core.moments if core else ()), *("optimizer: " + slot.split(" ", 2)[-1] for slot in places)]
        first = len(core.moments) if core else 0
        numbers = {slot: first + n for n, slot in enumerate(places)}
        names, labels = [], []
        for i, ((slot, k), n) in enumerate(zip(everything, of_core, strict=True)):
            if core is not None and n >= 0:
                names.append(core.names[n] if i not in self.freed else None)
                labels.append(core.labels[n])
            else:
                names.append(_name(slot, k, slots) if i not in self.freed else None)
                labels.append(numbers[slot])
        return OptimizerProgram(
            key, core.features if core else (), np.zeros((len(everything), 0), dtype=np.int64), tuple(labels), moments, tuple(names),
            np.array(self.events, dtype=np.int64), len(self.imports), _without_gradients(core),
            core.workspace_at if core else {}, slots, tuple(everything),
            widths, kind, core, np.array(of_core, dtype=np.int64), streams=_streams(core, of_core), copies=core.copies if core else {},
        )  # fmt: skip


def _streams(core: Program | None, of_core: list[int]) -> Ints | None:
    """Streams of a core's tensors, each where it stands now; the optimizer's own are on the default one."""
    if core is None or core.streams is None:
        return None
    return np.append(core.streams, 0)[of_core]


def _without_gradients(core: Program | None) -> tuple[PeakRow, ...]:
    """The core's peak rows less the gradients that were there: a fused optimizer has freed them. A lower bound, as all peak rows are."""
    if core is None or not core.peaks:
        return ()
    born = core.events == ALLOCATE
    signs = np.where(born, 1, np.where(core.events == -1, 0, -1))
    rows = np.vstack([core.coefficients, np.zeros((1, len(core.features)), dtype=np.int64)])[core.tensor_of_event] * signs[:, None]
    gradient = np.array([(name or "").startswith(f"{GRADIENT}:") for name in core.names] + [False])[core.tensor_of_event] & born
    totals, gradients = np.cumsum(rows, axis=0), np.cumsum(rows * gradient[:, None], axis=0)
    out = []
    for peak in core.peaks:
        at = np.flatnonzero((totals == np.array(peak.coefficients)).all(axis=1))
        if len(at):
            out.append(PeakRow(tuple((totals[at[0]] - gradients[at[0]]).tolist()), peak.moment))
    return tuple(out)


def _name(slot: str, k: int, slots: Mapping[str, Any]) -> str:
    holds = GRADIENT if slot == GRADIENT else slots[slot].get("holds")
    return f"{GRADIENT}:{k}" if holds == GRADIENT else f"optimizer:{slot}.{k}"
