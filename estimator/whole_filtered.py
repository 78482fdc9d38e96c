"""The profile of a job that trains the parameters of the transformer that words of the model section leave (`ignore_if_contains`,
`only_if_contains`): a fine-tune of its blocks.

The others are frozen: they get no gradient, an optimizer keeps no state of them and an EMA no copy, and layers do not save what only their
gradients would need (estimator.whole_frozen).
Source: ostris/ai-toolkit 27a03a91, toolkit/models/base_model.py and toolkit/stable_diffusion_model.py (named_parameters); a whole run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache, cached_property

from estimator import whole_ema, whole_frozen
from estimator.errors import CannotTell, Problem
from estimator.footprint import Footprint
from estimator.program import Program
from estimator.programs import CHECKPOINTED, FULL
from estimator.whole_profile import CORE, WholeProfile, recorded_of


@dataclass(frozen=True)
class FrozenWholeProfile(WholeProfile, ABC):
    """Of a model with parameters that are not trained."""

    @property
    @abstractmethod
    def left(self) -> frozenset[int]:
        """Those, by number."""

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
        """Of a core, with parameters frozen."""
        program = super().recorded(key)
        if not key.startswith(CORE) or not self.left:
            return program
        twin = super().recorded(key.replace(FULL, CHECKPOINTED)) if FULL in key else program
        return whole_frozen.core(program, twin, self.names, self.left)

    def _footprint(self, key: str) -> Program | Footprint:
        return self.program(key) if key.startswith(CORE) else super()._footprint(key)

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class PartlyWholeProfile(FrozenWholeProfile):
    """`ignore`, `only`: words of parameters' names; no `only`: of all."""

    ignore: tuple[str, ...]
    only: tuple[str, ...]

    @cached_property
    def left(self) -> frozenset[int]:
        return frozenset(k for k, name in enumerate(self.names) if not self._listed(name))

    def _listed(self, name: str) -> bool:
        return not any(word in name for word in self.ignore) and (not self.only or any(word in name for word in self.only))

    def __hash__(self) -> int:
        return id(self)


@cache
def partly(arch: str, ignore: tuple[str, ...], only: tuple[str, ...], bypassed: bool | None = None) -> PartlyWholeProfile:
    """The profile of an architecture of which such parameters are trained. Raises CannotTell where that has no model."""
    base = recorded_of(arch)
    made = PartlyWholeProfile(base.arch, base.data, base.folder, ignore, only, bypassed=bypassed)
    if not base.names or len(made.left) == len(base.names):
        why = "their names were not recorded" if not base.names else "nothing would be trained"
        fix = "see model.only_if_contains and ignore_if_contains"
        raise CannotTell(Problem(f"training these parameters of {arch} alone", None, why, fix))
    return made
