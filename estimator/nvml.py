"""What the NVIDIA driver says of the cards of this machine, through its management library (NVML); no CUDA context is made for it.

The library comes with the driver, so ctypes is all that is needed. Structures and names: NVIDIA's nvml.h (NVML API reference).
Machines without a driver have no cards, which is an answer and no error.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

_LIBRARIES = ("nvml.dll", r"C:\Program Files\NVIDIA Corporation\NVSMI\nvml.dll") if sys.platform == "win32" else ("libnvidia-ml.so.1",)
_TEXT_BYTES = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE, NVML_DEVICE_NAME_V2_BUFFER_SIZE
_NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE: of a process's memory under Windows' display driver
_MOST_PROCESSES = 1024


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _MemoryV2(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint)] + [(name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")]


class _Process(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong), ("instance", ctypes.c_uint), ("compute", ctypes.c_uint)]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a card as nvidia-smi shows them.

    `reserved_bytes`: the driver's own, in neither `used` nor `free`; None where it is in `used`.
    """

    total_bytes: int
    used_bytes: int
    reserved_bytes: int | None


@dataclass(frozen=True, slots=True)
class Card:
    """A card of this machine. `uuid` as CUDA_VISIBLE_DEVICES may name it."""

    index: int
    name: str
    uuid: str
    handle: Any

    def memory(self) -> Memory | None:
        """What is in use now; None if the driver does not say."""
        second = _MemoryV2(version=ctypes.sizeof(_MemoryV2) | 2 << 24)
        if _ask("nvmlDeviceGetMemoryInfo_v2", self.handle, ctypes.byref(second)):
            return Memory(int(second.total), int(second.used), int(second.reserved))
        first = _Memory()
        if _ask("nvmlDeviceGetMemoryInfo", self.handle, ctypes.byref(first)):
            return Memory(int(first.total), int(first.used), None)
        return None

    def processes(self) -> dict[int, int | None]:
        """Compute processes on the card: number -> bytes, None where the driver does not say. In a container the numbers are the host's."""
        count, room = ctypes.c_uint(_MOST_PROCESSES), (_Process * _MOST_PROCESSES)()
        if not _ask("nvmlDeviceGetComputeRunningProcesses_v3", self.handle, ctypes.byref(count), room):
            return {}
        return {int(one.pid): None if one.used == _NOT_AVAILABLE else int(one.used) for one in room[: count.value]}

    def bytes_of(self, pids: Collection[int]) -> int | None:
        """Bytes of these processes together; None where none of them is on the card, or the driver does not say."""
        found = [used for pid, used in self.processes().items() if pid in pids]
        return sum(used for used in found if used is not None) if found and None not in found else None


def cards() -> tuple[Card, ...]:
    """The cards of this machine, in the driver's order; none without a driver."""
    count = ctypes.c_uint()
    if not _ask("nvmlDeviceGetCount_v2", ctypes.byref(count)):
        return ()
    found = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if _ask("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle)):
            found.append(Card(index, _text("nvmlDeviceGetName", handle), _text("nvmlDeviceGetUUID", handle), handle))
    return tuple(found)


def driver_version() -> str:
    """The driver's version; "" if it does not say."""
    return _text("nvmlSystemGetDriverVersion")


def _text(function: str, *arguments: Any) -> str:
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    return text.value.decode("utf-8", "replace") if _ask(function, *arguments, text, ctypes.c_uint(_TEXT_BYTES)) else ""


def _ask(function: str, *arguments: Any) -> bool:
    """Call a function of the library; False if there is none, or it fails."""
    library = _library()
    try:
        return library is not None and int(getattr(library, function)(*arguments)) == 0
    except AttributeError:
        return False


@cache
def _library() -> Any:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        return library if library.nvmlInit_v2() == 0 else None
    return None
