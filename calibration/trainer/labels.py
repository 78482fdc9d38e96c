"""Which module and which operation an allocation belongs to, from the run itself.

Forward: a stack kept by module hooks. Backward: each autograd node is told at forward time, by the innermost module that
made it, whose it is; a hook before the node says so. Recomputation under gradient checkpointing runs forward hooks inside
backward and is called so; the nodes that it makes are told as well, since reentrant checkpointing goes through those.
The label travels with each allocator event (the allocator's own user metadata).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules import module as nn_module

_KEY = "label"


class Labels:
    """Installs itself globally; `name_modules` must be told the names of the modules to speak of."""

    def __init__(self) -> None:
        self.module_names: dict[int, str] = {}
        self.stack: list[str] = []
        nn_module.register_module_forward_pre_hook(self._enter)
        nn_module.register_module_forward_hook(self._leave, always_call=True)

    def name_modules(self, root: torch.nn.Module, prefix: str) -> None:
        for name, module in root.named_modules():
            self.module_names[id(module)] = f"{prefix}.{name}" if name else prefix

    def set(self, text: str) -> None:
        torch._C._cuda_setMemoryMetadata(text)

    def _enter(self, module: Any, args: Any) -> None:
        name = self.module_names.get(id(module))
        if name is None:
            name = (self.stack[-1].split("|")[0] if self.stack else "") + "/" + type(module).__name__
        backward = torch._C._current_graph_task_id() != -1
        label = f"{name}|{'recompute' if backward else 'forward'}"
        self.stack.append(label)
        self.set(label)

    def _leave(self, module: Any, args: Any, output: Any) -> None:
        if not self.stack:
            return
        label = self.stack.pop()
        self.set(self.stack[-1] if self.stack else "")
        if torch.is_grad_enabled():
            self._claim(output, label.split("|")[0])

    def _claim(self, output: Any, name: str) -> None:
        """Tell every node that `output` hangs on, and no inner module has claimed, that it is `name`'s."""
        todo = [t.grad_fn for t in _tensors(output) if t.grad_fn is not None]
        while todo:
            node = todo.pop()
            if node is None or _KEY in node.metadata:
                continue
            label = f"{name}|backward {node.name()}"
            node.metadata[_KEY] = label
            node.register_prehook(lambda *_, label=label: torch._C._cuda_setMemoryMetadata(label))
            todo += [following for following, _ in node.next_functions]


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in _tensors(v)]
    if isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v)]
    return _tensors(list(value.values())) if hasattr(value, "values") and callable(value.values) else []
