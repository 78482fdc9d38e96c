"""The profile of a job whose adapter is on the text encoders too (`train.train_text_encoder`), recorded beside the one without.

Steps encode their prompts with a graph and train on what comes out, so that what the encoder keeps lives until the backward pass is over.
Source: ostris/ai-toolkit 27a03a91, toolkit/lora_special.py, extensions_built_in/sd_trainer/SDTrainer.py (train_single_accumulation).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from estimator import optimizers
from estimator.errors import Problem
from estimator.parameters import LORA
from estimator.program import Program
from estimator.programs import Profile
from estimator.recorded_beside import BesideProfile, recorded_beside

TEXTED, GRAPH = "texted", "/graph/"  # folder below the architecture's profile; in keys of texts
GRADIENT = "gradient:"


@dataclass(frozen=True)
class TextedProfile(BesideProfile):
    """Recorded with such an adapter."""

    @cached_property
    def adapter(self) -> tuple[int, ...]:
        """See `Profile`. The order is the optimizer's, text encoders' layers first; the card gets the UNet's first."""
        program = self.program(next(key for key in self.data["parts"] if key.startswith("setup.network/")))
        (numbers,) = (names for component, _, names in program.kept if component == "adapter")
        sizes = dict(zip(numbers, program.stay_bytes("adapter", {"r": 1}), strict=True))
        return tuple(size for _, size in sorted(sizes.items(), key=lambda item: int(item[0].partition(":")[2])))

    @cached_property
    def idle(self) -> frozenset[int]:
        """Parameters that no gradient reaches, and that have no state: XL takes what comes before the last block of its first encoder."""
        program = self.program(next(key for key in self.data["parts"] if key.startswith("step.core/")))
        return frozenset(range(len(self.adapter))) - {int(name.partition(":")[2]) for name in program.names if name and GRADIENT in name}

    def _by_rule(self, key: str) -> Program:
        return optimizers.program(key, self.adapter, LORA, self.idle) if key.startswith(optimizers.PARTS) else super()._by_rule(key)

    def _is_relatives(self, key: str) -> bool:
        """Prompts that are encoded without a graph are the same: of previews, and before training begins."""
        return (key.startswith("text/") and GRAPH not in key) or super()._is_relatives(key)

    def __hash__(self) -> int:
        return id(self)


@cache
def texted(arch: str) -> Profile:
    """The profile of an architecture with an adapter on its text encoders too. Raises CannotTell where it has none."""
    why, fix = "an adapter on its text encoders was never recorded", "set train.train_text_encoder: false"
    return recorded_beside(TextedProfile, arch, TEXTED, Problem(f"train.train_text_encoder of {arch}", None, why, fix))
