"""Which architecture an AI Toolkit config trains: its key, then what the model's name or a local copy of it says.

Source: ostris/ai-toolkit 27a03a91: toolkit/config_modules.py (ModelConfig), toolkit/util/get_model.py, and the loaders of FLUX
(toolkit/stable_diffusion_model.py) and Z-Image (extensions_built_in/diffusion_models/z_image/z_image.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

from estimator.archs import Arch, Archs, load_archs
from estimator.trainers.section import Findings, Section, did_you_mean, nearest, shown
from estimator.tree import KeyPath

# (legacy switch, the key it stands for), in the order in which the trainer asks for them
LEGACY_SWITCHES = (
    ("is_v2", "sd2"), ("is_v3", "sd3"), ("is_xl", "sdxl"), ("is_pixart", "pixart"), ("is_pixart_sigma", "pixart_sigma"),
    ("is_auraflow", "auraflow"), ("is_flux", "flux"), ("is_lumina2", "lumina2"), ("is_vega", "vega"), ("is_ssd", "ssd"),
)  # fmt: skip
DEFAULT_ARCH = "sd1"  # with neither model.arch nor a switch
CHECKPOINT = ".safetensors"
L2P, L2P_EXTRAS = "zhen-nan/L2P/model-1k-merge.safetensors", "Tongyi-MAI/Z-Image-Turbo"  # as the web UI fills them in (options.tsx)
_MAX_MODEL_CONFIG_BYTES = 2**20
FAMILY = re.compile(r"[a-z]+\d+")  # of a value of model.arch: its name and version, without signs
SLIP = 0.92  # likeness (difflib's ratio) of two values that differ by a letter
MOST_MEANT = 6  # values that a message names


def trainer_key(model: Section) -> tuple[str, str | None]:
    """model.arch as written, and the key of the table; (.., None) with a problem where it is no key at all."""
    table = load_archs().trainer
    written = model.text("arch")
    if written is None:
        key = next((key for switch, key in LEGACY_SWITCHES if model.truth(switch, False)), DEFAULT_ARCH)
        return key, key
    key = written.split(":")[0]
    if key in table:
        return written, key
    choices = [k for k, entry in table.items() if any(load_archs().archs[a].modelled for a in entry.archs)]
    fix = _meant(written, load_archs()) or f"`estimate archs` lists them; modelled are {', '.join(choices)}"
    model.found.problem(model.at("arch"), f"unknown architecture {shown(written)}", "the trainer would load it as Stable Diffusion 1", fix)
    return written, None


def _meant(written: str, archs: Archs) -> str:
    """What to write instead: a value of model.arch that differs in case and signs alone, whose architecture is called so, or with a letter
    missing; all that begin so, or have it in them; a run file; the nearest, of the same family and version (`wan22`) if it has any."""
    values, plain = [value for entry in archs.trainer.values() for value in entry.written], _plain(written)
    meant = {_plain(value): value for value in values}
    for entry in archs.trainer.values():
        for name in (entry.name, *entry.archs, *(archs.archs[arch].name for arch in entry.archs)):
            meant.setdefault(_plain(name), entry.key)
    if same := meant.get(plain) or nearest(written, values, SLIP):
        return f"did you mean {same!r}?"
    holding = [key for key in archs.trainer if len(plain) > 1 and plain in _plain(key)]
    found = [key for key in holding if _plain(key).startswith(plain)] or holding
    harness = [arch.key for arch in archs.archs.values() if arch.harness and arch.modelled and plain and _plain(arch.key).startswith(plain)]
    if not found and harness:
        return f"a run file with arch: {' or '.join(harness)} (docs/cli.md) has its training steps"
    family = FAMILY.match(plain)
    relatives = [value for value in values if family and _plain(value).startswith(family[0])]
    near = nearest(written, relatives or values) or next((key for key in archs.trainer if plain.startswith(_plain(key))), None)
    found = found or ([near] if near else [])
    return f"did you mean {' or '.join(map(repr, found[:MOST_MEANT]))}?" if found else ""


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def resolve_arch(model: Section, key: str, name: str, assistant: str | None, override: str | None) -> Arch | None:
    """The modelled architecture that the trainer's `key` is here; None, with a finding, where there is none or it cannot be told.

    `override` is the user's --arch: it must be one of those that the key can be.
    """
    archs = load_archs()
    candidates = [archs.archs[k] for k in archs.trainer[key].archs if archs.archs[k].modelled]
    if override is not None and not _override_fits(model.found, archs, key, override):
        return None
    if not candidates or (_is_left_out(model, key) and override is None and not _is_called(candidates[0], name)):
        _not_modelled_arch(model, archs, key)
        return None
    _warn_of_another(model, archs, key, name)
    if key == "zimage":
        return _resolve_zimage(model, archs, name, assistant, override)
    if key == "zimage_l2p" and not _is_on_pixels(model, name):
        return None
    if override is not None:
        return archs.archs[override]
    if len(archs.trainer[key].archs) == 1:  # the key alone decides, whatever the model is called
        return _of_its_size(model, candidates[0], name)
    return _resolve_flux(model, archs, key, name, candidates)


def _warn_of_another(model: Section, archs: Archs, key: str, name: str) -> None:
    """A published model that is of another architecture than model.arch says: one of the two was forgotten."""
    called = [archs.archs[found] for found in archs.of_hub.get(name.lower(), ())]
    if called and not any(arch.key in archs.trainer[key].archs for arch in called):
        what = f"{name} is {called[0].name}, and model.arch has it loaded as {archs.trainer[key].name}, which this estimate is of"
        model.found.warn(model.at("name_or_path"), f"{what}: one of the two is wrong")


def instead_of(written: str, archs: Archs) -> str:
    """What to write instead of what is no architecture: the same with other signs; a value of model.arch, which is several perhaps; or one
    whose name has a common beginning."""
    entry, word = archs.trainer.get(written), written.lower()
    same = next((key for key in archs.modelled() if _plain(key) == _plain(written)), None)
    if same is not None:
        return f"did you mean {same}?"
    known = [key for key in archs.modelled() if key in (entry.archs if entry else ()) or key.startswith(word) or word.startswith(key)]
    return f"did you mean {' or '.join(known)}?" if word and known else did_you_mean(written, archs.modelled())


def _override_fits(found: Findings, archs: Archs, key: str, override: str) -> bool:
    place: KeyPath = ()
    if override not in archs.archs:
        found.problem(place, f"--arch {override}: no such architecture", fix=instead_of(override, archs))
        return False
    if not archs.archs[override].modelled:
        relative = archs.archs[override].nearest
        found.cannot_tell(
            place, f"--arch {override}: not modelled yet", fix=f"the nearest that is: {relative}" if relative else "see `estimate archs`"
        )
        return False
    if override not in archs.trainer[key].archs:
        allowed = ", ".join(archs.trainer[key].archs) or "none"
        found.problem(
            place,
            f"--arch {override}: the config's architecture is {key}",
            f"which can be: {allowed}",
            "change model.arch, or leave --arch out",
        )
        return False
    return True


def _is_left_out(model: Section, key: str) -> bool:
    """Whether a config names no architecture, so that the trainer takes Stable Diffusion 1: more often forgotten than meant."""
    return key == DEFAULT_ARCH and model.text("arch") is None


def _is_called(arch: Arch, name: str) -> bool:
    """Whether a model's name is the architecture's, or contains what names of copies and fine-tunes do."""
    lower = name.lower()
    return lower in (hub.lower() for hub in arch.hub) or any(part in lower for part in arch.name_contains)


def _not_modelled_arch(model: Section, archs: Archs, key: str) -> None:
    entry, near = archs.trainer[key], archs.nearest(key)
    what = f"not modelled: {key} ({entry.name})" if not _is_left_out(model, key) else f"no architecture is named: {key} ({entry.name})?"
    why = "model.arch is not set, and the trainer then takes Stable Diffusion 1" if _is_left_out(model, key) else ""
    fix = f"the nearest that is modelled is {near}" if near else f"modelled are {', '.join(archs.trained())}"
    if near and archs.archs[near].harness:
        fix = f"the nearest that is modelled is a run file with arch: {near} (docs/cli.md), which has training steps alone"
    if why:
        fix = "set model.arch to the model's architecture, for instance zimage or flux"
    model.found.cannot_tell(model.at("arch"), what, why, fix)


def _resolve_zimage(model: Section, archs: Archs, name: str, assistant: str | None, override: str | None) -> Arch | None:
    """Z-Image with an assistant LoRA is zimage-turbo, without one zimage: the adapter is all that the trainer branches on, not the name."""
    key = "zimage" if assistant is None else "zimage-turbo"
    if override is not None and override != key:
        is_set = "is not set" if assistant is None else "is set"
        what = f"--arch {override}: this config is {key}, because model.assistant_lora_path {is_set}"
        model.found.problem((), what, "the training adapter is what makes the difference", "set or remove model.assistant_lora_path")
        return None
    if assistant is None and str(model.values.get("arch", "")).endswith(":turbo"):
        model.found.warn(
            model.at("arch"), "without model.assistant_lora_path the trainer treats zimage:turbo as plain Z-Image, with no training adapter"
        )
    return _of_its_size(model, archs.archs[key], name)


def _is_on_pixels(model: Section, name: str) -> bool:
    """Whether the model is a file, as L2P is published, with a repository beside it for the text encoder (ZImageL2PModel.load_model)."""
    if not name.endswith(CHECKPOINT):
        why = "of anything but a checkpoint's file the trainer makes a model on pixels itself, in fp32, which was never recorded"
        model.found.cannot_tell(model.at("name_or_path"), f"not modelled: {shown(name)} as Z-Image L2P", why, f"name {L2P}")
        return False
    if model.values.get("extras_name_or_path", name) in (name, None, ""):
        what, why = "no repository is named for the text encoder", "the trainer looks for it there, or in the checkpoint's file, and stops"
        model.found.problem(model.at("extras_name_or_path"), what, why, f"set it to {L2P_EXTRAS}")
        return False
    if name != L2P:
        model.found.warn(model.at("name_or_path"), "taken to be a checkpoint on pixels: of one of latents the trainer makes another model")
    return True


def _of_its_size(model: Section, arch: Arch, name: str) -> Arch | None:
    """The architecture, unless a local copy's transformer/config.json says otherwise."""
    config = _local_transformer_config(model, name)
    if config is not None and any(config.get(k, v) != v for k, v in arch.transformer_config.items()):
        what = f"{name} holds a transformer of another size than {arch.name}'s"
        model.found.cannot_tell(model.at("name_or_path"), what, fix="use the published model")
        return None
    return arch


