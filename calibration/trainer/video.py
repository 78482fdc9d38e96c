"""Phases of the trainer's video models: two experts that come and go, and clips that begin with a given picture."""

from __future__ import annotations

import sys
from typing import Any

from calibration.architectures.base import passes as passes
from calibration.trainer.recorder import Recorder

# Of image to video: each step and preview encodes a clip that begins with a picture; or (Wan 2.2 5B) the picture alone
FIRST_FRAMES = {"add_first_frame_conditioning": "first_frame", "add_first_frame_conditioning_v22": "given_frame"}
UNSEEN_MOVES = ("wan22_5b", "wan21_i2v")  # architectures whose pipeline has the transformer go and come back between two marks


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


def record_experts(recorder: Recorder, sd: Any) -> None:
    """The moves of two experts, or of the one transformer, which come and go between two marks."""
    found = experts(sd.unet)
    for expert in found if len(found) > 1 or getattr(sd, "arch", None) in UNSEEN_MOVES else ():
        expert.to = recorder.wrap(expert.to, "expert_to")
    record_image_encoder(recorder, sd)


def record_image_encoder(recorder: Recorder, sd: Any) -> None:
    """Wan 2.1 I2V's: it comes for a picture, in steps and previews, whose clip the previews' pipeline encodes by itself."""
    encoder = getattr(sd, "image_encoder", None)
    if encoder is None or not hasattr(sd, "preprocess_clip_image"):
        return
    from diffusers import WanImageToVideoPipeline
    from toolkit.models.wan21.wan21_i2v import AggressiveWanI2VUnloadPipeline

    encoder.to = recorder.wrap(encoder.to, "expert_to")
    encoder.forward = recorder.wrap(encoder.forward, "picture")
    sd.preprocess_clip_image = recorder.wrap(sd.preprocess_clip_image, "picture")
    WanImageToVideoPipeline.prepare_latents = recorder.wrap(WanImageToVideoPipeline.prepare_latents, "first_frame")
    for pipeline in (WanImageToVideoPipeline, AggressiveWanI2VUnloadPipeline):
        pipeline.encode_image = recorder.wrap(pipeline.encode_image, "picture")


def record_first_frames(recorder: Recorder) -> None:
    for module in [m for name, m in sys.modules.items() if name.startswith(("toolkit", "extensions"))]:
        for function, phase in FIRST_FRAMES.items():
            if hasattr(module, function):
                setattr(module, function, recorder.wrap(getattr(module, function), phase))
