"""The control images of AI Toolkit's edit models: those of a dataset, paired by file name, and those of previews.

Source: ostris/ai-toolkit 27a03a91: toolkit/config_modules.py (DatasetConfig, SampleItem), toolkit/dataloader_mixins.py
(ControlFileItemDTOMixin), extensions_built_in/diffusion_models/qwen_image/qwen_image_edit_plus.py (generate_single_image).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

from estimator.archs import GIVEN_FRAME, PICTURED, Arch
from estimator.controls import ASSUMED, CHANNELS, FITTED, MOST_IMAGES, PROMPTS, SINGLE, SMALL, TOKENS, Size
from estimator.datasets import Image, pair_of, size_of
from estimator.job import Model, Sample, Train
from estimator.trainers.section import Section, shown
from estimator.tree import KeyPath

NUMBERED = tuple(f"control_path_{k}" for k in range(1, MOST_IMAGES + 1))
DATASET_KEYS = frozenset({"control_path", *NUMBERED})  # read here, where the architecture has control images
ONE = (FITTED, *PICTURED)  # kinds that take one picture for a preview, and bring it to the preview's size
CHANNEL_KEYS = DATASET_KEYS | {"controls", "inpaint_path"}
NAMED_FILES = 5
INPAINT = ".inpaint."  # in the path of a preview's picture: it has a mask in its alpha channel (Flex.2)


@dataclass(frozen=True, slots=True)
class ControlRule:
    """`folders` of a dataset's control images. `absent`: those that are not here. `small`: all are resized to one size. `fitted`: each to
    that of its picture, so that their own does not matter. `needed`: the trainer stops on a picture without one. `made`: so many of
    each picture the trainer makes. `masked`: masks are put beside its pictures.
    """

    folders: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    small: bool = False
    fitted: bool = False
    needed: bool = False
    made: int = 0
    masked: bool = False

    def of(self, image: Image) -> tuple[Size, ...]:
        """Sizes of an image's control images; of a folder that is not here an assumed one."""
        found = [ASSUMED if folder in self.absent else pair_of(image, folder) for folder in self.folders] + [ASSUMED] * self.made
        return tuple(SMALL if self.small else ASSUMED if self.fitted else size for size in found if size is not None)

    @property
    def assumed(self) -> tuple[Size, ...]:
        """Of an image that is not here."""
        return (SMALL if self.small else ASSUMED,) * (len(self.folders) + self.made)


def modelled_keys(arch: Arch) -> frozenset[str]:
    """Of a dataset entry: those that are read for this architecture, though not for others."""
    if arch.control_images == CHANNELS:
        return CHANNEL_KEYS
    return DATASET_KEYS if arch.control_images not in (None, *PICTURED) else frozenset()


def read_controls(section: Section, arch: Arch, train: Train, *, cached: bool, batch_size: int) -> ControlRule:
    """The control folders of a dataset entry; what the trainer stops on is a problem."""
    if not arch.control_images or arch.control_images in PICTURED:
        return ControlRule()
    found, folders = section.found, folders_of(section)
    if arch.control_images != PROMPTS:
        rule = read_optional(section, folders, arch)
        return _read_single(section, rule, arch) if arch.control_images == SINGLE else rule
    encodes = not train.unload_text_encoder or cached
    if not folders:
        if encodes:
            what = f"no control images: {arch.name} encodes them with every prompt"
            found.problem(
                section.at("control_path"), what, "the trainer stops without them", "give control_path, a folder with the same file names"
            )
        return ControlRule()
    if batch_size > 1 and encodes and not cached:
        what = f"{arch.name} cannot encode prompts of more than one image at once"
        why = "the trainer stops where a batch has more than one image and text is not cached"
        found.problem(section.at("batch_size"), what, why, "set train.cache_text_embeddings: true, or a batch size of 1")
    absent = tuple(folder for folder in folders if not os.path.isdir(folder))
    for folder in absent:
        found.warn(section.at("control_path"), f"{folder} is not here: control images of {ASSUMED[0]} x {ASSUMED[1]} pixels are assumed")
    return ControlRule(folders, absent, not section.truth("full_size_control_images", True), needed=True)


