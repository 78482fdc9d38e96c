"""The profile of a job that trains the parameters of the transformer that words of the model section leave (`ignore_if_contains`,
`only_if_contains`): a fine-tune of its blocks.

The others are frozen: they get no gradient, an optimizer keeps no state of them and an EMA no copy. Known of parameters outside the
blocks, where that is all; inside, layers would not save what goes into them either, which has no model.
Source: ostris/ai-toolkit 27a03a91, toolkit/models/base_model.py and toolkit/stable_diffusion_model.py (named_parameters); a whole run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache, cached_property

from estimator import whole_ema
from estimator.errors import CannotTell, Problem
from estimator.footprint import Footprint
from estimator.optimizer_rules import GRADIENT
from estimator.program import EventProgram, Program
from estimator.whole_profile import WholeProfile, recorded_of

CORE = "step.core"


@dataclass(frozen=True)
class PartlyWholeProfile(WholeProfile):
    """`ignore`, `only`: words of parameters' names; no `only`: of all."""

    ignore: tuple[str, ...]
    only: tuple[str, ...]

    @cached_property
    def left(self) -> frozenset[int]:
        """Parameters that are not trained."""
        return frozenset(k for k, name in enumerate(self.names) if not self._listed(name))

    def _listed(self, name: str) -> bool:
        return not any(word in name for word in self.ignore) and (not self.only or any(word in name for word in self.only))

    @property
    def idle(self) -> frozenset[int]:
        return self.without_gradient | self.left

    def _has_rule(self, key: str) -> bool:
        return key in whole_ema.PARTS or super()._has_rule(key)

    def _by_rule(self, key: str) -> Program:
        if key in whole_ema.PARTS:
            return whole_ema.program(key, [size for k, size in enumerate(self.adapter) if k not in self.left])
        return super()._by_rule(key)

    def recorded(self, key: str) -> Program:
        """Of a core, without a name and of 0 bytes what would be the gradients of frozen parameters."""
        program = super().recorded(key)
        if not key.startswith(CORE):
            return program
        frozen, sizes = {f"{GRADIENT}:{k}" for k in self.left}, program.coefficients.copy()
        sizes[[number for number, name in enumerate(program.names) if name in frozen]] = 0
        names = tuple(None if name in frozen else name for name in program.names)
        given = {each.name: getattr(program, each.name) for each in fields(program)}
        return EventProgram(**given | {"coefficients": sizes, "names": names, "peaks": ()}).with_rows

    def _footprint(self, key: str) -> Program | Footprint:
        return self.program(key) if key.startswith(CORE) else super()._footprint(key)

    def __hash__(self) -> int:
        return id(self)


@cache
def partly(arch: str, ignore: tuple[str, ...], only: tuple[str, ...]) -> PartlyWholeProfile:
    """The profile of an architecture of which such parameters are trained. Raises CannotTell where that has no model."""
    base = recorded_of(arch)
    made = PartlyWholeProfile(base.arch, base.data, base.folder, ignore, only)
    if not base.names or made.left & base.of_blocks or len(made.left) == len(base.names):
        why = "their names were not recorded" if not base.names else "known where all of those in blocks are, and some outside them not"
        fix = "see model.only_if_contains and ignore_if_contains"
        raise CannotTell(Problem(f"training these parameters of {arch} alone", None, why, fix))
    return made
