"""What the allocator's replay does not see, as named terms with a source each. Provisional until cards are calibrated.

- *context* and *desktop*: of the card (`profiles/gpus.yaml`).
- *cuDNN workspace*: of the VAE's convolutions, allocated by torch while it encodes or decodes.
- *tolerance*: how far the replay may be from the real allocator.
"""

from __future__ import annotations

from estimator.estimate import Interval
from estimator.gpus import Gpu
from estimator.residents import PhasePeak

# FluxPipeline's decoder at 1024 x 1024, batch 1, bf16: a real H100 peaked 2470.9 MiB over the model (diffusers-torchao's
# table), the emulated device 1573.0 MiB without workspaces and 2471.0 MiB with its `layout` estimate. For larger batches the
# real card took less than the estimate: so the estimate is the upper end, none the lower, and at batch 1 the likely figure.
CUDNN_BYTES_PER_PIXEL = round((2471.0 - 1573.0) * 2**20 / 1024**2)
# The bars of docs/accuracy.md: allocated within 1 %, reserved within 2 % of the emulated device on jobs not used for extraction.
ALLOCATED_TOLERANCE, RESERVED_TOLERANCE = 0.01, 0.02
VAE_MOMENTS = ("vae",)


def cudnn_workspace(peak: PhasePeak) -> Interval:
    """Bytes that cuDNN may add in a phase in which the VAE runs on images of the phase's size."""
    uses_vae = peak.phase in ("cache_latents", "sample") and peak.variant.width is not None and peak.variant.height is not None
    if not uses_vae:
        return Interval(0, 0, 0)
    assert peak.variant.width is not None
    assert peak.variant.height is not None
    pixels = peak.variant.width * peak.variant.height
    full = CUDNN_BYTES_PER_PIXEL * pixels
    return Interval(0, full, full)


def extra_at_peak(peak: PhasePeak) -> Interval:
    """The workspace as far as it raises the phase's peak: fully where the VAE is the peak, not at all otherwise."""
    return cudnn_workspace(peak) if peak.moment.startswith(VAE_MOMENTS) else Interval(0, 0, 0)


def outside(gpu: Gpu) -> Interval:
    """Bytes outside torch's allocator: context and desktop."""
    return Interval(
        gpu.context_low_bytes + gpu.desktop_low_bytes,
        gpu.context_bytes + gpu.desktop_bytes,
        gpu.context_high_bytes + gpu.desktop_high_bytes,
    )


def room(gpu: Gpu, peak_allocated_bytes: int) -> Interval:
    """Capacity for the allocator: low where everything else is at its high end, high where it is at its low end.

    The tolerance on what is allocated is taken off the low end, and added to the high one.
    """
    other = outside(gpu)
    tolerance = round(ALLOCATED_TOLERANCE * peak_allocated_bytes)
    return Interval(
        gpu.total_bytes - other.high_bytes - tolerance, gpu.total_bytes - other.likely_bytes, gpu.total_bytes - other.low_bytes + tolerance
    )
