"""The compile settings of model: blocks compiled by torch.compile, estimated as they are without.

Source: jobs/process/BaseSDTrainProcess.py (before the first previews: with model.compile the transformer goes to the card and its `.to`
does nothing any more; block_compile compiles its blocks one by one), ostris/ai-toolkit 27a03a91.
"""

from __future__ import annotations

from estimator.archs import Arch
from estimator.job import Model
from estimator.trainers import modelled
from estimator.trainers.section import Section

PLAIN_MODES = ("default", None)
APPROXIMATE = (
    "compiled blocks are estimated as they are without, which is approximate: what they keep is chosen by the compiler, and is mostly less"
)


def compiles(model: Section) -> bool:
    """Whether blocks are compiled: block_compile says how, and does nothing without compile."""
    compiled = model.truth("compile", False)
    if not compiled and model.truth("block_compile", False):
        model.found.warn(model.at("block_compile"), "no effect without compile: true: nothing is compiled")
    return compiled


def report_compiled(model: Section, arch: Arch, result: Model) -> None:
    """What of compiled transformers is not modelled; and that the rest is approximate."""
    if not result.compiled:
        return
    found, at = model.found, model.at("compile")
    if not model.truth("block_compile", False):
        found.not_modelled(at, True, "the transformer is compiled as a whole (known: its blocks one by one, block_compile: true)")
    elif (mode := model.values.get("compile_mode")) not in PLAIN_MODES:
        found.not_modelled(model.at("compile_mode"), mode, "tries kernels in memory of its own, or keeps graphs with pools of their own")
    elif result.weights not in modelled.COMPILED.get(arch.key, ()):
        known = "; ".join(f"{key} in {', '.join(sorted(weights))}" for key, weights in sorted(modelled.COMPILED.items()))
        found.not_modelled(at, True, f"compiled blocks of {arch.name} in {result.weights} (known: {known})")
    elif result.layer_offloading:
        found.not_modelled(at, True, "compiled blocks whose layers are moved in and out of the card")
    else:
        found.warn(at, APPROXIMATE)
