"""Compute types (the trainer's train.dtype), which what is not quantised is held in; and how profiles name kinds of weights."""

from __future__ import annotations

BF16, FP16, FP32 = "bf16", "fp16", "fp32"
RECORDED = BF16  # the type that profiles are recorded in, but for those in folders of other types (estimator.typed_profile)
FLOATS = (BF16, FP16, FP32)
UNQUANTISED = "bf16"  # how profiles name the kind of unquantised weights, whatever type they are recorded in


TYPE_KEY = "train.dtype"  # of the config
TO_BF16 = "what the trainer's examples train in: half the bytes of all that is not quantised, and faster; the adapter stays in fp32"


class Held:
    """What a model's weights are, by the names of profiles."""

    __slots__ = ()
    weights: str
    te_weights: str

    @property
    def kind(self) -> str:
        """The transformer's."""
        return UNQUANTISED if self.weights in FLOATS else self.weights

    @property
    def te_kind(self) -> str:
        """The text encoder's."""
        return UNQUANTISED if self.te_weights in FLOATS else self.te_weights
