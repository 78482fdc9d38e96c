"""What the trainer's Wan 2.2 5B does differently from Wan 2.1: clips that may begin with a picture, and previews that empty the card more.

Its transformer takes a timestep for each token: in every preview, and in the steps of a dataset with do_i2v, images among its clips
included. A given picture is one frame through the VAE, whatever the clip's length.

Source: ostris/ai-toolkit 27a03a91: extensions_built_in/diffusion_models/wan22/wan22_5b_model.py (get_noise_prediction,
generate_single_image), wan22_pipeline.py (Wan22Pipeline with aggressive_offload, transformer and transformer_2 being the same);
toolkit/models/wan21/wan_utils.py (add_first_frame_conditioning_v22); toolkit/dataloader_mixins.py (first_frame_latent).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from estimator.batches import Batch, encodes_latents, one_or_many
from estimator.job import Bucket, Sample
from estimator.operations import (
    BEGUN_PREVIEW,
    CORE,
    PREVIEW,
    TIMED_CORE,
    TIMED_IMAGE_CORE,
    EmptyCache,
    MoveIn,
    MoveOut,
    Operation,
    Part,
    Release,
)
from estimator.sizes import sizes_of
from estimator.wan import WanPlan, coded

GIVEN = "given frame"  # scope of what a given picture leaves: until a step's backward is over, or the round of previews


def _given(bucket: Bucket) -> bool:
    """Whether clips of this size begin with their own first frame; images have none to be given."""
    return bucket.begins and bucket.frames > 1


class Wan5bPlan(WanPlan):
    """Wan225bModel."""

    def cache_item(self, bucket: Bucket) -> Iterator[Operation]:
        if _given(bucket):
            yield from coded("latents.begun", "encode", {**sizes_of(self.arch, bucket), "B": 1}, "item")
        else:
            yield from super().cache_item(bucket)

    # ---- steps

    def core(self, bucket: Bucket) -> str:
        return TIMED_CORE if _given(bucket) else TIMED_IMAGE_CORE if bucket.begins else CORE

    def condition(self, bucket: Bucket, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        if _given(bucket):
            source = "encoded" if encodes_latents(self.job, bucket) else "cached"
            yield Part(f"step.given_frame/{source}/{one_or_many(values['B'])}", values, GIVEN)

    def _forward_backward(self, batch: Batch, accumulate: bool, when: str) -> Iterator[Operation]:
        yield from super()._forward_backward(batch, accumulate, when)
        yield Release(GIVEN)

    # ---- previews

    def before_prompts(self) -> Iterator[Operation]:
        if not self.text_away:
            yield from self.text_in()

    def before_pipeline(self, sample: Sample) -> Iterator[Operation]:
        if sample.controls:
            yield Part("preview.given_frame/one", {**sizes_of(self.arch, sample), "B": 1}, GIVEN)

    def denoising(self, sample: Sample) -> str:
        return BEGUN_PREVIEW if sample.controls else PREVIEW

    def sampling(self, when: str) -> Iterator[Operation]:
        yield from super().sampling(when)
        yield Release(GIVEN)

    def make_room(self) -> Iterator[Operation]:
        """All but the text encoder goes, which a cached prompt leaves a stand-in of; then it goes, and the transformer comes."""
        yield from (MoveOut("vae"), MoveOut("transformer"))
        if not self.text_cached:
            yield from self.text_in()
        yield EmptyCache()
        yield from self.text_out()
        yield from (MoveIn("transformer"), EmptyCache())
        yield from (MoveOut("transformer"), MoveIn("transformer"))  # as the second model of its own first step

    def decoding(self) -> Iterator[Operation]:
        """With low_vram the transformer is gone, and comes back after the round."""
        if self.job.model.low_vram:
            yield from (MoveOut("transformer"), MoveIn("vae"), EmptyCache())
