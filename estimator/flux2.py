"""What the trainer's FLUX.2 classes do differently: control images are tokens behind the image's, klein's text encoder waits on the host.

Source: ostris/ai-toolkit 27a03a91: extensions_built_in/diffusion_models/flux2/flux2_klein_model.py (load_te), flux2_model.py (load_te, end
of load_model, get_noise_prediction, generate_single_image), src/sampling.py (encode_image_refs).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from estimator.batches import Batch, one_or_many
from estimator.controls import ENCODE, RAW, Size, capped, capped_size, scaled
from estimator.features import image_values
from estimator.job import Sample
from estimator.operations import EmptyCache, MoveIn, Operation, Part, Release
from estimator.prompts import PromptsApart, VaeStays
from estimator.references import CROPPED, REFERENCED
from estimator.stays import TOKENS

COPIES = 2  # of a preview's prompt before its control images are encoded: repeated, and that one stacked (src/pipeline.py: encode_prompt)


class Flux2Plan(VaeStays, PromptsApart):
    """Flux2Model: the text encoder is loaded and quantised on the card, and with low_vram leaves it until the first prompt is encoded.

    Each step encodes the control images, item by item, with the function that caches latents; the transformer then gets the tokens of all
    images, as it would get those of a larger one.
    """

    @property
    def text_home(self) -> bool:
        return not self.job.model.low_vram

    def after_loading(self) -> Iterator[Operation]:
        yield EmptyCache()
        if self.job.model.low_vram:
            yield from self.text_out()
        else:
            yield from self.text_in()
            yield MoveIn("transformer")
        yield EmptyCache()

    def _forward_backward(self, batch: Batch, accumulate: bool, when: str) -> Iterator[Operation]:
        pictures, bucket = batch.bucket.controls, batch.bucket
        target = (bucket.width, bucket.height) if self.job.model.match_target_res else None
        sizes = [capped_size(picture, target) for picture in pictures]
        for operation in super()._forward_backward(batch, accumulate, when):
            if pictures and isinstance(operation, Part) and operation.key.startswith("step.core"):
                core, recorded, rules = operation.key.partition(f"/{one_or_many(batch.size)}")
                encoding = tuple(_references(pictures, target, batch.size))
                # the trainer's variables hold the last item's pictures, its tokens and those of all until the forward is over
                over = tuple(Release(scope) for scope in ("pictures", _item(batch.size - 1), _items(batch.size)))
                part = replace(operation, key=f"{core}{recorded}{REFERENCED}{rules}", inside=(encoding, over))
                yield _with_tokens(replace(part, values={**part.values, "Q": part.values["T"]}), sizes)
            else:
                yield operation

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        sizes = [capped_size(picture) for picture in sample.controls]
        for operation in super()._preview(sample, when):
            if sizes and isinstance(operation, Part) and operation.key.startswith("preview/"):
                for _ in range(2 * COPIES if "/cfg/" in operation.key else COPIES):
                    yield Part("step.prompts/one", operation.values, "stacked")
                for size in sizes:
                    yield Part(RAW, {"R": _area(size)}, "pictures")
                    yield Part(ENCODE, image_values(*size), "control")
                    yield Release("pictures")
                yield Part(TOKENS, {"T": _tokens(sizes)}, "references")
                yield from (Release("control"), Release("stacked"))
                yield Part(TOKENS, {"T": operation.values["T"]}, "references")  # joined with the latents anew in each step
                yield _with_tokens(operation, sizes)
                yield Release("references")
            else:
                yield operation


class Flux2KleinPlan(Flux2Plan):
    """Flux2KleinModel: the text encoder is quantised on the host, and with low_vram it stays there until the first prompt is encoded."""

    def load_text(self) -> Operation:
        return Part(f"load.text/{self.te_weights}/{self.low}")


def _area(size: Size) -> int:
    return size[0] * size[1]


def _tokens(sizes: list[Size]) -> int:
    return sum(image_values(*size)["T"] for size in sizes)


def _item(number: int) -> str:
    """The scope of the tokens of one item's control images."""
    return f"tokens of item {number}"


def _items(count: int) -> str:
    """That of the tokens of the first items' joined; of a single item's own."""
    return f"tokens of {count} items" if count > 1 else _item(0)


def _references(pictures: tuple[Size, ...], target: Size | None, count: int) -> Iterator[Operation]:
    """The control images of a batch through the VAE, item by item; the tokens of each are joined to those before."""
    kept = _tokens([capped_size(picture, target) for picture in pictures])
    for number in range(count):
        yield Release("pictures")
        yield from _prepared(pictures, target)
        yield MoveIn("vae")
        yield from _encoded(pictures, target)
        yield Part(TOKENS, {"T": kept}, _item(number))
        yield Release("control")
        if number:
            yield from [Release(_item(number - 1))] if number > 1 else []
            yield Part(TOKENS, {"T": kept * (number + 1)}, _items(number + 1))
            yield Release(_items(number))


def _prepared(pictures: tuple[Size, ...], target: Size | None) -> Iterator[Operation]:
    """An item's control images on the card: as read, perhaps resized, doubled, shifted."""
    for picture in pictures:
        yield Part(RAW, {"R": _area(picture)}, "read")
        if target is not None:
            picture = scaled(picture, _area(target))
            yield Part(RAW, {"R": _area(picture)}, "resized")
            yield Release("read")
        yield Part(RAW, {"R": _area(picture)}, "doubled")
        yield Part(RAW, {"R": _area(picture)}, "pictures")
        yield from (Release("doubled"), Release("read"), Release("resized"))


def _encoded(pictures: tuple[Size, ...], target: Size | None) -> Iterator[Operation]:
    """Copies of those control images that are too large, then each through the VAE. All go together."""
    for picture in pictures:
        if capped(picture, target) != (picture if target is None else scaled(picture, _area(target))):
            yield Part(RAW, {"R": _area(capped(picture, target))}, "control")
    for picture in pictures:
        size = capped_size(picture, target)
        yield Part(ENCODE if size == capped(picture, target) else CROPPED, image_values(*size), "control")


def _with_tokens(part: Part, sizes: list[Size]) -> Part:
    """With the tokens of all images in place of those of one."""
    return replace(part, values={**part.values, "T": part.values["T"] + _tokens(sizes)})
