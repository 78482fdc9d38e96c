"""A DoRA (`network.type: dora`): where it is modelled, and what the trainer stops on.

Source: ostris/ai-toolkit 27a03a91: toolkit/models/DoRA.py, toolkit/network_mixins.py, tried on the emulated device (docs/log.md).
"""

from __future__ import annotations

from estimator.archs import Arch
from estimator.job import Model, Network, Train
from estimator.optimizers import is_fused
from estimator.trainers import modelled
from estimator.trainers.section import Section

TORCHAO = "float8"


def check_dora(section: Section, network: Network, arch: Arch, model: Model, train: Train) -> None:
    """`section`: the network's."""
    found, place, kind = section.found, section.at("type"), network.kind
    if model.weights == TORCHAO:
        what, why = f"dora on weights in {TORCHAO}", "the trainer stops where it adds to them: torchao's tensors have no such sum"
        found.problem(place, what, why, "write type: lora, or quantise to uint4, or not at all (model.quantize: false)")
        return
    known = modelled.DORA.get(arch.key, frozenset())
    if model.weights not in known:
        found.not_modelled(place, kind, f"a DoRA on {arch.name} in {model.weights}{_known(known)}")
    elif model.layer_offloading:
        found.not_modelled(place, kind, "a DoRA on layers that are moved in and out of the card")
    elif is_fused(train.optimizer):
        found.not_modelled(place, kind, f"a DoRA with {train.optimizer}, which updates it within the backward pass")


def _known(weights: frozenset[str]) -> str:
    if weights:
        return f" (known: {', '.join(sorted(weights))})"
    return f" (known on {', '.join(sorted(modelled.DORA))})"
