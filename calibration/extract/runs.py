"""A recorded run, read back: every tensor with its life, every event in order, and the phases as event ranges."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.trainer import trace as traces

EMPTY_CACHE = -1


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
    inner: list["Phase"] = field(default_factory=list)

    def walk(self) -> list["Phase"]:
        return [self, *(p for child in self.inner for p in child.walk())]


@dataclass(slots=True)
class Run:
    """One recorded run. `events` in order: ("a", tensor) allocation, ("f", tensor) free, ("e", EMPTY_CACHE)."""

    path: Path
    tensors: list[Tensor]
    events: list[tuple[str, int]]
    root: Phase
    versions: dict[str, str]
    config: dict[str, Any]
    outcome: str


def read(folder: Path) -> Run:
    """Read result.json, trace.npz and config.yaml of a recorded run."""
    import yaml

    trace = traces.load(folder / "trace.npz")
    result = json.loads((folder / "result.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())["config"]["process"][0]
    tensors, events, root = _walk(trace)
    return Run(folder, tensors, events, root, result["versions"], config, result["outcome"])


def _walk(trace: traces.Trace) -> tuple[list[Tensor], list[tuple[str, int]], Phase]:
    named: dict[int, list[tuple[int, str]]] = {}
    for mark, address, name in trace.named:
        named.setdefault(mark, []).append((address, name))
    tensors: list[Tensor] = []
    events: list[tuple[str, int]] = []
    live: dict[int, int] = {}
    stack: list[Phase] = []
    root: Phase | None = None
    next_mark, allocations, frees = 0, 0, 0

    def take_marks() -> None:
        nonlocal next_mark, root
        while next_mark < len(trace.marks) and trace.marks[next_mark][:2] == (allocations, frees):
            _, _, kind, info = trace.marks[next_mark]
            for address, name in named.get(next_mark, ()):
                if address in live:
                    tensors[live[address]].names.append(name)
            if kind == "empty_cache":
                events.append(("e", EMPTY_CACHE))
            elif kind == "open":
                phase = Phase(info["phase"], len(events), dict(info))
                if stack:
                    stack[-1].inner.append(phase)
                else:
                    root = phase
                stack.append(phase)
            elif kind == "info":
                stack[-1].info.update(info)
            elif kind == "close":
                stack.pop().last = len(events)
            next_mark += 1

    take_marks()
    for action, address, size, label in zip(trace.action.tolist(), trace.address.tolist(), trace.size.tolist(), trace.label.tolist()):
        if action == traces.ALLOC:
            live[address] = len(tensors)
            tensors.append(Tensor(size, len(events), _place(trace.labels[label], stack)))
            events.append(("a", len(tensors) - 1))
            allocations += 1
        elif action == traces.FREE:
            index = live.pop(address)
            tensors[index].died = len(events)
            events.append(("f", index))
            frees += 1
        else:
            continue
        take_marks()
    if root is None or next_mark != len(trace.marks):
        raise ValueError(f"marks and events of the trace do not match: {next_mark} of {len(trace.marks)} marks placed")
    return tensors, events, root


def _place(label: str, stack: list[Phase]) -> str:
    """The recorded label; outside any module, and after a backward is over (its last label stays), the innermost phase."""
    over = "|backward" in label and not any(phase.name == "backward" for phase in stack)
    if label and not over:
        return label
    return stack[-1].name if stack else ""
