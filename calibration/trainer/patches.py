"""Values that the emulated device cannot give (everything read back is 0), where a value decides a shape or a branch.

Each is listed in NOTES, which result.json repeats. Nothing else of the trainer is changed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from calibration.architectures import MODULES
from calibration.trainer import adapters, token_counts

NOTES: list[str] = []
TRAINED = [False]  # an optimizer step has been made: adapters are no longer all zero
HOST_LAYERS_MERGED = 2  # merging into host weights is real arithmetic there: so many layers of each shape show the peak
PARTITIONED = "aot_eager_decomp_partition"  # of torch.compile: inductor's decompositions and partition, torch's own kernels
BIG = 1 << 16  # elements: smaller host tensors are quantised for real


def note(text: str) -> None:
    if text not in NOTES:
        NOTES.append(text)


@contextlib.contextmanager
def cuda_truth(any_is: bool | None = None, row_mask: bool = False, all_is: Callable[[], bool] | None = None) -> Iterator[None]:
    """Inside, `.any()` and `.all()` of CUDA tensors answer `any_is` and `all_is`; indexing by a CUDA boolean mask uses the tokenizer's."""
    saved: dict[str, Any] = {}
    tensor = torch.Tensor
    if any_is is not None:
        saved["any"] = tensor.__dict__.get("any")
        real_any = tensor.any
        tensor.any = lambda self, *a, **k: torch.tensor(any_is) if self.is_cuda else real_any(self, *a, **k)
    if all_is is not None:
        saved["all"] = tensor.__dict__.get("all")
        real_all = tensor.all
        tensor.all = lambda self, *a, **k: torch.tensor(all_is()) if self.is_cuda else real_all(self, *a, **k)
    if row_mask:
        saved["__getitem__"] = tensor.__dict__.get("__getitem__")
        real_get, calls = tensor.__getitem__, [0]

        def getitem(self: Any, index: Any) -> Any:
            if torch.is_tensor(index) and index.dtype == torch.bool and index.is_cuda:
                mask = token_counts.LAST_MASK[0]
                if index.dim() == 1:
                    index = mask[calls[0] % mask.shape[0]].nonzero().flatten().to(self.device)
                    calls[0] += 1
                    return real_get(self, index)
                rows, columns = mask.nonzero(as_tuple=True)
                return real_get(self, (rows.to(self.device), columns.to(self.device)))
            return real_get(self, index)

        tensor.__getitem__ = getitem
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                delattr(tensor, name)
            else:
                setattr(tensor, name, value)


def _same_course() -> None:
    """A run takes the same course each time: run.py seeds Python, numpy and torch with SEED, and folders are read in order."""
    os.environ.setdefault("SEED", "42")
    walk = os.walk
    os.walk = lambda *a, **k: ((root, dirs, sorted(files)) for root, dirs, files in walk(*a, **k))


def values() -> None:
    """nonzero() would be empty and isfinite() false: the trainer would drop the loss and its backward. And chance takes one course."""
    _same_course()
    real_nonzero, real_isfinite = torch.Tensor.nonzero, torch.isfinite

    def nonzero(self: Any, *a: Any, **k: Any) -> Any:
        out = real_nonzero(self, *a, **k)
        if self.is_cuda and torch.is_tensor(out) and out.shape[0] == 0:
            out = torch.zeros((1, max(self.dim(), 0)), dtype=torch.long, device=self.device)
        return out

    def isfinite(x: Any) -> Any:
        out = real_isfinite(x)
        return torch.ones((), dtype=torch.bool).expand(out.shape) if torch.is_tensor(x) and x.is_cuda else out

    torch.Tensor.nonzero, torch.isfinite = nonzero, isfinite
    note("nonzero() of a CUDA tensor gives one row; isfinite() is true")


def merges() -> None:
    """merge_in skips modules whose weights are all zero; on the emulated device everything reads as zero. A LoKr's looks at none."""
    from toolkit import network_mixins
    from toolkit.models import lokr

    real, seen = network_mixins.ToolkitModuleMixin.merge_in, {}
    real_of_lokr = lokr.LokrModule.merge_in

    def passed_over(weight: Any) -> bool:
        if weight.device.type != "cpu":
            return False
        seen[tuple(weight.shape)] = seen.get(tuple(weight.shape), 0) + 1
        return seen[tuple(weight.shape)] > HOST_LAYERS_MERGED

    def merge_in_of_lokr(self: Any, merge_weight: float = 1.0) -> Any:
        return None if passed_over(self.org_module[0].weight) else real_of_lokr(self, merge_weight)

    def merge_in(self: Any, merge_weight: float = 1.0) -> Any:
        network = self.network_ref() if getattr(self, "network_ref", None) else None
        if not (getattr(network, "is_assistant_adapter", False) or TRAINED[0]):
            return real(self, merge_weight)
        if passed_over(self.org_module[0].weight):
            return None
        with cuda_truth(any_is=True):
            return real(self, merge_weight)

    network_mixins.ToolkitModuleMixin.merge_in, lokr.LokrModule.merge_in = merge_in, merge_in_of_lokr
    note(
        "merge_in: the all-zero test answers true for training adapters and after the first optimizer step; "
        "host merges for two layers a shape"
    )


