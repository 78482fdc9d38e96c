"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from estimator import archive, beginnings, dora_profile, dropout_profile, engine, filtered_profile, lokr_profile, offload_profile, programs

# No deadline: on a busy machine it measures the machine, and a slow example is no wrong one.
settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))  # CI: the same examples each time
settings.load_profile("project")

# No calibration overlay of whoever runs the tests.
os.environ["XDG_CONFIG_HOME"] = os.path.join(os.devnull, "config")  # a folder that not even root can make

KEPT = (
    archive.opened, programs.load_profile, offload_profile._offloading, filtered_profile.filtered, lokr_profile.lokr,
    dropout_profile.with_dropout, dora_profile.dora,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def nothing_kept() -> Iterator[None]:
    """What a process keeps of profiles and replays for its short life, and the garbage that it does not collect, goes with each file of
    tests: of all of them together it is over ten GiB."""
    yield
    for cached in KEPT:
        cached.cache_clear()
    for kept in (engine._kept, beginnings._names, beginnings._states):
        kept.clear()
    gc.collect()


ROOT = Path(__file__).resolve().parent.parent
RUN_EMULATED = ROOT / "calibration" / "emulated_cuda" / "run.sh"

# Leaves through os._exit: torch's autograd thread now and then aborts at interpreter shutdown (calibration/emulated_cuda/README.md).
PRELUDE = """
import json, os, sys
import torch
MIB = 2**20

def allocated(): return torch.cuda.memory_allocated()
def reserved(): return torch.cuda.memory_reserved()
def peak(): return torch.cuda.max_memory_allocated()
def tensor(size_bytes): return torch.empty(size_bytes, dtype=torch.uint8, device="cuda")

def result(**values):
    print(json.dumps(values), flush=True)
    os._exit(0)
"""


def _environment(settings: dict[str, object]) -> dict[str, str]:
    """The environment of a run on the emulated device; `settings` are FAKECUDA_* variables without the prefix, others in full.

    What the caller's shell says about the device or the allocator does not leak in: a test states all that it depends on.
    """
    ours = ("FAKECUDA_", "PYTORCH_", "PYTHON", "VIRTUAL_ENV")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    env["FAKECUDA_PYTHON"] = os.environ["EMULATED_CUDA_PYTHON"]
    env["PYTHONPATH"] = str(ROOT)
    env["TORCH_DISABLE_NATIVE_JIT"] = "1"  # no Triton compilation of small products: same tensors, seconds saved
    short = {"CC", "NAME", "SM_COUNT", "TOTAL_MIB", "CONTEXT_MIB", "CUDNN_WS", "KERNELS", "TRACE"}
    env.update({(f"FAKECUDA_{k}" if k in short else k): str(v) for k, v in settings.items()})
    return env


@pytest.fixture(scope="session")
def emulated_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python code on the emulated device in a process of its own.

    The code finds torch, MIB and the helpers of PRELUDE. Keyword arguments select the card: emulated_process(code, CC=8.9).
    """
    if not os.environ.get("EMULATED_CUDA_PYTHON"):
        pytest.skip("EMULATED_CUDA_PYTHON is not set: no environment with the CUDA build of torch (.ci/run makes one)")

    def run(code: str, **settings: object) -> subprocess.CompletedProcess[str]:
        command = [str(RUN_EMULATED), "-c", PRELUDE + code]
        return subprocess.run(command, env=_environment(settings), capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def emulated(emulated_process: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., dict[str, Any]]:
    """As `emulated_process`; the run must succeed, and what it passed to `result(...)` is returned."""

    def run(code: str, **settings: object) -> dict[str, Any]:
        done = emulated_process(code, **settings)
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return values

    return run


@pytest.fixture
def needs_on_device() -> Callable[..., None]:
    """Skips the test unless the environment with torch's CUDA build is there and has these modules (in CI: torch, numpy, yaml and rich)."""

    def check(*modules: str) -> None:
        python = os.environ.get("EMULATED_CUDA_PYTHON")
        if not python:
            pytest.skip("EMULATED_CUDA_PYTHON is not set: no environment with the CUDA build of torch")
        find = "import sys, importlib.util as u; print(*(m for m in sys.argv[1:] if u.find_spec(m) is None))"
        missing = subprocess.run([python, "-c", find, *modules], capture_output=True, text=True, check=True).stdout.split()
        if missing:
            pytest.skip(f"EMULATED_CUDA_PYTHON has no {', '.join(missing)} (the extra `calibrate` has)")

    return check
