"""The `model` section of AI Toolkit: how the model's weights are held.

Source: ostris/ai-toolkit 27a03a91: toolkit/config_modules.py (ModelConfig, validate_configs), toolkit/util/quantize.py (types),
toolkit/stable_diffusion_model.py (load_model of FLUX), extensions_built_in/diffusion_models/z_image/z_image.py.
"""

from __future__ import annotations

import os

from estimator.archs import Arch
from estimator.controls import CHANNELS, FITTED, SINGLE
from estimator.dtypes import UNQUANTISED
from estimator.job import Model
from estimator.levels import UNET
from estimator.trainers import modelled
from estimator.trainers.aitoolkit_arch import resolve_arch, trainer_key
from estimator.trainers.aitoolkit_combined import check_combinations
from estimator.trainers.aitoolkit_compile import compiles
from estimator.trainers.prequantised import given_weights, quantises_text
from estimator.trainers.recorded import check_recorded
from estimator.trainers.section import Section, did_you_mean, nearest, shown

DEFAULT_QTYPE = "qfloat8"
EXPERT_KEYS = ("train_high_noise", "train_low_noise")  # of model_kwargs
RECOVERY = "-recovery"  # behind the kind of weights, in keys of parts
STOPS = {"qint4": "optimum-quanto packs it by a function of torch that takes other tensors since torch 2.5 (the trainer asks for 2.13)"}
"""Kinds on which a run stops, and why: read off layers on the emulated device (torch 2.14, optimum-quanto 0.2.4)."""
RECIPES = modelled.BY_RECIPE, modelled.TEXT_BY_RECIPE  # of the transformer, of the text encoder
IDLE = "uint8"
"""A kind that leaves every layer as it is (toolkit/util/uintx_quant.py, can_quantize)."""
QTYPES = (
    "qfloat8", "qfloat8_e4m3fn", "qfloat8_e5m2", "qint8", "qint4", "qint2",  # optimum-quanto
    "float8", "int8",  # torchao
    *(f"uint{bits}" for bits in range(2, 9)), *(f"orbit{bits}" for bits in (2, 3, 4)), *(f"orbitvq{bits}" for bits in (2, 3, 4)),
    "convrot4", "convrot8", "convrotbitnet", "convrotcomfyw4a4", *(f"convrotint{bits}" for bits in range(2, 9)), "nvfp4",
)  # fmt: skip


def read_model(model: Section, dtype: str, arch_override: str | None) -> tuple[Arch, str, Model] | None:
    """The architecture, the trainer's key as written, and the model; None (with findings) where the architecture cannot be told.

    `dtype` is train.dtype, which overwrites model.dtype.
    """
    name = model.text("name_or_path", "") or ""
    if not name:
        fix = "give a Hugging Face id or a folder"
        model.found.problem(model.at("name_or_path"), "no model is named", "the trainer stops without it", fix)
    (written, key), assistant = trainer_key(model), _assistant(model)
    arch = None if key is None else resolve_arch(model, key, name, assistant, arch_override)
    if arch is None:
        return None
    check_combinations(model, arch, assistant)
    weights, te_weights = given_weights(model, arch) or _weights(model, arch, dtype, assistant)
    asked = model.truth("quantize", False)
    if arch.model_class == UNET and (asked or model.truth("quantize_te", False)):
        model.found.warn(model.at("quantize"), f"the trainer does not quantise {arch.name}: its weights stay in {dtype}")
    result = Model(
        name_or_path=name,
        dtype=dtype,
        weights=weights,
        te_weights=te_weights,
        low_vram=model.truth("low_vram", False),
        assistant_lora=assistant,
        layer_offloading=model.truth("layer_offloading", model.truth("auto_memory", False)),
        layer_offloading_transformer_percent=model.number("layer_offloading_transformer_percent", 1.0),
        layer_offloading_text_encoder_percent=model.number("layer_offloading_text_encoder_percent", 1.0),
        quantize_exclude=_quantize_exclude(model, arch),
        match_target_res=_matches_target(model, arch),
        experts=_experts(model, arch),
        vae_tiling=_asked_for(model, arch, "vae_tiling"),
        compiled=compiles(model),
        merges=not (arch.model_class == UNET and asked),
    )
    _report_unmodelled(model, arch, result)
    check_recorded(model, arch, result)
    return arch, written, result


