"""What the trainer's Qwen-Image classes do differently; the edits': control images in prompts, behind the image's tokens, and in previews.

A training step encodes each control image with the VAE, by the function that caches latents, so that the VAE comes to the card in the first
step and stays; the transformer then gets the tokens of all images. Cached text keeps the vision tower's graph like any other.
Source: ostris/ai-toolkit 27a03a91: extensions_built_in/diffusion_models/qwen_image/qwen_image_edit_plus.py, qwen_image_pipelines.py,
extensions_built_in/sd_trainer/SDTrainer.py (cache_sample_prompts, get_blank_control_image, prompt_kwargs), toolkit/models/base_model.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from estimator.batches import Batch, one_or_many, texts_cached
from estimator.controls import BLANK, ENCODE, RAW, TOKEN, Size, cells, latent_size, pixels, scaled, vision_area
from estimator.edited import ALONE, EDITED, FLUSHED
from estimator.edited import TOGETHER as TEXTS_TOGETHER
from estimator.features import image_values
from estimator.job import Bucket, Dataset, Sample
from estimator.operations import Copy, EmptyCache, MoveIn, MoveOut, Operation, Part, Release
from estimator.phases import Plan
from estimator.references import TOGETHER
from estimator.stays import LATENT, PROMPTS

Pictures = tuple[Size, ...]
OF_FORWARD = "picture", "latent", "tokens"  # scopes: what the trainer's variables hold of control images until the forward is over
MORE_TEMPLATE_TOKENS = 64 - 34  # before a prompt: of QwenImageEditPipeline and QwenImagePipeline (prompt_template_encode_start_idx)
TILE_PIXELS = 256  # AutoencoderKLQwenImage: tile_sample_min_height, tile_sample_min_width


class QwenPlan(Plan):
    """QwenImageModel: a step trains on a copy of the prompts that it has encoded (PromptEmbeds.detach), made behind them."""

    def head(self, key: str, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        """With encoded latents its program has no prompts: those that are on the card already are copied too."""
        yield Part(key, values, scope)
        if self.text_away and key.split("/")[2] == "encoded":
            yield Part(PROMPTS, {"X": values["B"] * values["X"], "N": 0}, scope)

    def prepare(self) -> Iterator[Operation]:
        """What stays of the first empty prompt is a copy, as in a step."""
        copied = False
        for operation in super().prepare():
            if isinstance(operation, Part) and operation.scope == "job" and not copied:
                yield from (replace(operation, scope="embeddings"), Copy("embeddings", "job"), Release("embeddings"))
                copied = True
            else:
                yield operation

    def encode_batch(self, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        yield self.encode(values["X"], "embeddings", values["B"])
        yield Copy("embeddings", scope)
        yield Release("embeddings")


class QwenEditPlan(QwenPlan):
    """QwenImageEditPlusModel. `blank`: what a text without pictures is encoded with."""

    blank: Pictures = (BLANK,)
    flushes = rescales = False  # previews: with low_vram, the cache behind each step of denoising; guidance, the prediction
    joins = True  # tokens of a preview's control images, behind one another

    # ---- prompts

    def cells(self, pictures: Pictures) -> int:
        """Of all pictures, as the vision tower gets them."""
        return sum(cells(one, vision_area(self.arch.control_images)) for one in pictures)

    def read(self, seen: Pictures) -> Pictures:
        """What is read onto the card for the prompts of a preview: what they are encoded with."""
        return seen

    def seen(self, text: Part, pictures: Pictures, tokens: int | None = None) -> Part:
        """An encode of a text, with the pictures it is encoded with: a blank one, where there are none.

        Texts of a batch come one by one, as the trainer's loop has them (it stops in the first, if there are several: the reader says so).
        """
        pictures = pictures or self.blank
        if not pictures:
            return text if tokens is None else replace(text, values={**text.values, "X": tokens})
        shown = pixels(tuple(scaled(one, vision_area(self.arch.control_images)) for one in pictures))
        seen = self.cells(pictures)
        values = {**text.values, "I": seen, "Ib": seen, "R": shown, "B": 1}
        values["X"] = text.values["X"] if tokens is None else tokens
        return replace(text, key=f"{text.key.removesuffix('/many').removesuffix('/one')}/one/{len(pictures)} images", values=values)

    def prepare(self) -> Iterator[Operation]:
        """The empty prompt, with a blank picture, twice if text is cached; then the prompts of previews, with theirs."""
        texts: list[tuple[Pictures, int | None]] = [((), None)] * (2 if self.text_away else 1)
        texts += [(sample.seen, tokens) for sample in self.samples for tokens in self.prompts_of(sample)]
        told, shown = iter(texts), False
        for operation in super().prepare():
            if isinstance(operation, Part) and operation.key.startswith("text/"):
                pictures, tokens = next(told)
                if tokens is not None and not shown:  # of a preview: as it was read, until both prompts are encoded
                    yield from (Part(RAW, {"R": pixels((one,))}, "shown") for one in self.read(pictures))
                    shown = True
                yield self.seen(operation, pictures, tokens)
                if tokens is not None:
                    yield Release("prompt")
            elif operation == Release("prompt"):
                yield Release("shown")
                shown = False
            else:
                yield operation

    def _cache_text(self, dataset: Dataset, home: dict[str, bool]) -> Iterator[Operation]:
        """Pictures are read before the text encoder comes; the last stays as it was read until the next is: a variable holds it."""
        longest = max(dataset.buckets, key=lambda b: (len(b.controls), b.text_tokens))
        read, last = longest.controls[:-1], Part(RAW, {"R": pixels(longest.controls[-1:])}, "item")
        texts = iter(self._texts(dataset, longest))
        began = came = False
        for operation in super()._cache_text(dataset, home):
            if isinstance(operation, MoveIn) and not began:
                yield from (Part(RAW, {"R": pixels(read)}, "read"), last)
                began = True
            if isinstance(operation, Part):
                yield from [last] if came else [Release("read")]
                yield self.seen(operation, longest.controls, next(texts))
                came = True
            else:
                yield operation

    def _texts(self, dataset: Dataset, longest: Bucket) -> tuple[int | None, ...]:
        """Tokens of the texts that are cached one after the other, pictures among them; of the longest, where pictures are not alike."""
        most = longest.text_tokens or dataset.text_tokens
        texts = texts_cached(dataset, most or 0, self.arch.text_tokens("", longest.controls or None))
        alike = {self.cells(bucket.controls) for bucket in dataset.buckets} == {self.cells(longest.controls)}
        return texts if most and alike else (most,) * len(texts)

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
                yield self.with_pictures(operation, batch.size, pictures, latents)
            else:
                yield operation

    def with_pictures(self, core: Part, count: int, pictures: Pictures, latents: list[dict[str, int]]) -> Part:
        """The core with control images: encoded item by item behind the packed latents, the last one's tokens there until it is over."""
        encoding = (MoveIn("vae"), *(self.encoded_in_batch(count, pictures, latents) if pictures else ()))
        if not pictures:
            return replace(core, inside=(encoding, ()))
        head, recorded, rules = core.key.partition(f"/{one_or_many(count)}")
        values = {**self.with_controls(core, latents), "Q": core.values["T"]}
        return replace(core, key=f"{head}{recorded}{EDITED}{rules}", values=values, inside=(encoding, tuple(map(Release, OF_FORWARD))))

    def encoded_in_batch(self, count: int, pictures: Pictures, latents: list[dict[str, int]]) -> Iterator[Operation]:
        """Control images of so many items, one item after the other."""
        for _ in range(count):
            yield from self.encoded_in_step(pictures, latents)

    def encoded_in_step(self, pictures: Pictures, latents: list[dict[str, int]]) -> Iterator[Operation]:
        """Each picture of an item is read onto the card, scaled, doubled and shifted, and encoded; the trainer's variables hold the last.

        Its latent is shifted and scaled, and packed into tokens; those of all pictures are joined. As the events of a whole run have it. Of
        several whose prompt is encoded in the step, what that has scaled has taken their place in the batch's own list.
        """
        yield Release("tokens")
        for picture, latent in zip(pictures, latents, strict=True):
            size = {"R": latent["T"] * TOKEN**2}
            if len(pictures) > 1 and not self.text_away:
                picture = scaled(picture, vision_area(self.arch.control_images))
            yield from (Release("picture"), Part(RAW, {"R": pixels((picture,))}, "read"), Part(RAW, size, "scaled"), Release("read"))
            yield from (Part(RAW, size, "doubled"), Part(RAW, size, "picture"), Release("doubled"), Release("scaled"))
            yield from (Part(RAW, size, "shown"), Part(ENCODE, latent, "control"))
            yield from (Part(LATENT, latent, "control"), Part(LATENT, latent, "control"), Part(LATENT, latent, "shown"), Release("control"))
            yield from (Part(LATENT, latent, "shown"), Release("latent"), Part(LATENT, latent, "latent"), Release("shown"))
            yield Part(LATENT, latent, "tokens")
        yield Part(LATENT, {"T": sum(latent["T"] for latent in latents)}, "tokens")

    def with_controls(self, part: Part, latents: list[dict[str, int]]) -> dict[str, int]:
        """The tokens of all images in place of those of one; and of each image tokens and edge (positions.py)."""
        each = {f"{name}_{n}": values[name] for n, values in enumerate((part.values, *latents)) for name in ("T", "E")}
        return {**part.values, "T": part.values["T"] + sum(values["T"] for values in latents), **each}

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        """No flush between denoising and decoding, whatever low_vram says (qwen_image_edit_plus.py: flush_between_steps = False)."""
        tokens = iter(self.prompts_of(sample))
        if not self.text_away:
            yield from (Part(RAW, {"R": pixels((one,))}, "preview") for one in self.read(sample.seen))
        denoising = False
        for operation in super()._preview(sample, when):
            if isinstance(operation, Part) and operation.key.startswith("text/"):
                yield self.seen(operation, sample.seen, next(tokens))
            elif isinstance(operation, Part) and operation.key.startswith("preview/"):
                yield from self.prompts_from_cache(sample, when)
                yield self.denoised(operation, sample)
                denoising = True
            elif operation == EmptyCache() and denoising and not self.flushes:
                denoising = False
            else:
                denoising = False
                yield operation

    def prompts_from_cache(self, sample: Sample, when: str) -> Iterator[Operation]:
        """Cached prompts move to the card in a preview's first round and stay, some 7 KB for each token of text and pictures."""
        positive, negative = self.prompts_of(sample)
        if self.text_away and (when == "first" or self.job.train.skip_first_sample):
            yield Part(PROMPTS, {"X": positive, "N": negative}, f"prompts of preview {self.samples.index(sample)}")

    def denoised(self, preview: Part, sample: Sample) -> Part:
        """The preview's program with its control images, encoded behind its prompts; their tokens are joined to the latents."""
        latents, (positive, negative) = self.of_preview(sample), self.prompts_of(sample)
        values = {**self.with_controls(preview, latents), "X": positive, "N": negative, "Q": preview.values["T"]}
        values |= {"Tj": values["T"] if latents else 0, "Tn": values["Q"] if self.rescales else 0}
        flushed = FLUSHED if self.flushes and self.job.model.low_vram else ""
        return replace(preview, key=preview.key + EDITED + flushed, values=values, inside=(tuple(self.encoded_for_preview(latents)), ()))

    def encoded_for_preview(self, latents: list[dict[str, int]]) -> Iterator[Operation]:
        """Control images of a preview through the VAE, one by one; with low_vram in tiles, one like the other, whose results are small."""
        for latent in latents:
            size, tile = {"R": latent["T"] * TOKEN**2}, image_values(TILE_PIXELS, TILE_PIXELS) if self.job.model.low_vram else latent
            yield from (Release("pictures"), Part(RAW, size, "pictures"), Part(RAW, size, "control"), Release("control"))
            yield from (Part(ENCODE, tile, "control"), Part(LATENT, latent, "control"), Part(LATENT, latent, "control"), Release("control"))
            yield Part(LATENT, latent, "apart" if self.joins else "preview")
        if latents and self.joins:
            yield from (Part(LATENT, {"T": sum(latent["T"] for latent in latents)}, "preview"), Release("apart"))
        yield Release("pictures")

    def sampling(self, when: str) -> Iterator[Operation]:
        """After the first step the VAE is on the card for good."""
        for operation in super().sampling(when):
            if when == "first" or operation != MoveOut("vae"):
                yield operation


