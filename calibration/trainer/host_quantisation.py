"""Quantising weights that lie on the host: the result is allocated with the real shapes and dtypes, not computed.

No device memory is involved, and computing would write gigabytes of untouched host memory. Weights on the device go
through the libraries' real code.
"""

from __future__ import annotations

from typing import Any

import torch

from calibration.trainer.patches import BIG, note


def _on_host(tensor: Any) -> bool:
    return tensor is not None and tensor.device.type == "cpu" and tensor.numel() >= BIG and type(tensor.data) is torch.Tensor


def unmeta(tensor: Any) -> Any:
    """A (quantised) meta tensor with untouched host storage."""
    if type(tensor) is torch.Tensor or not hasattr(tensor, "__tensor_flatten__"):
        return torch.empty(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor
    names, context = tensor.__tensor_flatten__()
    inner = {name: unmeta(getattr(tensor, name)) for name in names}
    return type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())


def quanto() -> None:
    import accelerate
    import optimum.quanto.nn.qmodule as qmodule
    from optimum.quanto.tensor.qbytes import QBytesTensor

    real_weight, real_from = qmodule.quantize_weight, qmodule.QModuleMixin.from_module.__func__

    def quantize_weight(tensor: Any, qtype: Any, axis: int, **k: Any) -> Any:
        if not (_on_host(tensor) and qtype.bits == 8):
            return real_weight(tensor, qtype=qtype, axis=axis, **k)
        scale = torch.empty([tensor.shape[0]] + [1] * (tensor.dim() - 1), dtype=tensor.dtype)
        return QBytesTensor(qtype, axis, tensor.size(), tensor.stride(), torch.empty(tensor.shape, dtype=qtype.dtype), scale)

    def from_module(cls: Any, module: Any, weights: Any = None, activations: Any = None, optimizer: Any = None) -> Any:
        if not _on_host(getattr(module, "weight", None)):
            return real_from(cls, module, weights, activations, optimizer)
        with accelerate.init_empty_weights():
            new = cls.qcreate(module, weights, activations, optimizer)
        if new is None:
            return None
        new.weight = module.weight
        if module.bias is not None:
            new.bias = module.bias
        return new

    qmodule.quantize_weight = quantize_weight
    qmodule.QModuleMixin.from_module = classmethod(from_module)


def trainers_own() -> None:
    import toolkit.util.quantize as quantize
    from toolkit.util.ostris_quant import OstrisLinear

    real_convert, real_torchao, real_dequantize = (
        quantize.convert_linear_to_ostris, quantize.torchao_quantize_, OstrisLinear.dequantize_weight
    )  # fmt: skip

    def convert(module: Any, quantizer: Any) -> Any:
        weight = module._parameters.get("weight")
        if not _on_host(weight):
            return real_convert(module, quantizer)
        module._parameters["weight"] = torch.nn.Parameter(weight.data.to("meta"), requires_grad=False)
        done = real_convert(module, quantizer)
        if not done or "weight" in module._parameters:
            module._parameters["weight"] = weight
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        return done

    def torchao(model: Any, config: Any, *a: Any, **k: Any) -> Any:
        linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and _on_host(m.weight)]
        if not linears:
            return real_torchao(model, config, *a, **k)
        for linear in linears:
            linear.weight = torch.nn.Parameter(linear.weight.data.to("meta"), requires_grad=False)
            real_torchao(linear, config, *a, **k)
            linear.weight = torch.nn.Parameter(unmeta(linear.weight.data), requires_grad=False)
        return model

    def dequantize(self: Any) -> Any:
        buffer = next((b for b in self._buffers.values() if b is not None), None)
        if buffer is not None and buffer.device.type == "cpu":
            return torch.empty(self.out_features, self.in_features, dtype=self.ostris_orig_dtype)
        return real_dequantize(self)

    quantize.convert_linear_to_ostris, quantize.torchao_quantize_ = convert, torchao
    OstrisLinear.dequantize_weight = dequantize


def install() -> None:
    quanto()
    trainers_own()
    note("weights quantised on the host: the quantised tensors are allocated with the same shapes and dtypes, not computed")
