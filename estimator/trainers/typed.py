"""Which jobs have a model in another compute type than bf16: of a config, and of a job that advice has changed."""

from __future__ import annotations

from estimator.archs import Arch
from estimator.dtypes import FP16, FP32, RECORDED
from estimator.job import Model, Network, Train
from estimator.trainers import modelled


def lacks_type(arch: Arch, model: Model, network: Network | None, train: Train) -> str:
    """What of a job has no model in its compute type; nothing where it has one."""
    if model.dtype == RECORDED:
        return ""
    known = modelled.TYPED.get(model.dtype, {})
    if arch.key not in known:
        return f"{arch.name} in {model.dtype}" + (f" (known: {', '.join(sorted(known))})" if known else "")
    kinds = known[arch.key]
    for what, kind in (("transformer", model.kind), ("text encoder", model.te_kind)):
        if kind not in kinds:
            return f"{arch.name} in {model.dtype} with its {what} in {kind} (known: {', '.join(sorted(kinds))})"
    if model.dtype == FP16 and arch.key in modelled.CLIPPED and not train.gradient_checkpointing:
        return f"{arch.name} in {model.dtype} without gradient checkpointing, where its blocks keep what they clip"
    beside = next((what for what, met in _beside(model, network, train).items() if met), "")
    return f"{beside} in {model.dtype}" if beside else ""


def _beside(model: Model, network: Network | None, train: Train) -> dict[str, bool]:
    """What no run of another type had."""
    full = model.dtype == FP32
    return {
        "training a whole model": network is None or network.kind == "whole",
        "another adapter than a LoRA": network is not None and network.kind not in modelled.METHODS,
        # in fp16 as large as in bf16; in fp32 not recorded, and heads of steps are made of what was, by sizes of bf16
        "an adapter on convolutions": full and network is not None and bool(network.conv),
        "an unloaded text encoder": full and train.unload_text_encoder,
        "dropout in the adapter": network is not None and network.dropout,
        "an adapter on a part of the layers": network is not None and bool(network.ignore_if_contains or network.only_if_contains),
        "layer offloading": model.layer_offloading, "compiled blocks": model.compiled,
        "an output that is preserved": train.preserves is not None, "a slider": train.slider is not None,
        "passes besides the one that is trained": train.prior or train.guides_loss or train.guided or train.mean_flow,
        "a validation": train.validation is not None,
    }  # fmt: skip
