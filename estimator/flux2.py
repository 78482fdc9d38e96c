"""What the trainer's FLUX.2 klein class does differently: its text encoder waits on the host, control images are tokens behind the image's.

Source: ostris/ai-toolkit 27a03a91: extensions_built_in/diffusion_models/flux2/flux2_klein_model.py (load_te), flux2_model.py (end of
load_model, get_noise_prediction, generate_single_image), src/sampling.py (encode_image_refs).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from estimator.batches import Batch
from estimator.controls import RAW, Size, capped_size, pixels
from estimator.features import image_values
from estimator.job import Sample
from estimator.operations import EmptyCache, MoveIn, Operation, Part, Release
from estimator.prompts import PromptsApart, VaeStays


class Flux2KleinPlan(VaeStays, PromptsApart):
    """Flux2KleinModel: the text encoder is quantised on the host, and with low_vram it stays there until the first prompt is encoded.

    Each step encodes the control images, item by item, with the function that caches latents; the transformer then gets the tokens of all
    images, as it would get those of a larger one.
    """

    @property
    def text_home(self) -> bool:
        return not self.job.model.low_vram

    def load_text(self) -> Operation:
        return Part(f"load.text/{self.te_weights}/{self.low}")

    def after_loading(self) -> Iterator[Operation]:
        if not self.job.model.low_vram:
            yield from self.text_in()
            yield MoveIn("transformer")
        if self.job.model.layer_offloading:  # taken off the card after they were moved there (flush, end of load_model)
            yield EmptyCache()

    def _forward_backward(self, batch: Batch, accumulate: bool, when: str) -> Iterator[Operation]:
        pictures, bucket = batch.bucket.controls, batch.bucket
        target = (bucket.width, bucket.height) if self.job.model.match_target_res else None
        sizes = [capped_size(picture, target) for picture in pictures]
        for operation in super()._forward_backward(batch, accumulate, when):
            if pictures and isinstance(operation, Part) and operation.key.startswith("step.core"):
                yield MoveIn("vae")
                for _ in range(batch.size):
                    yield Part(RAW, {"R": pixels(pictures if target is None else tuple(sizes))}, "pictures")
                    yield from _encoded(sizes)
                    yield Release("pictures")
                yield _with_tokens(operation, sizes)
            else:
                yield operation

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        sizes = [capped_size(picture) for picture in sample.controls]
        for operation in super()._preview(sample, when):
            if sizes and isinstance(operation, Part) and operation.key.startswith("preview/"):
                yield from _encoded(sizes)
                yield _with_tokens(operation, sizes)
            else:
                yield operation


def _encoded(sizes: list[Size]) -> Iterator[Operation]:
    """Control images through the VAE, one after the other."""
    for size in sizes:
        yield Part("cache_latents.item", image_values(*size), "control")
        yield Release("control")


def _with_tokens(part: Part, sizes: list[Size]) -> Part:
    """With the tokens of all images in place of those of one."""
    more = sum(image_values(*size)["T"] for size in sizes)
    return replace(part, values={**part.values, "T": part.values["T"] + more})
