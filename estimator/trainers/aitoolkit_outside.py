"""`network.transformer_only`: false gives an adapter to the linear layers outside the transformer's blocks too (embedders, the output).

That is all it does: the text encoder gets an adapter by `train.train_text_encoder` alone. UNets have no such layers among those that the
trainer looks through (its target classes are the transformers within the blocks), and filters by name may leave none.

Source: ostris/ai-toolkit 27a03a91: toolkit/lora_special.py (create_modules); names: diffusers' FluxTransformer2DModel and
ZImageTransformer2DModel, of which the trainer counts `transformer_blocks` and `layers` as blocks.
"""

from __future__ import annotations

from estimator.archs import Arch
from estimator.job import Network
from estimator.levels import UNET
from estimator.trainers.section import Section

KEY = "transformer_only"
_TIMES = tuple(f"time_text_embed.{name}_embedder.linear_{n}" for name in ("timestep", "guidance", "text") for n in (1, 2))
FLUX = (*_TIMES, "context_embedder", "x_embedder", "norm_out.linear", "proj_out")
_ATTENTION = tuple(f"attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))
_REFINED = (*_ATTENTION, *(f"feed_forward.w{n}" for n in (1, 2, 3)))
ZIMAGE = (
    "all_x_embedder.2-1", "all_final_layer.2-1.linear", "all_final_layer.2-1.adaLN_modulation.1", "t_embedder.mlp.0", "t_embedder.mlp.2",
    "cap_embedder.1", *(f"{kind}_refiner.{n}.{name}" for kind in ("noise", "context") for n in (0, 1) for name in _REFINED),
    *(f"noise_refiner.{n}.adaLN_modulation.0" for n in (0, 1)),
)  # fmt: skip
# Layers outside the blocks, of architectures whose adapter can sit on a part of the layers
OUTSIDE = {"flux1-dev": FLUX, "flux1-schnell": FLUX, "flex1": FLUX, "zimage": ZIMAGE, "zimage-turbo": ZIMAGE}


def check_outside(section: Section, network: Network, arch: Arch) -> None:
    """`section`: the network's."""
    if KEY not in section.values or section.truth(KEY, True) or arch.model_class == UNET:
        return
    outside = OUTSIDE.get(arch.key)
    left = [name for name in outside or () if _kept(f"transformer.{name}", network)]
    if outside is not None and not left:
        section.found.warn(section.at(KEY), "no effect: the filters of network_kwargs leave no layer outside the blocks")
        return
    like = f" (such as {left[0]})" if left else ""
    section.found.not_modelled(section.at(KEY), section.values[KEY], f"puts the adapter on layers outside the blocks too{like}")


def _kept(name: str, network: Network) -> bool:
    """As create_modules goes by the filters: see FilteredProfile.adapts."""
    if any(word in name for word in network.ignore_if_contains):
        return False
    only = network.only_if_contains
    return not only or any(word in name or word in name.replace(".", "$$") for word in only)
