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


def save(path: str, recorder: Any) -> None:
    """Write the history of the current process."""
    import torch

    (events,) = torch.cuda.memory._snapshot()["device_traces"]
    labels: dict[str, int] = {}
    streams = {0: 0}
    rows = []
    for event in events:
        code = _ACTIONS.get(event["action"])
        if code is None:
            continue
        label = labels.setdefault(event.get("user_metadata") or "", len(labels))
        rows.append((code, event.get("addr", 0), event["size"], label, streams.setdefault(event["stream"], len(streams))))
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    meta = json.dumps({"labels": list(labels), "marks": recorder.marks, "named": recorder.named})
    np.savez_compressed(
        path, action=table[:, 0].astype(np.int8), address=table[:, 1], size=table[:, 2], label=table[:, 3].astype(np.int32),
        stream=table[:, 4].astype(np.int8), meta=np.frombuffer(meta.encode(), dtype=np.uint8),
    )  # fmt: skip


def load(path: Path) -> Trace:
    with np.load(path) as data:
        meta = json.loads(bytes(data["meta"]).decode())
        arrays = {key: data[key] for key in ("action", "address", "size", "label")}
        arrays["stream"] = data["stream"] if "stream" in data else np.zeros_like(arrays["action"])  # older recordings have one
    marks = [(a, f, kind, info) for a, f, kind, info in meta["marks"]]
    return Trace(labels=meta["labels"], marks=marks, named=[(m, a, n) for m, a, n in meta["named"]], **arrays)
