"""Phases of the trainer's video models: two experts that come and go, and clips that begin with a given picture."""

from __future__ import annotations

import sys
from typing import Any

from calibration.trainer.recorder import Recorder

FIRST_FRAME = "add_first_frame_conditioning"  # of image to video: each step and preview encodes a clip that begins with a picture


def experts(transformer: Any) -> list[Any]:
    """The transformers that stand for one: Wan 2.2's two, in the trainer's wrapper, or the one that there is."""
    found = [getattr(transformer, name) for name in ("transformer_1", "transformer_2") if hasattr(transformer, name)]
    return found or [transformer]


def switch_checkpointing(transformer: Any, on: bool) -> None:
    """diffusers' models have a method for either; the trainer's own classes only the attribute that both kinds read."""
    for one in experts(transformer):
        if on:
            one.enable_gradient_checkpointing()
        elif hasattr(one, "disable_gradient_checkpointing"):
            one.disable_gradient_checkpointing()
        else:
            one.gradient_checkpointing = False


def record_experts(recorder: Recorder, transformer: Any) -> None:
    """The moves of two experts, which come and go between two marks."""
    for expert in experts(transformer) if len(experts(transformer)) > 1 else ():
        expert.to = recorder.wrap(expert.to, "expert_to")


def record_first_frames(recorder: Recorder) -> None:
    for module in [m for name, m in sys.modules.items() if name.startswith(("toolkit", "extensions")) and hasattr(m, FIRST_FRAME)]:
        setattr(module, FIRST_FRAME, recorder.wrap(getattr(module, FIRST_FRAME), "first_frame"))
