"""Previews of classes that ask for the text encoder (OmniGen2, Lumina2), of which the first scales control images by itself.

Source: ostris/ai-toolkit 27a03a91: extensions_built_in/diffusion_models/omnigen2/__init__.py (get_generation_pipeline,
generate_single_image), src/pipelines/image_processor.py (get_new_height_width: 1024 pixels a side, and a megapixel), toolkit/unloader.py
(unload_text_encoder, which finds no encoder by its own names in this pipeline and leaves an empty list; of Lumina2 a stand-in alone),
toolkit/stable_diffusion_model.py (save_device_state, which asks that for `text_model`).
"""

from __future__ import annotations

from collections.abc import Sequence

from estimator.archs import Arch
from estimator.job import Dataset, Sample, Train
from estimator.trainers.section import Section


def check_previews_of_pipelines(
    process: Section, settings: Train, arch: Arch, datasets: Sequence[Dataset], samples: Sequence[Sample]
) -> None:  # fmt: skip
    """Previews with cached text, on which the trainer stops (unloaded without it, the encoder comes back for them), and with a control
    image that the pipeline makes smaller than they are."""
    if settings.disable_sampling or not (arch.bare_previews or not arch.cached_previews):
        return
    cached = settings.cache_text_embeddings or any(dataset.cache_text_embeddings for dataset in datasets)
    if cached:
        what = f"{arch.name} cannot make previews with cached text embeddings"
        why = "the trainer lets go of the text encoder, which the preview pipeline is then given by its place in an empty list, and stops"
        if not arch.cached_previews:
            why = "the trainer asks the stand-in for its text encoder for a layer that it has not (save_device_state), and stops"
        fix = "set it to false, or train.disable_sampling: true"
        process.found.problem((*process.at("train"), "cache_text_embeddings"), what, why, fix)
    for sample in samples:
        if arch.bare_previews and sample.controls and max(sample.width, sample.height) > arch.preview_most:
            why = f"a preview of {arch.name} with a control image and a side of more than {arch.preview_most} pixels"
            process.found.not_modelled(process.at("sample"), f"{sample.width}x{sample.height}", why)
            return
