"""A recorded run, read back: which layer, or which phase, an allocation of a backward pass is told to be of."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from calibration.extract.runs import BACKWARD, read
from calibration.trainer import trace as traces

FIRST, LAST = "model.head|backward MmBackward0", "model.embed|backward torch::autograd::AccumulateGrad"
LOSS_BYTES, LAYER_BYTES = 1024, 2048
Passes = list[list[tuple[str, int]]]
"""For each step what its backward pass allocates: (label as the allocator has it, bytes)."""


def written(folder: Path, passes: Passes) -> Path:
    """A run of steps, each with a backward pass and an optimizer's phase behind it."""
    marks: list[tuple[int, int, str, dict[str, Any]]] = [(0, 0, "open", {"phase": "run"})]
    labels, rows = [""], []
    for allocations in passes:
        marks += [(len(rows), 0, "open", {"phase": name}) for name in ("step", BACKWARD)]
        for label, size in allocations:
            labels += [label] if label not in labels else []
            rows.append((traces.ALLOC, 4096 * len(rows), size, labels.index(label)))
        marks += [(len(rows), 0, "close", {}), (len(rows), 0, "open", {"phase": "optimizer_step"})]
        rows.append((traces.ALLOC, 4096 * len(rows), 512, labels.index(allocations[-1][0])))
        marks += [(len(rows), 0, "close", {})] * 2
    marks.append((len(rows), 0, "close", {}))
    action, address, size, label = np.array(rows).T
    meta = np.frombuffer(json.dumps({"labels": labels, "marks": marks, "named": []}).encode(), dtype=np.uint8)
    np.savez(folder / "trace.npz", action=action, address=address, size=size, label=label, meta=meta)
    (folder / "result.json").write_text(json.dumps({"versions": {}, "outcome": "ok"}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": {"process": [{}]}}))
    return folder


def in_passes(folder: Path) -> list[list[str]]:
    run = read(folder)
    steps = [next(p for p in step.inner if p.name == BACKWARD) for step in run.root.inner]
    return [[run.tensors[run.events[e][1]].label for e in range(phase.first, phase.last)] for phase in steps]


def test_a_loss_s_gradients_are_called_the_same_in_every_step(tmp_path: Path) -> None:
    """The label that a pass has left behind is not theirs: no layer has made them."""
    layers = [(FIRST, LAYER_BYTES), (LAST, LAYER_BYTES)]
    passes = [[("", LOSS_BYTES), ("", LOSS_BYTES), *layers], *2 * [[("", 4), (LAST, LOSS_BYTES), (LAST, LOSS_BYTES), *layers]]]
    assert in_passes(written(tmp_path, passes)) == [
        [BACKWARD, BACKWARD, FIRST, LAST],
        *2 * [[BACKWARD, BACKWARD, BACKWARD, FIRST, LAST]],
    ]


def test_what_was_left_behind_need_not_have_allocated(tmp_path: Path) -> None:
    """The last layer of a pass says whose it is, and may make nothing."""
    passes = [[("", LOSS_BYTES), (FIRST, LAYER_BYTES)], [(LAST, LOSS_BYTES), (FIRST, LAYER_BYTES), (LAST, LAYER_BYTES)]]
    assert in_passes(written(tmp_path, passes)) == [[BACKWARD, FIRST], [BACKWARD, FIRST, LAST]]


def test_a_layer_s_own_gradients_stay_its_own(tmp_path: Path) -> None:
    """A pass whose loss makes nothing on the card begins with the layer that all begin with; and a label that comes back is the layer's."""
    passes = [[(FIRST, LAYER_BYTES), (LAST, LAYER_BYTES)], [(FIRST, LAYER_BYTES), (LAST, LAYER_BYTES), (FIRST, LAYER_BYTES)]]
    assert in_passes(written(tmp_path, passes)) == [[FIRST, LAST], [FIRST, LAST, FIRST]]
    passes = [[(FIRST, 1)], [(LAST, LOSS_BYTES), (FIRST, LAYER_BYTES), (LAST, LAYER_BYTES)]]
    assert in_passes(written(tmp_path, passes)) == [[FIRST], [BACKWARD, FIRST, LAST]]


def test_behind_a_backward_pass_its_labels_are_over(tmp_path: Path) -> None:
    run = read(written(tmp_path, [[(FIRST, LAYER_BYTES), (LAST, LAYER_BYTES)]]))
    assert run.tensors[-1].label == "optimizer_step"


def test_a_history_taken_piece_by_piece_is_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator's own list is emptied each time, so that a long run's never is there at once."""
    waiting: list[dict[str, Any]] = []
    memory = types.SimpleNamespace(
        _record_memory_history=lambda clear_history, **_: waiting.clear() if clear_history else None,
        _snapshot=lambda: {"device_traces": [list(waiting)]},
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=types.SimpleNamespace(memory=memory)))
    history, address = traces.History(), 1 << 45
    history.begin()
    events = (("alloc", "a", 7), ("snapshot", "", 0), ("alloc", "b", 0), ("free_requested", "a", 7))
    for number, (action, label, stream) in enumerate(events):
        waiting.append({"action": action, "user_metadata": label, "addr": address + number, "size": 512 * number, "stream": stream})
        if number == 1:
            history.take()
            assert not waiting
    traces.save(str(tmp_path / "trace.npz"), types.SimpleNamespace(history=history, marks=[], named=[]))
    back = traces.load(tmp_path / "trace.npz")
    assert back.action.tolist() == [traces.ALLOC, traces.ALLOC, traces.FREE]
    assert [back.labels[label] for label in back.label] == ["a", "b", "a"]
    assert (back.stream.tolist(), back.size.tolist()) == ([1, 0, 1], [0, 1024, 1536])
    assert back.address.tolist() == [address, address + 2, address + 3]