def _matches_target(model: Section, arch: Arch) -> bool:
    """Whether control images are brought to about the size of their pictures: always, or where the config says so."""
    if arch.control_images in (None, FITTED, SINGLE, CHANNELS):
        return arch.control_images is not None
    return _switched(model, "match_target_res", False)


def _asked_for(model: Section, arch: Arch, key: str) -> bool:
    """A switch in model_kwargs that the architecture's class reads."""
    return key in arch.model_kwargs and _switched(model, key, False)


def _switched(model: Section, key: str, default: bool) -> bool:
    kwargs = model.values.get("model_kwargs")
    return Section(model.found, model.at("model_kwargs"), kwargs).truth(key, default) if isinstance(kwargs, dict) else default


def _experts(model: Section, arch: Arch) -> tuple[int, ...]:
    """Which of two experts are trained (Wan 2.2 14B: high noise, low noise), both unless model_kwargs says otherwise."""
    if not set(EXPERT_KEYS) <= set(arch.model_kwargs):
        return ()
    trained = tuple(number for number, key in enumerate(EXPERT_KEYS) if _switched(model, key, True))
    if not trained:
        what = f"{' and '.join(EXPERT_KEYS)} are both off"
        model.found.problem(model.at("model_kwargs"), what, "the trainer stops: nothing would be trained", "switch one of them on")
    return trained or (0, 1)


def _assistant(model: Section) -> str | None:
    path = model.text("assistant_lora_path")
    if path == "":
        model.found.problem(model.at("assistant_lora_path"), "an empty path", "the trainer tries to load it", "remove the key")
        return None
    return path


def _weights(model: Section, arch: Arch, dtype: str, assistant: str | None) -> tuple[str, str]:
    """What the transformer's and the text encoder's linear weights are after loading: the compute dtype or a quantisation type."""
    if arch.model_class == UNET:
        return dtype, dtype
    quantize = model.truth("quantize", False)
    quantize_te = quantises_text(model, arch, quantize)
    if not quantize and not quantize_te and "quantize" not in model.values and model.values.get("qtype"):
        model.found.warn(model.at("qtype"), "no effect without quantize: true: the weights stay in the compute dtype")
    qtype = _qtype(model, "qtype", needed=quantize or (quantize_te and arch.te_qtype_key == "qtype"))
    qtype_te = _qtype(model, "qtype_te", needed=quantize_te and arch.te_qtype_key == "qtype_te")
    if model.truth("layer_offloading", model.truth("auto_memory", False)):
        qtype, qtype_te = _float8_for_offloading(qtype), _float8_for_offloading(qtype_te)
    te_qtype = qtype if arch.te_qtype_key == "qtype" else qtype_te
    if quantize_te and arch.te_qtype_key == "qtype" and model.values.get("qtype_te", DEFAULT_QTYPE) not in (te_qtype, DEFAULT_QTYPE, ""):
        model.found.warn(
            model.at("qtype_te"), f"no effect on {arch.name}: the trainer quantises its text encoder with model.qtype ({te_qtype})"
        )
    if assistant is not None and arch.key == "zimage-turbo":
        qtype = _float8_for_offloading(qtype)  # ZImageModel.load_model does the same replacement after merging the adapter
    if quantize and _names_recovery(model):
        qtype = f"{qtype}{RECOVERY}"
    return (qtype if quantize else dtype), (te_qtype if quantize_te else dtype)


def _names_recovery(model: Section) -> bool:
    """The qtype has an accuracy recovery adapter behind a bar: "uint3|owner/repository/file.safetensors"."""
    return "|" in str(model.values.get("qtype", ""))


def _float8_for_offloading(qtype: str) -> str:
    return "float8" if qtype == "qfloat8" else qtype


def _qtype(model: Section, key: str, *, needed: bool) -> str:
    """The quantisation type under `key`, without an accuracy recovery adapter behind a bar (which `_report_recovery` reports)."""
    value = model.values.get(key, DEFAULT_QTYPE)
    if not needed and (key == "qtype_te" or not isinstance(value, (int, float))):  # the trainer looks for a bar in any qtype
        return DEFAULT_QTYPE
    qtype = value.split("|")[0] if isinstance(value, str) and key == "qtype" and value.count("|") == 1 else value
    if not isinstance(qtype, str) or qtype not in QTYPES:
        near = nearest(str(qtype), QTYPES) if isinstance(qtype, str) and qtype else None
        fix = f"did you mean {near!r}?" if near else "use qfloat8, float8 or uint4, or switch quantisation off"
        model.found.problem(model.at(key), f"{shown(value)} is no quantisation type", "the trainer knows none of that name", fix)
        return DEFAULT_QTYPE
    if qtype in STOPS:
        model.found.problem(model.at(key), f"{qtype} stops the trainer while it quantises", STOPS[qtype], "set uint4, nvfp4 or convrotint4")
        return DEFAULT_QTYPE
    return qtype


