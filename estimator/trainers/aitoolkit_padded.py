"""What the trainer cannot do, or does otherwise, with an architecture that pads pictures and is given several texts at once (HiDream-I1).

Source: ostris/ai-toolkit 27a03a91: extensions_built_in/diffusion_models/hidream/hidream_model.py (get_noise_prediction),
toolkit/prompt_utils.py (concat_prompt_embeds, which puts lists of texts one behind the other; PromptEmbeds.expand_to_batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from estimator.archs import Arch
from estimator.features import image_values
from estimator.job import Dataset, Network, Train
from estimator.padded import is_square
from estimator.parameters import WHOLE
from estimator.trainers.section import Section


def check_pictures(process: Section, settings: Train, arch: Arch, datasets: Sequence[Dataset]) -> None:
    """Pictures of more tokens than they are padded to; no checkpointing; batches of several with cached or unloaded text."""
    for dataset in datasets if arch.padded_to else ():
        for bucket in dataset.buckets:
            values = image_values(bucket.width, bucket.height)
            if values["T"] > arch.padded_to and not is_square(values):
                what = f"{bucket.width}x{bucket.height} is more than the {arch.padded_to:,} tokens that {arch.name} pads pictures to"
                fix = "use a smaller resolution, or square pictures"
                process.found.problem((*process.at("datasets"),), what, "the trainer stops at the first such picture", fix)
                return
    if arch.needs_checkpointing and not settings.gradient_checkpointing:
        place, what = (*process.at("train"), "gradient_checkpointing"), f"{arch.name} cannot be trained without gradient checkpointing"
        why = "its experts' results are added up in place, which the backward pass then finds changed: the trainer stops in the first step"
        process.found.problem(place, what, why, "set it to true")
    if not arch.single_captions:
        return
    cached = settings.cache_text_embeddings or any(dataset.cache_text_embeddings for dataset in datasets)
    if cached and (size := max((dataset.batch_size for dataset in datasets), default=1)) > 1:
        why = f"with cached text the trainer joins {arch.name}'s prompts as if they were one picture's, so that each has a part of them"
        process.found.not_modelled((*process.at("train"), "batch_size"), size, why)
    elif settings.unload_text_encoder and not cached:
        process.found.not_modelled((*process.at("train"), "unload_text_encoder"), True, f"steps of {arch.name} without its text encoders")


def as_recorded(process: Section, network: Network | None, arch: Arch) -> Network | None:
    """The adapter without the words that it was recorded with; a config that lacks them is reported."""
    if network is None or network.kind == WHOLE or not arch.recorded_without:
        return network
    missing = [word for word in arch.recorded_without if word not in network.ignore_if_contains]
    if missing:
        place = (*process.at("network"), "network_kwargs", "ignore_if_contains")
        why = f"an adapter on all layers of {arch.name} was not recorded; the trainer's example leaves out {', '.join(missing)}"
        process.found.not_modelled(place, list(network.ignore_if_contains), why)
    known = (*arch.recorded_without, *arch.no_layers)
    return replace(network, ignore_if_contains=tuple(word for word in network.ignore_if_contains if word not in known))
