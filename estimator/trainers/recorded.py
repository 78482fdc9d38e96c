"""Which kinds of base weights an architecture was recorded with: others are named with their place, before a program is looked for."""

from __future__ import annotations

from estimator import rebuilt_profile, shared
from estimator.archs import Arch
from estimator.derived_weights import recorded_kind
from estimator.dtypes import UNQUANTISED
from estimator.errors import CannotTell
from estimator.job import Model
from estimator.programs import Profile, load_profile
from estimator.recipes import kind_named
from estimator.trainers import modelled
from estimator.trainers.section import Section

TRANSFORMER, TEXT = "load.transformer/", "load.text/"  # parts whose keys have the kind of weights next, and perhaps low_vram behind it
STEP = "step.core/"  # and what the step is behind it
CHECKPOINTED_STEP = "step.core/{}/checkpointed/one"  # which all that were recorded have
FLASH_ATTN = (
    "{} is estimated without flash-attn: where that is installed, as in the trainer's Docker image, it computes {}, with other tensors,"
    " which are not modelled"
)


def check_recorded(model: Section, arch: Arch, result: Model) -> None:
    """Report weights that loading, or steps, were not recorded with. Those that no architecture has are reported elsewhere.
    Warn of what another environment has another kernel for (Arch.by_flash_attn)."""
    if arch.by_flash_attn:
        model.found.warn((), FLASH_ATTN.format(arch.name, arch.by_flash_attn))
    try:
        profile = load_profile(arch.key)
    except CannotTell:  # whoever estimates the job says so
        return
    low = "low_vram" if result.low_vram else "plain"
    asked = (
        (TRANSFORMER, result.kind, ("quantize", "qtype"), "transformer"),
        (TEXT, result.te_kind, ("quantize_te", arch.te_qtype_key), "text encoder"),
    )
    for part, kind, keys, what in asked:
        known = trained(profile, low) if part == TRANSFORMER else kinds(profile, part, low)
        if (kind not in modelled.WEIGHTS and not kind_named(kind)) or {kind, recorded_kind(kind)} & known:
            continue
        plain = kind == UNQUANTISED
        with_it = "with" if result.low_vram else "without"
        recorded = f"recorded {with_it} low_vram: {', '.join(sorted(known))}" if known else f"not recorded {with_it} low_vram"
        model.found.not_modelled(model.at(keys[not plain]), False if plain else kind, f"the {what} of {arch.name} in {kind} ({recorded})")


def trained(profile: Profile, low: str) -> frozenset[str]:
    """Kinds of weights of the transformer that loading and steps were recorded with (Qwen-Image-Edit-2511 loads as its relative does, and
    has steps of its own)."""
    return kinds(profile, TRANSFORMER, low) & _stepped(profile)


def _stepped(profile: Profile) -> frozenset[str]:
    if not profile.has_own(STEP) and profile.relative is not None:
        return _stepped(profile.relative)
    place = "kinds", STEP
    if place not in profile.kept:
        recorded = {key.split("/")[1] for key in profile.data["parts"] if key.startswith(STEP)}
        ruled = {kind for kind in rebuilt_profile.KINDS if rebuilt_profile.base_key(profile, CHECKPOINTED_STEP.format(kind)) is not None}
        profile.kept[place] = frozenset(recorded | ruled)
    return profile.kept[place]  # type: ignore[return-value]


def kinds(profile: Profile, part: str, low: str) -> frozenset[str]:
    """Kinds of weights that a part was recorded with, by this profile or a relative whose recording serves (Profile.program)."""
    own = _own(profile, part, low)
    if profile.shares_all and profile.relative is not None:
        return own if profile.has_own(part) else kinds(profile.relative, part, low)
    return own.union(*(_own(lender, part, low) for lender in profile.lenders)) if part.startswith(shared.parts(profile.data)) else own


def _own(profile: Profile, part: str, low: str) -> frozenset[str]:
    place = "kinds", part, low
    if place not in profile.kept:  # planning asks for every config that it reads
        keys = (key for key in profile.data["parts"] if key.startswith(part))
        recorded = {key.split("/")[1] for key in keys if key.count("/") == 1 or key.endswith(f"/{low}")}
        ruled = {kind for kind in rebuilt_profile.KINDS if rebuilt_profile.base_key(profile, f"{part}{kind}/{low}") is not None}
        profile.kept[place] = frozenset(recorded | ruled)
    return profile.kept[place]  # type: ignore[return-value]
