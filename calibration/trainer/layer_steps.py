"""What one linear layer of each of the trainer's own kinds of weights allocates and frees, on the emulated device, without a model.

Runs inside the CUDA environment (`python -m calibration.layers` starts it there). Arguments: OUT KIND... Environment: AITK (the trainer's
checkout). Layers of several shapes are quantised as the trainer does it (convert_linear_to_ostris), and then used: in a forward pass whose
input has a graph, and its backward pass; in one without a graph, of many rows and of a few; and asked for their weight. What is made once
in a process (rotations, tables) has been made by a layer before.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import runpy
import sys
from typing import Any

AITK = os.path.abspath(os.environ["AITK"])
PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:1] = [PROJECT, AITK]
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

from calibration.trainer import import_stubs  # noqa: E402

import_stubs.install()

import torch  # noqa: E402
import triton  # noqa: E402

from calibration.layer_shapes import EAGER, FEW, SHAPES  # noqa: E402

ACTIONS = ("alloc", "free_requested")


class Events:
    """The allocator's events since the last look: [tensor, bytes] where it is made, [tensor] where it is let go of."""

    def __init__(self) -> None:
        self.live: dict[int, int] = {}
        self.count = 0
        self._begin()

    def _begin(self) -> None:
        torch.cuda.memory._record_memory_history(enabled=None)
        torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=10_000_000, clear_history=True)

    def look(self) -> list[list[int]]:
        (trace,) = torch.cuda.memory._snapshot()["device_traces"]
        out = []
        for event in trace:
            if event["action"] not in ACTIONS:
                continue
            if event["action"] == "alloc":
                self.live[event["addr"]] = self.count
                out.append([self.count, event["size"]])
                self.count += 1
            else:
                out.append([self.live.pop(event["addr"], -1)])
        self._begin()
        return out


def tensor(*shape: int, **how: Any) -> torch.Tensor:
    return torch.empty(*shape, device="cuda", dtype=torch.bfloat16, **how)


def used(layer: Any, rows: int, inputs: int, events: Events) -> dict[str, Any]:
    """Events of each use of a layer."""
    out: dict[str, Any] = {}
    x = tensor(1, rows, inputs, requires_grad=True)
    events.look()
    y = layer(x)
    out["train"] = events.look()
    gradient = torch.empty_like(y)
    events.look()
    y.backward(gradient)
    out["backward"] = events.look()
    del y, gradient
    with torch.no_grad():
        x = tensor(1, rows, inputs)
        events.look()
        kept = layer(x)
        out["plain"] = events.look()
        few = tensor(FEW, inputs)
        events.look()
        less = layer(few)
        out["few"] = events.look()
        weight = layer.weight
        out["weight"] = events.look()
        del kept, less, weight
    events.look()
    return out


def record(kind: str) -> list[dict[str, Any]]:
    from toolkit.util import convrot_quant
    from toolkit.util.ostris_quant import convert_linear_to_ostris, get_ostris_quantizer

    name, _, how = kind.partition("-")
    convrot_quant._triton_ok = how != EAGER
    quantizer, events, out = get_ostris_quantizer(name), Events(), []
    for outputs, inputs, rows in (SHAPES[0], *SHAPES):  # the first time makes what a process has once
        layer = torch.nn.Linear(inputs, outputs, device="cuda", dtype=torch.bfloat16)
        layer.weight.requires_grad_(False)
        events.look()
        if not convert_linear_to_ostris(layer, quantizer):
            raise ValueError(f"{kind} does not quantise {outputs} x {inputs}")
        row: dict[str, Any] = {"shape": [outputs, inputs, rows], "convert": events.look()}
        row["buffers"] = [b.numel() * b.element_size() for b in layer._buffers.values() if b is not None]
        row["kept"] = [events.live.get(b.data_ptr(), -1) for b in layer._buffers.values() if b is not None]
        out.append(row | used(layer, rows, inputs, events))
    return out[1:]


def main(path: str, kinds: list[str]) -> None:
    triton.runtime.jit.JITFunction.run = lambda *_, **__: None  # nothing is computed; what a kernel writes to is made before
    square = tensor(64, 64)
    torch.mm(square, square)  # cuBLAS's workspace
    versions = {"torch": importlib.metadata.version("torch"), "triton": importlib.metadata.version("triton")}
    versions["ai-toolkit"] = runpy.run_path(os.path.join(AITK, "version.py"))["VERSION"]
    with open(path, "w") as file:
        json.dump({"versions": versions, "recorded": {kind: record(kind) for kind in kinds}}, file)
    os._exit(0)  # interpreter shutdown would run destructors against the emulated device


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