def prodigies() -> None:
    """Prodigy keeps a copy of what does not start as zero, and stops before the update while its sums are zero."""
    from prodigyopt import Prodigy
    from toolkit.optimizers.prodigy_8bit import Prodigy8bit

    zeros, tensor = torch.nn.init.zeros_, torch.Tensor
    real_any, real_item = tensor.any, tensor.item

    def zeros_(parameter: Any) -> Any:
        parameter.starts_as_zero = True
        return zeros(parameter)

    def any_(self: Any, *a: Any, **k: Any) -> Any:
        out = real_any(self, *a, **k)
        return torch.tensor(not getattr(self, "starts_as_zero", False)) if self.is_cuda else out

    def item(self: Any) -> Any:
        value = real_item(self)
        return 1.0 if self.is_cuda and isinstance(value, float) else value

    def patched(real: Any) -> Any:
        @functools.wraps(real)
        def step(*a: Any, **k: Any) -> Any:
            tensor.any, tensor.item = any_, item
            try:
                return real(*a, **k)
            finally:
                tensor.any, tensor.item = real_any, real_item

        return step

    torch.nn.init.zeros_ = zeros_
    for cls in (Prodigy, Prodigy8bit):
        cls.step = patched(cls.step)
    note("Prodigy: any() is true but for parameters that were initialised with zeros; sums read as 1")


def downloads(weights: str) -> None:
    """hf_hub_download gives the stand-in file of the same name from `weights`, and so does diffusers for adapters of a repository.

    A checkpoint of the trainer's own layout is made there when it is first asked for, in the shapes that its architecture's module says.
    A repository that names no file has one: pytorch_lora_weights.safetensors, which diffusers finds online.
    """
    import huggingface_hub
    from diffusers.loaders import lora_base

    def hf_hub_download(repo_id: Any = None, filename: Any = None, *_: Any, **__: Any) -> str:
        path = Path(weights, os.path.basename(filename))
        if not path.exists():
            own = (module.stand_in(path.name) for module in MODULES if hasattr(module, "stand_in"))
            shapes = next((one for one in own if one is not None), None)
            if shapes is None:
                raise FileNotFoundError(f"no stand-in for {repo_id}/{filename} in {weights}")
            adapters.write_sparse(path, shapes)
        return str(path)

    def model_file(_repository: Any, *, weights_name: str, **__: Any) -> str:
        return hf_hub_download(_repository, weights_name)

    lora_base._best_guess_weight_name = lambda *_, **__: lora_base.LORA_WEIGHT_NAME_SAFE
    lora_base._get_model_file = model_file
    huggingface_hub.hf_hub_download = hf_hub_download
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith(("toolkit", "extensions_built_in", "jobs")) and hasattr(module, "hf_hub_download"):
            module.hf_hub_download = hf_hub_download


def pinned() -> None:
    """Pinning copies a tensor, and would fill the host's memory with untouched weights: large ones stay as they are."""
    real = torch.Tensor.pin_memory

    def pin_memory(self: Any, *a: Any, **k: Any) -> Any:
        return self if self.numel() > BIG else real(self, *a, **k)

    torch.Tensor.pin_memory = pin_memory
    note(f"Tensor.pin_memory: host tensors of more than {BIG} elements stay pageable (the card sees no difference)")


def unwritten() -> None:
    """A whole model's file and its optimizer's are tens of gigabytes of nothing: where all of it is trained, neither is written.

    Both writers bring one tensor after the other to the host and make none on the card.
    """
    import safetensors.torch
    from jobs.process.BaseSDTrainProcess import BaseSDTrainProcess as Base

    real_save = Base.save

    def save(self: Any, *a: Any, **k: Any) -> Any:
        if not self.is_fine_tuning:
            return real_save(self, *a, **k)
        own = safetensors.torch.save_file
        holders = [module for module in list(sys.modules.values()) if getattr(module, "save_file", None) is own]
        writers = [(torch, "save", torch.save), *((module, "save_file", own) for module in holders)]
        for holder, name, _ in writers:
            setattr(holder, name, lambda *_, **__: None)
        try:
            return real_save(self, *a, **k)
        finally:
            for holder, name, real in writers:
                setattr(holder, name, real)

    Base.save = save
    note("a model that is trained as a whole is not written to disk, nor its optimizer")


def compiled() -> None:
    """Kernels of torch.compile cannot be made without a card; its graphs, and what is kept of them for the backward pass, can."""
    real = torch.compile

    def compile_(model: Any = None, *, mode: Any = None, **k: Any) -> Any:
        note(f"torch.compile: backend {PARTITIONED}: what is kept is the compiler's choice, kernels are not fused")
        return real(model, **{**k, "backend": PARTITIONED})

    torch.compile = compile_


def silent_kernels() -> None:
    """Triton kernels of the trainer's own kinds of weights, whose results torch allocates before they are launched, are not launched."""
    from toolkit.util import convrot_quant

    class Silent:
        def __getitem__(self, _grid: Any) -> Callable[..., None]:
            note("ConvRot, nvfp4: Triton kernels are not launched (torch allocates their results)")
            return lambda *_, **__: None

    convrot_quant._get_int8_kernels = lambda: (Silent(), Silent())
    for kernel in ("", "_dequant", "_intn", "_intn_grouped", "_bitnet", "_int_gemv"):
        setattr(convrot_quant, f"_get{kernel}_kernel", lambda: Silent())


def install(weights: str) -> None:
    """All of them; the trainer's modules must have been imported."""
    from calibration.trainer import host_adapters, host_quantisation

    for module in MODULES:
        module.patch()
    merges()
    prodigies()
    host_adapters.factored()
    host_adapters.unnormed()
    unwritten()
    compiled()
    silent_kernels()
    pinned()
    host_quantisation.install()
    downloads(weights)
