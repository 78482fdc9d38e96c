"""The profile of a UNet whose 3 x 3 convolutions have an adapter too (`network.conv`): recorded beside the one without.

The trainer's network then goes into residual blocks and samplers too, whose linear layers get one of the other rank. Of a convolution the
first matrix is `c` x inputs x 3 x 3, the second outputs x `c`; 1 x 1 convolutions have the linear layers' rank.
Source: ostris/ai-toolkit 27a03a91, toolkit/lora_special.py (create_modules), toolkit/network_mixins.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from estimator.dtypes import RECORDED
from estimator.errors import Problem
from estimator.optimizer_rules import load_rules
from estimator.parameters import Convolved
from estimator.programs import Profile
from estimator.recorded_beside import BesideProfile, recorded_beside
from estimator.typed_profile import typed

CONVOLVED = "convolved"  # folder below the architecture's profile
# Sizes that depend on a parameter as rows and columns, which one of four dimensions has not (`FEATURES` of optimizer_rules)
_OF_MATRICES = ("rows", "columns", "along", "a row", "a column")


@dataclass(frozen=True)
class ConvolvedProfile(BesideProfile):
    """Recorded with such an adapter."""

    @cached_property
    def adapter(self) -> tuple[int, ...]:
        """Bytes of each parameter where both ranks are 1, and which are convolutions'."""
        program = self.program(next(key for key in self.data["parts"] if key.startswith("setup.network/")))
        sizes, linear = (program.stay_bytes("adapter", {"r": 1, "c": c}) for c in (1, 0))
        return Convolved(sizes, frozenset(k for k, size in enumerate(linear) if not size))

    def __hash__(self) -> int:
        return id(self)


@cache
def convolved(arch: str, dtype: str = RECORDED) -> Profile:
    """The profile of an architecture with an adapter on convolutions too, in a compute type. Raises CannotTell where it has none."""
    why, fix = "an adapter on its convolutions was never recorded", "remove it, and they have none"
    base = typed(arch, dtype)
    return recorded_beside(ConvolvedProfile, arch, CONVOLVED, Problem(f"network.conv of {arch}", None, why, fix), base=base)


def counts_elements(optimizer: str) -> bool:
    """Whether an optimizer's step depends on how many elements parameters have, and on no more of their shapes."""
    slots = load_rules()[optimizer]["slots"].values()
    return not any(feature.startswith(_OF_MATRICES) for slot in slots for _, feature, _ in slot["size"])