def _quantize_exclude(model: Section, arch: Arch) -> tuple[str, ...]:
    kwargs = model.section("quantize_kwargs")
    if kwargs is None or not kwargs.values or not model.truth("quantize", False):
        return ()
    if arch.te_qtype_key != "qtype" or arch.text_as_transformer:
        model.found.warn(kwargs.path, f"no effect on {arch.name}: the trainer passes it on for FLUX only")
        return ()
    for key, value in kwargs.values.items():
        if key not in ("exclude", "include", "activations", "optimizer"):
            model.found.problem(
                kwargs.at(key), "unknown argument of quantisation", "the trainer stops on it", did_you_mean(key, ("exclude", "include"))
            )
        elif key != "exclude" and value:
            model.found.not_modelled(kwargs.at(key), value, "quantises other modules")
    value = kwargs.values.get("exclude") or []
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        model.found.problem(
            kwargs.at("exclude"), f"expected a list of name patterns, got {shown(value)}", fix='for instance ["*time_text_embed*"]'
        )
        return ()
    unknown = [pattern for pattern in patterns if pattern not in modelled.QUANTIZE_EXCLUDES]
    if unknown:
        model.found.not_modelled(kwargs.at("exclude"), unknown, "leaves other modules unquantised")
    return tuple(dict.fromkeys(patterns))



def _report_unmodelled(model: Section, arch: Arch, result: Model) -> None:
    found = model.found
    recovered = result.weights == f"{modelled.RECOVERED.get(arch.key)}{RECOVERY}"
    known, known_text = ({*modelled.WEIGHTS, *kinds.get(arch.key, ()), arch.prequantised} for kinds in RECIPES)
    unmodelled = result.weights.removesuffix(RECOVERY) not in known
    if result.weights != result.dtype and unmodelled and not recovered:
        found.not_modelled(model.at("qtype"), result.weights, f"the transformer in this quantisation ({_known(known, result.weights)})")
    if result.te_weights != result.dtype and result.te_weights not in known_text:
        what = f"the text encoder in this quantisation ({_known(known_text, result.te_weights)})"
        found.not_modelled(model.at(arch.te_qtype_key), result.te_weights, what)
    if result.assistant_lora is not None and arch.key not in modelled.ASSISTANT_LORA_ARCHS:
        found.not_modelled(model.at("assistant_lora_path"), result.assistant_lora, f"an assistant LoRA on {arch.name}")
    if arch.te_path and (path := model.values.get("te_name_or_path")) is not None:
        found.not_modelled(model.at("te_name_or_path"), path, f"{arch.name} with another text encoder")
    _report_recovery(model, recovered)
    _report_offloading(model, arch, result)
    if model.truth("use_flux_cfg", False):
        found.not_modelled(model.at("use_flux_cfg"), True, "previews with a second pass for the negative prompt")
    kwargs = model.values.get("model_kwargs", {})
    if arch.model_kwargs and not isinstance(kwargs, dict):
        what, why = f"expected a map of keys, got {shown(kwargs)}", f"the trainer looks into it for {arch.name}, and stops"
        found.problem(model.at("model_kwargs"), what, why, "remove it, or write model_kwargs: {}")
    if ignored := sorted(set(kwargs if isinstance(kwargs, dict) else ()) - set(arch.model_kwargs)):
        found.warn(model.at("model_kwargs"), f"{arch.name} does not take {', '.join(ignored)}: no effect")


def _known(kinds: set[str | None], kind: str) -> str:
    idle = "; in this one the trainer leaves every layer unquantised: quantize: false says so" if kind == IDLE else ""
    return f"known: {', '.join(sorted(each for each in kinds if each not in (None, UNQUANTISED)))}{idle}"


