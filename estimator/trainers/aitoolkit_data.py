"""The `datasets` section of AI Toolkit: each entry at each of its resolutions, with the sizes that its images are trained at.

Source: ostris/ai-toolkit 27a03a91: toolkit/config_modules.py (preprocess_dataset_raw_config, DatasetConfig, validate_configs),
toolkit/data_loader.py (get_dataloader_from_datasets), toolkit/dataloader_mixins.py (setup_buckets, load_caption).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from estimator.archs import Arch
from estimator.buckets import bucket_size, square_bucket, worst_bucket
from estimator.controls import CHANNELS, Size, pixels
from estimator.datasets import Image, Scan, caption_of, longer_than_before, scan
from estimator.job import Bucket, Dataset, Train
from estimator.padded import unequal
from estimator.trainers import aitoolkit_entry as entries
from estimator.trainers.aitoolkit_channels import Chances, read_chances, read_channels
from estimator.trainers.aitoolkit_controls import ControlRule, check_batches, check_pairs, modelled_keys, read_controls
from estimator.trainers.aitoolkit_keys import check_keys
from estimator.trainers.aitoolkit_video import FrameRule, check_begins, read_frames
from estimator.trainers.section import Findings, Section, shown
from estimator.tree import KeyPath

MAX_DATASETS = 1000
NAMED_FILES = 5  # how many broken files a warning names
SATURATED = 77  # words, with train.prompt_saturation_chance

Controls = dict[str, tuple[Size, ...]]
"""Sizes of the control images of each image, by its path."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of `datasets`, its settings read; `section` is where it stands.

    `only_text`: what every step trains on, whatever the captions (None: the captions). That is so where the text encoder is unloaded and
    no embeddings are cached: the trainer then has those of the empty prompt and of the trigger word (SDTrainer.train_single_accumulation).
    """

    section: Section
    folder: str
    resolutions: tuple[int, ...]
    batch_size: int
    bucketing: bool
    square: bool
    scale: float
    copies: int
    caption_ending: str
    default_caption: str | None
    trigger: str | None
    only_text: str | None
    saturated: bool  # captions that a step encodes may be repeated
    dataset: Dataset  # the settings that are the same at every resolution
    frames: FrameRule
    controls: ControlRule


def read_datasets(process: Section, train: Train, arch: Arch) -> tuple[Dataset, ...]:
    """Every dataset entry at every resolution, in order. Each folder is scanned once; an absent one gets its worst bucket and a warning."""
    found = process.found
    raw = process.items("datasets")
    if not raw:
        if process.values.get("datasets") in (None, []):
            found.problem(process.at("datasets"), "no datasets", "there is nothing to train on", "add an entry with folder_path")
        return ()
    trigger, chances = process.text("trigger_word"), read_chances(process, arch)
    entries = []
    for i, value in enumerate(raw):
        path = (*process.at("datasets"), i)
        if isinstance(value, dict):
            entries.append(_entry(Section(found, path, value), train, trigger, arch, chances))
        else:
            found.problem(path, f"expected a map with folder_path, got {shown(value)}", fix="write - folder_path: ...")
    _check_together(found, entries)
    if sum(len(entry.resolutions) for entry in entries) > MAX_DATASETS:
        what = f"more than {MAX_DATASETS:,} datasets, counting each resolution of each entry"
        found.problem(process.at("datasets"), what, "the trainer makes a dataset of each, with all its images", "use fewer resolutions")
        return ()
    scans: dict[tuple[str, bool], Scan] = {}
    datasets: list[Dataset] = []
    for entry in entries:
        files = entry.folder, entry.frames.video
        if files not in scans:
            scans[files] = scan(*files)
            _report_scan(entry, scans[files], arch)
        datasets += _at_resolutions(entry, scans[files], arch)
    return tuple(datasets)


def _entry(section: Section, train: Train, trigger: str | None, arch: Arch, chances: Chances) -> _Entry:
    check_keys(section, "datasets", modelled_keys(arch))
    folder, bucketing, batch = entries.folder_of(section), section.truth("buckets", True), entries.own_batch_size(section, train)
    entries.check_kind(section)
    cached, on_disk = entries.read_caching(section, arch)
    dataset = Dataset(
        folder=folder,
        resolution=entries.DEFAULT_RESOLUTION,
        batch_size=batch,
        buckets=(),
        cache_text_embeddings=train.cache_text_embeddings or section.truth("cache_text_embeddings", False),
        is_reg=section.truth("is_reg", False),
        drops_captions=section.truth("caption_dropout_rate", False),
        cache_latents=cached,
        cache_latents_to_disk=on_disk,
        own_lengths=section.truth("auto_frame_count", False),
    )
    if arch.control_images == CHANNELS:
        controls = read_channels(section, arch, chances, dataset.latents_cached)
    else:
        controls = read_controls(section, arch, train, cached=dataset.cache_text_embeddings, batch_size=batch)
    return _Entry(
        section=section,
        folder=folder,
        resolutions=entries.resolutions(section),
        batch_size=batch,
        bucketing=bucketing,
        square=section.truth("square_crop", False) or not bucketing,
        scale=entries.scale(section),
        copies=entries.copies(section),
        caption_ending=entries.caption_ending(section),
        default_caption=section.text("default_caption"),
        trigger=section.text("trigger_word", trigger),
        only_text=(trigger or "") if train.unload_text_encoder and not dataset.cache_text_embeddings else None,
        saturated=train.saturates_prompts and not dataset.cache_text_embeddings,
        dataset=dataset,
        frames=read_frames(section, arch),
        controls=controls,
    )


def _check_together(found: Findings, entries: list[_Entry]) -> None:
    """What the trainer refuses between entries."""
    if len({entry.bucketing for entry in entries}) > 1:
        without = next(entry for entry in entries if not entry.bucketing)
        found.problem(
            without.section.at("buckets"), "some datasets have buckets and some have not", "the trainer refuses the mixture", "remove it"
        )
    if len({entry.dataset.cache_text_embeddings for entry in entries}) > 1:
        without = next(entry for entry in entries if not entry.dataset.cache_text_embeddings)
        what = "some datasets cache text embeddings and this one does not"
        found.problem(
            without.section.at("cache_text_embeddings"), what, "the trainer refuses the mixture", "set train.cache_text_embeddings: true"
        )


def _report_scan(entry: _Entry, scanned: Scan, arch: Arch) -> None:
    found, path = entry.section.found, _folder_path(entry)
    if not entry.folder:
        return
    if any(ord(character) < ord(" ") for character in entry.folder):
        found.warn(path, "there is a tab or a line break in it: in double quotes a backslash begins an escape; use single quotes, or /")
    sizes = "the worst bucket of each resolution is assumed"
    if arch.fixed_text_tokens is None and entry.only_text is None:
        sizes += f", and captions of {arch.max_text_tokens} tokens"
    if scanned.state == "absent":
        found.warn(path, f"{entry.folder} is not here: {sizes}{_beside_config(found, entry.folder)}")
    elif scanned.state == "unreadable":
        found.warn(path, f"{entry.folder} cannot be read ({scanned.reason}): {sizes}")
    elif not scanned.images:
        none = "none of its images can be read" if scanned.broken else "it holds no images (.jpg, .jpeg, .png, .webp)"
        found.warn(path, f"{entry.folder}: {none}, and the trainer would stop; {sizes}")
    if scanned.broken:
        names = ", ".join(f"{os.path.relpath(p, entry.folder)} ({why})" for p, why in scanned.broken[:NAMED_FILES])
        more = f" and {len(scanned.broken) - NAMED_FILES} more" if len(scanned.broken) > NAMED_FILES else ""
        total = len(scanned.broken) + len(scanned.images)
        found.warn(path, f"{len(scanned.broken)} of {total} images cannot be read and are left out, as the trainer does: {names}{more}")
    for folder in scanned.skipped_folders[:NAMED_FILES]:
        found.warn(path, f"the folder {folder} cannot be read and is left out")


def _folder_path(entry: _Entry) -> KeyPath:
    return entry.section.at("dataset_path" if entry.section.values.get("dataset_path") else "folder_path")


def _beside_config(found: Findings, folder: str) -> str:
    """A relative path is looked up from where the command runs, as in the trainer; say so if it exists beside the config."""
    beside = os.path.join(os.path.dirname(found.file.name), folder)
    if os.path.isabs(folder) or "\0" in beside or not os.path.isdir(beside):
        return ""
    where = os.path.dirname(found.file.name)
    return f"; it is beside the config, but paths count from the current directory, as in the trainer: run from {where}"


def _at_resolutions(entry: _Entry, scanned: Scan, arch: Arch) -> list[Dataset]:
    if not scanned.images:
        text = arch.fixed_text_tokens if entry.only_text is None else arch.text_tokens(entry.only_text)
        if entry.controls.folders and text is None:
            text = arch.max_text_tokens + arch.text_tokens("", entry.controls.assumed)
        worst = {r: (_worst(entry, r, arch),) for r in entry.resolutions}
        check_begins(entry.section, entry.dataset, worst)
        return [replace(entry.dataset, resolution=r, buckets=worst[r], text_tokens=text) for r in entry.resolutions]
    controls = {image.path: entry.controls.of(image) for image in scanned.images}
    check_pairs(entry.section, entry.controls, controls)
    tokens = _caption_tokens(entry, scanned, arch, controls)
    longest = max(tokens.values()) if arch.fixed_text_tokens is None else arch.fixed_text_tokens
    buckets = {r: _buckets(entry, scanned.images, r, arch, tokens, controls) for r in entry.resolutions}
    check_begins(entry.section, entry.dataset, buckets)
    known = replace(entry.dataset, text_tokens=longest, scanned=True, longer_captions=longer_than_before(tokens.values()))
    return [replace(known, resolution=r, buckets=buckets[r]) for r in entry.resolutions]


def _worst(entry: _Entry, resolution: int, arch: Arch) -> Bucket:
    if entry.frames.auto:
        entry.section.found.not_modelled(entry.section.at("auto_frame_count"), True, "clips that are not here have a length of their own")
    size = square_bucket(resolution) if entry.square else worst_bucket(resolution, arch.bucket_divisor)
    size = unequal(*size, arch.bucket_divisor) if arch.padded_to and not entry.square else size
    frames = entry.frames
    bucket = Bucket(*size, frames.frames, controls=entry.controls.assumed, begins=frames.begins, masked=entry.controls.masked)
    bucket = replace(bucket, uneven=_uneven(entry, arch, entry.only_text is None))
    return frames.with_sound(bucket, arch, None)


def _uneven(entry: _Entry, arch: Arch, differ: bool) -> bool:
    """Whether a batch may hold captions that differ in length, where that counts. `differ`: captions of the bucket's items do, or may."""
    dropped = entry.dataset.drops_captions and entry.only_text is None
    return arch.masks_uneven and entry.dataset.batch_size > 1 and (differ or dropped)


