"""Phases of models of video with sound (LTX-2), and whether a batch trains it."""

from __future__ import annotations

from typing import Any

from calibration.trainer.recorder import Recorder


def has_sound(batch: Any) -> bool:
    """Whether the batch trains sound too (LTX2Model.get_noise_prediction)."""
    given = any(getattr(batch, name, None) is not None for name in ("audio_latents", "audio_tensor"))
    return bool(given and batch.dataset_config.do_audio and batch.num_frames > 1)


def record(recorder: Recorder, sd: Any) -> Any:
    """What a prediction does before the transformer runs: sounds through their VAE, texts padded; the decoding of sound.

    Returns the VAE of pictures, beside which there may be one for sound.
    """
    if not hasattr(sd.vae, "audio_vae"):
        return sd.vae
    sd.encode_audio = recorder.wrap(sd.encode_audio, "encode_audio", lambda items, *_, **__: {"sounds": len(items)})
    sd.pad_embeds = recorder.wrap(sd.pad_embeds, "pad_embeds", lambda embeds: {"shape": list(embeds.text_embeds.shape)})
    sd.vae.audio_vae.decode = recorder.wrap(sd.vae.audio_vae.decode, "sound_decode")
    return sd.vae.vae
