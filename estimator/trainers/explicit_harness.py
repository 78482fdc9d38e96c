"""Run files of architectures that AI Toolkit does not have: what was recorded of them by our own harness, and what was not.

Nothing is taken for something near it: another layer, another type, another optimizer is named and makes the verdict unknown.
"""

from __future__ import annotations

from estimator import optimizers
from estimator.archs import Arch
from estimator.job import Network
from estimator.programs import load_profile
from estimator.trainers.section import Section, shown

NOT_THERE = "not modelled for {}, and not in the estimate: caching latents and text, encoding within a step, previews, saving"
RECORDED_WEIGHTS = "bf16"
CORE = "step.core"  # in keys of parts, before the adapter's type and ".plain" (estimator.steponly)


def check(run: Section, arch: Arch, network: Network | None, resident: tuple[str, ...], autocast: bool) -> None:
    """Report what of a run file has no model. `network`, `resident`, `autocast`: as they were read."""
    found, weights = run.found, run.values.get("weights")
    dtype = network.dtype if network else "fp32"
    found.warn((), NOT_THERE.format(arch.name))
    if (fixed := arch.fixed_text_tokens) is not None and (said := run.values.get("text_tokens")) not in (None, fixed):
        found.problem(run.at("text_tokens"), f"{shown(said)} is not {fixed}", f"{arch.name} takes texts of one length", f"write {fixed}")
    if weights != RECORDED_WEIGHTS:
        found.not_modelled(run.at("weights"), weights, f"{arch.name} was recorded in {RECORDED_WEIGHTS}")
    optimizer = run.values.get("optimizer", "adamw")
    if isinstance(optimizer, str) and not optimizers.known(optimizers.rule_name(optimizer, False, dtype)):
        found.not_modelled(run.at("optimizer"), optimizer, f"this optimizer with parameters in {dtype}")
    if run.values.get("sample") is not None:
        found.not_modelled(run.at("sample"), shown(run.values["sample"]), f"previews of {arch.name}")
    if dtype in arch.adapter_dtypes and not load_profile(arch.key).has_own(f"{CORE}.{dtype}{'' if autocast else '.plain'}/"):
        how = "under" if autocast else "without"
        found.not_modelled(run.at("autocast"), autocast, f"a forward {how} torch.autocast, the adapter in {dtype}")
    if "autocast" not in run.values:
        found.warn(run.at("autocast"), "not given: the forward is taken to run under torch.autocast")
    if len(resident) > 1:
        found.warn(run.at("resident"), "their weights are counted; encoding within a step is not")
