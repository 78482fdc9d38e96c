"""Weights whose keys in the config do not say what they become: files that come quantised (LTX-2.5), which the trainer leaves so, and text
encoders that are quantised with the transformer (Stable Diffusion 3.5).

Source: ostris/ai-toolkit 27a03a91: extensions_built_in/diffusion_models/ltx2/ltx2.py (LTX25Model._resolve_dit_path, _resolve_te_path,
_resolve_comfy_file, load_model); toolkit/stable_diffusion_model.py (load_model, is_v3).
"""

from __future__ import annotations

from estimator.archs import Arch
from estimator.trainers.section import Section

SINGLE_FILE = ".safetensors"


def given_weights(model: Section, arch: Arch) -> tuple[str, str] | None:
    """Kinds of weights of the transformer and of the text encoder; None where the trainer quantises. Reports what has no effect, and
    other files: how those are stored cannot be told from their names."""
    kind = arch.prequantised
    if kind is None:
        return None
    for switch, key, what in (("quantize", "qtype", "transformer"), ("quantize_te", "qtype_te", "text encoder")):
        if switch in model.values and not model.truth(switch, False):
            model.found.warn(model.at(switch), f"no effect: {arch.name}'s {what} comes in {kind}")
        elif model.values.get(key, kind) != kind:
            model.found.warn(model.at(key), f"no effect: {arch.name}'s {what} comes in {kind}, and the trainer leaves it so")
    for key in ("name_or_path", "te_name_or_path"):
        if str(model.values.get(key) or "").endswith(SINGLE_FILE):
            model.found.not_modelled(model.at(key), model.values[key], f"weights from another file than {arch.name}'s own")
    kwargs = model.values.get("model_kwargs")
    given = [key for key in arch.model_kwargs if isinstance(kwargs, dict) and kwargs.get(key) is not None]
    if given:
        model.found.not_modelled(model.at("model_kwargs"), ", ".join(given), f"weights from other files than {arch.name}'s own")
    return kind, kind


def quantises_text(model: Section, arch: Arch, quantize: bool) -> bool:
    """Whether the text encoder is quantised: as its own switch says, or where the transformer is. Reports a switch of no effect."""
    own = model.truth("quantize_te", quantize)
    if arch.text_as_transformer and own != quantize:
        what = f"no effect on {arch.name}: the trainer quantises T5 where model.quantize is true, and leaves it as it is otherwise"
        model.found.warn(model.at("quantize_te"), what)
    return quantize if arch.text_as_transformer else own