class QwenFirstEditPlan(QwenEditPlan):
    """QwenImageEditModel: one control image, in the prompt at a megapixel and behind the image's tokens at the image's own size.

    A text without one is encoded as it is, and a preview's is a megapixel in the preview's shape. The VAE takes those of a batch at once.
    Source: qwen_image_edit.py (condition_noisy_latents, get_prompt_embeds, generate_single_image); diffusers, pipeline_qwenimage_edit.py.
    """

    blank = ()
    flushes = rescales = True
    joins = False

    def read(self, seen: Pictures) -> Pictures:
        """The picture given as ctrl_img is read as ctrl_img_1 too, which nothing uses."""
        return (*seen, *seen)

    def seen(self, text: Part, pictures: Pictures, tokens: int | None = None) -> Part:
        """A text by itself, not one of a list; those of a batch at once, each with its picture."""
        part, count = super().seen(text, pictures, tokens), text.values["B"]
        if not pictures or count == 1:
            return replace(part, key=part.key + ALONE) if pictures else part
        values = {**part.values, **{name: count * part.values[name] for name in ("I", "Ib", "R")}, "B": count}
        return replace(part, key=part.key + TEXTS_TOGETHER, values=values)

    def prepare(self) -> Iterator[Operation]:
        """Texts without a picture go through the encoder in a longer template than that of the programs, which is Qwen-Image's."""
        for operation in super().prepare():
            if isinstance(operation, Part) and operation.key.startswith("text/") and "I" not in operation.values:
                tokens = operation.values["X"]
                yield replace(operation, values={**operation.values, "X": tokens + MORE_TEMPLATE_TOKENS}, scope="template")
                yield from (Part(PROMPTS, {"X": tokens, "N": 0}, operation.scope), Release("template"))
            else:
                yield operation

    def in_step(self, bucket: Bucket) -> Pictures:
        return ((bucket.width, bucket.height),) if bucket.controls else ()

    def latents_of(self, pictures: Pictures, target: Size) -> list[dict[str, int]]:
        return [image_values(*target) for _ in pictures]

    def encoded_in_batch(self, count: int, pictures: Pictures, latents: list[dict[str, int]]) -> Iterator[Operation]:
        """What was read onto the card is doubled, shifted and encoded, all items at once, and gone when that is done."""
        (values,) = latents
        size, encode = {"R": count * values["T"] * TOKEN**2}, TOGETHER if count > 1 else ENCODE
        yield from (Part(RAW, size, "doubled"), Part(RAW, size, "control"), Release("doubled"))
        yield from (Part(RAW, size, "control"), Part(encode, {**values, "X": 0, "B": count}, "control"), Release("control"))
        yield Part(LATENT, {"T": count * values["T"]}, "tokens")

    def of_preview(self, sample: Sample) -> list[dict[str, int]]:
        return [image_values(*latent_size((sample.width, sample.height))) for _ in sample.controls]
