"""Steps of the trainer's optimizers on the emulated device, without a model: what each allocates and frees, operation by operation.

Runs inside the CUDA environment (`python -m calibration.optimizers` starts it there). Arguments: OPTIMIZER OUT; behind a plus stands the
parameters' type, where that is not fp32 (adamw+bf16). Environment: AITK (the trainer's checkout). Adapter parameters of many shapes are
made with gradients, the trainer's own `get_optimizer` makes the optimizer, and steps are taken as the trainer takes them: clip, step,
zero_grad. Where in the optimizer's own loops over its parameters an event falls is told by the list of parameters itself, which says when
it is gone through.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import runpy
import sys
from collections.abc import Iterator
from typing import Any

AITK = os.path.abspath(os.environ["AITK"])
PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:1] = [PROJECT, AITK]
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

from calibration.trainer import import_stubs  # noqa: E402

import_stubs.install()

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

# (rows, columns, zero at the start) of a LoRA's two matrices: rank x inputs, outputs x rank. Sizes on both sides of every threshold: 4096
# elements (bitsandbytes), 65536 (chunks of torch's foreach kernels), rows and columns of reductions with and without partial results.
WIDTHS = (64, 192, 256, 768, 1024, 3072, 3840, 10240, 12288, 15360)
RANKS = (4, 16, 24, 32, 64, 128)


def _pairs(widths: tuple[int, ...], ranks: tuple[int, ...]) -> list[tuple[int, int, bool]]:
    return [shape for rank in ranks for width in widths for shape in ((rank, width, False), (width, rank, True))]


LISTS = {
    "all": _pairs(WIDTHS, RANKS),
    "one rank": _pairs((3072, 256, 12288), (16,)),
    "large": _pairs((3072, 15360), (128, 48)),
    "small": _pairs((64, 192), (4, 8, 16)),
}  # fmt: skip
STEPS = 10  # more than automagic3's window of signs (polarity_history: 8), after which each step is like the last
# These update, or copy gradients, in hooks of the backward pass
FUSED = ("automagic2", "automagic3", "automagicexperiment", "adafactor+bf16", "automagic+bf16", "automagic2+bf16")
DTYPES = {"": torch.float32, "bf16": torch.bfloat16}
PARAMETERS = {"weight_decay": 1e-4}  # what the trainer's web UI writes


class Recorder:
    """Boundaries between events: (stretch, iteration, operation, in or after it, name, events so far)."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, str, str, int]] = []
        self.stretch, self.iteration, self.operation = 0, -1, -1

    def reset(self) -> None:
        self.rows, self.stretch, self.iteration, self.operation = [], 0, -1, -1
        self.at("after", "")

    def at(self, zone: str, name: str) -> None:
        stats = torch._C._cuda_memoryStats(0)["allocation"]["all"]
        self.rows.append((self.stretch, self.iteration, self.operation, zone, name, stats["allocated"] + stats["freed"]))

    def enter(self, iteration: int) -> None:
        if iteration == 0:
            self.stretch += 1
        self.iteration, self.operation = iteration, -1
        self.at("after", "")

    def leave(self) -> None:
        self.stretch, self.iteration, self.operation = self.stretch + 1, -1, -1
        self.at("after", "")


R = Recorder()


class Operations(TorchDispatchMode):
    """Counts the operations of an iteration."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        R.operation += 1
        R.at("in", str(func))
        out = func(*args, **(kwargs or {}))
        R.at("after", "")
        return out


class Parameters(list[Any]):
    """A group's parameters; going through them is told to the recorder."""

    def __iter__(self) -> Iterator[Any]:
        for k, parameter in enumerate(list.__iter__(self)):
            R.enter(k)
            yield parameter
        R.leave()


def values() -> None:
    """What decides a branch and reads as zero on the emulated device: sums that are not, and which parameters start as zero."""
    real_item, real_any = torch.Tensor.item, torch.Tensor.any

    def item(self: Any) -> Any:
        value = real_item(self)
        return 1.0 if self.is_cuda and isinstance(value, float) else value

    def any_(self: Any, *a: Any, **k: Any) -> Any:
        out = real_any(self, *a, **k)
        return torch.tensor(not self.starts_as_zero) if hasattr(self, "starts_as_zero") else out

    torch.Tensor.item, torch.Tensor.any = item, any_
    import triton

    triton.runtime.jit.JITFunction.run = lambda *_, **__: None  # nothing is computed; what a kernel writes to is made before


