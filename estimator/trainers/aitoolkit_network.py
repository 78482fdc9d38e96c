"""The `network` section of AI Toolkit: which adapter is trained, and on which layers.

Source: ostris/ai-toolkit 27a03a91: toolkit/config_modules.py (NetworkConfig), toolkit/lora_special.py (create_modules),
toolkit/models/lokr.py, jobs/process/BaseSDTrainProcess.py (run).
"""

from __future__ import annotations

from estimator.archs import Arch
from estimator.job import Model, Network
from estimator.kronecker import AUTO
from estimator.trainers import modelled
from estimator.trainers.aitoolkit_keys import check_keys
from estimator.trainers.section import Section, did_you_mean, shown

MAX_RANK = 65_536  # above, a slip of the pen
MAX_FACTOR = 1024  # likewise
FULL_RANK = 9_999_999_999  # what NetworkConfig puts in place of a LoKr's rank: the large matrix is then not decomposed
NETWORK_TYPES = ("lora", "locon", "lokr", "lorm", "dora", "fullrank", "lycoris")
FILTERS = ("ignore_if_contains", "only_if_contains")


def read_network(process: Section) -> tuple[str, Network | None]:
    """The method ("lora", or "full" without a network section) and the adapter."""
    network = process.section("network")
    if network is None:
        if "full" not in modelled.METHODS and process.values.get("network") is None:
            why = "no network section: the whole model is trained; for a LoRA add network: {type: lora, linear: 16}"
            process.found.not_modelled(process.at("network"), None, why)
        return "full", None
    check_keys(network, "network")
    found = network.found
    kind = (network.text("type", "lora") or "lora").lower()
    if kind not in NETWORK_TYPES:
        found.problem(network.at("type"), f"unknown network type {shown(kind)}", "", did_you_mean(kind, NETWORK_TYPES))
    elif kind not in modelled.ADAPTERS:
        found.not_modelled(network.at("type"), kind, "another kind of adapter than LoRA")
    key = "rank" if network.values.get("rank") is not None else "linear"
    rank = network.whole(key, 4, 1, MAX_RANK) if network.values.get(key) is not None else 4
    conv = network.whole("conv", 4, 1, MAX_RANK) if network.values.get("conv") is not None else None
    factor = None
    if kind == "lokr":
        factor = network.whole("lokr_factor", AUTO, AUTO, MAX_FACTOR)
        if network.values.get("lokr_full_rank", True):
            rank = conv = FULL_RANK
        else:
            found.not_modelled(network.at("lokr_full_rank"), False, "a LoKr whose large matrix is decomposed")
    ignore, only = _name_filters(network)
    return "lora", Network(kind, rank, conv, ignore_if_contains=ignore, only_if_contains=only, factor=factor)


def _name_filters(network: Section) -> tuple[tuple[str, ...], tuple[str, ...]]:
    kwargs = network.section("network_kwargs")
    filters: dict[str, tuple[str, ...]] = dict.fromkeys(FILTERS, ())
    if kwargs is None:
        return (), ()
    for key, value in kwargs.values.items():
        if value is None or value in ([], "", 0, False):
            if key == "only_if_contains" and value == []:
                network.found.problem(kwargs.at(key), "an empty list leaves no layer", "the trainer looks for its words", "remove it")
            continue
        if key not in filters:
            network.found.not_modelled(kwargs.at(key), value, "changes the adapter's layers")
        elif isinstance(value, list) and all(isinstance(word, str) for word in value):
            filters[key] = tuple(value)
        else:
            network.found.problem(kwargs.at(key), f"expected a list of name parts, got {shown(value)}", fix='for instance ["norm"]')
    return filters["ignore_if_contains"], filters["only_if_contains"]


def check_network(process: Section, network: Network | None, arch: Arch, model: Model) -> None:
    """What this architecture has no programs for: a LoKr on these weights, an adapter on a part of the layers."""
    section = process.section("network")
    if section is None or network is None:
        return
    found = section.found
    filtered = bool(network.ignore_if_contains or network.only_if_contains)
    if network.kind == "lokr" and network.kind in modelled.ADAPTERS:
        known = modelled.LOKR.get(arch.key, frozenset())
        if model.weights not in known:
            names = f" (known: {', '.join(sorted(known))})" if known else ""
            found.not_modelled(section.at("type"), network.kind, f"a LoKr on {arch.name} in {model.weights}{names}")
        elif model.layer_offloading:
            found.not_modelled(section.at("type"), network.kind, "a LoKr on layers that are moved in and out of the card")
        elif filtered:
            found.not_modelled(section.at("type"), network.kind, "a LoKr that sits on a part of the layers only")
    elif filtered and (arch.key not in modelled.FILTERED or model.layer_offloading):
        moved = " while layers are moved in and out of the card" if model.layer_offloading else ""
        why = f"the adapter sits on a part of the layers of {arch.name} only{moved}"
        for key in FILTERS:
            if words := getattr(network, key):
                found.not_modelled((*section.at("network_kwargs"), key), list(words), why)
