"""The process that runs cells on the card: `python worker.py`, started by `calibration.oncard.control`.

Reads one request a line on stdin, answers with one line on stdout: {"do": "hello"} with what the card and the software are,
{"do": "cell", ...} with what the cell took. When stdin ends, whoever asked is gone: it stops at once, in the middle of a cell too.

The card's own figure is the driver's for this process (NVML); where it gives none, what cudaMemGetInfo says is taken, less what others
held before this process had a context.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import platform
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:1] = []  # this folder: its names are not for others
sys.path.append(PROJECT)  # last: what the environment has of its own comes first

NEEDED = ("torch", "diffusers", "transformers")
MIB = 2**20
LIMIT_STEPS_MIB = (512, 64, 16, 2)
WARM_UP = {"width": 256, "height": 256, "batch": 1, "rank": 8}
SPILLS_FROM = 1.02
"""A driver that hands out more than the card has moves memory to system RAM: there is no limit to be reached."""


class Worker:
    """Cells on one card, one after the other. `others_bytes`: what other processes held before this one had a context; None: not known."""

    def __init__(self) -> None:
        self.others_bytes: int | None = None
        self.warm = False
        self.card: Any = None

    # --- what there is ----------------------------------------------------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            return {"missing": missing}
        from estimator import nvml

        before = {card.uuid.removeprefix("GPU-"): (card, card.memory(), card.processes()) for card in nvml.cards()}
        import diffusers
        import torch

        if not torch.cuda.is_available():
            return {"no_card": f"torch {torch.__version__} finds no CUDA card"}
        properties = torch.cuda.get_device_properties(0)
        self.card, memory, processes = before.get(str(properties.uuid), (None, None, {}))
        if memory is not None:
            driver = memory.reserved_bytes is None  # then the driver's own part is in `used`
            own = processes.get(os.getpid()) or 0
            self.others_bytes = max(0, memory.used_bytes - own - (memory.total_bytes - properties.total_memory if driver else 0))
        return {
            "device": properties.name, "total_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "os": "windows" if sys.platform == "win32" or "microsoft" in platform.release().lower() else "linux",
            "others_bytes": self.others_bytes, "emulated": _emulated(),
            "made": {
                "driver": nvml.driver_version() or "unknown", "torch": torch.__version__, "cuda": str(torch.version.cuda),
                "cudnn": str(torch.backends.cudnn.version()), "diffusers": diffusers.__version__, "python": platform.python_version(),
                "allocator_backend": torch.cuda.get_allocator_backend(), "allocator_settings": _allocator_settings(),
            },
        }  # fmt: skip

    # --- what a process takes -----------------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """What is on the card now: torch's figures, the card's own, and what of it lies outside torch's allocator."""
        import torch

        free, total = torch.cuda.mem_get_info()
        reserved = torch.cuda.memory_reserved()
        by_driver = self.card.bytes_of((os.getpid(),)) if self.card is not None else None
        device = by_driver if by_driver is not None else total - free - (self.others_bytes or 0)
        return {
            "device_bytes": device, "device_source": "nvml" if by_driver is not None else "cudaMemGetInfo",
            "reserved_at_end_bytes": reserved, "outside_bytes": device - reserved,
        }  # fmt: skip

    def context(self) -> dict[str, Any]:
        """The bare context, then with cuBLAS and cuDNN; and torch's cuBLAS workspace of a thread."""
        import torch

        torch.empty(1, device="cuda")
        bare = self.figures()["outside_bytes"]
        matrix = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        before = torch.cuda.memory_allocated()
        product = matrix @ matrix
        forward = torch.cuda.memory_allocated() - before - product.untyped_storage().nbytes()
        torch.nn.functional.conv2d(torch.ones(1, 8, 64, 64, device="cuda"), torch.ones(8, 8, 3, 3, device="cuda"), padding=1)
        product.sum().backward()
        return {"context_bare_bytes": bare, "workspace_bytes": forward}

    # --- cells --------------------------------------------------------------------------------------------------------------------

    def cell(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one cell. What goes wrong in it is its outcome."""
        import torch

        started = time.monotonic()
        row: dict[str, Any] = {}
        parts: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
            "step": self.step, "vae": self.encode, "decode": self.decode, "limit": self.limit,
        }  # fmt: skip
        try:
            if request["part"] == "context":
                row.update(self.context())
            else:
                self.warm_up(request["arch"])
                parts[request["part"]](request, row)
            row["outcome"] = "ok"
        except torch.OutOfMemoryError as error:
            row.update(outcome="oom", error=str(error)[:300])
        except Exception as error:
            row.update(outcome="error", error=f"{type(error).__name__}: {error}"[:300])
        row.update(max_allocated_bytes=torch.cuda.max_memory_allocated(), max_reserved_bytes=torch.cuda.max_memory_reserved())
        row.update(self.figures())
        self.clear()
        row["seconds"] = round(time.monotonic() - started, 3)
        return row

    def warm_up(self, arch: str) -> None:
        """What libraries and model code make once and keep is there before the first cell, in the same order in every process.

        So a cell begins in the same state whether or not others came before it: an interrupted calibration has the figures of a whole one.
        """
        if self.warm:
            return
        self.warm = True
        self.context()
        if arch:
            from calibration.oncard.families import FAMILIES

            family = FAMILIES[arch]
            size = {"arch": arch, "depth": [1] * len(family.blocks), "text": family.text, **WARM_UP}
            for checkpointing in (True, False):
                self.step({**size, "checkpointing": checkpointing}, {})
                self.clear()
            for image in (self.encode, self.decode):
                image(size, {})
                self.clear()
        self.clear()

    def clear(self) -> None:
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def begin(self, row: dict[str, Any]) -> None:
        """Everything that the cell needs is there: what follows is predicted from this state of the allocator."""
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        row["allocated_start_bytes"] = torch.cuda.memory_allocated()
        if torch.cuda.get_allocator_backend() == "native":  # another is not replayed: its cells have no prediction
            row["start"] = torch.cuda.memory_snapshot()

    def step(self, request: dict[str, Any], row: dict[str, Any]) -> None:
        import torch

        from calibration.oncard import models

        family = models.family_of(request["arch"])
        model = models.make_transformer(family, tuple(request["depth"]))
        if request["checkpointing"]:
            model.enable_gradient_checkpointing()
        adapter = models.Adapter(model, family.blocks, request["rank"], request["batch"])
        inputs, target, listed = models.make_inputs(family, request["width"], request["height"], request["text"], request["batch"])
        torch.cuda.empty_cache()
        self.begin(row)
        models.Step(model, adapter, inputs, target, listed).run()
        torch.cuda.synchronize()

    def encode(self, request: dict[str, Any], row: dict[str, Any]) -> None:
        import torch

        from calibration.oncard import models

        vae = models.make_vae(models.family_of(request["arch"]))
        torch.cuda.empty_cache()
        self.begin(row)
        with torch.no_grad():
            image = torch.zeros(3, request["height"], request["width"], device="cuda", dtype=models.BF16)
            latents = vae.encode(torch.stack([image])).latent_dist.sample()
            (vae.config["scaling_factor"] * (latents - (vae.config["shift_factor"] or 0))).to(models.BF16)
        torch.cuda.synchronize()

    def decode(self, request: dict[str, Any], row: dict[str, Any]) -> None:
        import torch

        from calibration.oncard import models

        vae = models.make_vae(models.family_of(request["arch"]))
        size = (1, vae.config["latent_channels"], request["height"] // 8, request["width"] // 8)
        latents = torch.zeros(size, device="cuda", dtype=models.BF16)
        torch.cuda.empty_cache()
        self.begin(row)
        with torch.no_grad():
            vae.decode(latents, return_dict=False)
        torch.cuda.synchronize()

    def limit(self, _: dict[str, Any], row: dict[str, Any]) -> None:
        """Fill the card until it refuses: how much torch can really have."""
        import torch

        held, total, spills = [], torch.cuda.get_device_properties(0).total_memory, False
        for size in LIMIT_STEPS_MIB:
            try:
                while not spills:
                    held.append(torch.empty(size * MIB, dtype=torch.uint8, device="cuda"))
                    spills = torch.cuda.memory_reserved() > SPILLS_FROM * total
            except torch.OutOfMemoryError:
                continue
        row["limit_bytes"] = torch.cuda.memory_reserved()
        row["spills"] = spills


def _emulated() -> bool:
    from calibration.emulated_cuda.device import is_emulated

    return is_emulated()


def _allocator_settings() -> str:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    return next((os.environ[name] for name in names if os.environ.get(name)), "default")


def _requests() -> queue.Queue[str]:
    """Lines of stdin, read by a thread of its own, so that its end is noticed at once."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    lines, worker = _requests(), Worker()
    while True:
        request = json.loads(lines.get())
        answer = worker.hello() if request["do"] == "hello" else worker.cell(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
