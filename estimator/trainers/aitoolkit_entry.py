"""Settings of one entry of AI Toolkit's `datasets` that need nothing but the entry.

Source: ostris/ai-toolkit 27a03a91: toolkit/config_modules.py (DatasetConfig), toolkit/data_loader.py, toolkit/dataloader_mixins.py.
"""

from __future__ import annotations

from estimator.archs import Arch
from estimator.job import Train
from estimator.trainers.aitoolkit_train import MAX_BATCH
from estimator.trainers.section import Section, shown, whole_number

DEFAULT_RESOLUTION = 512
MAX_RESOLUTION = 16_384
MAX_REPEATS, MAX_SCALE = 10**6, 1000


def folder_of(section: Section) -> str:
    """The folder of the images; empty, with a problem, where none is named."""
    folder = section.text("dataset_path") or section.text("folder_path")
    if not folder:
        section.found.problem(section.at("folder_path"), "no folder", "the trainer stops without it", "give the folder of the images")
    return folder or ""


def check_kind(section: Section) -> None:
    """What the trainer stops on whatever else is set, and regularisation images, which have no model."""
    found, kind = section.found, section.values.get("type", "image")
    if section.values.get("poi") is not None:
        found.problem(section.at("poi"), "poi is no longer supported", "the trainer stops on it", "remove it")
    if kind != "image":
        what = f"unknown dataset type {shown(kind)}"
        found.problem(section.at("type"), what, "the trainer takes image alone", "remove it, or write image")
    if section.truth("is_reg", False):
        found.not_modelled(section.at("is_reg"), section.values["is_reg"], "regularisation images alternate with the others")


def own_batch_size(section: Section, train: Train) -> int:
    """The entry's batch size, or the run's."""
    if section.values.get("batch_size") is None:
        return train.batch_size
    if not section.truth("buckets", True):
        what = "a batch_size of its own needs buckets"
        section.found.problem(section.at("batch_size"), what, "the trainer refuses it", "remove it, or set buckets: true")
    return section.whole("batch_size", train.batch_size, 1, MAX_BATCH)


def read_caching(section: Section, arch: Arch) -> tuple[bool, bool]:
    """Whether latents are cached in memory, and on the disk."""
    caching = {key: section.truth(key, False) for key in ("cache_latents", "cache_latents_to_disk")}
    if any(section.values.get(key) for key in ("augments", "augmentations")) and any(caching.values()):
        section.found.warn(section.path, "augmentations switch latent caching off in the trainer: the VAE stays on the card")
        return False, False
    if not arch.caches_latents and any(caching.values()):
        what = f"{arch.name} cannot be trained with cached latents"
        why = "each step takes the first frame from the pictures themselves, which are then not read: the trainer stops"
        section.found.problem(section.at(next(key for key, on in caching.items() if on)), what, why, "set it to false")
    return caching["cache_latents"], caching["cache_latents_to_disk"]


def resolutions(section: Section) -> tuple[int, ...]:
    """One resolution, or a list of them: the trainer makes a dataset of each."""
    value = section.values.get("resolution", DEFAULT_RESOLUTION)
    values = value if isinstance(value, list) else [value]
    path = section.at("resolution")
    if not values:
        section.found.problem(path, "an empty list", "the entry then holds nothing", "for instance [512, 768, 1024]")
    result = []
    for i, one in enumerate(values):
        where = (*path, i) if isinstance(value, list) else path
        number = whole_number(one, floats=True)
        if number is None:
            fix = f"remove the quotes: {one}" if isinstance(one, str) and one.strip().isdigit() else "for instance 1024"
            section.found.problem(where, f"expected a whole number of pixels, got {shown(one)}", "", fix)
        elif not 1 <= number <= MAX_RESOLUTION:
            section.found.problem(
                where, f"{shown(one)} pixels are out of range", f"must be from 1 to {MAX_RESOLUTION:,}", "for instance 1024"
            )
        else:
            result.append(number)
    return tuple(result)


def scale(section: Section) -> float:
    """By how much images are enlarged before they fall into buckets."""
    scale = section.number("scale", 1.0)
    if not 0 < scale <= MAX_SCALE:
        what, why = f"{shown(section.values['scale'])} is out of range", f"must be above 0, and no more than {MAX_SCALE:,}"
        section.found.problem(section.at("scale"), what, why, "the default is 1")
        return 1.0
    return scale


def copies(section: Section) -> int:
    """How often each image counts: repeats, and once more for each flip."""
    repeats = section.whole("num_repeats", 1, 0, MAX_REPEATS)
    return max(1, repeats) * (2 if section.truth("flip_x", False) else 1) * (2 if section.truth("flip_y", False) else 1)


def caption_ending(section: Section) -> str:
    legacy = section.text("caption_type")
    if legacy:
        return legacy  # taken as it is, without a dot being added
    ending = section.text("caption_ext", ".txt") or ""
    return ending if not ending or ending.startswith(".") else f".{ending}"