def _resolve_flux(model: Section, archs: Archs, key: str, name: str, candidates: list[Arch]) -> Arch | None:
    """Which of the models of class FluxTransformer2DModel: by exact name, by a local copy's config, by what the name contains."""
    for arch in candidates:
        if name.lower() in (hub.lower() for hub in arch.hub):
            return arch
    others = (archs.archs[other] for other in archs.trainer[key].archs)
    if (other := next((one for one in others if not one.modelled and _is_called(one, name)), None)) is not None:
        fix = f"the nearest that is modelled is a run file with arch: {other.nearest} (docs/cli.md), which has training steps alone"
        model.found.cannot_tell(model.at("name_or_path"), f"not modelled: {other.name}", fix=fix)
        return None
    config = _local_transformer_config(model, name)
    if config is not None:
        for arch in candidates:
            if all(config.get(k, False if v is False else None) == v for k, v in arch.transformer_config.items()):
                return arch
        model.found.cannot_tell(
            model.at("name_or_path"), f"{name} holds a transformer that is not modelled", _layers(config), "see `estimate archs`"
        )
        return None
    tag = str(model.values.get("arch", "")).partition(":")[2].lower()  # the trainer cuts it off; the web UI says with it what it loads
    base = name.replace("\\", "/").lower()
    matches = [arch for arch in candidates if any(part in base for part in arch.name_contains)]
    matches = matches or [arch for arch in candidates if tag and any(part in tag for part in arch.name_contains)]
    if len(matches) == 1:
        model.found.warn(model.at("name_or_path"), f"taken to be {matches[0].name}, because of its name")
        return matches[0]
    if key == "flex1" and not matches:
        return archs.archs["flex1"]
    why = "several models share this architecture key, and neither the name nor a local transformer/config.json tells which it is"
    fix = f"add --arch {' or --arch '.join(arch.key for arch in candidates)}"
    model.found.cannot_tell(model.at("name_or_path"), f"cannot tell which {archs.trainer[key].name} model {shown(name)} is", why, fix)
    return None


def _layers(config: Mapping[str, object]) -> str:
    names = ("num_layers", "num_single_layers", "guidance_embeds", "in_channels")
    return ", ".join(f"{name} {shown(config.get(name))}" for name in names)


def _local_transformer_config(model: Section, name: str) -> Mapping[str, object] | None:
    """transformer/config.json of a local copy, if there is one; a damaged one is warned of."""
    path = os.path.join(name, "transformer", "config.json")
    try:
        if not name or not os.path.isfile(path) or os.path.getsize(path) > _MAX_MODEL_CONFIG_BYTES:
            return None
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        model.found.warn(model.at("name_or_path"), f"{path} cannot be read ({error}): judged by the name instead")
        return None
    return config if isinstance(config, dict) else None
