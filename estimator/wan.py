"""What the trainer's Wan models do differently: clips go through the VAE in chunks of frames, previews move components with low_vram.

Source: ostris/ai-toolkit 27a03a91: toolkit/models/wan21/wan21.py (load_model, AggressiveWanUnloadPipeline, generate_single_image);
diffusers c9438378: AutoencoderKLWan (_encode, _decode, tiled_decode), WanPipeline. The parts are those of calibration/extract/clips.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from estimator.features import IMAGE_CELLS, Cells, image_values
from estimator.job import Bucket, Dataset, Job, Sample
from estimator.lokr_merging import merges
from estimator.operations import PREVIEW, Copy, EmptyCache, MoveIn, MoveOut, Operation, Part, Release
from estimator.phases import Plan
from estimator.sizes import sizes_of
from estimator.stays import BLANK
from estimator.wan_text import PADDED_TEXT

MERGING, RECORDED = ("sample.enter", "sample.leave"), "qfloat8"
"""What of an adapter depends on whether it is merged: its parts, and the kind of weights of which those without were recorded."""
TILE_PIXELS, TILE_STRIDE_PIXELS = 256, 192  # AutoencoderKLWan: tile_sample_min_width, tile_sample_stride_width


def coded(key: str, coder: str, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
    """One encode ("encode") or decode ("decode") with what lies around it (`key`), chunk by chunk."""
    latent_frames, many = values["F"], "many" if values.get("B", 1) > 1 else "one"
    if latent_frames <= 2:
        yield Part(key if latent_frames == 1 else f"{key}/two", values, scope)
        return
    yield Part(f"{key}/first", values, scope)
    yield Part(f"{coder}.second/{many}", values, scope)
    for done in range(2, latent_frames - 1):
        yield Part(f"{coder}.next/{many}", {**values, "K": done}, scope)
    yield Part(f"{key}/last", values, scope)


def first_frame(key: str, width: int, height: int, frames: int, batch: int) -> Iterator[Operation]:
    """A clip of one picture and black frames through the VAE, from which the transformer gets the picture."""
    yield from coded(key, "encode", {**image_values(width, height, frames), "B": batch}, "first frame")


def tiled(width: int, height: int, frames: int, cells: Cells = IMAGE_CELLS) -> Iterator[Operation]:
    """A decode in tiles that are each decoded like a small clip, then joined in rows, then to the whole."""
    values = image_values(width, height, frames, cells)
    starts = [(y, x) for y in range(0, height, TILE_STRIDE_PIXELS) for x in range(0, width, TILE_STRIDE_PIXELS)]
    for y, x in starts:
        tile = image_values(min(TILE_PIXELS, width - x), min(TILE_PIXELS, height - y), frames, cells)
        for done in range(values["F"]):
            yield Part(f"tile.{('first', 'second')[done] if done < 2 else 'next'}", tile, "tile")
        yield Part("tile.join", tile, "tiles")
        yield Release("tile")
        yield MoveOut("clip_features")
    for y in range(0, height, TILE_STRIDE_PIXELS):
        yield Part("tile.row", image_values(width, min(TILE_STRIDE_PIXELS, height - y), frames, cells), "tiles")
    yield Part("decode.joined", values, "preview")
    yield Release("tiles")
    yield Part("decode.shown", values, "preview")


class WanPlan(Plan):
    """Wan21: with low_vram the transformer is quantised on the host and comes to the card behind the text encoder."""

    merged_whole = True  # an adapter is merged into unquantised weights in one part
    tiles = True  # previews are decoded tile by tile with low_vram, or where model_kwargs asks for it (use_vae_tiling)

    def __init__(self, job: Job, encoders: tuple[str, ...]) -> None:
        super().__init__(job, encoders)
        self.merges = merges(job)

    def load(self) -> Iterator[Operation]:
        for operation in super().load():
            yield operation
            if self.job.model.layer_offloading and isinstance(operation, Part) and operation.key.startswith("load.transformer"):
                yield EmptyCache()  # behind the layers that were taken, which the part's own last one comes before

    def _cache_text(self, dataset: Dataset, home: dict[str, bool]) -> Iterator[Operation]:
        """The trainer asks the transformer's first parameter where it is: a table, which offloading never moves (scale_shift_table)."""
        yield from super()._cache_text(dataset, home)
        home.update(transformer=self.job.model.layer_offloading and self.job.model.layer_offloading_transformer_percent > 0)

    def prepare(self) -> Iterator[Operation]:
        """What stays of the first empty prompt is a copy (PromptEmbeds.detach); each of a preview's goes before the next is encoded."""
        copied = False
        for operation in super().prepare():
            if isinstance(operation, Part) and operation.scope == "job" and operation.key.startswith("text/") and not copied:
                yield from (replace(operation, scope="embeddings"), Copy("embeddings", "job"), Release("embeddings"))
                copied = True
                continue
            yield operation
            if isinstance(operation, Part) and operation.scope == "prompt":
                yield Release("prompt")

    def after_text(self) -> Iterator[Operation]:
        yield MoveIn("transformer")

    def cache_item(self, bucket: Bucket) -> Iterator[Operation]:
        yield from coded("latents", "encode", {**sizes_of(self.arch, bucket), "B": 1}, "item")

    def encode(self, tokens: int, scope: str, batch: int = 1, graph: bool = False) -> Part:
        part = super().encode(tokens, scope, batch, graph)
        return part if batch > 1 else replace(part, key=part.key + PADDED_TEXT)

    def encode_batch(self, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        """A step trains on a copy of its prompts (PromptEmbeds.detach), which its head has; what was encoded is let go."""
        yield self.encode(values["X"], "embeddings", values["B"])
        yield Release("embeddings")

    def head(self, key: str, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        if self.text_away and not self.text_cached:  # SDTrainer: cached_blank_embeds.clone().detach(), and then concat_prompt_embeds
            yield Part(BLANK, {"X": values["X"]}, scope)
        if key.startswith("step.head/encoded"):
            yield from coded(key, "encode", values, scope)
        else:
            yield Part(key, values, scope)

    def sampling(self, when: str) -> Iterator[Operation]:
        """EMA's copy of an adapter that is merged then comes first, as beside quantised weights, and a flush behind it."""
        for operation in super().sampling(when):
            if not (self.merges and self.merged_whole and isinstance(operation, Part) and operation.key.startswith(MERGING)):
                yield operation
                continue
            name, weights, ema, _, *away = operation.key.split("/")
            if (name, ema) == (MERGING[0], "ema"):
                yield from (replace(operation, key=f"{name}/{RECORDED}/{ema}/{when}"), EmptyCache())
            yield replace(operation, key="/".join((name, weights, "none", when, *away)))

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        low_vram = self.job.model.low_vram
        positive, negative = self.prompts_of(sample)
        if self.text_away and (when == "first" or self.job.train.skip_first_sample):  # they move to the card once, and stay
            for _ in [s for s in self.job.samples if s.memory_key == sample.memory_key]:
                yield Part("preview.prompts", {"X": positive, "N": negative}, "job")
        yield from self.before_prompts()
        if not self.text_away:
            yield self.encode(positive, "preview")
            yield self.encode(negative, "preview")
        yield from self.before_pipeline(sample)
        if low_vram:
            yield from self.make_room()
        yield from self.denoise(sample, when, {**self.rank, "X": positive, "N": negative, "B": sample.batch})
        yield from self.decoding()
        if (low_vram or self.job.model.vae_tiling) and self.tiles and max(sample.width, sample.height) > TILE_PIXELS:
            yield from tiled(sample.width, sample.height, sample.frames, Cells(self.arch.cell_pixels, self.arch.cell_frames))
        else:
            yield from coded("decode", "decode", sizes_of(self.arch, sample), "preview")
        yield Release("preview")
        yield EmptyCache()

    def before_prompts(self) -> Iterator[Operation]:
        """The text encoder comes in: for a prompt, or by the pipeline's own move to the device."""
        if not self.text_cached:
            yield from self.text_in()

    def before_pipeline(self, sample: Sample) -> Iterator[Operation]:
        """Of a preview, after its prompts are encoded."""
        yield from ()

    def make_room(self) -> Iterator[Operation]:
        """With low_vram, before denoising."""
        yield from (MoveIn("vae"), MoveOut("vae"))
        yield from self.text_out()

    def decoding(self) -> Iterator[Operation]:
        """After denoising."""
        yield MoveIn("vae")

    def denoising(self, sample: Sample) -> str:
        """The part that denoises."""
        return PREVIEW

    def denoise(self, sample: Sample, when: str, values: Mapping[str, int]) -> Iterator[Operation]:
        merged = f"/{when}" if self.weights == "bf16" else ""
        merged += "/low_vram" if self.arch.pipeline_apart and self.job.model.low_vram else ""
        size = sizes_of(self.arch, sample)
        yield Part(f"{self.denoising(sample)}/{self.weights}/{'cfg' if sample.guided else 'plain'}{merged}", {**size, **values}, "preview")
