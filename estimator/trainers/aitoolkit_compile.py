"""The compile settings of model: blocks compiled by torch.compile, estimated as they are without.

Source: jobs/process/BaseSDTrainProcess.py (before the first previews: with model.compile the transformer goes to the card and its `.to`
does nothing any more; block_compile compiles its blocks one by one), ostris/ai-toolkit 27a03a91.
"""

from __future__ import annotations

from estimator.archs import Arch
from estimator.job import Model, Network
from estimator.trainers import modelled
from estimator.trainers.section import Section

PLAIN_MODES = ("default", None)
APPROXIMATE = (
    "approximate: compiled blocks are estimated as they are without. What they keep is chosen by the compiler, and is mostly less: "
    "the low end of steps, previews and saving is lower for it"
)
STOPS = (
    "the trainer stops in its first step, with torch 2.13 and 2.14: the weights of quanto and torchao are tensor subclasses, with which "
    "torch.compile takes no block that returns two parts of one tensor, as FLUX.1's single blocks do"
)


def compiles(model: Section) -> bool:
    """Whether blocks are compiled: block_compile says how, and does nothing without compile."""
    compiled = model.truth("compile", False)
    if not compiled and model.truth("block_compile", False):
        model.found.warn(model.at("block_compile"), "no effect without compile: true: nothing is compiled")
    return compiled


def report_compiled(model: Section, arch: Arch, result: Model, network: Network | None) -> None:
    """What of compiled transformers is not modelled, or stops the trainer; and that the rest is approximate."""
    if not result.compiled:
        return
    found, at = model.found, model.at("compile")
    if not model.truth("block_compile", False):
        found.not_modelled(at, True, "the transformer is compiled as a whole (known: its blocks one by one, block_compile: true)")
    elif (mode := model.values.get("compile_mode")) not in PLAIN_MODES:
        found.not_modelled(model.at("compile_mode"), mode, "tries kernels in memory of its own, or keeps graphs with pools of their own")
    elif model.truth("compile_fullgraph", False):
        found.not_modelled(model.at("compile_fullgraph"), True, "the trainer stops where a block is no single graph, which was not tried")
    elif arch.key in modelled.COMPILE_STOPS and result.weights in modelled.SUBCLASSES:
        fix = "write compile: false, or quantise to uint4, or not at all (model.quantize: false)"
        found.problem(at, f"compiled blocks of {arch.name} in {result.weights}", STOPS, fix)
    elif result.weights not in modelled.COMPILED.get(arch.key, ()):
        found.not_modelled(at, True, f"compiled blocks of {arch.name} in {result.weights}, of which no step was run (known: {_known()})")
    elif result.layer_offloading:
        found.not_modelled(at, True, "compiled blocks whose layers are moved in and out of the card")
    elif network is not None and arch.key not in (known := modelled.COMPILED_ADAPTERS.get(network.kind, frozenset())):
        names = f" (known on {', '.join(sorted(known))})" if known else ""
        found.not_modelled(at, True, f"compiled blocks of {arch.name} with a {network.kind}, of which no step was run{names}")
    else:
        found.warn(at, APPROXIMATE)


def _known() -> str:
    """Architectures by the kinds of weights that are known of them."""
    kinds: dict[str, list[str]] = {}
    for key, weights in sorted(modelled.COMPILED.items()):
        kinds.setdefault("any weights" if weights == modelled.WEIGHTS else ", ".join(sorted(weights)), []).append(key)
    return "; ".join(f"{', '.join(keys)} in {weights}" for weights, keys in kinds.items())
