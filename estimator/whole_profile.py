"""The profile of a job that trains the whole transformer: no `network` section, so that the trainer takes it for a fine-tune.

Steps, the EMA and what is around previews were recorded without an adapter, and lie beside the architecture's own profile; all else is that
one's in bf16. The optimizer goes through the model's own parameters, in bf16 and in the order of `named_parameters()`, by its rule.
Source: ostris/ai-toolkit 27a03a91, jobs/process/BaseSDTrainProcess.py (is_fine_tuning), toolkit/models/base_model.py and
toolkit/stable_diffusion_model.py (prepare_optimizer_params).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

from estimator import optimizers, whole_ema, whole_guidance
from estimator.errors import Problem
from estimator.footprint import Footprint
from estimator.parameters import WHOLE, Fixed
from estimator.program import Program
from estimator.programs import Profile
from estimator.recorded_beside import BesideProfile, recorded_beside

CORE = "step.core"
GUIDED = "flux1-dev"  # recorded with the embedding of the guidance
SAME_TRANSFORMER = {"zimage-turbo": "zimage"}  # class and configuration: what was recorded of the one serves the other


@dataclass(frozen=True)
class WholeProfile(BesideProfile):
    """Recorded without an adapter. `bypassed`: whether no gradient reaches the embedding of the guidance (None: as recorded)."""

    bypassed: bool | None = field(default=None, kw_only=True)

    @property
    def adapter_kind(self) -> str:
        return WHOLE

    @cached_property
    def adapter(self) -> Fixed:
        """Bytes of each of the model's parameters, which have no rank, and their shapes."""
        shapes = [(rows, columns, False) for rows, columns, count in self.data["trained"] for _ in range(count)]
        return Fixed(shapes)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the trainer calls each parameter, where that was recorded: `names` has those of blocks that are alike once, as what stands
        before the block's number, the first number, how many blocks, and what stands behind each number (without one: all of the name)."""
        return tuple(f"{before}{number if before else ''}{behind}" for before, number, behind in self._named())

    @property
    def of_blocks(self) -> frozenset[int]:
        """Parameters whose names have a block's number."""
        return frozenset(k for k, (before, *_) in enumerate(self._named()) if before)

    def _named(self) -> Iterator[tuple[str, int, str]]:
        """Parts of each parameter's name."""
        for before, first, count, names in self.data.get("names", ()):
            yield from ((before, number, behind) for number in range(first, first + count) for behind in names)

    def _has_rule(self, key: str) -> bool:
        return (key in whole_ema.PARTS and key not in self.data["parts"]) or super()._has_rule(key)

    @cached_property
    def without_gradient(self) -> frozenset[int]:
        """Parameters that no gradient reaches: an optimizer keeps no state of them, an EMA has its copies."""
        recorded = frozenset(self.data.get("idle", ()))
        if not self._otherwise:
            return recorded
        guidance = whole_guidance.parameters(self.names)
        return recorded | guidance if self.bypassed else recorded - guidance

    @property
    def _otherwise(self) -> bool:
        """The embedding of the guidance is not as recorded."""
        if self.bypassed is None:
            return False
        return self.bypassed != (whole_guidance.parameters(self.names) <= frozenset(self.data.get("idle", ())))

    def recorded(self, key: str) -> Program:
        """See `Profile`; of a core, with the embedding of the guidance trained or not."""
        program = super().recorded(key)
        if not self._otherwise or not key.startswith(CORE):
            return program
        return whole_guidance.bypassed(program) if self.bypassed else whole_guidance.guided(program, recorded_of(GUIDED).recorded(key))

    def _footprint(self, key: str) -> Program | Footprint:
        return self.program(key) if self._otherwise and key.startswith(CORE) else super()._footprint(key)

    @property
    def idle(self) -> frozenset[int]:
        """Those that an optimizer passes over."""
        return self.without_gradient

    def _by_rule(self, key: str) -> Program:
        if self.idle and key.startswith(optimizers.PARTS):
            return optimizers.program(key, self.adapter, WHOLE, self.idle)
        averaged = key in whole_ema.PARTS and key not in self.data["parts"]
        return whole_ema.program(key, self.adapter) if averaged else super()._by_rule(key)

    def __hash__(self) -> int:
        return id(self)


@cache
def whole(arch: str, bypassed: bool | None = None) -> Profile:
    """The profile of an architecture that is trained as a whole. Raises CannotTell where it has none."""
    return replace(recorded_of(arch), bypassed=bypassed)


def recorded_of(arch: str) -> WholeProfile:
    """The same, as what it is."""
    why, fix = "training the whole model was never recorded", "add network: {type: lora, linear: 16}"
    otherwise = Problem(f"{arch} without a network section", None, why, fix)
    return recorded_beside(WholeProfile, arch, WHOLE, otherwise, SAME_TRANSFORMER.get(arch))
