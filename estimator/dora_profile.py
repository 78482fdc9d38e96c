"""A profile as a job sees it that trains a DoRA in place of a LoRA (`network.type: dora`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from estimator import core_rules, experts, optimizers
from estimator.archs import load_archs
from estimator.dora_parts import network, one_by_one
from estimator.dora_previews import adapted
from estimator.dora_programs import Dora
from estimator.filtered_profile import ONE_BY_ONE, PREVIEWS, filtered
from estimator.footprint import Footprint
from estimator.laying import of_rank
from estimator.lokr_merging import AWAY
from estimator.lokr_profile import UNQUANTISED, numbered, preview_of, rewritten
from estimator.parameters import Magnified
from estimator.program import Program
from estimator.programs import Profile, load_profile

NETWORK, AROUND = "setup.network", ("sample.enter", "sample.leave")
# Kinds of what is around previews, where the adapter stays beside the weights and nothing depends on them: the first that was recorded
BESIDE = ("qfloat8", "uint4")


@dataclass(frozen=True)
class DoraProfile(Profile):
    """`base`: the profile as recorded, with a LoRA on the same layers."""

    base: Profile

    @cached_property
    def adapter(self) -> tuple[int, ...]:
        """Three parameters of each layer, in the optimizer's order."""
        return Magnified(self.base.adapter)

    @cached_property
    def layers(self) -> dict[str, int]:
        """See `numbered`."""
        return numbered(self.base)

    def program(self, key: str) -> Program:
        """See `Profile`. Raises CannotTell as well where the adapter's tensors are not found."""
        if not rewritten(key):
            return self.base.program(key)
        if key not in self._programs:
            self._programs[key] = self._made(key)
        return self._programs[key]

    def outline(self, key: str) -> Program | Footprint:
        """See `Profile`."""
        return self.program(key) if rewritten(key) else self.base.outline(key)

    def _made(self, key: str) -> Program:
        expert, whose = experts.split(key)
        if whose:
            return self._of_expert(expert, whose)
        if key.startswith(optimizers.PARTS):
            without = {place // 2 for place in load_archs().archs[self.arch].without_gradient}  # of a LoRA's: layers
            return optimizers.program(key, self.adapter, idle={3 * n + which for n in without for which in range(3)})
        if core_rules.named(key):
            return core_rules.rewritten(key, self.program)
        name, *rest = key.split("/")
        if name == NETWORK:
            return network(self.base.program(key.removesuffix(AWAY)), self.base.adapter, None if key.endswith(AWAY) else rest[0])
        if name in ONE_BY_ONE:  # it is never merged into the weights
            return one_by_one(self.base.program(self._beside(key) if name in AROUND else key), self.base.adapter)
        if name in PREVIEWS:
            return self._preview(preview_of(self.base, key))
        return Dora(self.base.program(key), self.layers, self.base.adapter).program()

    def _beside(self, key: str) -> str:
        name, _, *rest = key.split("/")
        keys = ["/".join([name, kind, *rest]) for kind in BESIDE]
        return next((one for one in keys if self.base.has(one)), keys[0])

    def _preview(self, key: str) -> Program:
        """Those of unquantised weights were recorded with the adapter merged, and so without."""
        base = self.base.program(key)
        if key.split("/")[1] == UNQUANTISED:
            return adapted(base, self.layers, self.base.adapter)
        return Dora(of_rank(base), self.layers, self.base.adapter).program()

    def __hash__(self) -> int:
        return id(self)


@cache
def dora(arch: str, ignored: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> DoraProfile:
    """The profile of an architecture with a DoRA on all layers, or on those that parts of their names leave. Raises CannotTell."""
    base = filtered(arch, ignored, only or None) if ignored or only else load_profile(arch)
    return DoraProfile(base.arch, base.data, base.folder, base)
