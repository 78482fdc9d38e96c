"""Where in a run each layer that layer offloading can take is used: noted between the allocator's events, without changing them.

Offloading wraps the forward method of these layers as soon as the model is loaded (toolkit/memory_management); so do we, in runs
without offloading. A call is noted where it begins (with the storage of its input), where it ends (with that of its output), where its
backward begins and ends, and where its graph node is gone: together, what an offloaded layer's buffers and the input that it saves
depend on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from calibration.trainer.tensors import apply_order

# toolkit/memory_management/manager.py: LINEAR_MODULES and CONV_MODULES
MANAGED = ("Linear", "LoRACompatibleLinear", "QLinear", "OstrisLinear", "Conv2d", "LoRACompatibleConv", "QConv2d")
PRODUCTS = ("mm", "linear", "convolution")  # in names of graph nodes: the matrix product of a layer


class _Gone:
    """Says when the graph node that holds it is gone."""

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def __del__(self) -> None:
        self._note()


class Linears:
    """Wraps layers. `table`: for each the component, its name, class, sizes, and which of the component's tensors are its own."""

    def __init__(self, recorder: Any) -> None:
        self.recorder = recorder
        self.table: list[dict[str, Any]] = []
        self._calls = 0

    def watch(self, root: torch.nn.Module, component: str) -> None:
        places: dict[int, int] = {}
        for index, tensor in enumerate(apply_order(root)):
            places.setdefault(id(tensor), index)
        holders: dict[int, int] = {}
        for module in root.modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                holders[id(tensor)] = holders.get(id(tensor), 0) + 1
        for name, module in root.named_modules():
            if type(module).__name__ not in MANAGED:
                continue
            own = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
            self.table.append({
                "component": component, "name": name, "class": type(module).__name__,
                "tensors": [places[id(t)] for t in own if holders[id(t)] == 1],
            })  # fmt: skip
            module.forward = self._noted(module.forward, len(self.table) - 1)  # type: ignore[method-assign]

    def _noted(self, forward: Callable[..., Any], number: int) -> Callable[..., Any]:
        note = self.recorder.note

        def noted(x: Any, *args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            call = self._calls
            note("linear", layer=number, call=call, input=x.untyped_storage().data_ptr())
            out = forward(x, *args, **kwargs)
            note("linear_end", call=call, output=out.untyped_storage().data_ptr(), saved=out.grad_fn is not None)
            if out.grad_fn is not None:
                self._follow(out.grad_fn, call)
            return out

        return noted

    def _follow(self, node: Any, call: int) -> None:
        note = self.recorder.note
        node.metadata["offload"] = _Gone(lambda: note("linear_gone", call=call))
        node.register_prehook(lambda *_: note("linear_backward", call=call))
        while not any(word in node.name().lower() for word in PRODUCTS):
            node = node.next_functions[0][0]
        node.register_hook(lambda *_: note("linear_backward_end", call=call))
