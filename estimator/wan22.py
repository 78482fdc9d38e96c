"""What the trainer's Wan 2.2 14B does differently from Wan 2.1: two experts, of which each forward uses one.

Both are Wan 2.1's transformer. The wrapper around them ignores `.to()`: without low_vram both are on the card from loading on and never
leave; with it none is before the first forward, which brings in its expert and sends the other to the host. The trainer changes the
expert after train.switch_boundary_every batches. The adapter sits on both (or on the one that is trained), all of it on the card.
Parts are of one expert and its slice of the adapter (estimator.experts).

Source: ostris/ai-toolkit 27a03a91: extensions_built_in/diffusion_models/wan22/wan22_14b_model.py (DualWanTransformer3DModel,
load_wan_transformer), wan22_pipeline.py (Wan22Pipeline with aggressive_offload); SDTrainer.hook_train_loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from estimator.batches import Batch, Step, one_or_many
from estimator.experts import BOTH, EXPERTS, LOW, split
from estimator.job import Bucket, Job, Sample
from estimator.lokr_merging import AWAY
from estimator.lora_merging import FROM_HOST
from estimator.operations import EmptyCache, End, MoveIn, MoveOut, Operation, Part, Release
from estimator.parameters import DORA
from estimator.wan import MERGING, RECORDED, WanPlan, first_frame

BOTH_EXPERTS = (0, 1)  # high noise, low noise: what is trained unless a config says otherwise
# Parts of the adapter that name the weights' kind: Wan 2.1's recordings in qfloat8 serve for all quantised kinds, of whose layers an
# adapter is made and put to use alike, but for what `setup.read` holds
BY_WEIGHTS = ("setup.network/", *MERGING)
REBUILT = "uint"  # kinds of the trainer's own quantised layers, which rebuild a weight that is read
OF_ADAPTER = ("setup.network/", "setup.optimizer/", "setup.ema", "step.ema", "save/", "sample.enter/", "sample.leave/")


class Wan22Plan(WanPlan):
    """Wan2214bModel. `trained`: experts with an adapter (0: high noise, 1: low); `switch_every`: batches until the other one is trained."""

    def __init__(self, job: Job, encoders: tuple[str, ...]) -> None:
        super().__init__(job, encoders)
        self.trained, self.switch_every = job.model.experts or BOTH_EXPERTS, job.train.switch_boundary_every
        self.moves_layers = job.model.layer_offloading and job.model.layer_offloading_transformer_percent > 0

    # ---- where the experts are

    merged_whole = False

    def _fitted(self, operations: Iterator[Operation]) -> Iterator[Operation]:
        """The common phases' operations: no move of the whole transformer does anything, and the adapter is both experts'."""
        for operation in operations:
            if isinstance(operation, (MoveIn, MoveOut)) and operation.component == "transformer":
                continue
            if isinstance(operation, Part) and operation.key.startswith(MERGING) and self.merges:
                yield from self._merged(operation)
                continue
            if isinstance(operation, Part) and operation.key.startswith(MERGING if self.weights == "bf16" else BY_WEIGHTS):
                operation = replace(operation, key=operation.key.replace(f"/{self.weights}", f"/{RECORDED}", 1))
            twice = isinstance(operation, Part) and operation.key.startswith(OF_ADAPTER) and len(self.trained) > 1
            if not twice or not isinstance(operation, Part):
                yield operation
            elif "/ema" in operation.key:  # a copy of the whole adapter is there at one time
                yield replace(operation, key=operation.key + BOTH)
            else:
                yield from (operation, replace(operation, key=operation.key + LOW))

    def _merged(self, part: Part) -> Iterator[Operation]:
        """Into unquantised weights an adapter is merged before previews, expert by expert, behind EMA's copy of the whole and a flush.

        With low_vram the last expert that was trained is on the card and the other on the host, as both are after previews.
        """
        name, weights, ema, when = part.key.split("/")
        if ema == "ema" and name == MERGING[0]:
            yield from (replace(part, key=f"{name}/{RECORDED}/{ema}/{when}{BOTH * (len(self.trained) > 1)}"), EmptyCache())
        for number, expert in enumerate(self.trained):
            there = not self.job.model.low_vram or (name == MERGING[0] and expert == self.trained[-1])
            merged = "" if there or when == "first" else FROM_HOST
            yield replace(part, key=f"{name}/{weights}/none/{when}{merged}{LOW * (number > 0)}")

    def _use(self, expert: int) -> Iterator[Operation]:
        """An expert before its forward: with low_vram it takes the other's place."""
        if self.job.model.low_vram:
            yield MoveOut(EXPERTS[1 - expert])
            yield MoveIn(EXPERTS[expert])

    def after_text(self) -> Iterator[Operation]:
        yield from ()

    def load(self) -> Iterator[Operation]:
        yield from self._fitted(super().load())

    def set_up(self) -> Iterator[Operation]:
        waiting = self.job.model.low_vram and self.job.network is not None and self.job.network.kind == DORA  # it unpacks weights there
        for operation in self._fitted(super().set_up()):
            if isinstance(operation, Part) and operation.key.startswith("setup.network/"):
                key, whose = split(operation.key)
                yield from self._read() if whose != LOW else ()
                yield replace(operation, key=key + AWAY * waiting + whose)
            else:
                yield operation

    def _read(self) -> Iterator[Operation]:
        """The adapter's layers read the weights that they sit on, all before its first tensor comes to the card."""
        all_wait = self.moves_layers and self.job.model.layer_offloading_transformer_percent >= 1  # and are rebuilt there
        if self.weights.startswith(REBUILT) and not (self.job.model.low_vram or all_wait):
            yield Part(f"setup.read/{self.weights}")

    def caching(self) -> Iterator[Operation]:
        yield from self._fitted(super().caching())

    def prepare(self) -> Iterator[Operation]:
        yield from self._fitted(super().prepare())

    def sampling(self, when: str) -> Iterator[Operation]:
        yield from self._fitted(super().sampling(when))

    def enter_loop(self) -> Iterator[Operation]:
        yield from self._fitted(super().enter_loop())

    def save(self) -> Iterator[Operation]:
        yield from self._fitted(super().save())

    # ---- previews

    def make_room(self) -> Iterator[Operation]:
        yield from (MoveOut("vae"), MoveOut(EXPERTS[0]), MoveOut(EXPERTS[1]), EmptyCache())
        yield from self.text_out()

    def decoding(self) -> Iterator[Operation]:
        yield MoveIn("vae")
        if self.job.model.low_vram:
            yield EmptyCache()

    def denoise(self, sample: Sample, when: str, values: Mapping[str, int]) -> Iterator[Operation]:
        """With low_vram the high noise expert comes in alone, later the other in its place, and none is left for decoding."""
        if self.job.model.low_vram:
            yield from (MoveIn(EXPERTS[0]), EmptyCache())
        for part in super().denoise(sample, when, values):
            yield replace(part, between=tuple(self._use(1))) if isinstance(part, Part) and self.moves_layers else part
        if self.job.model.low_vram:
            yield from (*self._use(1), MoveOut(EXPERTS[1]))

    # ---- steps

    def expert_of(self, batches: int) -> int:
        """The expert of a batch, so many batches after the first; before that one the first expert is the active one."""
        return 0 if batches < 0 else self.trained[batches // self.switch_every % len(self.trained)]

    def step(self, step: Step, first: bool, updates: bool = True, number: int = 0) -> Iterator[Operation]:
        """An expert's first step makes its part of the optimizer's state."""
        at, batch, ended = number * len(step), 0, False
        experts = [self.expert_of(at + k) for k in range(len(step))]
        seen = {self.expert_of(k) for k in range(at)}
        fresh = first or (number > 0 and not seen.issuperset(experts))
        for operation in super().step(step, fresh, updates, number):
            ended = ended or isinstance(operation, End)
            if isinstance(operation, Part) and operation.key.startswith("step.core"):
                yield from self._before_forward(at + batch)
                yield self._of(operation, [experts[batch]])
                batch += 1
            elif isinstance(operation, Part) and operation.key.startswith("step.update"):
                yield self._of(operation, list(self.trained) if self.job.train.gradients_stay else experts)
            elif not (ended and number and operation == EmptyCache()):  # the trainer empties the cache after the very first step alone
                yield from self._fitted(iter([operation]))

    def _before_forward(self, batch: int) -> Iterator[Operation]:
        """The batch's expert takes the other's place, after which the cache is emptied."""
        expert = self.expert_of(batch)
        yield from self._use(expert)
        if self.job.model.low_vram and expert != self.expert_of(batch - 1):
            yield EmptyCache()

    def _of(self, part: Part, experts: list[int]) -> Part:
        """A part of the adapter's slice that is trained: all of it, where one expert is."""
        if len(self.trained) == 1:
            return part
        return replace(part, key=part.key + (BOTH if len(set(experts)) > 1 else LOW if experts[0] else ""))


class Wan22FromImagePlan(Wan22Plan):
    """Wan2214bI2VModel: each step encodes a clip that begins with its own first frame, each preview one with a given picture.

    Its latents are held by the preview's settings until the round of previews is over. Previews are never decoded in tiles.
    Source: wan22_14b_i2v_model.py; toolkit/models/wan21/wan_utils.py (add_first_frame_conditioning).
    """

    tiles = False

    def condition(self, bucket: Bucket, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        yield from first_frame(f"step.first_frame/{one_or_many(values['B'])}", bucket.width, bucket.height, bucket.frames, values["B"])

    def _forward_backward(self, batch: Batch, accumulate: bool, when: str) -> Iterator[Operation]:
        yield from super()._forward_backward(batch, accumulate, when)
        yield Release("first frame")

    def before_pipeline(self, sample: Sample) -> Iterator[Operation]:
        yield from first_frame("preview.first_frame/one", sample.width, sample.height, sample.frames, 1)

    def sampling(self, when: str) -> Iterator[Operation]:
        yield from super().sampling(when)
        yield Release("first frame")