def _report_recovery(model: Section, recovered: bool) -> None:
    """An accuracy recovery adapter: the trainer loads it where it quantises the transformer, and nowhere else."""
    found, own = model.found, model.values.get("accuracy_recovery_adapter")
    if own is None and not _names_recovery(model):
        return
    key = "qtype" if own is None else "accuracy_recovery_adapter"
    if not model.truth("quantize", False):
        found.warn(model.at(key), "no effect without quantize: true: the accuracy recovery adapter is not loaded")
    elif own is None and recovered:
        _check_recovery(model, str(model.values["qtype"]).split("|")[1])
        found.warn(model.at(key), f"the accuracy recovery adapter is assumed to have rank {modelled.RECOVERY_RANK}")
    else:
        found.not_modelled(model.at(key), model.values[key], "an accuracy recovery adapter")


def _report_offloading(model: Section, arch: Arch, result: Model) -> None:
    if not result.layer_offloading:
        return
    at = model.at("layer_offloading" if "layer_offloading" in model.values else "auto_memory")
    if arch.layer_offloading == "nothing":
        model.found.warn(at, f"moves nothing off the card with {arch.name}; it only turns qfloat8 into float8")
        if result.weights == result.dtype and arch.key not in modelled.UNMERGED:
            model.found.not_modelled(at, True, "previews in which the adapter is not merged into unquantised weights")
        return
    if arch.offloads_as_it_is and result.layer_offloading_transformer_percent > 0 and (result.low_vram or result.weights != result.dtype):
        _stopped_by_offloading(model, at, arch)
        return
    if arch.layer_offloading is None or arch.key not in modelled.OFFLOADING:
        model.found.not_modelled(at, True, "layers that are moved in and out of the card")
        return
    only = modelled.OFFLOADED_ALONE.get(arch.key)
    if only is not None and result.weights in modelled.WEIGHTS - only:
        what = f"layer offloading of {arch.name} in {result.weights} (recorded: {', '.join(sorted(only))})"
        model.found.not_modelled(at, True, what)
    shares = (result.layer_offloading_transformer_percent, result.layer_offloading_text_encoder_percent)
    for key, weights, share in zip(("qtype", arch.te_qtype_key), (result.weights, result.te_weights), shares, strict=True):
        by_recipe = modelled.OFFLOADED_BY_RECIPE.get(arch.key, ()) if key == "qtype" else ()
        if share > 0 and weights not in {result.dtype, arch.prequantised, *modelled.OFFLOADED_WEIGHTS, *by_recipe}:
            model.found.not_modelled(model.at(key), weights, "layers in this quantisation that are moved in and out of the card")
    for key in ("layer_offloading_transformer_percent", "layer_offloading_text_encoder_percent"):
        if not 0 <= model.number(key, 1.0) <= 1:
            most = "1.0 is all layers already" if model.number(key, 1.0) > 1 else "below 0 is none of the layers"
            model.found.warn(model.at(key), f"{most}: a share is wanted, such as 0.5 for half of them")
    if any(0 < share < 1 for share in shares):
        model.found.warn(at, "the trainer chooses the layers at random in every run: the estimate is of an even choice")


def _stopped_by_offloading(model: Section, at: tuple[str | int, ...], arch: Arch) -> None:
    """Wan 2.1 (run on the emulated device): with layers taken its `.to` moves modules that the manager knows, and not what is a block's own
    (scale_shift_table), which quantising and low_vram leave on the host (toolkit/util/quantize.py, wan21.py)."""
    what = f"{arch.name} cannot be trained with layers of its transformer offloaded while it is quantised or low_vram is set"
    why = "tables of its blocks are of no layer, and stay on the host: the trainer stops at the first forward"
    model.found.problem(at, what, why, "set model.layer_offloading_transformer_percent: 0, or leave model.layer_offloading out")


def _check_recovery(model: Section, name: str) -> None:
    """The adapter's file: one that is here, or owner/repository/file on the hub (toolkit/util/quantize.py, quantize_model)."""
    fix = 'write "uint3|owner/repository/file.safetensors", or the path of a file'
    if not name.strip():
        model.found.problem(model.at("qtype"), "no accuracy recovery adapter behind the bar", "the trainer looks for one, and stops", fix)
    elif name.count("/") != 2 and not os.path.exists(name):
        what = f"{shown(name)} is no file here, and no file of the hub: the trainer stops where it finds none"
        model.found.warn(model.at("qtype"), what)
