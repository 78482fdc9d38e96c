"""Which device addresses hold what: the named tensors of the trainer's objects, looked through to plain storages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

CHUNKED = ("_encode", "_decode")  # methods that put a result together chunk by chunk
BESIDE = ("connectors", "vocoder")  # models of a pipeline that no preset moves (LTX-2)


def storages(tensor: Any) -> Iterator[torch.Tensor]:
    """The plain tensors inside `tensor` (quantised tensors are wrappers of several)."""
    if tensor is None or not isinstance(tensor, torch.Tensor):
        return
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from storages(getattr(tensor, name))
    elif isinstance(tensor, torch.nn.Parameter) and type(tensor.data) is not torch.Tensor:
        yield from storages(tensor.data)
    else:
        yield tensor


def apply_order(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers in the order in which `module.to()` moves them: children first."""
    for child in module.children():
        yield from apply_order(child)
    for tensor in [*module._parameters.values(), *module._buffers.values()]:
        if tensor is not None:
            yield tensor


def beside(sd: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """The models of `sd`'s pipeline that are neither transformer, text encoder nor VAE."""
    pipeline = getattr(sd, "pipeline", None)
    for name in BESIDE:
        module = getattr(pipeline, name, None)
        if isinstance(module, torch.nn.Module):
            yield name, module


def works_in_chunks(vae: Any) -> bool:
    """Whether a VAE takes a clip in chunks of frames, with features kept from one chunk for the next (AutoencoderKLWan)."""
    return hasattr(vae, "clear_cache")


def clip_tensors(vae: Any) -> Iterator[tuple[str, int, Any]]:
    """Between two chunks: the features kept, and what is there of the result (`out`, and `out_`, the newest chunk)."""
    for kept in (getattr(vae, "_feat_map", None), getattr(vae, "_enc_feat_map", None)):
        for index, tensor in enumerate(kept or ()):
            if isinstance(tensor, torch.Tensor):
                yield "clip_features", index, tensor
    frame: Any = sys._getframe()
    while frame is not None and not (frame.f_code.co_name in CHUNKED and "autoencoder" in frame.f_code.co_filename):
        frame = frame.f_back
    if frame is not None:
        seen = frame.f_locals
        found = [("clip", index, seen[name]) for index, name in enumerate(("out", "out_")) if name in seen]
        seen.clear()  # the frame would keep what is in there alive
        yield from found


def recovery_parameters(sd: Any) -> list[torch.nn.Parameter]:
    """Of an accuracy recovery adapter: a network of its own, beside the transformer's layers, whose gradients nobody asks for or clears."""
    network = getattr(sd, "accuracy_recovery_adapter", None)
    return list(network.parameters()) if isinstance(network, torch.nn.Module) else []


class Names:
    """Address -> name of what the trainer process holds on the device right now."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.trained_names: list[str] = []

    def __call__(self) -> dict[int, str]:
        out: dict[int, str] = {}
        for component, index, tensor in self._all():
            for part, plain in enumerate(storages(tensor)):
                if plain.is_cuda:
                    storage = plain.untyped_storage()
                    if storage.nbytes():
                        out.setdefault(storage.data_ptr(), f"{component}:{index}" + (f".{part}" if part else ""))
        return out

    def _all(self) -> Iterator[tuple[str, int, Any]]:
        sd = getattr(self.process, "sd", None)
        if sd is None:
            return
        adapter = self._adapter_parameters()
        yield from self._modules(sd, {id(p) for p in adapter})
        for index, parameter in enumerate(adapter):
            yield "adapter", index, parameter
        if not self.trained_names and self._own_parameters() and not adapter:  # at its end the trainer has let go of the model
            self.trained_names = self._names_of(sd)
        yield from self._training(adapter or self._own_parameters())
        if works_in_chunks(vae := getattr(sd, "vae", None)):
            yield from clip_tensors(vae)
        for index, parameter in enumerate(recovery_parameters(sd)):
            yield "recovery", index, parameter
            if parameter.grad is not None:
                yield "recovery_gradient", index, parameter.grad
        assistant = getattr(sd, "assistant_lora", None)
        if isinstance(assistant, torch.nn.Module):
            for index, tensor in enumerate(assistant.parameters()):
                yield "assistant", index, tensor

    def _modules(self, sd: Any, adapter: set[int]) -> Iterator[tuple[str, int, Any]]:
        """The model's parts, without the parameters of the adapter, which are put into its layers."""
        encoders = getattr(sd, "text_encoder", None)
        encoders = encoders if isinstance(encoders, (list, tuple)) else [encoders]
        unet, vae = getattr(sd, "unet", None), getattr(sd, "vae", None)
        for name, module in [("transformer", unet), ("vae", vae), *((f"text_encoder{i}", m) for i, m in enumerate(encoders))]:
            if isinstance(module, torch.nn.Module):
                own = (tensor for tensor in apply_order(module) if id(tensor) not in adapter)
                yield from ((name, index, tensor) for index, tensor in enumerate(own))
        for name, module in (*beside(sd), ("image_encoder", getattr(sd, "image_encoder", None))):
            if not isinstance(module, torch.nn.Module):
                continue
            yield from ((name, index, tensor) for index, tensor in enumerate(apply_order(module)))

    def _training(self, trained: list[Any]) -> Iterator[tuple[str, int, Any]]:
        """Gradients, the optimizer's state and an EMA's copies."""
        for index, parameter in enumerate(trained):
            if parameter.grad is not None:
                yield "gradient", index, parameter.grad
        yield from self._optimizer(trained)
        ema = getattr(self.process, "ema", None)
        if ema is not None:
            for index, tensor in enumerate(ema.shadow_params):
                yield "ema", index, tensor
            for index, tensor in enumerate(getattr(ema, "collected_params", None) or []):
                yield "ema_copy", index, tensor

    def _adapter_parameters(self) -> list[Any]:
        network = getattr(self.process, "network", None)
        return list(network.parameters()) if isinstance(network, torch.nn.Module) else []

    def trained(self) -> list[list[int]]:
        """Shapes of the model's parameters as the optimizer has them, where all of it is trained."""
        return [] if self._adapter_parameters() else [list(parameter.shape) for parameter in self._own_parameters()]

    def _names_of(self, sd: Any) -> list[str]:
        """What the trainer calls them."""
        named = {id(one): name for name, one in sd.named_parameters(vae=False, text_encoder=False, unet=True).items()}
        return [named.get(id(parameter), "") for parameter in self._own_parameters()]

    def _own_parameters(self) -> list[Any]:
        """The model's, where there is no adapter and all of it is trained: as the optimizer has them."""
        return [parameter for group in getattr(self.process, "params", ()) for parameter in group["params"]]

    def _optimizer(self, trained: list[Any]) -> Iterator[tuple[str, int, Any]]:
        optimizer = getattr(self.process, "optimizer", None)
        optimizer = getattr(optimizer, "optimizer", optimizer)
        state = getattr(optimizer, "state", None)
        if not state:
            return
        count = 0
        for parameter in trained:
            for value in (state.get(parameter) or {}).values():
                if isinstance(value, torch.Tensor):
                    yield "optimizer", count, value
                    count += 1
                elif isinstance(value, (list, tuple)):
                    for item in value:
                        yield "optimizer", count, item
                        count += 1