def tell_loops() -> None:
    """Optimizers go through their parameters in constructors too."""
    real = torch.optim.Optimizer.add_param_group

    def add_param_group(self: Any, group: Any) -> None:
        real(self, group)
        self.param_groups[-1]["params"] = Parameters(self.param_groups[-1]["params"])

    torch.optim.Optimizer.add_param_group = add_param_group


class Run:
    """One optimizer on one list of parameters."""

    def __init__(self, optimizer: str, shapes: list[tuple[int, int, bool]], params: dict[str, Any], dtype: Any) -> None:
        from toolkit.optimizer import get_optimizer

        self.name, self.shapes = optimizer + ("" if dtype is torch.float32 else "+bf16"), shapes
        self.parameters = []
        for rows, columns, zero in shapes:
            parameter = torch.nn.Parameter(torch.empty(rows, columns, device="cuda", dtype=dtype))
            parameter.starts_as_zero = zero
            self.parameters.append(parameter)
        self.stages: dict[str, list[Any]] = {}
        self.gradients: dict[str, list[int]] = {}
        R.reset()
        with Operations():
            self.optimizer = get_optimizer([{"params": self.parameters, "lr": 1e-4}], optimizer, 1e-4, dict(params))
        R.at("after", "")
        self.stages["created"] = list(R.rows)
        getattr(type(self.optimizer), "_PACK_CONSTS", {}).clear()  # made once a process: each list is to be a process's first

    def step(self, stage: str) -> None:
        fused = self.name in FUSED
        if not fused:
            for parameter in self.parameters:
                parameter.grad = torch.empty_like(parameter)
            self.gradients[stage] = [parameter.grad.data_ptr() for parameter in self.parameters]
        R.reset()
        with Operations():
            if fused:
                self._backward(stage)
            if not self.name.startswith("adafactor"):
                torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        R.at("after", "")
        self.stages[stage] = list(R.rows)

    def _backward(self, stage: str) -> None:
        """Each parameter's hook, as autograd calls it once the gradient is there."""
        self.gradients[stage] = []
        for k, parameter in enumerate(self.parameters):
            R.stretch = -1  # making the gradient is not the optimizer's
            R.at("after", "")
            parameter.grad = torch.empty_like(parameter)
            self.gradients[stage].append(parameter.grad.data_ptr())
            R.stretch = min(k, 1)  # the hooks are one loop
            R.enter(k)
            for hook in parameter._post_accumulate_grad_hooks.values():
                hook(parameter)
        R.leave()


def record(optimizer: str, shapes: list[tuple[int, int, bool]], params: dict[str, Any], dtype: Any) -> dict[str, Any]:
    torch.cuda.memory._record_memory_history(enabled=None)
    torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=100_000_000)
    stats = torch._C._cuda_memoryStats(0)["allocation"]["all"]
    start = stats["allocated"] + stats["freed"]
    run = Run(optimizer, shapes, params, dtype)
    for number in range(1, STEPS + 1):
        run.step(str(number))
    (trace,) = torch.cuda.memory._snapshot()["device_traces"]
    events = [(e["action"], e["addr"], e["size"]) for e in trace if e["action"] in ("alloc", "free_completed")]
    kept = ("created", "1", "2", str(STEPS - 1), str(STEPS))
    return {
        "shapes": shapes, "start": start, "events": [[a[0], address, size] for a, address, size in events],
        "stages": {name: run.stages[name] for name in kept}, "gradients": {n: run.gradients[n] for n in kept if n in run.gradients},
        "parameters": [p.data_ptr() for p in run.parameters],
    }  # fmt: skip


def main(name: str, out: str) -> None:
    values()
    tell_loops()
    torch.zeros(1, device="cuda")
    optimizer, _, other = name.partition("+")
    dtype = DTYPES[other]
    recorded = {
        label: {kind: record(optimizer, shapes, params, dtype) for kind, shapes in LISTS.items()}
        for label, params in (("", {}), ("weight_decay", PARAMETERS))
    }
    made = {package: importlib.metadata.version(package) for package in ("torch", "bitsandbytes", "prodigyopt")}
    made["ai-toolkit"] = runpy.run_path(os.path.join(AITK, "version.py"))["VERSION"]
    with open(out, "w") as file:
        json.dump({"versions": made, "recorded": recorded}, file)
    os._exit(0)  # interpreter shutdown would run destructors against the emulated device


if __name__ == "__main__":
    main(*sys.argv[1:])
