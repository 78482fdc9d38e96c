"""What is recorded of the trainer's UNets (Stable Diffusion XL, 1.5), and what the trainer cannot do with them.

Source: ostris/ai-toolkit 27a03a91: toolkit/stable_diffusion_model.py, toolkit/unloader.py (FakeTextEncoder), toolkit/lora_special.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from estimator.archs import Arch
from estimator.convolved import convolved, counts_elements
from estimator.errors import CannotTell
from estimator.job import Dataset, Model, Network, Sample, Train
from estimator.levels import UNET, UNMERGED
from estimator.optimizers import known
from estimator.programs import load_profile
from estimator.trainers.aitoolkit_texted import check_passes
from estimator.trainers.section import Section

MERGED = "bf16"  # weights that an adapter is merged into for previews
SCHEDULER = "ddpm"  # that steps were recorded with
PLACE = 16  # pixels each way of a place in a UNet's second level, of which previews that were recorded have whole ones


def keys_of_unets(arch: Arch) -> frozenset[str]:
    """Keys of the model section that are read: another VAE (as one for fp16) is of the same class, and taken to be of the same size."""
    return frozenset({"vae_path"}) if arch.model_class == UNET else frozenset()


def of_unets(network: Network | None, arch: Arch) -> Network | None:
    """The adapter: the rank of convolutions has no effect on transformers, nor on a LoKr."""
    if network is None or (arch.model_class == UNET and network.kind == "lora"):
        return network
    return replace(network, conv=None)


def check_unet(process: Section, settings: Train, arch: Arch, model: Model, network: Network | None) -> Train:
    """The scheduler; optimizers that see more of a convolution's shape than its elements; how the adapter is brought into previews. Only
    flow matching weighs losses by timestep."""
    scheduler, found, train = settings.noise_scheduler, process.found, process.at("train")
    if arch.model_class != UNET:
        if scheduler != "flowmatch":
            found.warn((*train, "noise_scheduler"), f"{scheduler}: these models train with flowmatch; memory is estimated for that")
        return settings
    check_passes(process, settings, network)
    if scheduler == "flowmatch":
        found.not_modelled((*train, "noise_scheduler"), scheduler, f"{arch.name} trained by flow matching; set {SCHEDULER}")
    if known(settings.optimizer) and not counts_elements(settings.optimizer):
        why = f"keeps state by rows and columns, which convolutions of {arch.name} have not; adamw8bit is one that does not"
        found.not_modelled((*train, "optimizer"), settings.optimizer, why)
    if not _previews(arch, model, network):
        how, where = "merged into" if model.merges else "beside", " on convolutions" if network is not None and network.conv else ""
        fix = f"the trainer quantises nothing here; recorded was quantize: {str(model.merges).lower()}"
        why = f"previews of {arch.name} with an adapter{where} {how} its weights ({fix})"
        found.not_modelled((*process.at("model"), "quantize"), not model.merges, why)
    return replace(settings, weighs_timesteps=False)


def _previews(arch: Arch, model: Model, network: Network | None) -> bool:
    """Whether previews were recorded with such an adapter, merged or beside the weights."""
    try:
        profile = convolved(arch.key) if network is not None and network.conv else load_profile(arch.key)
    except CannotTell:  # whoever estimates the job says so
        return True
    return profile.has_own(f"sample.enter/{UNMERGED if not model.merges else MERGED}/")


def check_previews_of_unets(
    process: Section, settings: Train, arch: Arch, datasets: Sequence[Dataset], samples: Sequence[Sample]
) -> None:  # fmt: skip
    """Previews with a text encoder that is gone, and of sizes that were not recorded."""
    if arch.model_class != UNET:
        return
    for sample in samples if not settings.disable_sampling else ():
        if sample.width % PLACE or sample.height % PLACE:
            why = f"a preview of {arch.name} whose sides are no multiples of {PLACE} pixels"
            process.found.not_modelled(process.at("sample"), f"{sample.width}x{sample.height}", why)
            break
    cached = settings.cache_text_embeddings or any(dataset.cache_text_embeddings for dataset in datasets)
    if arch.previews_need_text and (cached or settings.unload_text_encoder) and samples and not settings.disable_sampling:
        place = (*process.at("train"), "unload_text_encoder" if settings.unload_text_encoder else "cache_text_embeddings")
        what = f"{arch.name} cannot make previews without its text encoders"
        why = "the pipeline asks the stand-in that they leave for a setting that it has not, and the trainer stops"
        process.found.problem(place, what, why, "set it to false, or train.disable_sampling: true")
