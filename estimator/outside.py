"""What lies beside the replay's figures on a card, as intervals: context and desktop, cuDNN's workspace, and the room that is left.

- *context* and *desktop*: of the card (`profiles/gpus.yaml`, or its calibration).
- *cuDNN workspace*: of the VAE's convolutions, allocated by torch while it encodes or decodes; of those that Z-Image L2P ends in.
- *residual*: how far a card may be from the replay (`intervals`).
"""

from __future__ import annotations

from collections.abc import Iterable

from estimator.gpus import Gpu
from estimator.residents import DECODER_MOMENTS, VAE_MOMENTS, PhasePeak
from estimator.residual import NOTHING, Interval, Residual, interval


def cudnn_workspace(peak: PhasePeak, residual: Residual) -> Interval:
    """Bytes that cuDNN may add in a phase in which the VAE, or convolutions of the transformer, run on images of the phase's size."""
    own = peak.moment.startswith(DECODER_MOMENTS)
    if not own and peak.phase not in ("cache_latents", "sample"):
        return NOTHING
    if peak.variant.width is None or peak.variant.height is None:
        return NOTHING
    images, each = (peak.variant.batch or 1) if own else 1, residual.cudnn_bytes_per_pixel
    pixels = images * peak.variant.width * peak.variant.height
    return Interval(pixels * each.low_bytes, pixels * each.likely_bytes, pixels * each.high_bytes)


def extra_at_peak(peak: PhasePeak, residual: Residual) -> Interval:
    """The workspace as far as it raises the phase's peak: fully where the VAE is the peak, not at all otherwise."""
    return cudnn_workspace(peak, residual) if peak.moment.startswith(VAE_MOMENTS) else NOTHING


def outside(gpu: Gpu) -> Interval:
    """Bytes outside torch's allocator: context and desktop."""
    return Interval(
        gpu.context_low_bytes + gpu.desktop_low_bytes,
        gpu.context_bytes + gpu.desktop_bytes,
        gpu.context_high_bytes + gpu.desktop_high_bytes,
    )


def allocated_on_card(peak: PhasePeak, residual: Residual) -> Interval:
    """What the phase allocates on a real card, without cuDNN's workspace."""
    return interval(peak.allocated_bytes, residual.spread("allocated", peak.phase))


def room(gpu: Gpu, residual: Residual, peaks: Iterable[PhasePeak]) -> Interval:
    """Capacity for the replayed job: low where everything else is at its high end, high where it is at its low end.

    What a card may allocate more than the replay says is taken off the capacity instead: the largest difference of any phase, at each end.
    """
    other = outside(gpu)
    allocated = [(each.allocated_bytes, allocated_on_card(each, residual)) for each in peaks]
    more = max((size.high_bytes - replayed for replayed, size in allocated), default=0)
    likely = max(allocated, key=lambda each: each[0], default=(0, NOTHING))
    less = max((replayed - size.low_bytes for replayed, size in allocated), default=0)
    return Interval(
        gpu.total_bytes - other.high_bytes - more,
        gpu.total_bytes - other.likely_bytes - (likely[1].likely_bytes - likely[0]),
        gpu.total_bytes - other.low_bytes + less,
    )


def most_bytes(gpu: Gpu, residual: Residual, peak: PhasePeak) -> int:
    """What a phase may allocate by the replay and still fit, with everything at its low end: by its own interval, not the widest of all."""
    return gpu.total_bytes - outside(gpu).low_bytes + peak.allocated_bytes - allocated_on_card(peak, residual).low_bytes
