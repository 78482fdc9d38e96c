"""What Flex.2 puts into the channels beside its noisy latents: a control image and a mask, of each as chance has it in a step.

Which steps get one is drawn anew for each (model_kwargs). The estimate is of the steps that get both, where the data set has them: of a
mask the trainer's random shapes are counted like a given one, which is larger.
Source: ostris/ai-toolkit 27a03a91: extensions_built_in/flex2/flex2.py (condition_noisy_latents), toolkit/dataloader_mixins.py
(ControlFileItemDTOMixin, InpaintControlFileItemDTOMixin, ControlCachingMixin), toolkit/control_generator.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from estimator.archs import Arch
from estimator.controls import CHANNELS
from estimator.trainers.aitoolkit_controls import ControlRule, folders_of, read_optional
from estimator.trainers.section import Section, shown

MADE = ("depth", "pose", "line")  # control images that the trainer makes of the pictures by itself
MASKS = ("inpaint", "mask", "sapiens2_mask")  # masks that it makes
CHANCES = ("inpaint_dropout", "control_dropout", "inpaint_random_chance", "invert_inpaint_mask_chance")


@dataclass(frozen=True, slots=True)
class Chances:
    """Whether any step gets a control image, any a mask, and whether masks are drawn for pictures that have none."""

    controls: bool = False
    masks: bool = False
    random_masks: bool = False


def read_chances(process: Section, arch: Arch) -> Chances:
    """model.model_kwargs of an architecture that has such channels; nothing of others."""
    model = process.values.get("model")
    kwargs = model.get("model_kwargs") if isinstance(model, dict) else None
    if arch.control_images != CHANNELS or not isinstance(kwargs, dict):  # another type of value is reported with the model
        return Chances(arch.control_images == CHANNELS, arch.control_images == CHANNELS)
    section = Section(process.found, (*process.at("model"), "model_kwargs"), kwargs)
    inpaint, control, *_ = (section.number(key, 0.0) for key in CHANCES)
    return Chances(control < 1, inpaint < 1, section.truth("do_random_inpainting", False))


def read_channels(section: Section, arch: Arch, chances: Chances, latents_cached: bool) -> ControlRule:
    """The control images and masks of a dataset entry; what the trainer stops on is a problem."""
    made = _made(section)
    folders = folders_of(section)
    given = section.values.get("inpaint_path") or section.values.get("mask_path") or section.truth("alpha_mask", False)
    masked = chances.masks and bool(chances.random_masks or given or set(made) & set(MASKS))
    pictures = tuple(kind for kind in made if kind in MADE)
    if not chances.controls or not (folders or pictures):
        return ControlRule(masked=masked)
    rule = read_optional(section, folders, arch)
    if latents_cached:
        key = "cache_latents" if section.truth("cache_latents", False) else "cache_latents_to_disk"
        why = "the trainer takes their size from the pictures, which it does not read then, and stops"
        fix = "set it to false; or leave the control images out"
        section.found.problem(section.at(key), f"{arch.name} cannot be trained with control images and cached latents", why, fix)
    small = rule.small or not folders  # those that it makes are of its own size only where a folder of others is given
    return replace(rule, small=small, fitted=not small, made=len(pictures), masked=masked)


def _made(section: Section) -> tuple[str, ...]:
    """The kinds of control images that the trainer makes of the pictures before training."""
    value = section.values.get("controls") or []
    kinds = [value] if isinstance(value, str) else value
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        section.found.problem(section.at("controls"), f"expected a list of kinds, got {shown(value)}", fix='for instance ["depth", "line"]')
        return ()
    kinds = [kind for kind in kinds if kind.strip()]
    if unknown := [kind for kind in kinds if kind not in (*MADE, *MASKS)]:
        why = "the trainer stops where it comes to make it"
        fix = f"use some of: {', '.join((*MADE, *MASKS))}"
        section.found.problem(section.at("controls"), f"unknown kind of control image {shown(unknown[0])}", why, fix)
    if kinds:
        what = "the trainer makes these itself, once, with smaller models of their own, while its model is off the card: not estimated"
        section.found.warn(section.at("controls"), what)
    return tuple(kinds)
