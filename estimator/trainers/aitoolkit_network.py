"""The `network` section of AI Toolkit: which adapter is trained, and on which layers.

Source: ostris/ai-toolkit 27a03a91: toolkit/config_modules.py (NetworkConfig), toolkit/lora_special.py (create_modules),
toolkit/models/lokr.py, jobs/process/BaseSDTrainProcess.py (run).
"""

from __future__ import annotations

from estimator.archs import Arch
from estimator.job import Model, Network, Train
from estimator.kronecker import AUTO
from estimator.parameters import DORA, WHOLE
from estimator.recipes import kind_named
from estimator.trainers import modelled
from estimator.trainers.aitoolkit_dora import check_dora
from estimator.trainers.aitoolkit_keys import check_keys
from estimator.trainers.aitoolkit_outside import check_outside
from estimator.trainers.aitoolkit_whole import check_whole
from estimator.trainers.section import Section, did_you_mean, shown

MAX_RANK = 65_536  # above, a slip of the pen
MAX_FACTOR = 65_536  # likewise
FULL_RANK = 9_999_999_999  # what NetworkConfig puts in place of a LoKr's rank: the large matrix is then not decomposed
NETWORK_TYPES = ("lora", "locon", "lokr", "lorm", "dora", "fullrank", "lycoris")
FILTERS = ("ignore_if_contains", "only_if_contains")


def read_network(process: Section) -> tuple[str, Network | None]:
    """The method ("lora", or "full" without a network section) and the adapter, or that there is none (`WHOLE`)."""
    network = process.section("network")
    if network is None:
        return "full", Network(WHOLE, rank=0, dtype="bf16") if process.values.get("network") is None else None
    check_keys(network, "network")
    found = network.found
    kind = (network.text("type", "lora") or "lora").lower()
    if kind not in NETWORK_TYPES:
        found.problem(network.at("type"), f"unknown network type {shown(kind)}", "", did_you_mean(kind, NETWORK_TYPES))
    elif kind not in modelled.ADAPTERS:
        found.not_modelled(network.at("type"), kind, "another kind of adapter than LoRA")
    factor, conv = _factor(network) if kind == "lokr" else None, None
    if kind == "lokr" and network.truth("lokr_full_rank", True):
        rank = FULL_RANK  # whatever the config says
    else:
        key = "rank" if network.values.get("rank") is not None else "linear"
        rank = network.whole(key, 4, 1, MAX_RANK) if network.values.get(key) is not None else 4
        if network.values.get("conv") is not None:  # of convolutions, which UNets alone have in their blocks
            conv = network.whole("conv", 4, 0, MAX_RANK) or None
        if kind == "lokr":
            found.not_modelled(network.at("lokr_full_rank"), False, "a LoKr whose large matrix is decomposed")
    ignore, only = _name_filters(network)
    return "lora", Network(
        kind, rank, ignore_if_contains=ignore, only_if_contains=only, factor=factor, dropout=_dropout(network, kind), conv=conv
    )


def _dropout(network: Section, kind: str) -> bool:
    """Whether a LoRA's layers drop some of what goes through them; a LoKr's never do (LokrModule warns that it has none)."""
    share, found, at = network.values.get("dropout"), network.found, network.at("dropout")
    if not share:
        return False
    number = 0.0 if isinstance(share, str) else network.number("dropout", 0.0)
    if not 0 < number <= 1:
        found.problem(at, f"a dropout of {shown(share)}", "the trainer stops in its first step", "write a number between 0 and 1")
    elif kind == "lokr":
        found.warn(at, "no effect: a LoKr has no dropout")
    elif kind == DORA:
        found.not_modelled(at, share, "drops some of what goes through a DoRA, in two places of each layer")
    elif number == 1:
        found.not_modelled(at, share, "nothing is left of what goes through the adapter")
    return kind == "lora"


def _factor(network: Section) -> int:
    """A LoKr's factor: what Python's int() makes of it, in every layer. Below -1 it is as 0: the small matrix has one element."""
    value = network.values.get("lokr_factor", AUTO)
    try:
        factor = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        fix = f"write a whole number, or {AUTO} to let the trainer choose"
        network.found.problem(network.at("lokr_factor"), f"expected a number, got {shown(value)}", "the trainer stops on it", fix)
        return AUTO
    if factor > MAX_FACTOR:
        what, why = f"{shown(value)} is out of range", f"must be at most {MAX_FACTOR:,}"
        network.found.problem(network.at("lokr_factor"), what, why, f"write {AUTO} to let the trainer choose")
        return AUTO
    return max(factor, 0) if factor != AUTO else AUTO


