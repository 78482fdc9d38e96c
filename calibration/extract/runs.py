"""A recorded run, read back: every tensor with its life, every event in order, and the phases as event ranges."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.trainer import trace as traces
from estimator.program import EMPTY_CACHE

BACKWARD = "backward"  # phase of a step: its backward pass


@dataclass(slots=True)
class Tensor:
    """One allocation. `born`/`died`: event index (`died` None: never freed). `names`: what held it at marks, first to last."""

    size: int
    born: int
    label: str
    died: int | None = None
    names: list[str] = field(default_factory=list)

    @property
    def name(self) -> str | None:
        return self.names[0] if self.names else None


@dataclass(slots=True)
class Phase:
    """A recorded phase: events [first, last), information of its marks, and the phases inside it."""

    name: str
    first: int
    info: dict[str, Any]
    last: int = -1
    inner: list[Phase] = field(default_factory=list)

    def walk(self) -> list[Phase]:
        return [self, *(p for child in self.inner for p in child.walk())]


@dataclass(slots=True)
class Call:
    """One use of a layer that offloading can take (calibration.trainer.linears): event indices and tensors.

    `layer`: row of the run's table. Events [first, last) are the forward's; `input` and `output` tensors (None: not on the device, or
    unknown); `backward` and `after`: where its backward begins and ends; `gone`: where its graph node is gone. None: never.
    """

    layer: int
    first: int
    input: int | None
    last: int = -1
    output: int | None = None
    saved: bool = False
    backward: int | None = None
    after: int | None = None
    gone: int | None = None


@dataclass(slots=True)
class Run:
    """One recorded run. `events` in order: ("a", tensor) allocation, ("f", tensor) free, ("e", EMPTY_CACHE).

    `layers`: what offloading can take, by component, name, class and numbers of tensors; `calls`: their uses. Empty in older recordings.
    `trained`: shapes of the model's parameters as the optimizer has them, where all of it is trained; `trained_names`: the trainer's names.
    """

    path: Path
    tensors: list[Tensor]
    events: list[tuple[str, int]]
    root: Phase
    versions: dict[str, str]
    config: dict[str, Any]
    outcome: str
    layers: list[dict[str, Any]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    trained: list[list[int]] = field(default_factory=list)
    trained_names: list[str] = field(default_factory=list)

    @property
    def stopped(self) -> bool:
        """It ended when its model was loaded."""
        return all(phase.name != "setup" for phase in self.root.inner)


def first_preview(phase: Phase) -> Phase:
    """Where nothing is moved for a round of previews (Wan 2.1 I2V with low_vram): just before its first one."""
    first = next(p for p in phase.inner if p.name in ("encode_prompt", "generate_single_image")).first
    return Phase("enter", first, {}, first)


def read(folder: Path) -> Run:
    """Read result.json, trace.npz and config.yaml of a recorded run."""
    import yaml

    trace = traces.load(folder / "trace.npz")
    result = json.loads((folder / "result.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())["config"]["process"][0]
    walk = _walk(trace)
    assert walk.root is not None
    layers, calls, trained = result.get("linears", []), list(walk.calls.values()), result.get("trained", [])
    _recomputed(calls)
    named = result.get("trained_names", [])
    return Run(folder, walk.tensors, walk.events, walk.root, result["versions"], config, result["outcome"], layers, calls, trained, named)


def _recomputed(calls: list[Call]) -> None:
    """Under gradient checkpointing a forward keeps nothing: what its backward needs is what the recomputed one has made.

    A call whose graph node is never run, made between a forward of the same layer and the end of that one's backward, is its recomputation.
    """
    waiting: dict[int, list[Call]] = {}
    for call in calls:
        if call.saved and call.after is not None:
            waiting.setdefault(call.layer, []).append(call)
        elif call.saved:
            for forward in waiting.get(call.layer, []):
                if forward.after is not None and forward.first < call.first < forward.after:
                    if forward.backward is None or forward.backward < call.first:
                        raise ValueError(f"layer {call.layer}: its own backward begins the recomputation, which is not provided for")
                    call.backward, call.after, call.gone = forward.backward, forward.after, None
                    forward.saved, forward.backward, forward.after = False, None, None
                    break


def _walk(trace: traces.Trace) -> _Walk:
    walk = _Walk(trace)
    walk.take_marks()
    rows = zip(trace.action.tolist(), trace.address.tolist(), trace.size.tolist(), trace.label.tolist(), strict=True)
    for action, address, size, label in rows:
        if action == traces.ALLOC:
            walk.allocate(address, size, trace.labels[label])
        elif action == traces.FREE:
            walk.free(address)
        else:
            continue
        walk.take_marks()
    if walk.root is None or walk.next_mark != len(trace.marks):
        raise ValueError(f"marks and events of the trace do not match: {walk.next_mark} of {len(trace.marks)} marks placed")
    return walk


class _Walk:
    """Goes through a trace: marks stand between events, at so many allocations and frees."""

    def __init__(self, trace: traces.Trace) -> None:
        self.marks = trace.marks
        self.named: dict[int, list[tuple[int, str]]] = {}
        for mark, address, name in trace.named:
            self.named.setdefault(mark, []).append((address, name))
        self.tensors: list[Tensor] = []
        self.events: list[tuple[str, int]] = []
        self.root: Phase | None = None
        self.calls: dict[int, Call] = {}
        self.next_mark = 0
        self._live: dict[int, int] = {}
        self._stack: list[Phase] = []
        self._so_far = [0, 0]  # allocations, frees
        self._begins: str | None = None  # the first label of a backward pass: of the layer that every pass begins with
        self._left: str | None = None  # in a backward pass: the label that the one before has left behind; "": no longer

    def allocate(self, address: int, size: int, label: str) -> None:
        self._live[address] = len(self.tensors)
        self.tensors.append(Tensor(size, len(self.events), self._place(label)))
        self.events.append(("a", len(self.tensors) - 1))
        self._so_far[0] += 1

    def free(self, address: int) -> None:
        index = self._live.pop(address)
        self.tensors[index].died = len(self.events)
        self.events.append(("f", index))
        self._so_far[1] += 1

    def take_marks(self) -> None:
        """All marks that stand here."""
        while self.next_mark < len(self.marks) and list(self.marks[self.next_mark][:2]) == self._so_far:
            _, _, kind, info = self.marks[self.next_mark]
            for address, name in self.named.get(self.next_mark, ()):
                if address in self._live:
                    self.tensors[self._live[address]].names.append(name)
            self._mark(kind, info)
            self.next_mark += 1

    def _mark(self, kind: str, info: dict[str, Any]) -> None:
        if kind == "empty_cache":
            self.events.append(("e", EMPTY_CACHE))
        elif kind == "open":
            phase = Phase(info["phase"], len(self.events), dict(info))
            if self._stack:
                self._stack[-1].inner.append(phase)
            else:
                self.root = phase
            self._stack.append(phase)
            self._left = None if phase.name == BACKWARD else self._left
        elif kind == "info":
            self._stack[-1].info.update(info)
        elif kind == "close":
            self._stack.pop().last = len(self.events)
        elif kind.startswith("linear"):
            self._call(kind, info)

    def _call(self, kind: str, info: dict[str, Any]) -> None:
        here, number = len(self.events), info["call"]
        if kind == "linear":
            self.calls[number] = Call(info["layer"], here, self._live.get(info["input"]))
            return
        call = self.calls[number]
        if kind == "linear_end":
            call.last, call.output, call.saved = here, self._live.get(info["output"]), info["saved"]
        elif kind == "linear_backward":
            call.backward = here
        elif kind == "linear_backward_end":
            call.after = here
        else:
            call.gone = here

    def _place(self, label: str) -> str:
        """The recorded label; outside any module, and for what another pass has left behind, the innermost phase.

        A label stays until a layer's node sets another one: after a backward pass its last, which the next pass begins with as well, until
        the loss's own nodes, which are no layer's, are through.
        """
        if "|backward" in label:
            inside = any(phase.name == BACKWARD for phase in self._stack)
            label = label if inside and not self._is_left(label) else ""
        return label or (self._stack[-1].name if self._stack else "")

    def _is_left(self, label: str) -> bool:
        """Whether a label of a backward pass is the one before's. The run's first pass finds none; and none is what a pass begins with."""
        if self._begins is None:
            self._begins, self._left = label, ""
        elif self._left is None:
            self._left = "" if label == self._begins else label
        elif label != self._left:
            self._left = ""
        return label == self._left
