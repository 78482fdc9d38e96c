"""What several of the trainer's classes do differently from the common phases (estimator.phases): with prompts, and for control images."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

from estimator.batches import one_or_many
from estimator.job import Bucket, Sample
from estimator.operations import CONTROLLED_CORE, CORE, Begin, Copy, EmptyCache, End, MoveIn, MoveOut, Operation, Part, Release
from estimator.phases import Plan
from estimator.stays import BROUGHT

PROMPTS = ("positive", "negative")


class TextFirst(Plan, ABC):
    """The text encoder is loaded first, quantised on the card; with low_vram the component `waits` is on the host until all is loaded."""

    waits: ClassVar[str]

    def load(self) -> Iterator[Operation]:
        yield Begin("load", "text encoder")
        yield self.load_text()
        yield from (MoveOut(self.waits), EmptyCache()) if self.job.model.low_vram else ()
        yield End()
        yield Begin("load", "transformer")
        yield Part(f"load.transformer/{self.weights}/{self.low}")
        yield End()
        yield Begin("load", "the rest")
        yield Part(f"load.beside/{self.weights}/{self.low}")
        yield from self.load_rest()
        yield End()

    @abstractmethod
    def load_rest(self) -> Iterator[Operation]:
        """What comes behind that which is loaded beside the transformer."""


class PromptsApart(Plan):
    """What becomes of prompts is recorded in parts of its own.

    Cached ones of previews move to the card in the first round and stay there (PromptEmbeds.to changes the cached object itself);
    those that a step encodes are copied (PromptEmbeds.detach), and the copy is what the step trains on.
    """

    def encode_batch(self, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        yield self.encode(values["X"], "embeddings", values["B"])
        yield Part(f"step.prompts/{'one' if values['B'] == 1 else 'many'}", values, scope)
        yield Release("embeddings")

    @property
    def first_on_host(self) -> bool:
        """The empty prompt is encoded on the host, where a fine-tune has put text encoders that this class does not bring back for it."""
        return self.arch.model_class == "stable_diffusion" and self.put_away

    @property
    def put_away(self) -> bool:
        """Text encoders, before latents are cached: by a fine-tune that unloads them without caching text."""
        return self.whole and self.text_away and not self.text_cached

    def prepare(self) -> Iterator[Operation]:
        return self._from_host(list(self._copied())) if self.first_on_host else self._copied()

    def _from_host(self, operations: list[Operation]) -> Iterator[Operation]:
        """The first prompt comes to the card, and text encoders behind the VAE's last move and the flush there, if latents are cached."""
        encoded = operations.index(Release("embeddings"))
        before, behind = operations[:encoded], operations[encoded + 1 :]
        moves = [one for one in before if not isinstance(one, (Part, Copy))]
        encoders = [one for one in moves if isinstance(one, MoveIn) and one.component in self.encoders]
        flushed = behind.index(EmptyCache()) + 1 if self.all_latents_cached else 0
        yield from (one for one in moves if one not in encoders)
        yield Part(BROUGHT, {"X": self.empty_prompt()}, "job")
        yield from (*behind[:flushed], *encoders, *behind[flushed:])

    def _copied(self) -> Iterator[Operation]:
        """The first prompt, the empty one, is copied; each prompt of a preview is gone (to the host) before the next is encoded."""
        copied = False
        for operation in super().prepare():
            if isinstance(operation, Part) and not copied:
                copied = True
                yield dataclasses.replace(operation, scope="embeddings")
                yield Copy("embeddings", "job")
                yield Release("embeddings")
                continue
            yield operation
            if isinstance(operation, Part):
                yield Release("prompt")

    def sampling(self, when: str) -> Iterator[Operation]:
        for operation in super().sampling(when):
            if operation == Release("sampling"):
                yield from (Release(f"{kind} {turn}") for kind in PROMPTS for turn in (0, 1))
            yield operation

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        if self.text_away and (when == "first" or self.job.train.skip_first_sample):
            for _ in [s for s in self.job.samples if s.memory_key == sample.memory_key]:
                positive, negative = self.prompts_of(sample)
                yield Part("preview.prompts", {"X": positive, "N": negative}, "job")
        turn, kinds = self.samples.index(sample) % 2, iter(PROMPTS)
        for operation in super()._preview(sample, when):
            if isinstance(operation, Part) and operation.key.startswith("text/"):  # the variable holds the one before until then
                kind = next(kinds)
                yield dataclasses.replace(operation, scope=f"{kind} {turn}")
                yield Release(f"{kind} {1 - turn}")
            else:
                yield operation


class VaeStays(Plan):
    """Steps encode control images, for which the VAE comes to the card in the first one, and stays."""

    def sampling(self, when: str) -> Iterator[Operation]:
        controlled = any(bucket.controls for dataset in self.job.datasets for bucket in dataset.buckets)
        for operation in super().sampling(when):
            if not (controlled and when == "later" and operation == MoveOut("vae")):
                yield operation


class FittedControls(VaeStays):
    """A batch's control images go through the VAE at the size of its images, and double their tokens; a batch may have none."""

    def condition(self, bucket: Bucket, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        if bucket.controls:
            yield MoveIn("vae")
            yield Part(f"step.control/{one_or_many(values['B'])}", values, scope)

    def core(self, bucket: Bucket) -> str:
        return CONTROLLED_CORE if bucket.controls else CORE
