"""What happens to device memory while the trainer runs: peaks per phase, and every event of torch's allocator.

Phases nest (a `step` holds `predict_noise` and `backward`); at every boundary the running peaks are read, merged into
every open phase, and reset. The allocator's own history gives the events; the position of a boundary in it is the number
of allocations and frees so far, so marking one costs no device memory and moves nothing.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from calibration.trainer.trace import History

MIB = 2**20
TAKEN_AT = 400_000  # allocations and frees: half a gigabyte of dictionaries
MOVING = ("clip", "vae")  # beginnings of names that go from one tensor to the next, perhaps at the same address (tensors.py)


def context_bytes() -> int:
    """What the emulated device charges for the context (FAKECUDA_CONTEXT_MIB)."""
    return int(float(os.environ.get("FAKECUDA_CONTEXT_MIB", 500)) * MIB)


def device_counters() -> Any:
    """The emulated device's own used/peak counters; None on a real card (its figure is NVML's)."""
    lib = ctypes.CDLL(None)
    if not hasattr(lib, "fakecuda_peak"):
        return None
    lib.fakecuda_used.restype = lib.fakecuda_peak.restype = ctypes.c_size_t
    return lib


def is_oom(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def event_counts() -> tuple[int, int]:
    """(allocations, frees) of the caching allocator since the start."""
    if not torch.cuda.is_initialized():
        return 0, 0
    stats = torch._C._cuda_memoryStats(0)["allocation"]["all"]
    return stats["allocated"], stats["freed"]


class Recorder:
    """Phases, marks and events of one run. `names` is called at every mark and says which addresses hold what."""

    def __init__(self, events: bool) -> None:
        self.stack: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.marks: list[tuple[int, int, str, dict[str, Any]]] = []
        self.named: list[tuple[int, int, str]] = []  # (mark, address, name), changes only
        self.names: Callable[[], dict[int, str]] | None = None
        self.events, self.history, self._taken = events, History(), 0
        self._last: dict[int, str] = {}
        self._device = device_counters()
        self._empty_cache = torch.cuda.empty_cache
        torch.cuda.empty_cache = self._marked_empty_cache  # type: ignore[assignment]
        if events:
            self.history.begin()

    def mark(self, kind: str, **info: Any) -> None:
        allocations, frees = event_counts()
        self.marks.append((allocations, frees, kind, info))
        if self.events and self.names is not None and kind != "empty_cache":
            now = self.names()
            index = len(self.marks) - 1
            changed = ((a, n) for a, n in now.items() if self._last.get(a) != n or n.startswith(MOVING))
            self.named += [(index, address, name) for address, name in changed]
            self._last = now

    def note(self, kind: str, **info: Any) -> None:
        """A mark without a look at names."""
        self.marks.append((*event_counts(), kind, info))

    def _marked_empty_cache(self) -> None:
        self.mark("empty_cache")
        self._empty_cache()

    def _cut(self) -> None:
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        device = self._device.fakecuda_peak() + context_bytes() if self._device is not None else None
        for frame in self.stack:
            frame["allocated_peak"] = max(frame["allocated_peak"], peaks[0])
            frame["reserved_peak"] = max(frame["reserved_peak"], peaks[1])
            if device is not None:
                frame["device_peak"] = max(frame["device_peak"], device)
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        if self._device is not None:
            self._device.fakecuda_reset_peak()

    def open(self, phase: str, **info: Any) -> dict[str, Any]:
        self._cut()
        self.mark("open", phase=phase, **info)
        parent = self.stack[-1]["phase"] if self.stack else None
        frame = {
            "phase": phase, "parent": parent, **info, "allocated_start": torch.cuda.memory_allocated(),
            "reserved_start": torch.cuda.memory_reserved(), "allocated_peak": 0, "reserved_peak": 0, "device_peak": 0, "t0": time.time(),
        }  # fmt: skip
        self.stack.append(frame)
        return frame

    def close(self, frame: dict[str, Any], outcome: str = "ok") -> None:
        """Close `frame` and whatever is still open inside it."""
        self._cut()
        if self.events and sum(event_counts()) - self._taken > TAKEN_AT:
            self.history.take()
            self._taken = sum(event_counts())
        while self.stack:
            last = self.stack.pop()
            self.mark("close", phase=last["phase"])
            last["allocated_end"], last["reserved_end"] = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
            last["seconds"] = round(time.time() - last.pop("t0"), 2)
            last["outcome"] = outcome
            self.rows.append(last)
            if last is frame:
                break

    def sibling(self, parent: str, phase: str) -> dict[str, Any]:
        """End the sub-phase that is open under `parent`, and begin the next."""
        names = [frame["phase"] for frame in self.stack]
        index = len(names) - 1 - names[::-1].index(parent)
        if len(self.stack) > index + 1:
            self.close(self.stack[index + 1])
        return self.open(phase)

    def within(self, frame: dict[str, Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the function returns; if it raises, the open phase is closed, with why it ended."""
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            self.close(frame, "oom" if is_oom(error) else "error:" + type(error).__name__)
            raise

    def wrap(self, function: Callable[..., Any], phase: str, info: Callable[..., dict[str, Any]] | None = None) -> Callable[..., Any]:
        """`function`, recorded as a phase of its own."""

        def recorded(*args: Any, **kwargs: Any) -> Any:
            frame = self.open(phase, **(info(*args, **kwargs) if info else {}))
            result = self.within(frame, function, *args, **kwargs)
            self.close(frame)
            return result

        recorded.__wrapped__ = function  # type: ignore[attr-defined]
        return recorded
