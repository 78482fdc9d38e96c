"""What the trainer does to the card, in order: a Job becomes a list of operations, phase by phase.

Follows AI Toolkit 0.12.26 (commit 27a03a91): BaseSDTrainProcess.run, SDTrainer.hook_before_train_loop, the dataset mixins,
`generate_images` and `set_device_state` of StableDiffusion (FLUX, Flex.1) and BaseModel (Z-Image), each checked against the
trainer itself on the emulated device. Operations name programs by key and components by name; sizes come later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from estimator import optimizers, passes, unassisted
from estimator.archs import load_archs
from estimator.batches import Batch, Step, encodes_latents, one_or_many, preserved, preserved_before, texts_cached
from estimator.estimate import Variant
from estimator.features import image_values
from estimator.job import Bucket, Dataset, Job, Sample
from estimator.lokr_merging import AWAY, merges
from estimator.loss_weights import WEIGHED
from estimator.offload import LEFT_BEHIND
from estimator.operations import CORE, PRESERVING_CORE, UNEVEN_CORE, Begin, EmptyCache, End, MoveIn, MoveOut, Operation, Part, Release
from estimator.parameters import WHOLE
from estimator.sizes import sizes_of


class Plan:
    """The operations of a job. Previews that are alike are made once.

    `encoders`: the profile's text encoders, which are moved. `legacy`: the StableDiffusion class (FLUX, Flex.1), which has a preset
    for text caching. What other classes of the trainer do differently is in subclasses (estimator.plans chooses).
    """
    beside: tuple[str, ...] = ()  # models of the pipeline that no preset moves: a round of previews brings them to the card

    def __init__(self, job: Job, encoders: tuple[str, ...]) -> None:
        self.job = job
        self.arch = load_archs().archs[job.arch]
        self.legacy, self.encoders = self.arch.model_class == "stable_diffusion", encoders
        train, model = job.train, job.model
        self.text_cached, self.text_away = job.text_cached, train.unload_text_encoder or job.text_cached
        self.all_latents_cached = all(dataset.latents_cached for dataset in job.datasets)
        self.low, self.ema = "low_vram" if model.low_vram else "plain", "ema" if train.ema else "none"
        self.weights, self.te_weights, self.bare = model.kind, model.te_kind, unassisted.behind(self.arch, model)
        self.rank, self.whole = job.network.variables if job.network else {"r": 0}, job.network is not None and job.network.kind == WHOLE
        # without sampling their prompts are not cached either (SDTrainer.cache_sample_prompts)
        self.samples = () if train.disable_sampling else tuple({s.memory_key: s for s in job.samples}.values())
        self.optimizer = optimizers.rule_name(train.optimizer, train.weight_decay, job.network.dtype if job.network else "fp32")

    @property
    def makes_previews(self) -> bool:
        """AI Toolkit moves everything to the card for a round of previews even if there are no prompts."""
        return bool(self.samples) or self.job.trainer == "ai-toolkit"

    # ---- text

    def tokens(self, count: int | None) -> int:
        """Text tokens as the transformer gets them; the architecture's maximum where unknown."""
        return self.arch.most_text_tokens if count is None or self.arch.fixed_text_tokens is not None else count

    def empty_prompt(self) -> int:
        return self.arch.text_tokens("")

    def prompts_of(self, sample: Sample) -> tuple[int, int]:
        """Text tokens of a preview's prompt and of its negative one: both are encoded, whether guidance uses the second or not."""
        return self.tokens(sample.text_tokens), self.tokens(sample.negative_tokens)

    def encode(self, tokens: int, scope: str, batch: int = 1, graph: bool = False) -> Part:
        return Part(f"text/{self.te_weights}/{'graph' if graph else 'plain'}/{one_or_many(batch)}", {"X": tokens, "B": batch}, scope)

    def text_in(self) -> Iterator[Operation]:
        yield from (MoveIn(name) for name in self.encoders)

    def text_out(self) -> Iterator[Operation]:
        yield from (MoveOut(name) for name in self.encoders)

    # ---- what classes of the trainer differ in

    @property
    def text_home(self) -> bool:
        """Text encoders are on the card after loading."""
        return True

    def load_text(self) -> Operation:
        return Part(f"load.text/{self.te_weights}")

    def after_text(self) -> Iterator[Operation]:
        """Moves of whole components after the text encoder is loaded."""
        yield from ()

    def cache_item(self, bucket: Bucket) -> Iterator[Operation]:
        """One image (or clip) through the VAE."""
        yield Part("cache_latents.item", image_values(bucket.width, bucket.height), "item")

    def head(self, key: str, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        """The batch goes to the device, and through the VAE if `key` says so; prompts that are there are copied (estimator.heads)."""
        part, latents, text, many = key.split("/")
        yield Part(f"{part}/{latents}/{'cached' if self.text_cached else 'unloaded' if self.text_away else text}/{many}", values, scope)

    def encode_batch(self, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        """The prompts of a training step."""
        yield self.encode(values["X"], scope, values["B"])

    def condition(self, bucket: Bucket, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        """A batch's control images, just before the forward."""
        yield from ()

    def core(self, bucket: Bucket) -> str:
        """The part that holds forward, loss and backward."""
        if bucket.uneven:
            return UNEVEN_CORE
        return CORE if self.job.train.preserves is None else PRESERVING_CORE

    def after_loading(self) -> Iterator[Operation]:
        """Moves of whole components at the end of loading that no part holds."""
        yield from ()

    # ---- phases

    def load(self) -> Iterator[Operation]:
        yield Begin("load", "transformer")
        yield Part(f"load.transformer/{self.weights}/{self.low}{self.bare}")
        yield End()
        yield Begin("load", "text encoder")
        yield self.load_text()
        yield from self.after_text()
        yield End()
        yield Begin("load", "the rest")
        yield Part(f"load.rest/{self.weights}/{self.low}{self.bare}")
        yield from self.after_loading()
        yield End()

    def set_up(self) -> Iterator[Operation]:
        """BaseSDTrainProcess.run after loading: everything to its place, adapter, EMA."""
        yield Begin("prepare", "adapter")
        yield MoveIn("transformer")
        yield MoveOut("vae")
        yield EmptyCache()
        yield from self.enter_loop() if self.whole else [Part(f"setup.network/{self.weights}", self.rank)]
        yield EmptyCache()
        if optimizers.makes_state_at_once(self.optimizer):
            yield Part(f"setup.optimizer/{self.optimizer}", self.rank)
        if self.job.train.ema:
            yield Part("setup.ema", self.rank)
        yield from passes.cached_validation(self)
        yield End()

    def caching(self) -> Iterator[Operation]:
        home = {"transformer": True, "text": not self.text_away if self.whole else self.text_home}
        told: set[str] = set()  # embeddings are kept by caption beside the images: other resolutions of a folder find them
        for dataset in self.job.datasets:
            if dataset.latents_cached:
                yield from self._cache_latents(dataset, home)
            if self.text_cached and dataset.folder not in told:
                told.add(dataset.folder)
                yield from self._cache_text(dataset, home)
        yield EmptyCache()

    def _cache_latents(self, dataset: Dataset, home: dict[str, bool]) -> Iterator[Operation]:
        """Preset cache_latents: VAE in, then transformer and text encoders out; one image at a time; then as before."""
        largest = max(dataset.buckets, key=lambda b: b.width * b.height * b.frames)
        yield Begin("cache_latents", f"resolution {dataset.resolution}", Variant(largest.width, largest.height, largest.frames, 1))
        yield MoveIn("vae")
        yield MoveOut("transformer")
        yield from self.text_out()
        yield EmptyCache()
        for bucket in dataset.buckets:
            for _ in range(1 if bucket.count == 1 else 2):  # the second lies among what the first left, further ones lie as it does
                yield from (*self.cache_item(bucket), Release("item"))
        yield MoveOut("vae")
        if home["transformer"]:
            yield MoveIn("transformer")
        if home["text"]:
            yield from self.text_in()
        yield EmptyCache()
        yield End()

    def _cache_text(self, dataset: Dataset, home: dict[str, bool]) -> Iterator[Operation]:
        """No-one turned autograd off: with checkpointing on, the encoder's whole graph lives until the embedding is saved."""
        yield Begin("cache_text", f"resolution {dataset.resolution}")
        yield from map(MoveOut, ("vae", "transformer"))
        # BaseModel has no such preset: everything goes, and the encoder comes back on first use
        yield from (*(self.text_in() if self.legacy else self.text_out()), EmptyCache(), *self.text_in())
        lengths = [self.tokens(b.text_tokens or dataset.text_tokens) for b in dataset.buckets] or [self.tokens(dataset.text_tokens)]
        for tokens in texts_cached(dataset, max(lengths), self.empty_prompt()):
            yield from (self.encode(tokens, "item", graph=self.job.train.gradient_checkpointing), Release("item"))
        yield End()
        home.update(transformer=False, text=True)

    def prepare(self) -> Iterator[Operation]:
        """SDTrainer.hook_before_train_loop: everything meets on the card, the empty prompt is encoded."""
        yield from (Begin("prepare", "before the loop"), *passes.slider_prompts(self), MoveIn("vae"), MoveIn("transformer"))
        yield from [MoveOut("transformer")] if self.text_cached else []
        yield from (*self.text_in(), self.encode(self.arch.text_tokens(self.job.train.unconditional_prompt), "job"))
        yield from (MoveOut("vae"), EmptyCache()) if self.all_latents_cached else ()
        graph = self.job.train.gradient_checkpointing and not self.text_away  # of a preserved prompt: autograd is on, as in _cache_text
        for tokens in (*((self.empty_prompt(),) if self.text_away else ()), *preserved_before(self.job)):
            yield from (self.encode(tokens, "item", graph=True), Release("item")) if graph else ()
            yield self.encode(tokens, "job")
        if self.text_away:
            for sample in self.samples:
                yield from (self.encode(tokens, "prompt") for tokens in self.prompts_of(sample))
                yield Release("prompt")
            yield from self.text_out()
            yield from map(MoveOut, LEFT_BEHIND if self.text_cached else ())
            yield EmptyCache()
        yield from (MoveIn("transformer"), End()) if self.job.model.compiled else (End(),)  # compiled it stays there

    def sampling(self, when: str) -> Iterator[Operation]:
        """`when`: "first" (baseline: no optimizer state) or "later". Peaks are read for each preview."""
        detail = "baseline" if when == "first" else "with optimizer state"
        variants = [Variant(s.width, s.height, s.frames, s.batch) for s in self.samples] or [Variant()]
        yield from (Begin("sample", detail, variants[0]), EmptyCache())
        away = self.text_cached and when == "first" and not self.job.model.compiled  # left on the CPU by caching: a LoKr is merged there
        ema, entered = (self.ema, when) if not self.whole else ("none" if away else self.ema, "later")  # copies are where it is
        yield Part(f"sample.enter/{self.weights}/{ema}/{entered}{AWAY * (away and 'f' in self.rank)}{self.bare}", self.rank, "sampling")
        yield from (*(() if merges(self.job) else (EmptyCache(),)), MoveIn("vae"), MoveIn("transformer"))  # the flush is before merging
        yield from () if self.text_cached else self.text_in()
        yield EmptyCache()
        yield from map(MoveIn, self.beside)
        for number, sample in enumerate(self.samples):
            yield from (End(), Begin("sample", detail, variants[number])) if number else ()
            yield from self._preview(sample, when)
        # generate_images' end: restore_device_state (VAE, transformer, text encoder, flush), unet.to(device), merge_out, and so on, flush
        yield from [MoveOut("vae")] if self.all_latents_cached else []
        yield MoveOut("transformer") if away else MoveIn("transformer")
        yield from (*(self.text_out() if self.text_away else self.text_in()), EmptyCache(), MoveIn("transformer"))
        leave = Part(f"sample.leave/{self.weights}/{self.ema}/{when}{self.bare}", self.rank, "sampling")
        yield from (leave, Release("sampling"), EmptyCache(), End())

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        source = "cached" if self.text_away else "encoded"
        positive, negative = self.prompts_of(sample)
        if not self.text_away:
            yield from (self.encode(positive, "preview"), self.encode(negative, "preview"))
        if sample.batch > 1:  # both prompts in one forward: the shorter, recorded as the negative one, is padded to the longer
            positive, negative = max(positive, negative), min(positive, negative)
        values = {**image_values(sample.width, sample.height), **self.rank, "X": positive, "N": negative, "B": sample.batch}
        merged = f"/{when}" if self.weights == "bf16" else ""
        yield Part(f"preview/{self.weights}/{'cfg' if sample.guided else 'plain'}/{source}{merged}", values, "preview")
        if self.arch.vae_tiling != "never":
            yield from self._decode(values)
        yield Release("preview")
        yield EmptyCache()

    def _decode(self, values: dict[str, int]) -> Iterator[Operation]:
        """Where decoding is a part of its own: perhaps in tiles, and then the cache is emptied at the end of each step before."""
        tiled = self.job.model.low_vram and self.arch.vae_tiling == "low_vram"
        yield from [EmptyCache()] if tiled else []
        yield Part(f"decode/{'tiled' if tiled else 'plain'}", values, "preview")

    def enter_loop(self) -> Iterator[Operation]:
        """The train preset."""
        yield MoveIn("transformer")
        yield MoveOut("vae") if self.all_latents_cached else MoveIn("vae")
        yield from self.text_out() if self.text_away else self.text_in()
        yield EmptyCache()

    def step(self, step: Step, first: bool, updates: bool = True, number: int = 0) -> Iterator[Operation]:
        """`updates`: the optimizer steps; otherwise the gradients stay where they are."""
        detail = "first step" if first else "" if updates else "without update"
        largest = max(step, key=lambda b: b.size * b.bucket.width * b.bucket.height * b.bucket.frames)
        variant = Variant(largest.bucket.width, largest.bucket.height, largest.bucket.frames, largest.size)
        yield Begin("train", detail, variant)
        for n, batch in enumerate(step):
            yield from self._forward_backward(batch, n > 0, "first" if first and n == 0 else "later")
            if len(step) > 1 and self.job.model.low_vram:
                yield EmptyCache()
        if updates:
            yield Part(f"step.update/{self.optimizer}/{'first' if first else 'later'}", self.rank, "step")
            yield from [Part("step.ema", self.rank, "step")] if self.job.train.ema else []
        yield Part("step.end", {}, "step")
        yield Release("step")
        yield End()
        yield from passes.validated(self, number)
        yield from [EmptyCache()] if first else []
        yield Release("latents")  # DataLoaderBatchDTO.cleanup

    def _forward_backward(self, batch: Batch, accumulate: bool, when: str) -> Iterator[Operation]:
        """`when`: "first" where the optimizer has no state yet."""
        bucket, many = batch.bucket, one_or_many(batch.size)
        latents = "encoded" if encodes_latents(self.job, bucket) else "cached"
        values = {**sizes_of(self.arch, bucket), **self.rank, **preserved(self.job, batch), "B": batch.size, "X": batch.text_tokens}
        text = "cached" if self.text_away and latents == "cached" else "encoded"
        checkpointing = "checkpointed" if self.job.train.gradient_checkpointing else "full"
        for operation in self.head(f"step.head/{latents}/{text}/{many}", values, "batch"):
            yield replace(operation, holds="latents") if isinstance(operation, Part) else operation
        if not self.text_away:
            yield from self.encode_batch(values, "batch")
            yield from passes.further_texts(self, values)
        yield from self.condition(bucket, values, "batch")
        core = f"{self.core(bucket)}/{self.weights}/{checkpointing}/{many}{WEIGHED if self.job.train.weighs_timesteps else ''}"
        yield from passes.around(self, Part(optimizers.core_key(core, self.optimizer, when), values, "step", accumulate=accumulate))
        yield Release("batch")  # all locals of train_single_accumulation

    def save(self) -> Iterator[Operation]:
        yield Begin("save")
        if self.whole and self.job.train.ema:  # as before previews: new copies, then the older ones go
            yield from (EmptyCache(), Part(f"sample.enter/{self.weights}/ema/later{self.bare}", self.rank, "sampling"))
        yield Part(f"save/{'none' if self.whole else self.ema}", self.rank, "save")
        yield from (Release("save"), EmptyCache(), End())
