"""A profile as a job sees it that trains a LoKr of full rank in place of a LoRA (`network.type: lokr`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from estimator import core_rules, derived_weights, experts, optimizers, rebuilt_profile, recipe_profile
from estimator.adapter_sites import Tape, layers_of, never, sites
from estimator.archs import load_archs
from estimator.errors import CannotTell
from estimator.filtered_profile import ONE_BY_ONE, PREVIEWS, has_layers
from estimator.footprint import Footprint
from estimator.layer_calls import Call
from estimator.laying import RECORDED_RANK, of_rank
from estimator.lokr_merging import AWAY, merged
from estimator.lokr_programs import FULL, Lokr
from estimator.parameters import LOKR
from estimator.program import Program, peak_rows
from estimator.programs import Profile, load_profile

MERGING, UNQUANTISED = ("sample.enter", "sample.leave"), "bf16"
ENCODED, CACHED = "/encoded", "/cached"  # in keys of previews, which are alike: those with cached prompts were recorded at one rank


@dataclass(frozen=True)
class LokrProfile(Profile):
    """`base`: the profile as recorded, with a LoRA on the same layers."""

    base: Profile

    @property
    def adapter_kind(self) -> str:
        return LOKR

    @cached_property
    def adapter(self) -> tuple[int, ...]:
        """Of a LoRA of rank 1: inputs and outputs of each layer are read off it."""
        return self.base.adapter

    @cached_property
    def layers(self) -> dict[str, int]:
        """See `numbered`."""
        return numbered(self.base)

    def program(self, key: str) -> Program:
        """See `Profile`. Raises CannotTell as well where the adapter's tensors are not found."""
        if not rewritten(key):
            return self.base.program(key)
        if key not in self._programs:
            self._programs[key] = self._made(key.split("/")[0], key)
        return self._programs[key]

    def outline(self, key: str) -> Program | Footprint:
        """See `Profile`."""
        return self.program(key) if rewritten(key) else self.base.outline(key)

    def _made(self, name: str, key: str) -> Program:
        expert, whose = experts.split(key)
        if whose:
            return self._of_expert(expert, whose)
        if key.startswith(optimizers.PARTS):
            return optimizers.program(key, self.adapter, self.adapter_kind, load_archs().archs[self.arch].without_gradient)
        if optimizers.FUSED in key:
            core, update = key.split(optimizers.FUSED, 1)
            return optimizers.fused(self.program(core), update, self.adapter, self.adapter_kind)
        if core_rules.named(key):
            return core_rules.rewritten(key, self.program)
        if (derived := derived_weights.base_key(key)) is not None:  # last: an adapter's tensors are found in what was recorded
            return self._derived(key, *derived)
        if name in MERGING and key.split("/")[1] == UNQUANTISED:
            return one_by_one(merged(self.base.program(key.removesuffix(AWAY)), self.adapter, key.endswith(AWAY)), self.adapter)
        if name in ONE_BY_ONE:
            return one_by_one(self.base.program(key.removesuffix(AWAY)), self.adapter)
        recorded = preview_of(self.base, key) if name in PREVIEWS else key
        base = self.base.program(recorded)
        return Lokr(of_rank(base) if name in PREVIEWS else base, self.layers, self.adapter, self._inputs(recorded)).program()

    def _inputs(self, key: str) -> dict[int, int]:
        """The layer's own result -> its input, where the part makes it (see layer_calls.Call), recorded or by rule. Of none where nobody
        saw it: quanto's kinds, in which the layer saves its input itself."""
        by_recipe = recipe_profile.base_key(key) is not None and not self.base.has(key)
        rows = recipe_profile.calls_of(self.base, key) if by_recipe else rebuilt_profile.uses(self.base.holder(key), key)
        calls = [] if rows is None else [Call(*row) for row in rows.tolist()]
        return {call.output: call.input for call in calls if call.input >= 0 and call.output >= 0}

    def __hash__(self) -> int:
        return id(self)


def rewritten(key: str) -> bool:
    """Whether another adapter makes another part of one."""
    name = experts.split(key)[0].split("/")[0]
    return name in ONE_BY_ONE or has_layers(name) or key.startswith(optimizers.PARTS)


def preview_of(base: Profile, key: str) -> str:
    """The preview that another adapter's is made of: that with cached prompts, where there is one."""
    cached = key.replace(ENCODED, CACHED)
    try:
        base.holder(cached)
    except CannotTell:
        return key
    return cached


def numbered(base: Profile) -> dict[str, int]:
    """The number of each layer that has an adapter: those that get gradients by these, the others by their place among all layers."""
    lending = _lending(base)
    key = next(key for holder in lending for key in holder.data["parts"] if key.startswith("step.core/"))
    tape = Tape(base.program(key))
    found = layers_of(tape)
    if 2 * len(found) == len(base.adapter):
        return found
    adapted = {site.layer for site in sites(tape)}
    names = dict.fromkeys(f"transformer.{name}" for one in lending for name in one.data.get("layers", {}).get("transformer", ()))
    numbers = {name: n for n, name in enumerate(name for name in names if name in adapted)}
    if 2 * len(numbers) != len(base.adapter) or found.items() - numbers.items():
        raise never(f"{base.arch}: each layer's adapter")
    return numbers


def _lending(base: Profile) -> list[Profile]:
    """The profile, and those whose transformer it has to the last weight."""
    found = [base]
    while found[-1].shares_all and found[-1].relative is not None:
        found.append(found[-1].relative)
    return found


def one_by_one(base: Program, widths: Sequence[int]) -> Program:
    """A part that goes through the adapter's tensors in their order: of each layer the small matrix in place of the first, the large one in
    place of the second. Raises CannotTell."""
    if "r" not in base.features:
        return base
    ranked = base.features.index("r")
    features = (*(name for name in base.features if name != "r"), *dict.fromkeys(_names(widths)))
    coefficients = np.zeros((len(base.names), len(features)), dtype=np.int64)
    coefficients[:, : len(base.features) - 1] = np.delete(base.coefficients, ranked, axis=1)
    matrices, at = _names(widths), 0
    for k, width in enumerate(base.coefficients[:, ranked].tolist()):
        if not width:
            continue
        _, _, number = (base.names[k] or "").partition(":")
        at = int(number) if number else at
        if width == widths[at % len(widths)]:
            coefficients[k, features.index(matrices[at % len(widths)])] = FULL
            at += 1
        elif "1" in features:  # taken for proportional to the one rank that it was recorded at
            coefficients[k, features.index("1")] += width * RECORDED_RANK
        else:
            raise never(base.key)
    if at % len(widths):
        raise never(base.key)
    own = len(base.names) - base.imports
    peaks = peak_rows(features, coefficients, base.events, base.labels, base.moments, own)
    return Program(
        base.key, features, coefficients, base.labels, base.moments, base.names, base.events, base.imports, peaks, base.workspace_at
    )


def _names(widths: Sequence[int]) -> list[str]:
    """Of each parameter of a LoRA the matrix of a LoKr in its place, as features have it."""
    pairs = zip(widths[::2], widths[1::2], strict=True)
    return [f"kron{which}_{inputs // FULL}x{outputs // FULL}" for inputs, outputs in pairs for which in (1, 2)]


@cache
def lokr(arch: str) -> LokrProfile:
    """The profile of an architecture with a LoKr on all layers."""
    base = load_profile(arch)
    return LokrProfile(base.arch, base.data, base.folder, base)