def _name_filters(network: Section) -> tuple[tuple[str, ...], tuple[str, ...]]:
    kwargs = network.section("network_kwargs")
    filters: dict[str, tuple[str, ...]] = dict.fromkeys(FILTERS, ())
    if kwargs is None:
        if "network_kwargs" in network.values and network.values["network_kwargs"] is None:
            what, why = "nothing below network_kwargs", "the trainer stops on an empty value"
            network.found.problem(network.at("network_kwargs"), what, why, "remove it, or write network_kwargs: {}")
        return (), ()
    for key, value in kwargs.values.items():
        if value is None or (not value and key not in filters):
            continue
        if key == "dropout":
            what, why = f"network_kwargs: {key}", "the trainer stops: it gives its network the setting of that name too"
            network.found.problem(kwargs.at(key), what, why, "write it as network.dropout")
        elif key == "module_dropout":
            what, why = f"network_kwargs: {key}", "the trainer stops in the first step that leaves a layer out"
            network.found.problem(kwargs.at(key), what, why, "remove it, or use network.dropout")
        elif key not in filters:
            network.found.not_modelled(kwargs.at(key), value, "changes the adapter's layers")
        elif key == "only_if_contains" and value in ([], ""):
            what, why = f"an empty {'list' if value == [] else 'text'} leaves no layer", "the trainer looks for its words"
            network.found.problem(kwargs.at(key), what, why, "remove it")
        elif value == "" or (isinstance(value, list) and all(isinstance(word, str) for word in value)):
            filters[key] = tuple(value)
        else:
            network.found.problem(kwargs.at(key), f"expected a list of name parts, got {shown(value)}", fix='for instance ["norm"]')
    return filters["ignore_if_contains"], filters["only_if_contains"]


def check_network(process: Section, network: Network | None, arch: Arch, model: Model, train: Train) -> None:
    """What this architecture has no programs for: a LoKr on these weights, an adapter on a part of the layers."""
    if network is not None and network.kind == WHOLE:
        check_whole(process, arch, model, train)
    section = process.section("network")
    if section is None or network is None:
        return
    found = section.found
    filtered = bool(network.ignore_if_contains or network.only_if_contains)
    if kind_named(model.weights) and filtered:
        what = f"an adapter on a part of the layers beside weights in {model.weights}"
        found.not_modelled(section.at("network_kwargs"), section.values["network_kwargs"], what)
        return
    check_outside(section, network, arch)
    if network.kind == DORA:
        check_dora(section, network, arch, model, train)
    if network.dropout and (arch.key not in modelled.DROPPING or model.layer_offloading):
        why = "keeps a mask for every adapter layer" + (", together with layer offloading" if model.layer_offloading else "")
        found.not_modelled(section.at("dropout"), section.values["dropout"], f"{why} (known: {', '.join(sorted(modelled.DROPPING))})")
    if network.kind == "lokr" and network.kind in modelled.ADAPTERS:
        known = modelled.LOKR.get(arch.key, frozenset())
        if model.weights not in known:
            names = f" (known: {', '.join(sorted(known))})" if known else ""
            found.not_modelled(section.at("type"), network.kind, f"a LoKr on {arch.name} in {model.weights}{names}")
        elif model.layer_offloading:
            found.not_modelled(section.at("type"), network.kind, "a LoKr on layers that are moved in and out of the card")
        elif filtered:
            found.not_modelled(section.at("type"), network.kind, "a LoKr that sits on a part of the layers only")
    elif filtered and arch.key in modelled.FILTERED and not model.layer_offloading:
        _check_words(section, network, arch)
    elif filtered:
        moved = " while layers are moved in and out of the card" if model.layer_offloading else ""
        why = f"the adapter sits on a part of the layers of {arch.name} only{moved}"
        for key in FILTERS:
            if words := getattr(network, key):
                found.not_modelled((*section.at("network_kwargs"), key), list(words), why)


def _check_words(section: Section, network: Network, arch: Arch) -> None:
    """The words of the filters must leave a layer: without one the trainer stops in its first step, where nothing has a gradient."""
    from estimator.filtered_profile import filtered  # reading it takes longer than most configs need

    profile = filtered(arch.key, network.ignore_if_contains, network.only_if_contains or None)
    if not any(profile.adapts(layer) for layer in profile.layers):
        keys = [key for key in FILTERS if getattr(network, key)]
        what = f"no layer is left with an adapter{' by it and ' + keys[0] if len(keys) > 1 else ''}"
        fix = f"use parts of layers' names, which are like {next(iter(profile.layers))}"
        place = (*section.at("network_kwargs"), keys[-1])
        section.found.problem(place, what, "nothing would be trained, and the trainer stops", fix)