def _buckets(
    entry: _Entry, images: tuple[Image, ...], resolution: int, arch: Arch, tokens: dict[str, int], controls: Controls
) -> tuple[Bucket, ...]:
    size = _size_rule(entry, resolution, arch)
    buckets: dict[tuple[int, int, int], Bucket] = {}
    unlike: set[tuple[int, int, int]] = set()
    lengths = dict[tuple[int, int, int], set[int]]()
    for image in images:
        width, height = max(1, int(image.width * entry.scale)), max(1, int(image.height * entry.scale))
        key = (*size(width, height), entry.frames.of(image))
        first = Bucket(*key, begins=entry.frames.begins, masked=entry.controls.masked)
        known = entry.frames.with_sound(buckets.get(key, first), arch, image)
        unlike |= {key} if known.controls and controls[image.path] not in ((), known.controls) else set()
        most = max(known.controls, controls[image.path], key=lambda sizes: (len(sizes), pixels(sizes)))
        lengths.setdefault(key, set()).add(tokens.get(image.path, 0))
        uneven = _uneven(entry, arch, len(lengths[key]) > 1)
        count, longest = known.count + entry.copies, max(lengths[key])
        buckets[key] = replace(known, count=count, text_tokens=longest, controls=most, uneven=uneven)
    check_batches(entry.section, arch, entry.dataset.batch_size, sorted(unlike))
    return tuple(bucket for _, bucket in sorted(buckets.items()))


