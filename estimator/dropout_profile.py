"""A profile as a job sees it whose LoRA has dropout (`network.dropout`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from estimator import derived_weights, optimizers
from estimator.dropout_programs import dropped
from estimator.filtered_profile import filtered
from estimator.footprint import Footprint
from estimator.program import Program
from estimator.programs import Profile, load_profile


@dataclass(frozen=True)
class DropoutProfile(Profile):
    """`base`: the profile without, of an adapter on all layers or on some."""

    base: Profile

    @cached_property
    def adapter(self) -> tuple[int, ...]:
        """See `Profile`."""
        return self.base.adapter

    def program(self, key: str) -> Program:
        """See `Profile`. Raises CannotTell as well where the adapter's tensors are not found."""
        if key.split("/")[0] != "step.core":
            return self.base.program(key)
        if key not in self._programs:
            self._programs[key] = self._made(key)
        return self._programs[key]

    def outline(self, key: str) -> Program | Footprint:
        """See `Profile`."""
        return self.program(key) if key.split("/")[0] == "step.core" else self.base.outline(key)

    def _made(self, key: str) -> Program:
        if optimizers.FUSED in key:
            core, update = key.split(optimizers.FUSED, 1)
            return optimizers.fused(self.program(core), update, self.adapter)
        if (derived := derived_weights.base_key(key)) is not None:  # last: an adapter's tensors are found in what was recorded
            return self._derived(key, *derived)
        return dropped(self.base.program(key))  # of a weighed loss too, which is found in what was recorded

    def __hash__(self) -> int:
        return id(self)


@cache
def with_dropout(arch: str, ignored: tuple[str, ...], only: tuple[str, ...]) -> DropoutProfile:
    """The profile of an architecture with dropout in its adapter, on all layers or on some. Raises CannotTell."""
    base = filtered(arch, ignored, only or None) if ignored or only else load_profile(arch)
    return DropoutProfile(base.arch, base.data, base.folder, base)
