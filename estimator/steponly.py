"""Architectures that AI Toolkit does not have: training steps as our own harness goes through them, and what lies on the card before.

Latents and prompts were computed before; whatever a run file calls resident is on the card throughout. Caching, previews and saving are
another trainer's own, and have no model. Source: calibration/harness (worker.py), which the programs are recorded from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from estimator import optimizers
from estimator.archs import load_archs
from estimator.batches import Batch, Step, one_or_many
from estimator.estimate import Variant
from estimator.features import Cells, latent_frames
from estimator.job import Bucket, Job
from estimator.operations import CORE, Begin, EmptyCache, End, MoveIn, MoveOut, Operation, Part, Release
from estimator.phases import Plan
from estimator.sizes import sizes_of

FP32 = "fp32"


class StepOnlyPlan(Plan):
    """Loading, the adapter, steps."""

    def __init__(self, job: Job, encoders: tuple[str, ...]) -> None:
        super().__init__(job, encoders)
        self.dtype = job.network.dtype if job.network else FP32
        self.optimizer = optimizers.rule_name(job.train.optimizer, job.train.weight_decay, self.dtype)
        if job.optimizer_on_host:
            self.optimizer = job.train.optimizer + optimizers.ON_HOST

    def load(self) -> Iterator[Operation]:
        """Whole components, one after another, as from_pretrained and `.to` leave them: text encoders, transformer, VAE, in the order of
        the trainers that are modelled (finetrainers, cogvideox-factory).

        What is left in the cache encodes first and goes without torch.cuda.empty_cache(): the transformer's tensors come to lie in its
        blocks, and remainders that no tensor of a step fits into stay reserved.
        """
        if left := self._components(self.job.left_in_cache):
            yield Begin("load", "text encoder and VAE, before the transformer")
            yield from (MoveIn(name) for name in left)
            yield from (MoveOut(name) for name in left)
            yield End()
        others = self._components((*(self.job.resident or ()), *self.job.given_back))
        encoders, vae = [name for name in others if name != "vae"], [name for name in others if name == "vae"]
        for what, names in (("text encoder", encoders), ("transformer", ["transformer"]), ("VAE", vae)):
            if names:
                yield Begin("load", what)
                yield from (MoveIn(name) for name in names)
                yield End()

    def _components(self, names: Collection[str]) -> tuple[str, ...]:
        """Those beside the transformer, by the names of the profile."""
        return (*(self.encoders if "text_encoder" in names else ()), *(("vae",) if "vae" in names else ()))

    def set_up(self) -> Iterator[Operation]:
        yield Begin("prepare", "adapter")
        kind = "" if self.dtype == FP32 else f"/{self.dtype}"
        yield Part(f"setup.network/{self.weights}{kind}", self.rank)
        if optimizers.makes_state_at_once(self.optimizer):
            yield Part(f"setup.optimizer/{self.optimizer}", self.rank)
        back = self._components(self.job.given_back)
        if back:  # trainers that give back empty the cache before as well, and read what is there then
            yield EmptyCache()
        yield End()
        if back:
            yield Begin("prepare", "before training")
            yield from (MoveOut(name) for name in back)
            yield EmptyCache()
            yield End()

    def caching(self) -> Iterator[Operation]:
        yield from ()

    def prepare(self) -> Iterator[Operation]:
        yield from ()

    def enter_loop(self) -> Iterator[Operation]:
        yield from ()

    def core(self, bucket: Bucket) -> str:
        older = f".diffusers-{self.job.diffusers}" if self.job.diffusers else ""
        arch = load_archs().archs[self.job.arch]
        frames = 1 + arch.cell_frames * (latent_frames(bucket.frames, Cells(arch.cell_pixels, arch.cell_frames)) - 1)
        native = ".native" if (bucket.width, bucket.height, frames) == arch.native_size else ""
        return f"{CORE}.{self.dtype}" + ("" if self.job.autocast else ".plain") + older + native

    def step(self, step: Step, first: bool, updates: bool = True, number: int = 0) -> Iterator[Operation]:
        largest = max(step, key=lambda b: b.size * b.bucket.width * b.bucket.height * b.bucket.frames)
        variant = Variant(largest.bucket.width, largest.bucket.height, largest.bucket.frames, largest.size)
        yield Begin("train", "first step" if first else "", variant)
        for batch in step:
            yield from self._batch(batch, "first" if first else "later")
        yield Part(f"step.update/{self.optimizer}/{'first' if first else 'later'}", self.rank, "step")
        yield Part("step.end", {}, "step")
        yield from (Release(scope) for scope in ("step", "batch"))
        yield End()

    def _batch(self, batch: Batch, when: str) -> Iterator[Operation]:
        bucket, many = batch.bucket, one_or_many(batch.size)
        checkpointing = "checkpointed" if self.job.train.gradient_checkpointing else "full"
        values = {**sizes_of(self.arch, bucket), **self.rank, "B": batch.size, "X": batch.text_tokens}
        yield Part(f"step.head/cached/cached/{many}", values, "batch")
        core = f"{self.core(bucket)}/{self.weights}/{checkpointing}/{many}"
        yield Part(optimizers.core_key(core, self.optimizer, when), values, "step")

    def save(self) -> Iterator[Operation]:
        yield from ()
