"""The profile of a UNet whose 3 x 3 convolutions have an adapter too (`network.conv`): recorded beside the one without.

The trainer's network then goes into residual blocks and samplers too, whose linear layers get one of the other rank. Of a convolution the
first matrix is `c` x inputs x 3 x 3, the second outputs x `c`; 1 x 1 convolutions have the linear layers' rank.
Source: ostris/ai-toolkit 27a03a91, toolkit/lora_special.py (create_modules), toolkit/network_mixins.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property

from estimator.errors import CannotTell, Problem
from estimator.optimizer_rules import load_rules
from estimator.parameters import Convolved
from estimator.programs import Profile, load_profile

CONVOLVED = "convolved"  # folder below the architecture's profile
# Sizes that depend on a parameter as rows and columns, which one of four dimensions has not (`FEATURES` of optimizer_rules)
_OF_MATRICES = ("rows", "columns", "along", "a row", "a column")


@dataclass(frozen=True)
class ConvolvedProfile(Profile):
    """`data`, `folder`: of what was recorded with such an adapter; all else is the architecture's own profile's."""

    @cached_property
    def relative(self) -> Profile | None:
        return load_profile(self.arch)

    @cached_property
    def adapter(self) -> tuple[int, ...]:
        """Bytes of each parameter where both ranks are 1, and which are convolutions'."""
        program = self.program(next(key for key in self.data["parts"] if key.startswith("setup.network/")))
        sizes, linear = (program.stay_bytes("adapter", {"r": 1, "c": c}) for c in (1, 0))
        return Convolved(sizes, frozenset(k for k, size in enumerate(linear) if not size))

    def __hash__(self) -> int:
        return id(self)


@cache
def convolved(arch: str) -> Profile:
    """The profile of an architecture with an adapter on convolutions too. Raises CannotTell where it has none."""
    folder = load_profile(arch).folder / CONVOLVED
    try:
        data = json.loads((folder / "profile.json").read_text())
    except FileNotFoundError:
        why = "an adapter on its convolutions was never recorded"
        raise CannotTell(Problem(f"network.conv of {arch}", None, why, "remove it, and they have none")) from None
    return ConvolvedProfile(arch, data, folder)


def counts_elements(optimizer: str) -> bool:
    """Whether an optimizer's step depends on how many elements parameters have, and on no more of their shapes."""
    slots = load_rules()[optimizer]["slots"].values()
    return not any(feature.startswith(_OF_MATRICES) for slot in slots for _, feature, _ in slot["size"])
