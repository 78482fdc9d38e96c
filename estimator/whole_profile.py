"""The profile of a job that trains the whole transformer: no `network` section, so that the trainer takes it for a fine-tune.

Steps, the EMA and what is around previews were recorded without an adapter, and lie beside the architecture's own profile; all else is that
one's in bf16. The optimizer goes through the model's own parameters, in bf16 and in the order of `named_parameters()`, by its rule.
Source: ostris/ai-toolkit 27a03a91, jobs/process/BaseSDTrainProcess.py (is_fine_tuning), toolkit/models/base_model.py and
toolkit/stable_diffusion_model.py (prepare_optimizer_params).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from estimator import whole_ema
from estimator.errors import Problem
from estimator.parameters import WHOLE, Fixed
from estimator.program import Program
from estimator.programs import Profile
from estimator.recorded_beside import BesideProfile, recorded_beside


@dataclass(frozen=True)
class WholeProfile(BesideProfile):
    """Recorded without an adapter."""

    @property
    def adapter_kind(self) -> str:
        return WHOLE

    @cached_property
    def adapter(self) -> tuple[int, ...]:
        """Bytes of each of the model's parameters, which have no rank, and their shapes."""
        shapes = [(rows, columns, False) for rows, columns, count in self.data["trained"] for _ in range(count)]
        return Fixed(shapes)

    def _has_rule(self, key: str) -> bool:
        return (key in whole_ema.PARTS and key not in self.data["parts"]) or super()._has_rule(key)

    def _by_rule(self, key: str) -> Program:
        averaged = key in whole_ema.PARTS and key not in self.data["parts"]
        return whole_ema.program(key, self.adapter) if averaged else super()._by_rule(key)

    def __hash__(self) -> int:
        return id(self)


@cache
def whole(arch: str) -> Profile:
    """The profile of an architecture that is trained as a whole. Raises CannotTell where it has none."""
    why, fix = "training the whole model was never recorded", "add network: {type: lora, linear: 16}"
    return recorded_beside(WholeProfile, arch, WHOLE, Problem(f"{arch} without a network section", None, why, fix))
