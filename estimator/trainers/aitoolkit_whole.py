"""A config without a `network` section: the trainer takes it for a fine-tune and trains the whole transformer.

Source: ostris/ai-toolkit 27a03a91: jobs/process/BaseSDTrainProcess.py (is_fine_tuning), toolkit/models/base_model.py (named_parameters,
prepare_optimizer_params), extensions_built_in/sd_trainer/SDTrainer.py (__init__).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from estimator.archs import Arch
from estimator.errors import CannotTell
from estimator.job import Model, Network, Train
from estimator.optimizers import copies_gradients, known, rule_name
from estimator.parameters import WHOLE
from estimator.trainers import modelled
from estimator.trainers.section import Section

FILTERS = ("ignore_if_contains", "only_if_contains")  # of the model section: words of parameters' names
BYPASS = "bypass_guidance_embedding"  # of the train section: then no gradient reaches the embedding of the guidance
IN_BF16, IN_QUANTO = "bf16", "qfloat8"  # the parameters
UNQUANTISED = ("bf16", "fp16", "fp32")
# What becomes of quantised layers, by the beginning of a kind's name: a few steps of Z-Image on the emulated device (docs/log.md)
BUFFERED, ONE_FILE = "uint", ".safetensors"
OTHERS = "norms, biases and layers that are not quantised are trained alone"
QUANTISED = {
    "float8": f"its quantised layers get no gradient, and stay as they are: {OTHERS}",
    IN_QUANTO: "its quantised layers get gradients and an optimizer's state as large as unquantised ones, so that little is saved by it",
    BUFFERED: f"its quantised layers hold no parameters, and stay as they are: {OTHERS}",
}
ADAPTER = "add network: {type: lora, linear: 16}"


def with_nothing_to_merge(model: Model, network: Network | None) -> Model:
    """Without an adapter previews are those of plain weights, also where a config asks for a quantisation that its UNet has not."""
    return replace(model, merges=True) if network is not None and network.kind == WHOLE else model


def with_filters(process: Section, arch: Arch, model: Model, network: Network | None) -> Network | None:
    """Words of the model section say which parameters are trained, where all would be; whether what embeds the guidance is; and in which
    kind of weights."""
    section, train = process.section("model"), process.section("train")
    if network is None or network.kind != WHOLE:
        return network
    if arch.key in modelled.WHOLE_GUIDED:
        network = replace(network, bypassed=train is not None and train.truth(BYPASS, False))
    if model.weights == IN_QUANTO:
        network = replace(network, dtype=IN_QUANTO)
    ignore, only = (_words(section.values.get(key)) or () if section is not None else () for key in FILTERS)
    return replace(network, ignore_if_contains=ignore, only_if_contains=only)


def _words(value: object) -> tuple[str, ...] | None:
    """Those of a list; None of anything else (of a text the trainer would look for each letter)."""
    return tuple(value) if isinstance(value, list) and value and all(isinstance(word, str) for word in value) else None


def check_whole(process: Section, arch: Arch, model: Model, train: Train) -> None:
    """What of it is not modelled, and what the trainer stops on."""
    found, place = process.found, process.at("network")
    _check_weights(process, arch, model, train)
    if train.preserves is not None:
        found.problem(place, "an output can be preserved with a network section only", "the trainer stops without it", ADAPTER)
    if arch.key not in modelled.WHOLE:
        names = ", ".join(sorted(modelled.WHOLE))
        found.not_modelled(place, None, f"no network section: all of {arch.name} is trained, known for {names}; for a LoRA {ADAPTER}")
        return
    _check_parameters(process, arch)
    if model.layer_offloading or model.compiled or model.assistant_lora is not None:
        what = "layer offloading" if model.layer_offloading else "compiled blocks" if model.compiled else "a training adapter"
        found.not_modelled(place, None, f"no network section: all of {arch.name} is trained, together with {what}")
    if (pictured := _controlled(process)) is not None:
        number, key, value = pictured
        found.not_modelled((*process.at("datasets"), number, key), value, f"control images where all of {arch.name} is trained")
    kind = IN_QUANTO if model.weights == IN_QUANTO else IN_BF16
    steps = {name for name in modelled.WHOLE_OPTIMIZERS if known(rule_name(name, False, kind))}
    if train.optimizer not in steps:
        why = f"a step on parameters in {kind} (known: {', '.join(sorted(steps))})"
        found.not_modelled((*process.at("train"), "optimizer"), train.optimizer, why)
    elif copies_gradients(rule_name(train.optimizer, False, IN_BF16)) and (train.gradient_accumulation > 1 or train.gradients_stay):
        key = "gradient_accumulation" if train.gradient_accumulation > 1 else "gradient_accumulation_steps"
        why = f"{train.optimizer} adds up copies of gradients in bf16 by way of fp32, which was not recorded"
        found.not_modelled((*process.at("train"), key), train.gradient_accumulation, why)


def _check_weights(process: Section, arch: Arch, model: Model, train: Train) -> None:
    """Quantised ones."""
    section, found, weights = process.section("model"), process.found, model.weights
    at_model = process.at("model") if section is None else section.at("quantize")
    if weights.startswith(BUFFERED) and arch.key in modelled.SAVED_BY_DIFFUSERS and not model.name_or_path.endswith(ONE_FILE):
        what = f"all of {arch.name} cannot be trained in {weights}: the trainer stops at the first save"
        why = "its quantised layers give the file tensors without storage, which save_pretrained does not take"
        found.problem(at_model, what, why, f"set model.quantize: false, or {ADAPTER}")
    elif weights not in UNQUANTISED and arch.key in modelled.WHOLE:
        becomes = "".join(f"; {text}" for kind, text in QUANTISED.items() if weights.startswith(kind))
        text = f"training all of {arch.name} in {weights}{becomes} (set model.quantize: false)"
        if arch.key in modelled.WHOLE_WEIGHTS.get(weights, ()):
            found.warn(at_model, text)
            _check_together(process, weights, train)
        else:
            found.not_modelled(at_model, True, text)


def _check_together(process: Section, weights: str, train: Train) -> None:
    """What was not recorded with quantised weights: an EMA's copies of them, and words that leave parameters out."""
    if train.ema:
        process.found.not_modelled((*process.at("train"), "ema_config"), True, f"an EMA of a whole model in {weights}")
    section = process.section("model")
    for key in FILTERS if section is not None else ():
        if section is not None and section.values.get(key):
            process.found.not_modelled(section.at(key), section.values[key], f"a part of the parameters of a model in {weights}")


