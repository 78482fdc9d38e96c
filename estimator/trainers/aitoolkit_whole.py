"""A config without a `network` section: the trainer takes it for a fine-tune and trains the whole transformer.

Source: ostris/ai-toolkit 27a03a91: jobs/process/BaseSDTrainProcess.py (is_fine_tuning), toolkit/models/base_model.py (named_parameters,
prepare_optimizer_params), extensions_built_in/sd_trainer/SDTrainer.py (__init__).
"""

from __future__ import annotations

from dataclasses import replace

from estimator.archs import Arch
from estimator.job import Model, Network, Train
from estimator.parameters import WHOLE
from estimator.trainers import modelled
from estimator.trainers.section import Section

FILTERS = ("ignore_if_contains", "only_if_contains")  # of the model section: words of parameters' names
BYPASS = "bypass_guidance_embedding"  # of the train section: then no gradient reaches the embedding of the guidance
COPIES_GRADIENTS = "adafactor"  # a hook on each parameter that is not fp32 (toolkit/optimizers/adafactor.py: stochastic_accumulation)
# What becomes of quantised layers, by the beginning of a kind's name: a few steps of Z-Image on the emulated device (docs/log.md)
UNTRAINED = {
    "float8": "its quantised layers get no gradient, and stay as they are",
    "uint": "its quantised layers hold no parameters, and stay as they are",
}
ADAPTER = "add network: {type: lora, linear: 16}"


def with_nothing_to_merge(model: Model, network: Network | None) -> Model:
    """Without an adapter previews are those of plain weights, also where a config asks for a quantisation that its UNet has not."""
    return replace(model, merges=True) if network is not None and network.kind == WHOLE else model


def check_whole(process: Section, arch: Arch, model: Model, train: Train) -> None:
    """What of it is not modelled, and what the trainer stops on."""
    found, place, section = process.found, process.at("network"), process.section("model")
    if train.preserves is not None:
        found.problem(place, "an output can be preserved with a network section only", "the trainer stops without it", ADAPTER)
    if arch.key not in modelled.WHOLE:
        names = ", ".join(sorted(modelled.WHOLE))
        found.not_modelled(place, None, f"no network section: all of {arch.name} is trained, known for {names}; for a LoRA {ADAPTER}")
        return
    at_model = process.at("model") if section is None else section.at("quantize")
    if model.weights not in modelled.WHOLE_WEIGHTS:
        left = "".join(f"; {text}" for kind, text in UNTRAINED.items() if model.weights.startswith(kind))
        found.not_modelled(at_model, True, f"training all of {arch.name} in {model.weights}{left} (set model.quantize: false)")
    _check_parameters(process, arch)
    if model.layer_offloading or model.compiled or model.assistant_lora is not None:
        what = "layer offloading" if model.layer_offloading else "compiled blocks" if model.compiled else "a training adapter"
        found.not_modelled(place, None, f"no network section: all of {arch.name} is trained, together with {what}")
    if (pictured := _controlled(process)) is not None:
        number, key, value = pictured
        found.not_modelled((*process.at("datasets"), number, key), value, f"control images where all of {arch.name} is trained")
    if train.optimizer not in modelled.WHOLE_OPTIMIZERS:
        names = ", ".join(sorted(modelled.WHOLE_OPTIMIZERS))
        found.not_modelled((*process.at("train"), "optimizer"), train.optimizer, f"a step on parameters in bf16 (known: {names})")
    elif train.optimizer == COPIES_GRADIENTS and (train.gradient_accumulation > 1 or train.gradients_stay):
        key = "gradient_accumulation" if train.gradient_accumulation > 1 else "gradient_accumulation_steps"
        why = f"{COPIES_GRADIENTS} adds up copies of gradients in bf16 by way of fp32, which was not recorded"
        found.not_modelled((*process.at("train"), key), train.gradient_accumulation, why)


def _check_parameters(process: Section, arch: Arch) -> None:
    """Which of them are trained."""
    section, train = process.section("model"), process.values.get("train")
    for key in FILTERS if section is not None else ():
        if section is not None and section.values.get(key) is not None:
            process.found.not_modelled(section.at(key), section.values[key], "a part of the parameters is trained")
    if arch.key in modelled.WHOLE_BYPASSED and not (isinstance(train, dict) and train.get(BYPASS)):
        why = f"the embedding of the guidance is trained too, not recorded of {arch.name} (its example and the web UI have {BYPASS}: true)"
        process.found.not_modelled((*process.at("train"), BYPASS), False, why)


def _controlled(process: Section) -> tuple[int, str, object] | None:
    """The first dataset with control images, the key that names them, and its value."""
    entries = process.values.get("datasets")
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        keys = entry if isinstance(entry, dict) else {}
        key = next((key for key in keys if str(key).startswith("control_path") and keys[key]), None)
        if key is not None:
            return number, key, keys[key]
    return None
