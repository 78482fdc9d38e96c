"""What the trainer's Wan 2.1 I2V does differently from text to video: a picture goes through CLIP and, as a clip, through the VAE.

Both happen in every step, with a clip's own first frame, and in every preview, with a given picture. With low_vram the image encoder
waits on the host; and the trainer's presets of what is where are switched off, so that caching text moves nothing. Previews with low_vram
are refused by the reader: the trainer stops at the end of the first.

Source: ostris/ai-toolkit 27a03a91: toolkit/models/wan21/wan21_i2v.py (Wan21I2V),
toolkit/models/base_model.py (generate_images, restore_device_state);
diffusers c9438378: WanImageToVideoPipeline (encode_image, prepare_latents).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from estimator.batches import Batch, one_or_many
from estimator.job import Bucket, Dataset, Sample
from estimator.operations import CORE, Begin, EmptyCache, End, MoveIn, MoveOut, Operation, Part, Release
from estimator.sizes import sizes_of
from estimator.wan import WanPlan, coded, first_frame

FIRST_FRAME, PICTURE = "first frame", "picture"  # scopes of what the forward needs of them


class Wan21FromImagePlan(WanPlan):
    """Wan21I2V. Previews are never decoded in tiles."""

    tiles = False

    def load(self) -> Iterator[Operation]:
        """With low_vram the text encoder goes before the image encoder comes, and that goes too."""
        for operation in super().load():
            if self.job.model.low_vram and isinstance(operation, Part) and operation.key.startswith("load.rest"):
                yield from self.text_out()
            yield operation

    def _cache_text(self, dataset: Dataset, home: dict[str, bool]) -> Iterator[Operation]:
        low_vram, was = self.job.model.low_vram, dict(home)
        for operation in super()._cache_text(dataset, home):
            if not (low_vram and isinstance(operation, MoveOut)):
                yield operation
        if low_vram:
            home.update(transformer=was["transformer"])

    # ---- steps

    def condition(self, bucket: Bucket, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        many = one_or_many(values["B"])
        yield MoveIn("image_encoder")
        yield Part(f"step.picture/{many}", values, PICTURE)
        yield from first_frame(f"step.first_frame/{many}", bucket.width, bucket.height, bucket.frames, values["B"])

    def _forward_backward(self, batch: Batch, accumulate: bool, when: str) -> Iterator[Operation]:
        """What CLIP made of every layer, and the transformer's input, are let go when its forward is over."""
        for operation in super()._forward_backward(batch, accumulate, when):
            if isinstance(operation, Part) and operation.key.startswith(CORE):
                yield replace(operation, inside=((), (Release(PICTURE), Release(FIRST_FRAME))))
            else:
                yield operation

    # ---- previews

    def sampling(self, when: str) -> Iterator[Operation]:
        if self.job.model.low_vram:
            yield from self._without_previews(when)
        else:
            yield from super().sampling(when)

    def _without_previews(self, when: str) -> Iterator[Operation]:
        """With low_vram a round can have no previews, at the first of which the trainer stops; it moves what there is all the same."""
        yield Begin("sample", "baseline" if when == "first" else "with optimizer state")
        yield from (MoveOut("image_encoder"), MoveOut("vae"), MoveOut("transformer"), EmptyCache())
        yield Part(f"sample.enter/{self.weights}/{self.ema}/{when}", self.rank, "sampling")
        yield from self.text_out() if self.text_away else self.text_in()
        yield from (EmptyCache(), MoveIn("transformer"))
        yield Part(f"sample.leave/{self.weights}/{self.ema}/{when}", self.rank, "sampling")
        yield from (Release("sampling"), EmptyCache(), End())

    def before_pipeline(self, sample: Sample) -> Iterator[Operation]:
        values = {**sizes_of(self.arch, sample), "B": 1}
        yield Part("preview.picture/one", values, "preview")
        yield from coded("preview.first_frame/one", "encode", values, "preview")
