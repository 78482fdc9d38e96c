"""The allocator's history of a run as arrays: written by the launcher, read by the extraction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ALLOC, FREE, SEGMENT_ALLOC, SEGMENT_FREE, OUT_OF_MEMORY = 0, 1, 2, 3, 4
_ACTIONS = {"alloc": ALLOC, "free_requested": FREE, "segment_alloc": SEGMENT_ALLOC, "segment_free": SEGMENT_FREE, "oom": OUT_OF_MEMORY}


@dataclass(frozen=True)
class Trace:
    """Events in order. `action`, `address`, `size` (requested bytes), `label` (index into `labels`), `stream` (0: the default one; others
    by number in the order in which they first allocate).

    A free stands where it was asked for: a tensor that another stream uses (record_stream) is given back when that stream's event is over,
    which on the emulated device it is at the next allocation.
    `marks`: (allocations so far, frees so far, kind, info); `named`: (mark, address, name).
    """

    action: np.ndarray
    address: np.ndarray
    size: np.ndarray
    label: np.ndarray
    stream: np.ndarray
    labels: list[str]
    marks: list[tuple[int, int, str, dict[str, Any]]]
    named: list[tuple[int, int, str]]


ROW = np.dtype([("action", np.int8), ("stream", np.int8), ("label", np.int32), ("address", np.int64), ("size", np.int64)])


class History:
    """The allocator's events, taken from it now and then: torch gives each as a dictionary, a kilobyte of the host's memory, of which
    a probe job of LTX-2.5 makes some ten million."""

    def __init__(self) -> None:
        self.chunks: list[np.ndarray] = []
        self.labels: dict[str, int] = {}
        self._streams = {0: 0}

    def begin(self) -> None:
        """Have torch record from here on."""
        import torch

        torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=100_000_000, clear_history=True)

    def take(self) -> None:
        """What torch has recorded since it began, which forgets it."""
        import torch

        (events,) = torch.cuda.memory._snapshot()["device_traces"]
        self.chunks.append(np.array([self._row(event) for event in events if event["action"] in _ACTIONS], dtype=ROW))
        self.begin()

    def _row(self, event: dict[str, Any]) -> tuple[int, int, int, int, int]:
        label = self.labels.setdefault(event.get("user_metadata") or "", len(self.labels))
        stream = self._streams.setdefault(event["stream"], len(self._streams))
        return _ACTIONS[event["action"]], stream, label, event.get("addr", 0), event["size"]


def save(path: str, recorder: Any) -> None:
    """Write the history of the current process."""
    recorder.history.take()
    table = np.concatenate(recorder.history.chunks)
    meta = json.dumps({"labels": list(recorder.history.labels), "marks": recorder.marks, "named": recorder.named})
    np.savez_compressed(
        path, **{name: table[name] for name in ROW.names or ()}, meta=np.frombuffer(meta.encode(), dtype=np.uint8)
    )  # fmt: skip


def load(path: Path) -> Trace:
    with np.load(path) as data:
        meta = json.loads(bytes(data["meta"]).decode())
        arrays = {key: data[key] for key in ("action", "address", "size", "label")}
        arrays["stream"] = data["stream"] if "stream" in data else np.zeros_like(arrays["action"])  # older recordings have one
    marks = [(a, f, kind, info) for a, f, kind, info in meta["marks"]]
    return Trace(labels=meta["labels"], marks=marks, named=[(m, a, n) for m, a, n in meta["named"]], **arrays)
