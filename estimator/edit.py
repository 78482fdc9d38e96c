"""What the trainer's Qwen-Image classes do differently; the edits': control images in prompts, behind the image's tokens, and in previews.

A training step encodes each control image with the VAE, by the function that caches latents, so that the VAE comes to the card in the first
step and stays; the transformer then gets the tokens of all images. Cached text keeps the vision tower's graph like any other.
Source: ostris/ai-toolkit 27a03a91: extensions_built_in/diffusion_models/qwen_image/qwen_image_edit_plus.py, qwen_image_pipelines.py,
extensions_built_in/sd_trainer/SDTrainer.py (cache_sample_prompts, get_blank_control_image, prompt_kwargs), toolkit/models/base_model.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from estimator.batches import Batch
from estimator.controls import BLANK, ENCODE, RAW, TOKEN, Size, cells, latent_size, pixels, vision_area
from estimator.features import image_values
from estimator.job import Bucket, Dataset, Sample
from estimator.operations import Copy, MoveIn, MoveOut, Operation, Part, Release
from estimator.phases import Plan
from estimator.stays import PROMPTS

Pictures = tuple[Size, ...]
TILE_PIXELS = 256  # AutoencoderKLQwenImage: tile_sample_min_height, tile_sample_min_width


class QwenPlan(Plan):
    """QwenImageModel: a step trains on a copy of the prompts that it has encoded (PromptEmbeds.detach), made behind them."""

    def head(self, key: str, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        """With encoded latents its program has no prompts: those that are on the card already are copied too."""
        yield Part(key, values, scope)
        if self.text_away and key.split("/")[2] == "encoded":
            yield Part(PROMPTS, {"X": values["B"] * values["X"], "N": 0}, scope)

    def encode_batch(self, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        yield self.encode(values["X"], "embeddings", values["B"])
        yield Copy("embeddings", scope)
        yield Release("embeddings")


class QwenEditPlan(QwenPlan):
    """QwenImageEditPlusModel. `blank`: what a text without pictures is encoded with."""

    blank: Pictures = (BLANK,)

    # ---- prompts

    def cells(self, pictures: Pictures) -> int:
        """Of all pictures, as the vision tower gets them."""
        return sum(cells(one, vision_area(self.arch.control_images)) for one in pictures)

    def seen(self, text: Part, pictures: Pictures, tokens: int | None = None) -> Part:
        """An encode of a text, with the pictures it is encoded with: a blank one, where there are none.

        Texts of a batch come one by one, as the trainer's loop has them (it stops in the first, if there are several: the reader says so).
        """
        pictures = pictures or self.blank
        if not pictures:
            return text if tokens is None else replace(text, values={**text.values, "X": tokens})
        values = {**text.values, "I": self.cells(pictures), "B": 1, "X": text.values["X"] if tokens is None else tokens}
        return replace(text, key=f"{text.key.removesuffix('/many').removesuffix('/one')}/one/{len(pictures)} images", values=values)

    def prepare(self) -> Iterator[Operation]:
        """The empty prompt, with a blank picture, twice if text is cached; then the prompts of previews, with theirs."""
        texts: list[tuple[Pictures, int | None]] = [((), None)] * (2 if self.text_away else 1)
        texts += [(sample.seen, tokens) for sample in self.samples for tokens in self.prompts_of(sample)]
        told = iter(texts)
        for operation in super().prepare():
            if isinstance(operation, Part) and operation.key.startswith("text/"):
                pictures, tokens = next(told)
                if tokens is not None:
                    yield Part(RAW, {"R": pixels(pictures)}, "prompt")
                yield self.seen(operation, pictures, tokens)
                if tokens is not None:
                    yield Release("prompt")
            else:
                yield operation

    def _cache_text(self, dataset: Dataset, home: dict[str, bool]) -> Iterator[Operation]:
        """The last picture stays as it was read until the next is: the trainer's variable holds it."""
        longest = max(dataset.buckets, key=lambda b: (len(b.controls), b.text_tokens))
        pictures = longest.controls
        for operation in super()._cache_text(dataset, home):
            if isinstance(operation, Part):
                yield Part(RAW, {"R": pixels(pictures[-1:])}, "item")
                yield self.seen(operation, pictures, longest.text_tokens or dataset.text_tokens)
            else:
                yield operation

    # ---- control images

    def latents_of(self, pictures: Pictures, target: Size) -> list[dict[str, int]]:
        """Values of each control image as the VAE encodes it in a training step."""
        goal = target if self.job.model.match_target_res else None
        return [image_values(*latent_size(picture, goal)) for picture in pictures]

    def of_preview(self, sample: Sample) -> list[dict[str, int]]:
        """Values of each control image as the VAE encodes it for a preview."""
        return [image_values(*latent_size(picture)) for picture in sample.controls]

    def in_step(self, bucket: Bucket) -> Pictures:
        """Control images of a bucket's picture as a step has them."""
        return bucket.controls

    def _forward_backward(self, batch: Batch, accumulate: bool, when: str) -> Iterator[Operation]:
        """One control image (of each item) is on the card from before the prompts to the end of the step; several come one by one."""
        pictures, bucket = self.in_step(batch.bucket), batch.bucket
        held = Part(RAW, {"R": batch.size * pixels(pictures)}, "step") if len(pictures) == 1 else None
        latents = self.latents_of(pictures, (bucket.width, bucket.height))
        for operation in super()._forward_backward(batch, accumulate, when):
            if isinstance(operation, Part) and operation.key.startswith("text/"):
                yield from [held] if held else []
                held = None
                yield self.seen(operation, pictures)
            elif isinstance(operation, Part) and operation.key.startswith("step.core"):
                yield from [held] if held else []
                yield MoveIn("vae")
                yield from self.encoded_in_step(pictures, latents)  # of each item the same again, in the same blocks
                part = replace(operation, values=self.with_controls(operation, latents))
                yield replace(part, inside=((), (Release("picture"),))) if pictures else part
            else:
                yield operation

    def encoded_in_step(self, pictures: Pictures, latents: list[dict[str, int]]) -> Iterator[Operation]:
        """A single picture is read onto the card, scaled, doubled and shifted, and encoded; it stays until the forward is over.

        As the events of a whole run have it. Of several no step was laid beside its events: their own copies are left out.
        """
        if len(pictures) != 1:
            yield from self.encoded(latents)
            return
        scaled = {"R": latents[0]["T"] * TOKEN**2}
        yield from (Part(RAW, {"R": pixels(pictures)}, "read"), Part(RAW, scaled, "scaled"), Release("read"))
        yield from (Part(RAW, scaled, "doubled"), Part(RAW, scaled, "picture"), Release("doubled"), Release("scaled"))
        yield from (Part(RAW, scaled, "control"), Part(ENCODE, latents[0], "control"), Release("control"))

    def encoded(self, latents: list[dict[str, int]]) -> Iterator[Operation]:
        for values in latents:
            yield Part("cache_latents.item", values, "control")
            yield Release("control")

    def with_controls(self, part: Part, latents: list[dict[str, int]]) -> dict[str, int]:
        """The tokens of all images in place of those of one; and of each image tokens and edge (positions.py)."""
        each = {f"{name}_{n}": values[name] for n, values in enumerate((part.values, *latents)) for name in ("T", "E")}
        return {**part.values, "T": part.values["T"] + sum(values["T"] for values in latents), **each}

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        """With low_vram the VAE encodes in tiles, one like the other, whose results are small."""
        latents = self.of_preview(sample)
        tokens = iter(self.prompts_of(sample))
        if not self.text_away:
            yield Part(RAW, {"R": pixels(sample.controls)}, "preview")
        for operation in super()._preview(sample, when):
            if isinstance(operation, Part) and operation.key.startswith("text/"):
                yield self.seen(operation, sample.seen, next(tokens))
            elif isinstance(operation, Part) and operation.key.startswith("preview/"):
                yield from self.encoded([image_values(TILE_PIXELS, TILE_PIXELS)] if self.job.model.low_vram and latents else latents)
                positive, negative = self.prompts_of(sample)
                yield from self.prompts_from_cache(sample, when)
                yield replace(operation, values={**self.with_controls(operation, latents), "X": positive, "N": negative})
            elif operation == Release("preview"):
                yield operation
                yield from self.prompts_stay(sample, when)
            else:
                yield operation

    def prompts_from_cache(self, sample: Sample, when: str) -> Iterator[Operation]:
        """Cached prompts move to the card in a preview's first round and stay, some 7 KB for each token of text and pictures.

        Programs of previews make them anew, but for later rounds in bf16: in their place, then.
        """
        if self.text_away and not self.found_there(when):
            yield Release(self._kept(sample))
        elif self.text_away and self.job.train.skip_first_sample:
            yield from self.prompts_stay(sample, "first")

    def prompts_stay(self, sample: Sample, when: str) -> Iterator[Operation]:
        """After a preview: its prompts, which its program made as all else that goes with it."""
        positive, negative = self.prompts_of(sample)
        if self.text_away and not self.found_there(when):
            yield Part(PROMPTS, {"X": positive, "N": negative}, self._kept(sample))

    def found_there(self, when: str) -> bool:
        """The program of a preview is one that finds its cached prompts on the card."""
        return self.weights == "bf16" and when == "later"

    def _kept(self, sample: Sample) -> str:
        return f"prompts of preview {self.samples.index(sample)}"

    def sampling(self, when: str) -> Iterator[Operation]:
        """After the first step the VAE is on the card for good."""
        for operation in super().sampling(when):
            if when == "first" or operation != MoveOut("vae"):
                yield operation


