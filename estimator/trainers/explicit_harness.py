"""Run files of architectures that AI Toolkit does not have: what was recorded of them by our own harness, and what was not.

Nothing is taken for something near it: another layer, another type, another optimizer is named and makes the verdict unknown. Their own
keys:

    left_in_cache: []             # default; components that were there before the transformer came, and left their memory in torch's cache
    given_back: []                # default; those that are there until training starts, and whose memory torch gives back then
    optimizer_on_host: false      # default; true: torchao's CPUOffloadOptimizer, which takes gradients to the host as they come
    diffusers: "0.32.0"           # an older version whose class is another one; left out: the version that was recorded
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
KEYS = frozenset({"left_in_cache", "given_back", "optimizer_on_host", "diffusers"})
COMPONENTS = ("transformer", "text_encoder", "vae")
LEAVING, GONE = ("text_encoder", "vae"), ("left_in_cache", "given_back")


def check(run: Section, arch: Arch, network: Network | None, resident: tuple[str, ...], autocast: bool) -> None:
    """Report what of a run file has no model. `network`, `resident`, `autocast`: as they were read."""
    found, weights = run.found, run.values.get("weights")
    dtype = network.dtype if network else "fp32"
    found.warn((), NOT_THERE.format(arch.name))
    if (fixed := arch.fixed_text_tokens) is not None and (said := run.values.get("text_tokens")) not in (None, fixed):
        found.problem(run.at("text_tokens"), f"{shown(said)} is not {fixed}", f"{arch.name} takes texts of one length", f"write {fixed}")
    if arch.padded_text:
        _padded(run, arch)
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


def _padded(run: Section, arch: Arch) -> None:
    """Of a transformer that is told how many words each prompt has."""
    said, most = run.values.get("text_tokens"), arch.max_text_tokens
    if isinstance(said, int) and said > most:
        why = f"{arch.name}'s prompts are padded to {most} tokens, and cut there"
        run.found.problem(run.at("text_tokens"), f"{said} is more than {most}", why, f"write {most}, or how many the prompt has")
    if run.values.get("batch_size") not in (None, 1):
        run.found.warn(run.at("batch_size"), "its prompts are taken to be of one length: others have a mask over all tokens")


def _components(run: Section, key: str, known: tuple[str, ...], default: list[str]) -> list[str]:
    """A list of components, which must be among the known; the default where it is none."""
    value = run.values.get(key, default)
    if isinstance(value, list) and all(isinstance(part, str) and part in known for part in value):
        return value
    wrong = next((part for part in value if part not in known), None) if isinstance(value, list) else value
    what = f"{shown(wrong)} is none of the components" if isinstance(value, list) else f"expected a list of components, got {shown(value)}"
    unet = " (a UNet is called so too)" if known[0] == COMPONENTS[0] else ""
    run.found.problem(run.at(key), what, "", f"out of: {known[0]}{unet}, {', '.join(known[1:])}")
    return default


def resident(run: Section) -> tuple[str, ...]:
    """The components that are on the card during the step, in the order in which they come."""
    value = _components(run, "resident", COMPONENTS, ["transformer"])
    if "transformer" not in value:
        run.found.problem(run.at("resident"), "the transformer is not among them", "a step runs on it", "add transformer")
    return tuple(part for part in COMPONENTS if part in value)


def gone(run: Section, arch: Arch | None, resident: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Components that are gone when training starts (`left_in_cache`, `given_back`); each is in one of these and `resident` at most."""
    found, taken, lists = run.found, set(resident), []
    for key in GONE:
        value = _components(run, key, LEAVING, [])
        if both := [part for part in value if part in taken]:
            where = f"among {', '.join(('resident', *GONE))} each stands once"
            found.problem(run.at(key), f"{', '.join(both)}: elsewhere as well", where, "take it from one")
        if value and arch is not None and not arch.harness:
            found.not_modelled(run.at(key), shown(value), "loading is estimated as AI Toolkit does it")
            value = []
        taken |= set(value)
        lists.append(tuple(part for part in LEAVING if part in value))
    return lists[0], lists[1]


def on_host(run: Section, arch: Arch | None, optimizer: str) -> bool:
    """Whether the optimizer is the host's, which gets each gradient as soon as it is there (`optimizer_on_host`)."""
    value = run.flag("optimizer_on_host", False)
    if value and (arch is None or not arch.harness or not optimizers.known(optimizer + optimizers.ON_HOST)):
        run.found.not_modelled(run.at("optimizer_on_host"), value, "this optimizer on the host, or of this architecture")
        return False
    return value
