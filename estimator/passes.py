"""Passes of the transformer besides the one that is trained, where steps have any: what a Plan's timeline has more for them.

- `inverted_mask_prior`, a dataset's `prior_reg`, `correct_pred_norm`, `do_prior_divergence`: a forward without the adapter and without
  gradients before the step's own; its prediction stays until the step's backward pass is over.
- `do_guidance_loss`: a forward without gradients on the empty prompt inside the loss, while all that the step's own has saved is alive.
- `do_cfg`: no pass more, but each sample twice in the step's (estimator.guided_step).
- `loss_type: mean_flow`: a sample gets two timesteps, which makes two of it in FLUX.1's first block; another forward without gradients on
  both inside the loss.
- a concept slider: a forward without the adapter and without gradients on three prompts (with an anchor four) of each sample at once, then
  two passes as a step's, each with a backward of its own: the adapter added and taken away. What is made of the predictions, six latents
  a sample, stays through both; it is taken for two copies of the three.
- `validation_config`: between steps, a forward without gradients of one picture after the other, at all noise levels at once. Its
  prompts and latents wait on the host.
Source: ostris/ai-toolkit 27a03a91, extensions_built_in/sd_trainer/SDTrainer.py (train_single_accumulation, calculate_loss,
hook_before_train_loop), extensions_built_in/concept_slider/ConceptSliderTrainer.py (get_guided_loss),
jobs/process/BaseSDTrainProcess.py (setup_validation, validate).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from estimator.archs import Arch
from estimator.batches import one_or_many
from estimator.estimate import Variant
from estimator.guided_step import GUIDED
from estimator.job import Bucket, Job, Slider
from estimator.loss_weights import WEIGHED
from estimator.operations import CONTROLLED_CORE, CORE, Begin, Copy, EmptyCache, End, MoveIn, MoveOut, Operation, Part, Release
from estimator.sizes import sizes_of
from estimator.stays import ADAPTED, BARE, EMBEDDINGS, INPUTS

# Scopes: of a validation's prompt, of a pass, and of what a slider predicts first
PROMPTS, PASS, PREDICTED = "prompts", "pass", "predicted"
APART = frozenset({"zimage", "zimage-turbo"})  # whose prompts of a batch are a list: joining them copies nothing


class Timeline(Protocol):
    """What passes need of a Plan (estimator.phases)."""

    job: Job
    arch: Arch
    rank: dict[str, int]
    weights: str
    te_weights: str
    text_away: bool
    text_cached: bool

    @property
    def text_home(self) -> bool: ...
    def empty_prompt(self) -> int: ...
    def cache_item(self, bucket: Bucket) -> Iterator[Operation]: ...
    def encode(self, tokens: int, scope: str, batch: int = 1, graph: bool = False) -> Part: ...
    def encode_batch(self, values: Mapping[str, int], scope: str) -> Iterator[Operation]: ...
    def text_in(self) -> Iterator[Operation]: ...
    def text_out(self) -> Iterator[Operation]: ...


def slider_prompts(plan: Timeline) -> Iterator[Operation]:
    """A slider's prompts, which it encodes before all else that comes before the loop."""
    if plan.job.train.slider is not None:
        yield from [MoveOut("transformer")] if plan.text_cached else []
        yield from (*plan.text_in(), *(plan.encode(tokens, "job") for tokens in plan.job.train.slider.tokens))


def further_texts(plan: Timeline, values: Mapping[str, int]) -> Iterator[Operation]:
    """What a step encodes behind its captions."""
    train = plan.job.train
    if train.guided:
        yield from plan.encode_batch({**values, "X": plan.arch.text_tokens(train.negative_prompt)}, "batch")
    if train.preserves_captions:
        yield from plan.encode_batch(values, "batch")


def around(plan: Timeline, core: Part) -> Iterator[Operation]:
    """A step's core with the passes of its settings. What they predict stays as long as the batch."""
    train, values = plan.job.train, dict(core.values)
    if train.slider is not None:
        yield from _slid(plan, core, train.slider)
        return
    if train.mean_flow:
        yield _of_two_times(plan, core)
        return
    if train.guided:
        values |= {"b": values["B"], "B": 2 * values["B"], "X": max(values["X"], _negative_tokens(plan))}
        core = replace(core, key=_guided(core.key), values=values)
    if train.prior:
        yield Part(_key(plan, BARE, values["B"]), values, "batch")
    if train.guides_loss:
        batch, tokens = values.get("b", values["B"]), plan.arch.text_tokens(train.unconditional_prompt)
        inner = {**values, "B": batch, "X": tokens}
        passed = (*_joined(plan, tokens, batch), Part(_key(plan, ADAPTED, batch), inner, PASS), Release(PASS))
        core = replace(core, inside=((), passed))
    yield core


