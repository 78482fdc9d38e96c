"""What models on pixels do differently: predictions are as large as pictures, and those of a preview's step before are there in the next.

Source: diffusers c9438378, ZImagePipeline.__call__, and the trainer's ChromaPipeline.__call__: names of a loop keep what they stand for
until they are assigned again, behind the next forward. Previews were recorded in one step. Beside a VAE, whose latents are a twelfth or
less, it is nothing (12 MiB a preview of 2048 px).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from estimator.job import Sample
from estimator.operations import PREVIEW, End, Operation, Part, Release
from estimator.phases import Plan
from estimator.stays import ANGLES, PIXELS_BEFORE

KEPT = "step before"  # scope


class PixelPreviews(Plan):
    """`kept`: what stays of a step, without guidance and with (estimator.stays)."""

    kept: tuple[str, str]

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        for operation in super()._preview(sample, when):
            denoising = isinstance(operation, Part) and operation.key.startswith(f"{PREVIEW}/")
            if denoising and isinstance(operation, Part):
                yield replace(operation, scope="first step")
                yield Release("first step")
                yield Part(f"{PIXELS_BEFORE}/{self.kept[sample.guided]}", operation.values, KEPT)
            yield operation
            yield from [Release(KEPT)] if denoising else []


class L2pPlan(PixelPreviews):
    """ZImageL2PModel: Z-Image's class with a stand-in for the VAE."""

    kept = ("zimage", "zimage guided")

    def prepare(self) -> Iterator[Operation]:
        for operation in super().prepare():
            yield from [Part(ANGLES, {}, "job")] if isinstance(operation, End) else []  # before the first forward, wherever that is
            yield operation
