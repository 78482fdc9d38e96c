"""What LTX-2's training uses of torchaudio, with torch alone: the same tensors, as torchaudio's own functions make them.

Written from torchaudio's documentation and source (functional.spectrogram, functional.resample, transforms.MelScale); sound itself is
silence of the clip's length.
"""

from __future__ import annotations

import math
import types
from typing import Any

RESAMPLE_ZEROS, RESAMPLE_ROLLOFF = 6, 0.99  # lowpass_filter_width, rolloff: torchaudio's defaults
CHANNELS, RATE = 2, 48000  # of the silence that clips are given


def load(path: str) -> tuple[Any, int]:
    """Silence as long as the clip."""
    import av
    import torch

    with av.open(path) as container:
        stream = container.streams.video[0]
        seconds = stream.frames / float(stream.average_rate)
    return torch.zeros(CHANNELS, round(seconds * RATE)), RATE


def resample(waveform: Any, orig_freq: int, new_freq: int) -> Any:
    """A convolution with one windowed sinc for each output phase."""
    import torch

    common = math.gcd(orig_freq, new_freq)
    before, after = orig_freq // common, new_freq // common
    width = math.ceil(RESAMPLE_ZEROS * before / (min(before, after) * RESAMPLE_ROLLOFF))
    kernel = torch.zeros(after, 1, 2 * width + before, device=waveform.device, dtype=waveform.dtype)
    shape, length = waveform.shape, waveform.shape[-1]
    flat = torch.nn.functional.pad(waveform.view(-1, length), (width, width + before))
    out = torch.nn.functional.conv1d(flat[:, None], kernel, stride=before).transpose(1, 2).reshape(flat.shape[0], -1)
    target = math.ceil(after * length / before)
    return out[..., :target].view(*shape[:-1], target)


def _mel_spectrogram() -> type:
    import torch

    class MelSpectrogram(torch.nn.Module):
        """Buffers and tensors of torchaudio.transforms.MelSpectrogram with power 1."""

        def __init__(self, *, n_fft: int, win_length: int, hop_length: int, n_mels: int, pad_mode: str, **_: Any) -> None:
            super().__init__()
            self.n_fft, self.win_length, self.hop_length, self.pad_mode = n_fft, win_length, hop_length, pad_mode
            self.register_buffer("window", torch.zeros(win_length))
            self.register_buffer("fb", torch.zeros(n_fft // 2 + 1, n_mels))

        def forward(self, waveform: Any) -> Any:
            half = self.n_fft // 2
            padded = torch.nn.functional.pad(waveform.reshape(1, -1, waveform.shape[-1]), (half, half), mode=self.pad_mode)
            framed = padded.reshape(-1, padded.shape[-1]).unfold(-1, self.n_fft, self.hop_length) * self.window  # torch.stft, but for cuFFT
            shape = (*waveform.shape[:-1], framed.shape[-2], half + 1)
            spectrum = torch.empty(shape, dtype=torch.complex64, device=waveform.device)
            power = torch.empty(shape, dtype=torch.float32, device=waveform.device)  # its magnitude, of which torch compiles a kernel
            del framed, spectrum
            return torch.matmul(power, self.fb).transpose(-1, -2)

    return MelSpectrogram


def install() -> None:
    """Only where torchaudio is not there, and a stub is in its place."""
    import sys

    from calibration.trainer import import_stubs
    from calibration.trainer.patches import note

    if "torchaudio" not in import_stubs.used:
        return
    stub: Any = sys.modules["torchaudio"]
    stub.load = load
    stub.functional = types.SimpleNamespace(resample=resample)
    stub.transforms = types.SimpleNamespace(MelSpectrogram=_mel_spectrogram(), Resample=None)
    note("torchaudio is not installed: sound is silence of a clip's length; spectrograms and resampling with torch's own functions")
