"""PyTorch's own memory tracker on fake tensors: torch.distributed._tools.mem_tracker.MemTracker under FakeTensorMode. Imports torch alone.

Code runs on tensors that have a shape and a device and no memory; the tracker adds up the storages that are alive, each rounded up to 512
bytes as the caching allocator does. What is gone around does not change the total: `overwriting` and `Tracker`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

TOTAL = "Total"  # of a snapshot of the tracker


class Tracker(MemTracker):
    """Without its table by module: its hooks refuse weights that are not trained, which a LoRA's base is. The total does not use them. What
    is read back from the card is 0, as on the emulated device (HunyuanVideo's class of diffusers 0.32.0 fills a mask up to there)."""

    def _pre_fw_hook(self, *_: Any) -> None:
        pass

    _post_fw_hook = _pre_bw_hook = _post_bw_hook = _pre_fw_hook

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except DataDependentOutputException:
            return 0

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive on the card so far."""
        return max((shot[TOTAL] for device, shot in self.get_tracker_snapshot("peak").items() if device.type == "cuda"), default=0)


@contextlib.contextmanager
def overwriting() -> Iterator[None]:
    """Inside, a module's `.to` puts new parameters in the place of its own: swapping them, torch's way for fake tensors, fails on any that
    something refers to weakly. Tied parameters stay tied."""
    kept = torch.nn.Module._apply

    def apply(self: Any, move: Callable[[Any], Any], recurse: bool = True) -> Any:
        moved: dict[int, Any] = {}
        for module in self.modules() if recurse else (self,):
            for name, old in list(module._parameters.items()):
                if old is None:
                    continue
                if id(old) not in moved:
                    with torch.no_grad():
                        moved[id(old)] = (torch.nn.Parameter(move(old), old.requires_grad), old)  # its id stays taken
                module._parameters[name] = moved[id(old)][0]
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer if buffer is None else move(buffer)
        return self

    torch.nn.Module._apply = apply  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.nn.Module._apply = kept  # type: ignore[method-assign]


@contextlib.contextmanager
def tracking() -> Iterator[Tracker]:
    """Inside, what is made on the card is fake and counted; what was made outside becomes so when it is moved there."""
    with overwriting(), FakeTensorMode(allow_non_fake_inputs=True), Tracker() as tracker:
        yield tracker
