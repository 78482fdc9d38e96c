"""`train.train_text_encoder`: the adapter is on the text encoders too, which get gradients.

Source: ostris/ai-toolkit 27a03a91: toolkit/lora_special.py (LoRASpecialNetwork), extensions_built_in/sd_trainer/SDTrainer.py
(grad_on_text_encoder).
"""

from __future__ import annotations

from dataclasses import replace

from estimator.archs import Arch
from estimator.dtypes import RECORDED
from estimator.job import Model, Network, Train
from estimator.trainers import modelled
from estimator.trainers.section import Section

KEY, LORA = "train_text_encoder", "lora"


def with_text(process: Section, network: Network | None, arch: Arch, model: Model) -> Network | None:
    """The network with that said, where it is known; what it was not recorded together with is named."""
    train = process.section("train")
    if train is None or not train.truth(KEY, False):
        return network
    why = _unknown(network, arch, model)
    if why:
        text = f"an adapter on the text encoder, with gradients through it{why}"
        process.found.not_modelled(train.at(KEY), train.values[KEY], text)
        return network
    return None if network is None else replace(network, texted=True)


def _unknown(network: Network | None, arch: Arch, model: Model) -> str:
    """Why it has no model; nothing where it has one."""
    if arch.key not in modelled.TEXTED:
        return f" (known: {', '.join(sorted(modelled.TEXTED))})"
    if network is None or network.kind != LORA:
        return " (known of a LoRA)"
    if network.conv or network.dropout or network.ignore_if_contains or network.only_if_contains:
        return " (known of a LoRA on all linear layers and no convolutions: no network.conv, dropout or filters)"
    if not model.merges:
        return " (with model.quantize, which the trainer has not there; known without)"
    return "" if model.dtype == RECORDED and not model.compiled and not model.layer_offloading else " (known in bf16 alone)"


def check_passes(process: Section, train: Train, network: Network | None) -> None:
    """Steps of several passes, which would encode prompts more than once, and those without gradient checkpointing, which text encoders
    have too."""
    given = train.preserves, train.slider, train.validation
    several = train.prior or train.guides_loss or train.guided or train.mean_flow or any(one is not None for one in given)
    if network is not None and network.texted and (several or not train.gradient_checkpointing):
        why = "an adapter on the text encoder in steps of several passes or without gradient checkpointing"
        process.found.not_modelled((*process.at("train"), KEY), True, why)