class QwenFirstEditPlan(QwenEditPlan):
    """QwenImageEditModel: one control image, in the prompt at a megapixel and behind the image's tokens at the image's own size.

    A text without one is encoded as it is, and a preview's is a megapixel in the preview's shape. Batches of several are not modelled.
    Source: qwen_image_edit.py (condition_noisy_latents, get_prompt_embeds, generate_single_image); diffusers, pipeline_qwenimage_edit.py.
    """

    blank = ()

    def in_step(self, bucket: Bucket) -> Pictures:
        return ((bucket.width, bucket.height),) if bucket.controls else ()

    def latents_of(self, pictures: Pictures, target: Size) -> list[dict[str, int]]:
        return [image_values(*target) for _ in pictures]

    def encoded_in_step(self, pictures: Pictures, latents: list[dict[str, int]]) -> Iterator[Operation]:
        """What was read onto the card is doubled, shifted and encoded, and gone when that is done."""
        for values in latents:
            size = {"R": values["T"] * TOKEN**2}
            yield from (Part(RAW, size, "doubled"), Part(RAW, size, "control"), Release("doubled"))
            yield from (Part(RAW, size, "control"), Part(ENCODE, values, "control"), Release("control"))

    def of_preview(self, sample: Sample) -> list[dict[str, int]]:
        return [image_values(*latent_size((sample.width, sample.height))) for _ in sample.controls]
