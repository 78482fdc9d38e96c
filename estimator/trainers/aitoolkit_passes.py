"""Settings of AI Toolkit's `train` section that give a step more passes than one, or make passes between steps.

Source: ostris/ai-toolkit 27a03a91: extensions_built_in/sd_trainer/SDTrainer.py, jobs/process/BaseSDTrainProcess.py (setup_validation),
toolkit/config_modules.py (TrainConfig, ValidationConfig); what each does to the card: estimator.passes, estimator.preservation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from estimator.archs import Arch
from estimator.buckets import bucket_size, worst_bucket
from estimator.datasets import size_of
from estimator.job import Model, Slider, Train, Validation
from estimator.optimizers import is_fused
from estimator.recipes import kind_named
from estimator.trainers import modelled
from estimator.trainers.aitoolkit_keys import check_keys
from estimator.trainers.section import Section, shown

CLASS_PRESERVED, BLANK_PRESERVED = "diff_output_preservation", "blank_prompt_preservation"
SLIDER = "concept_slider"  # type of a process
LOSS, MEAN_FLOW = "loss_type", "mean_flow"
MASKED_PRIOR, GUIDED_LOSS, VALIDATION = "inverted_mask_prior", "do_guidance_loss", "validation_config"
# Switches that are no more than a pass without the adapter before the step's own, and those that count each sample twice
PRIORS, DOUBLING = ("correct_pred_norm", "do_prior_divergence"), ("do_cfg", "do_random_cfg")
PASSES: Mapping[str, str] = {
    MASKED_PRIOR: "a pass without the adapter before each step", **dict.fromkeys(PRIORS, "a pass without the adapter before each step"),
    GUIDED_LOSS: "an extra pass through the transformer while the first one's tensors are alive",
    **dict.fromkeys(DOUBLING, "doubles the batch of the training pass"), VALIDATION: "runs a validation batch between steps",
    LOSS: "two timesteps of each sample, and an extra pass while the first one's tensors are alive",
    "prior_reg": "a pass without the adapter before each step",
}
REGULARISED = "prior_reg"  # of a dataset
MAX_EVERY, MAX_RESOLUTION, MAX_NEGATIVE = 10**9, 16384, 100


def with_passes(process: Section, train: Train, arch: Arch, model: Model, kind: str) -> Train:
    """The settings with what steps do besides their own pass; what has no model is reported. `kind`: of the adapter."""
    section = process.section("train") or Section(process.found, process.at("train"), {})
    masked = section.truth(MASKED_PRIOR, False)
    if masked and not any(_given(process, "mask_path") + _given(process, "alpha_mask")):
        section.found.warn(section.at(MASKED_PRIOR), "no effect: no dataset has masks")
        masked = False
    priors, regularised = [key for key in PRIORS if section.truth(key, False)], _given(process, "prior_reg")
    doubling, guides = [key for key in DOUBLING if section.truth(key, False)], section.truth(GUIDED_LOSS, False)
    train = replace(
        train, slider=_slider(process, train, arch, model, kind), mean_flow=section.values.get(LOSS) == MEAN_FLOW,
        prior=bool(masked or priors or any(regularised)), guides_loss=guides, guided=bool(doubling),
        validation=_validation(section, process.text("trigger_word"), arch),
        unconditional_prompt=section.text("unconditional_prompt", "") or "", negative_prompt=_negative(section) if doubling else "",
    )  # fmt: skip
    on = [*[MASKED_PRIOR] * masked, *priors, *[GUIDED_LOSS] * guides, *doubling, *[LOSS] * train.mean_flow]
    on += [VALIDATION] * (train.validation is not None)
    datasets = [Section(process.found, (*process.at("datasets"), n), {REGULARISED: given}) for n, given in enumerate(regularised) if given]
    for where, key in [*((section, key) for key in on), *((one, REGULARISED) for one in datasets)]:
        beyond = _beyond(key, train, arch, model, kind)
        if beyond:
            where.found.not_modelled(where.at(key), where.values[key], f"{PASSES[key]}, {beyond}")
    _check_stops(process, section, train, arch)
    _check_preservation(process, section, train, arch, model, kind)
    return train


def _check_stops(process: Section, section: Section, train: Train, arch: Arch) -> None:
    """What the trainer stops on."""
    if train.mean_flow and arch.key in modelled.MEAN_FLOW_STOPS:
        why = "the trainer gives the transformer two timesteps of each sample, on which it stops"
        section.found.problem(section.at(LOSS), f"{arch.name} cannot be trained with {MEAN_FLOW}", why, "set loss_type: mse")
    elif train.mean_flow and arch.key in modelled.MEAN_FLOW and train.batch_size > 1:
        why = "the trainer adds the embeddings of two timesteps of each sample to one of each text, which only a single one's is taken for"
        section.found.problem(section.at(LOSS), f"{MEAN_FLOW} with batches of {train.batch_size}", why, "set batch_size: 1")
    elif train.mean_flow and any(_given(process, "control_path")):
        section.found.warn(section.at(LOSS), "steps are without control images: this loss makes noisy latents of its own")
    if train.validation is not None and arch.key in modelled.VALIDATION_STOPS:
        why = "its class in the trainer lacks what a validation asks for, and stops in the first one"
        section.found.problem(section.at(VALIDATION), f"{arch.name} cannot be trained with {VALIDATION}", why, f"remove {VALIDATION}")


def _beyond(key: str, train: Train, arch: Arch, model: Model, kind: str) -> str:
    """What a pass is together with where no rule reaches, or the architectures that it is modelled for; nothing where it is modelled."""
    of_its_own = {VALIDATION: modelled.VALIDATED, GUIDED_LOSS: modelled.GUIDING, LOSS: modelled.MEAN_FLOW}
    known = of_its_own.get(key, modelled.PASSES if key in DOUBLING else modelled.PRIORED)
    if arch.key not in known:
        return f"modelled for {', '.join(sorted(known))}"
    together = {"layer offloading": model.layer_offloading, f"a {kind}": kind != "lora"}
    together |= {f"weights in {model.weights}": kind_named(model.weights)}
    if key != VALIDATION:
        together |= {"an output that is preserved": train.preserves is not None, "a slider": train.slider is not None}
        together |= {MEAN_FLOW: train.mean_flow and key != LOSS}
    if key in (LOSS, *DOUBLING):
        together |= {train.optimizer: is_fused(train.optimizer)}
    return next((f"together with {other}" for other, met in together.items() if met), "")


def _check_preservation(process: Section, section: Section, train: Train, arch: Arch, model: Model, kind: str) -> None:
    """Where steps that preserve outputs have no model, and what the trainer asks for besides."""
    if train.preserves is None:
        return
    found, key = section.found, CLASS_PRESERVED if train.preserves_captions else BLANK_PRESERVED
    why = "a second forward with gradients is alive beside the first"
    if arch.key not in modelled.PRESERVING:
        found.not_modelled(section.at(key), True, f"{why} (modelled for {', '.join(sorted(modelled.PRESERVING))})")
    elif model.layer_offloading or kind != "lora" or is_fused(train.optimizer) or kind_named(model.weights):
        other = "layer offloading" if model.layer_offloading else f"a {kind}" if kind != "lora" else train.optimizer
        other = f"weights in {model.weights}" if kind_named(model.weights) else other
        found.not_modelled(section.at(key), True, f"{why}, together with {other}")
    if train.preserves_captions and not process.text("trigger_word", "") and not any(_given(process, "trigger_word")):
        empty = process.values.get("trigger_word") is not None
        why = "in place of an empty one the trainer puts the class between all letters" if empty else "the trainer stops without it"
        found.problem(section.at(key), f"{key} needs a trigger word", why, "set trigger_word")


def _given(process: Section, key: str) -> list[bool]:
    """Whether each dataset has a key, set to something."""
    entries = process.values.get("datasets")
    return [isinstance(entry, dict) and bool(entry.get(key)) for entry in (entries if isinstance(entries, list) else [])]


def _slider(process: Section, train: Train, arch: Arch, model: Model, kind: str) -> Slider | None:
    """The prompts of a concept slider; None of other processes, in which the trainer does not look at them."""
    section = process.section("slider")
    if process.values.get("type") != SLIDER:
        if section is not None:
            process.found.warn(process.at("slider"), f"no effect in a process of this type; a slider is trained by type: {SLIDER}")
        return None
    section = section or Section(process.found, process.at("slider"), {})
    check_keys(section, "slider")
    fused, offloaded = is_fused(train.optimizer), model.layer_offloading or kind_named(model.weights)
    if arch.key not in modelled.PASSES or kind != "lora" or fused or offloaded or train.preserves is not None:
        known = f"a LoRA of {', '.join(sorted(modelled.PASSES))}"
        known += ", without layer offloading, Automagic2 and 3, preserved outputs, weights in ConvRot or nvfp4"
        process.found.not_modelled(process.at("type"), SLIDER, f"several passes in every step (modelled: {known})")
    prompts = [section.text(key, "") or "" for key in ("positive_prompt", "target_class", "negative_prompt")]
    anchor = section.text("anchor_class")
    return Slider(tuple(arch.text_tokens(prompt) for prompt in (*prompts, *([] if anchor is None else [anchor]))))


def _negative(section: Section) -> str:
    """The longest negative prompt that a step can have: `max_negative_prompts` of the file that it names, or of the text itself."""
    written = section.text("negative_prompt", "") or ""
    most = section.whole("max_negative_prompts", 1, 1, MAX_NEGATIVE)
    pool = [written]
    if "\0" not in written and os.path.isfile(written):
        try:
            with open(written, encoding="utf-8") as file:
                pool = [line.strip() for line in file if line.strip()] or [""]
        except (OSError, UnicodeDecodeError):
            section.found.warn(section.at("negative_prompt"), f"cannot read {shown(written)}; its name is taken for the prompt")
    return ", ".join([max(pool, key=len)] * most)


def _validation(section: Section, trigger: str | None, arch: Arch) -> Validation | None:
    """validation_config; None where it is missing or none of its pictures is there to be found."""
    config = section.section(VALIDATION)
    if config is None:
        return None
    check_keys(config, "train.validation_config")
    resolution = config.whole("resolution", 512, 1, MAX_RESOLUTION, floats=True)
    every = config.whole("validate_every_n_steps", 10, 0, MAX_EVERY)
    sigmas = config.items("validation_sigmas")
    levels = 4 if sigmas is None else len(sigmas)
    pictures = []
    for number, value in enumerate(config.items("validation_items") or []):
        path = (*config.at("validation_items"), number)
        if not isinstance(value, dict):
            what = f"expected a map of keys, got {shown(value)}"
            section.found.problem(path, what, "the trainer stops on it", "write image_path: and prompt:")
            continue
        item = Section(section.found, path, value)
        check_keys(item, "train.validation_config.validation_items")
        picture = item.text("image_path", "") or ""
        if picture:
            prompt = item.text("prompt", "") or ""
            pictures.append((*_size(item, picture, resolution, arch), arch.text_tokens(_with_trigger(prompt, trigger))))
    if levels == 0 and pictures:
        section.found.problem(config.at("validation_sigmas"), "an empty list", "the trainer stops on it", "name at least one noise level")
    return Validation(tuple(pictures), max(1, levels), every) if pictures else None


def _size(item: Section, picture: str, resolution: int, arch: Arch) -> tuple[int, int]:
    """The size at which a picture is predicted; the worst there is where it is not on this machine (the trainer leaves it out)."""
    size = None if "\0" in picture else size_of(picture)
    if size is None:
        item.found.warn(item.at("image_path"), "not found here: the largest size at this resolution is assumed")
        return worst_bucket(resolution, arch.bucket_divisor)
    return bucket_size(*size, resolution, arch.bucket_divisor)


def _with_trigger(prompt: str, trigger: str | None) -> str:
    """The trigger word in place of [trigger] and [name]; it is not added (toolkit/prompt_utils.py)."""
    return prompt if trigger is None else prompt.replace("[trigger]", trigger).replace("[name]", trigger)