def read_optional(section: Section, folders: tuple[str, ...], arch: Arch) -> ControlRule:
    """Where the prompts do not need them; pictures without control images are trained as they are."""
    found, fitted = section.found, arch.control_images in (FITTED, CHANNELS)
    small = not section.truth("full_size_control_images", True)
    cropped = arch.control_images in (FITTED, SINGLE)
    place = section.at(next((key for key in ("control_path", *NUMBERED) if section.values.get(key)), "control_path"))
    if cropped and len(folders) > 1:
        why = f"{arch.name} takes one control image for a picture, and the trainer stops on more"
        found.problem(place, f"{len(folders)} folders of control images", why, "keep one of them")
    if (cropped or (fitted and not small)) and folders and not section.truth("buckets", True):
        found.problem(section.at("buckets"), "control images need buckets", "the trainer stops on them without", "remove buckets")
    if cropped and folders and small:
        found.not_modelled(section.at("full_size_control_images"), False, "control images are resized to 512 x 512, then to their pictures")
    absent = tuple(folder for folder in folders if not os.path.isdir(folder))
    for folder in absent:
        size = "" if fitted else f" of {ASSUMED[0]} x {ASSUMED[1]} pixels"
        found.warn(place, f"{folder} is not here: every picture is assumed to have a control image{size}")
    return ControlRule(folders, absent, small, fitted)


def _read_single(section: Section, rule: ControlRule, arch: Arch) -> ControlRule:
    """Every picture needs its control image, of which the latents' channels are half."""
    place = section.at("control_path")
    if not rule.folders:
        what = f"no control images: {arch.name} puts one beside every picture"
        section.found.problem(place, what, "the trainer stops without them", "give control_path, a folder with the same file names")
    return replace(rule, needed=True)


def folders_of(section: Section) -> tuple[str, ...]:
    """The web UI's numbered folders take the place of control_path."""
    numbered = tuple(path for path in (section.text(key) for key in NUMBERED) if path)
    if numbered:
        return numbered
    value = section.values.get("control_path")
    values = value if isinstance(value, list) else [value]
    if any(one is not None and not isinstance(one, str) for one in values):
        section.found.problem(section.at("control_path"), f"expected a folder or a list of them, got {shown(value)}", "", "give folders")
        return ()
    return tuple(one for one in values if isinstance(one, str) and one)


def check_pairs(section: Section, rule: ControlRule, controls: dict[str, tuple[Size, ...]]) -> None:
    """The trainer stops at an image that has no control image at all."""
    lonely = [os.path.basename(path) for path, sizes in controls.items() if not sizes]
    if rule.needed and lonely:
        more = f" and {len(lonely) - NAMED_FILES} more" if len(lonely) > NAMED_FILES else ""
        what = f"no control image for {', '.join(lonely[:NAMED_FILES])}{more}"
        why = "the trainer stops on an image without any: file names must be the same, but for the ending"
        section.found.problem(section.at("control_path"), what, why, "add them, or take these images out")


def check_batches(section: Section, arch: Arch, batch_size: int, unlike: list[tuple[int, int, int]]) -> None:
    """`unlike`: buckets (width, height, frames) whose pictures have control images of several sizes, which FLUX.2 cannot join in a batch;
    or different numbers of them, which Flex.2 cannot.

    Source: toolkit/data_transfer_object/data_loader.py (DataLoaderBatchDTO: torch.cat of control tensors), flux2_model.py
    (get_noise_prediction: torch.cat of each item's tokens), 27a03a91.
    """
    if arch.control_images in (TOKENS, CHANNELS) and batch_size > 1 and unlike:
        sizes = ", ".join(f"{width}x{height}" for width, height, _ in unlike[:NAMED_FILES])
        several = "several sizes" if arch.control_images == TOKENS else "different number"
        what = f"control images of {several} beside the pictures of {sizes}: the trainer stops when two of them meet in a batch"
        section.found.warn(section.at("control_path"), f"{what}; make them alike, or batch_size 1")


Absent: TypeAlias = dict[str, KeyPath]
"""Pictures that are not there -> where the first preview asks for each."""


def sample_controls(
    section: Section, arch: Arch, flags: Mapping[str, str], absent: Absent
) -> tuple[tuple[Size, ...], tuple[Size, ...]]:
    """(Control images that the transformer gets, those that the prompts are encoded with) of a preview.

    `flags`: those in its prompt; `absent` is added to. The path behind --ctrl_img takes the place of the key ctrl_img, but not as the
    first numbered one.
    """
    flagged = flags.get("ctrl_img", "")
    if arch.image_to_video and (flagged or section.values.get("ctrl_img")):
        section.found.not_modelled(section.at("ctrl_img"), flagged or section.values["ctrl_img"], "makes the preview from a first picture")
    if not arch.control_images:
        return (), ()
    one = section.text("ctrl_img") or None
    numbered = [section.text(f"ctrl_img_{k}") or None for k in range(1, MOST_IMAGES + 1)]
    numbered[0] = numbered[0] or one
    one = flagged or one
    if arch.control_images == CHANNELS and one:
        _check_place(section, one, flags)
    if arch.control_images in (*ONE, CHANNELS):  # brought to the preview's size: its own does not matter
        return (ASSUMED,) if one else (), ()
    if arch.control_images == SINGLE:
        single = (_size(section, one, absent),) if one else ()
        return single, single
    sizes = {path: _size(section, path, absent) for path in (one, *numbered) if path}
    given = [one or numbered[0], *numbered[1:]]
    seen = tuple(sizes[path] for path in (one, *numbered) if path) if arch.control_images == PROMPTS else ()
    return tuple(sizes[path] for path in given if path), seen