def _check_parameters(process: Section, arch: Arch) -> None:
    """Which of them are trained."""
    section = process.section("model")
    values = {} if section is None else {key: section.values[key] for key in FILTERS if section.values.get(key) is not None}
    why = _not_known_of(arch, values)
    for key, value in values.items() if why else ():
        process.found.not_modelled((*process.at("model"), key), value, f"a part of the parameters is trained ({why})")


def _not_known_of(arch: Arch, values: Mapping[str, object]) -> str:
    """Why training of the parameters that such words leave has no model; nothing where it has one, or there are no words."""
    if not values:
        return ""
    words = {key: _words(value) for key, value in values.items()}
    if arch.key not in modelled.WHOLE_FILTERED or None in words.values():
        return f"known as lists of words, of {', '.join(sorted(modelled.WHOLE_FILTERED))}"
    from estimator.whole_filtered import partly  # reading it takes longer than most configs need

    try:
        partly(arch.key, *(words.get(key) or () for key in FILTERS))
    except CannotTell as refused:
        return refused.problems[0].why
    return ""


def _controlled(process: Section) -> tuple[int, str, object] | None:
    """The first dataset with control images, the key that names them, and its value."""
    entries = process.values.get("datasets")
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        keys = entry if isinstance(entry, dict) else {}
        key = next((key for key in keys if str(key).startswith("control_path") and keys[key]), None)
        if key is not None:
            return number, key, keys[key]
    return None
