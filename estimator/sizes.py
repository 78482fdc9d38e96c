"""What sizes of a bucket's or a preview's tensors depend on, as its architecture counts pixels, frames and sound."""

from __future__ import annotations

from estimator.archs import Arch
from estimator.features import Cells, image_values
from estimator.job import Bucket, Sample
from estimator.levels import UNET, levels


def sizes_of(arch: Arch, of: Bucket | Sample) -> dict[str, int]:
    """Values of the variables (estimator.features) that do not depend on batch, text or rank."""
    values = image_values(of.width, of.height, of.frames, Cells(arch.cell_pixels, arch.cell_frames))
    if arch.model_class == UNET:
        return {**values, **levels(of.width, of.height)}
    return {**values, "O": of.sound_tokens} if arch.sound_per_second else values