def _of_two_times(plan: Timeline, core: Part) -> Part:
    """mean_flow's step. Its loss is not weighed by timesteps, and it makes latents of its own, to which no control image is joined."""
    values = {**core.values, "B": 2 * core.values["B"]}
    inner = (Part(_key(plan, ADAPTED, values["B"]), values, PASS), Release(PASS))
    key = core.key.replace(WEIGHED, "").replace("/one", "/many").replace(CONTROLLED_CORE, CORE)
    return replace(core, key=key, values=values, inside=((), inner))


def _slid(plan: Timeline, core: Part, slider: Slider) -> Iterator[Operation]:
    """A slider's step. Its loss is not weighed by timesteps."""
    batch, prompts = core.values["B"], slider.tokens
    for tokens in (*prompts, *[max(prompts)] * len(prompts)):  # each for the batch, and all together
        yield from _joined(plan, tokens, batch)
    yield Part(_key(plan, BARE, batch * len(prompts)), {**core.values, "B": batch * len(prompts), "X": max(prompts)}, PREDICTED)
    yield from [Copy(PREDICTED, PASS)] * 2
    trained = (prompts[1], *prompts[3:])  # of the class, and of the anchor
    size = batch * len(trained)
    key = core.key.replace(WEIGHED, "")
    key = key.replace("/one", "/many") if size > 1 else key
    for turn in (False, True):
        yield replace(core, key=key, values={**core.values, "B": size, "X": max(trained)}, accumulate=core.accumulate or turn)
    yield from (Release(PASS), Release(PREDICTED))


def _negative_tokens(plan: Timeline) -> int:
    """Of the negative prompts: encoded in the step, or the empty one that was encoded before the loop."""
    return plan.empty_prompt() if plan.text_away else plan.arch.text_tokens(plan.job.train.negative_prompt)


def _guided(core: str) -> str:
    """The core of twice as many samples, with guidance around it; a fused optimizer's ending stays behind all."""
    recorded, plus, update = core.partition("+")
    return recorded.replace("/one", "/many") + GUIDED + plus + update


def _joined(plan: Timeline, tokens: int, batch: int) -> Iterator[Operation]:
    """A prompt that was encoded before, joined for a batch."""
    if plan.arch.key not in APART:
        yield Part(EMBEDDINGS + plan.te_weights, {"X": tokens, "B": batch}, PASS)


def _key(plan: Timeline, kind: str, batch: int) -> str:
    return f"{kind}{plan.weights}/{one_or_many(batch)}"


def cached_validation(plan: Timeline) -> Iterator[Operation]:
    """setup_validation: every prompt, then every picture's latents; encoders and VAE go back to where they were."""
    validation = plan.job.train.validation
    if validation is None:
        return
    yield from plan.text_in()
    for _, _, tokens in validation.pictures:
        yield from (plan.encode(tokens, "item"), Release("item"))
    yield from () if plan.text_home else plan.text_out()
    yield MoveIn("vae")
    for width, height, _ in validation.pictures:
        yield from (*plan.cache_item(Bucket(width, height)), Release("item"))
    yield from (MoveOut("vae"), EmptyCache())


def validated(plan: Timeline, number: int) -> Iterator[Operation]:
    """validate: behind step `number`, if it is one of those; one phase for all pictures, called by the largest."""
    validation = plan.job.train.validation
    if validation is None or (number and not (validation.every and number % validation.every == 0)):
        return
    levels = validation.levels
    largest = max(validation.pictures, key=lambda one: one[0] * one[1])
    yield Begin("train", "validation", Variant(*largest[:2], 1, levels))
    for width, height, tokens in validation.pictures:
        values = {**sizes_of(plan.arch, Bucket(width, height)), **plan.rank, "B": levels, "X": tokens}
        yield Part(EMBEDDINGS + plan.te_weights, {"X": tokens, "B": 1}, PROMPTS)
        yield from _joined(plan, tokens, levels)
        yield Part(INPUTS, values, PASS)
        if plan.arch.key not in APART:  # the prompt itself goes when it is joined
            yield Release(PROMPTS)
        yield from (Part(_key(plan, ADAPTED, levels), values, PASS), Release(PASS), Release(PROMPTS))
    yield End()
