"""Phases of what a class of the trainer puts beside its noisy latents in a step (condition_noisy_latents)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from calibration.architectures.base import CONTROL_ENCODE
from calibration.trainer.recorder import Recorder, is_oom


def record_conditions(recorder: Recorder, sd: Any) -> None:
    """One phase. Of Flex.2, where chance decides what a step gets, also whether a mask was applied and control images were encoded."""
    real = sd.condition_noisy_latents
    if not hasattr(sd, "inpaint_dropout"):
        sd.condition_noisy_latents = recorder.wrap(real, "condition")
        return

    def condition(*a: Any, **k: Any) -> Any:
        frame, seen = recorder.open("condition"), {"masked": False, "controlled": False}
        try:
            with _watched(recorder, sd, seen):
                out = real(*a, **k)
        except BaseException as error:
            recorder.close(frame, "oom" if is_oom(error) else "error")
            raise
        frame.update(seen)
        recorder.mark("info", **seen)
        recorder.close(frame)
        return out

    sd.condition_noisy_latents = condition


def sampled(one: Any) -> dict[str, Any]:
    """What is noted of a preview; `control`: it has a control image."""
    return {"width": one.width, "height": one.height, "frames": one.num_frames, "cfg": one.guidance_scale, "control": bool(one.ctrl_img)}


@contextlib.contextmanager
def _watched(recorder: Recorder, sd: Any, seen: dict[str, bool]) -> Iterator[None]:
    """Inside: a mask is what is resized with one channel, control images are what is encoded."""
    encode, resize = sd.encode_images, torch.nn.functional.interpolate

    def interpolate(x: Any, *a: Any, **k: Any) -> Any:
        seen["masked"] |= x.shape[1] == 1
        return resize(x, *a, **k)

    def controlled(*_: Any, **__: Any) -> dict[str, Any]:
        seen["controlled"] = True
        return {}

    sd.encode_images, torch.nn.functional.interpolate = recorder.wrap(encode, CONTROL_ENCODE, controlled), interpolate
    try:
        yield
    finally:
        sd.encode_images, torch.nn.functional.interpolate = encode, resize
