"""What a script that runs under run.sh can ask the emulated device. Importing it elsewhere is harmless: `is_emulated()` is then False."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile

_process = ctypes.CDLL(None)


def is_emulated() -> bool:
    """Whether this process runs on the emulated device. Figures made there must be called emulated, never measured."""
    return hasattr(_process, "fakecuda_used")


def _count(function: str) -> int:
    call = getattr(_process, function)
    call.restype = ctypes.c_size_t
    return int(call())


def used_bytes() -> int:
    """Live device allocations, without the context. What the caching allocator has reserved, and other libraries' allocations."""
    return _count("fakecuda_used")


def peak_bytes() -> int:
    """The largest `used_bytes` since the start or `reset_peak`."""
    return _count("fakecuda_peak")


def reset_peak() -> None:
    _process.fakecuda_reset_peak()


def kernel_launches(reset: bool = True) -> dict[str, int]:
    """Launches by demangled kernel name since the last reset. Empty unless FAKECUDA_KERNELS=1."""
    with tempfile.NamedTemporaryFile("r") as file:
        if _process.fakecuda_kernels_dump(file.name.encode()) != 0:
            raise OSError(f"the emulated device cannot write {file.name}")
        text = file.read()
    if reset:
        _process.fakecuda_kernels_reset()
    plain = {k: v for k, v in os.environ.items() if not k.startswith("LD_")}  # c++filt must not load the device
    text = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, env=plain, check=True).stdout
    launches: dict[str, int] = {}
    for line in text.splitlines():
        count, name = line.split(" ", 1)
        launches[name] = launches.get(name, 0) + int(count)  # one name can have several host functions
    return launches