def _check_place(section: Section, path: str, flags: Mapping[str, str]) -> None:
    """Flex.2's channels have one place for what is to be filled in, and one for a control image; the trainer goes by the file's name."""
    written: object = section.values.get("ctrl_idx", 0)
    if "ctrl_idx" in flags:
        written = flags["ctrl_idx"]
        with suppress(ValueError):  # what is no number there is reported with the other flags
            written = int(flags["ctrl_idx"])
    right = 0 if INPAINT in path else 1
    if written != right or not isinstance(written, int):
        what = f"ctrl_idx {shown(written)} with {os.path.basename(path)}: the preview's channels are then too few or too many"
        why = f"the trainer stops: a control image has ctrl_idx 1; a picture with a mask has {INPAINT!r} in its name and ctrl_idx 0"
        section.found.problem(section.at("ctrl_idx"), what, why, f"write ctrl_idx: {right}, or --ctrl_idx {right} in the prompt")


def check_previews(sample: Section, samples: tuple[Sample, ...], arch: Arch, model: Model) -> None:
    """The trainer stops at a preview that has no control image, at the end of one whose pipeline does not go with diffusers, and at the
    beginning of one whose pipeline takes the host for its device."""
    place = sample.at("samples" if "samples" in sample.values else "prompts")
    if samples and model.layer_offloading and not arch.offloaded_previews:
        _check_device(sample, place, arch, model.layer_offloading_text_encoder_percent)
    if samples and model.low_vram and not arch.low_vram_previews:
        what = f"{arch.name} cannot make previews with low_vram"
        why = "the trainer's pipeline does not go with the diffusers it asks for (expand_timesteps): it stops at the end of the first"
        sample.found.problem(place, what, why, "set train.disable_sampling: true, or model.low_vram: false")
    if arch.control_images in (TOKENS, CHANNELS, GIVEN_FRAME) or arch.bare_previews:
        return
    one_picture = arch.control_images in (*ONE, SINGLE)
    without = [str(number) for number, one in enumerate(samples, 1) if not (one.controls if one_picture else one.seen)]
    if without:
        what = f"no control image for preview {', '.join(without)}: {arch.name} "
        what += "makes none without" if one_picture else "encodes them with every prompt"
        fix = f"give each {'ctrl_img' if one_picture else 'ctrl_img_1'}, or --ctrl_img PATH in the prompt"
        sample.found.problem(place, what, "the trainer stops without them", f"{fix}, or set train.disable_sampling: true")


def _check_device(sample: Section, place: tuple[str | int, ...], arch: Arch, share: float) -> None:
    """FLUX.2's pipeline makes latents where the text encoder's first weight is: of dev a convolution, which offloading takes to the host
    (flux2/src/pipeline.py: _execution_device; run on the emulated device). Below 1.0 chance decides whether it does."""
    why = "the trainer's pipeline makes latents where the encoder's first weight is, which then waits on the host: it stops at the first"
    fix = "set model.layer_offloading_text_encoder_percent: 0, or train.disable_sampling: true"
    if share >= 1:
        sample.found.problem(place, f"{arch.name} cannot make previews with its text encoder's layers offloaded", why, fix)
    elif share > 0:
        sample.found.warn(place, f"{arch.name} may stop at the first preview: by chance its text encoder's first layer is offloaded; {fix}")


def _size(section: Section, path: str, absent: Absent) -> Size:
    size = size_of(path)
    if size is None:
        absent.setdefault(path, section.path)
    return size or ASSUMED


def warn_of(absent: Absent, sample: Section) -> None:
    """Once, whatever their number: a config that is read elsewhere than it is trained has none of them."""
    for path, place in list(absent.items())[:1]:
        what = f"{path} and {len(absent) - 1} more control images of previews are" if absent.keys() - {path} else f"{path} is"
        sample.found.warn(place, f"{what} not here or cannot be read: {ASSUMED[0]} x {ASSUMED[1]} pixels are assumed")