def _size_rule(entry: _Entry, resolution: int, arch: Arch) -> Callable[[int, int], tuple[int, int]]:
    if entry.square:
        return lambda width, height: square_bucket(resolution)
    return lambda width, height: bucket_size(width, height, resolution, arch.bucket_divisor)


def _caption_tokens(entry: _Entry, scanned: Scan, arch: Arch, controls: Controls) -> dict[str, int]:
    """Estimated tokens of each image's caption; empty where the architecture pads every text to one length."""
    if arch.fixed_text_tokens is not None:
        return {}
    if entry.only_text is not None:
        return {image.path: arch.text_tokens(entry.only_text) for image in scanned.images}
    tokens, failed = {}, []
    for image in scanned.images:
        try:
            caption = caption_of(image, scanned, entry.caption_ending, entry.default_caption)
        except (OSError, ValueError):
            failed.append(os.path.basename(os.path.splitext(image.path)[0]) + entry.caption_ending)
            caption = ""
        caption = _with_trigger(caption, entry)
        tokens[image.path] = arch.text_tokens(_saturated(caption) if entry.saturated else caption, controls[image.path])
    if failed:
        names = ", ".join(failed[:NAMED_FILES])
        entry.section.found.warn(
            _folder_path(entry), f"captions that are not readable UTF-8 text ({len(failed)}), on which the trainer stops: {names}"
        )
    return tokens


def _saturated(caption: str) -> str:
    """A caption of fewer words than SATURATED, repeated until it has more (BaseSDTrainProcess.process_general_training_batch)."""
    words = len(caption.split(" "))
    return caption if words >= SATURATED else ", ".join([caption] * (SATURATED // words + 1))


def _with_trigger(caption: str, entry: _Entry) -> str:
    """The trigger word in place of [trigger] or [name], and in front where the caption does not have it (not for regularisation images)."""
    trigger = entry.trigger or ""
    caption = ", ".join(caption.split(",")).replace("[trigger]", trigger).replace("[name]", trigger)
    if trigger.strip() and trigger not in caption and not entry.dataset.is_reg:
        return f"{trigger} {caption}"
    return caption
