"""What the trainer's LTX-2 models do differently: texts padded to 1024 tokens of every layer of their encoder, sound, connectors that stay.

Source: ostris/ai-toolkit 27a03a91: extensions_built_in/diffusion_models/ltx2/ltx2.py (load_model, encode_images, pad_embeds,
get_noise_prediction, generate_single_image); diffusers c9438378: AutoencoderKLLTX2Video (_temporal_tiled_encode, _temporal_tiled_decode),
LTX2Pipeline. The parts are those of calibration/extract/sounded.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from estimator.batches import Batch, encodes_latents, one_or_many
from estimator.job import Bucket, Dataset, Sample
from estimator.offload_left import leaves_first
from estimator.operations import CORE, SOUND_CORE, EmptyCache, MoveIn, MoveOut, Operation, Part, Release
from estimator.prompts import PROMPTS, PromptsApart
from estimator.sizes import sizes_of
from estimator.stays import PREDICTED_APART, PREDICTED_GUIDED, PREDICTED_PLAIN, STEP_BEFORE

# With low_vram the VAE takes longer clips in tiles of so many frames and one more, every so many frames (encode_images,
# generate_single_image); decoding counts both in latent frames
ENCODE_TILE, ENCODE_STRIDE = 64, 16
DECODE_TILE, DECODE_STRIDE = 16, 8
FRAMES = 8  # to a latent frame


def _pieces(count: int, tile: int, stride: int) -> list[int]:
    """Lengths of the tiles that cover `count` frames, overlapping; one piece where they fit into a tile."""
    return [min(tile + 1, count - start) for start in range(0, count, stride)] if count > tile else [count]


class Ltx2Plan(PromptsApart):
    """LTX2Model: connectors come to the card with the first round of previews or the first step, the vocoder with the former; they stay."""

    beside = ("connectors", "vocoder")

    # ---- its text encoder, where layers of it are offloaded

    @property
    def text_home(self) -> bool:
        """The trainer asks the encoder's first parameter where it is, to restore that: Gemma-3's waits on the host with its layers."""
        model = self.job.model
        offloaded = model.layer_offloading and model.layer_offloading_text_encoder_percent > 0
        return not (offloaded and any(leaves_first(self.arch.key, name) for name in self.encoders))

    def _cache_latents(self, dataset: Dataset, home: dict[str, bool]) -> Iterator[Operation]:
        home.update(text=home["text"] and self.text_home)
        yield from super()._cache_latents(dataset, home)

    def sampling(self, when: str) -> Iterator[Operation]:
        """Behind the previews the encoder goes where it was said to be before them: steps bring it back."""
        met = 0
        for operation in super().sampling(when):
            met += isinstance(operation, MoveIn) and operation.component in self.encoders
            restored = isinstance(operation, MoveIn) and operation.component in self.encoders and met > len(self.encoders)
            yield MoveOut(operation.component) if isinstance(operation, MoveIn) and restored and not self.text_home else operation

    def encode_batch(self, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        yield from () if self.text_home else self.text_in()
        yield from super().encode_batch(values, scope)

    # ---- the VAE

    def _encoded(self, key: str, bucket: Mapping[str, int], scope: str) -> Iterator[Operation]:
        """A clip or image through the encoder, between the beginning and the end of what codes it."""
        frames = (bucket["F"] - 1) * FRAMES + 1
        tiles = _pieces(frames, ENCODE_TILE, ENCODE_STRIDE) if self.job.model.low_vram else [frames]
        yield Part(f"{key}/first", bucket, scope)
        yield from self._coded("encode", bucket, [1 + (tile - 1) // FRAMES for tile in tiles], scope)
        yield Part(f"{key}/last", bucket, scope)

    def _coded(self, coder: str, whole: Mapping[str, int], tiles: list[int], scope: str) -> Iterator[Operation]:
        for count in tiles:
            values = {"A": whole["A"], "E": whole["E"], "F": count, "T": whole["A"] * count, "B": whole.get("B", 1)}
            yield Part(f"{coder}.{'image' if count == 1 else 'clip'}/{one_or_many(values['B'])}", values, scope)

    def cache_item(self, bucket: Bucket) -> Iterator[Operation]:
        values = {**sizes_of(self.arch, bucket), "B": 1}
        yield from self._encoded("latents", values, "item")
        if bucket.sound:
            yield Part("sound/one", {"M": bucket.sound_frames, "B": 1}, "item")

    def head(self, key: str, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        if key.startswith("step.head/encoded"):
            yield from self._encoded(key, values, scope)
        else:
            yield Part(key, values, scope)

    # ---- steps

    def core(self, bucket: Bucket) -> str:
        return SOUND_CORE if bucket.sound else CORE

    def _forward_backward(self, batch: Batch, accumulate: bool, when: str) -> Iterator[Operation]:
        many, captions = one_or_many(batch.size), "captions"
        for operation in super()._forward_backward(batch, accumulate, when):
            if not isinstance(operation, Part):
                yield operation
            elif operation.key.startswith("step.prompts"):
                yield Part(operation.key, operation.values, captions)
            elif operation.key.startswith("step.head"):
                yield operation
                if self.text_away:
                    yield Part(f"step.captions/{many}", operation.values, captions)
            elif operation.key.startswith(CORE):
                yield Part(f"text.padded/{many}", {"X": batch.text_tokens, "B": batch.size}, "batch")
                yield Release(captions)
                if batch.bucket.sound and encodes_latents(self.job, batch.bucket):
                    for _ in range(batch.size):  # one after the other
                        yield Part("sound/one", {"M": batch.bucket.sound_frames, "B": 1}, "step")
                yield MoveIn("connectors")
                yield operation
            else:
                yield operation

    # ---- previews

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        texts = dict(zip(PROMPTS, self.prompts_of(sample), strict=True))
        if not self.text_away:
            for kind, tokens in texts.items():
                yield self.encode(tokens, f"new {kind}")
                yield Release(f"{kind} 0")  # that of the preview before, which the variable held until now
            yield from self._padded(texts, {kind: f"{kind} 0" for kind in texts})
        elif when == "first" or self.job.train.skip_first_sample:  # cached ones come to the card once, and stay there, padded
            for _ in [s for s in self.job.samples if s.memory_key == sample.memory_key]:
                for kind, tokens in texts.items():
                    yield Part("text.moved", {"X": tokens}, f"new {kind}")
                yield from self._padded(texts, dict.fromkeys(texts, "job"))
        values = {**sizes_of(self.arch, sample), **self.rank, "B": sample.batch}
        merged = f"/{when}" if self.weights == "bf16" else ""
        predicted = PREDICTED_APART if self.arch.always_guided else PREDICTED_GUIDED if sample.guided else PREDICTED_PLAIN
        yield Part(f"{STEP_BEFORE}/{predicted}", values, "step before")
        yield Part(f"preview/{self.weights}/{'cfg' if sample.guided else 'plain'}{merged}", values, "preview")
        yield Release("step before")
        yield from self._decoded(values)
        yield Release("preview")
        yield EmptyCache()

    def _padded(self, texts: Mapping[str, int], scopes: Mapping[str, str]) -> Iterator[Operation]:
        for kind, tokens in texts.items():
            yield Part("text.padded/one", {"X": tokens, "B": 1}, scopes[kind])
            yield Release(f"new {kind}")

    def _decoded(self, values: Mapping[str, int]) -> Iterator[Operation]:
        tile, stride = DECODE_TILE // FRAMES, DECODE_STRIDE // FRAMES
        tiles = _pieces(values["F"], tile, stride) if self.job.model.low_vram else [values["F"]]
        yield Part("decode/first", values, "preview")
        yield from self._coded("decode", {**values, "B": 1}, tiles, "tiles" if len(tiles) > 1 else "preview")
        if len(tiles) > 1:
            yield Part("decode.joined", values, "preview")
            yield Release("tiles")
        yield Part(f"decode.shown/{'tiles' if len(tiles) > 1 else 'whole'}", values, "preview")
        yield Part("decode.sound", {"O": values["O"]}, "preview")


