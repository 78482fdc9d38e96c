"""What the trainer's Flex.2 class does differently: more channels beside the noisy latents, of a mask and of a control image.

Every step joins latents under a mask, the mask and control latents to its noisy latents; zeros and ones where it has none, so that the
forward is the same. Which it has is drawn for each step; the estimate is of one that has all that the data set has. A control image goes
through the VAE as the batch's own pictures do, which are not cached then: the VAE is there.
Source: ostris/ai-toolkit 27a03a91, extensions_built_in/flex2/flex2.py (condition_noisy_latents), pipeline.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from estimator.batches import one_or_many
from estimator.controls import ENCODE, RAW, SMALL
from estimator.features import image_values
from estimator.job import Bucket, Sample
from estimator.operations import Operation, Part, Release
from estimator.prompts import PromptsApart


class Flex2Plan(PromptsApart):
    """Flex2. Its previews have the same channels, and one picture for them, or none."""

    def condition(self, bucket: Bucket, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        many, size = one_or_many(values["B"]), (bucket.width, bucket.height)
        if bucket.controls:
            resized = bucket.controls[0] == SMALL != size  # on the card, from 512 x 512 to the size of its picture
            yield from [_pictures(values["B"], SMALL, "small")] if resized else []
            yield _pictures(values["B"], size, "pictures")
            yield from [Release("small")] if resized else []
            yield Part(f"step.control/{many}", values, "control")
        yield Part(f"step.condition/{'masked' if bucket.masked else 'plain'}/{many}", values, scope)
        if bucket.controls:
            yield from (Release("control"), Release("pictures"))

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        """A picture's latents take the place of zeros."""
        for operation in super()._preview(sample, when):
            if sample.controls and isinstance(operation, Part) and operation.key.startswith("preview/"):
                yield _pictures(1, (sample.width, sample.height), "pictures")
                yield Part(ENCODE, image_values(sample.width, sample.height), "control")
                yield from (Release("pictures"), Release("control"))
            yield operation


def _pictures(count: int, size: tuple[int, int], scope: str) -> Part:
    return Part(RAW, {"R": count * size[0] * size[1]}, scope)
