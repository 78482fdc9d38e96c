"""The timeline of a job: as its architecture's class in the trainer goes through it, from loading to the last preview.

Here is what each class does differently from the common phases (estimator.phases), and the order of phases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from estimator.archs import load_archs
from estimator.batches import Step
from estimator.edit import QwenEditPlan
from estimator.job import Dataset, Job, Sample
from estimator.operations import Begin, Copy, EmptyCache, End, MoveIn, MoveOut, Operation, Part, Release
from estimator.phases import Plan
from estimator.programs import Profile
from estimator.wan import WanPlan

PROMPTS = ("positive", "negative")
TEXT_ENCODERS = ("text_encoder0", "text_encoder1")


class PromptsApart(Plan):
    """What becomes of prompts is recorded in parts of its own.

    Cached ones of previews move to the card in the first round and stay there (PromptEmbeds.to changes the cached object itself);
    those that a step encodes are copied (PromptEmbeds.detach), and the copy is what the step trains on.
    """

    def encode_batch(self, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        yield self.encode(values["X"], "embeddings", values["B"])
        yield Part(f"step.prompts/{'one' if values['B'] == 1 else 'many'}", values, scope)
        yield Release("embeddings")

    def prepare(self) -> Iterator[Operation]:
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
                negative = self.tokens(sample.negative_tokens or self.empty_prompt())
                yield Part("preview.prompts", {"X": self.tokens(sample.text_tokens), "N": negative}, "job")
        turn, kinds = self.samples.index(sample) % 2, iter(PROMPTS)
        for operation in super()._preview(sample, when):
            if isinstance(operation, Part) and operation.key.startswith("text/"):  # the variable holds the one before until then
                kind = next(kinds)
                yield dataclasses.replace(operation, scope=f"{kind} {turn}")
                yield Release(f"{kind} {1 - turn}")
            else:
                yield operation


class Flux2KleinPlan(PromptsApart):
    """Flux2KleinModel: the text encoder is quantised on the host, and with low_vram it stays there until the first prompt is encoded.

    Source: extensions_built_in/diffusion_models/flux2/flux2_klein_model.py (load_te), flux2_model.py (end of load_model).
    """

    @property
    def text_home(self) -> bool:
        return not self.job.model.low_vram

    def load_text(self) -> Operation:
        return Part(f"load.text/{self.te_weights}/{self.low}")

    def after_loading(self) -> Iterator[Operation]:
        if not self.job.model.low_vram:
            yield from self.text_in()
            yield MoveIn("transformer")


class ChromaPlan(PromptsApart):
    """ChromaModel: only its stand-in for CLIP is brought back for a prompt, so that text is cached by a T5 that stays on the host.

    Source: extensions_built_in/diffusion_models/chroma/chroma_model.py (get_prompt_embeds); toolkit/models/base_model.py
    (set_device_state_preset, which knows no preset for text caching).
    """

    def _cache_text(self, dataset: Dataset, home: dict[str, bool]) -> Iterator[Operation]:
        yield Begin("cache_text", f"resolution {dataset.resolution}")
        yield MoveOut("vae")
        yield MoveOut("transformer")
        yield from self.text_out()
        yield EmptyCache()
        yield End()
        home.update(transformer=False, text=False)


# By `model_class` of profiles/archs.yaml
PLANS: Mapping[str, type[Plan]] = {
    "stable_diffusion": Plan, "base": Plan, "flux2_klein": Flux2KleinPlan, "chroma": ChromaPlan, "wan": WanPlan, "qwen_edit": QwenEditPlan,
}  # fmt: skip


def plan_of(job: Job, profile: Profile) -> Plan:
    """The timeline of a job as its architecture's class in the trainer goes through it."""
    encoders = tuple(name for name in TEXT_ENCODERS if profile.has_resident(name))
    return PLANS[load_archs().archs[job.arch].model_class](job, encoders)


def before_steps(plan: Plan) -> Iterator[Operation]:
    """Everything up to the first training step."""
    train = plan.job.train
    yield from plan.load()
    yield from plan.set_up()
    yield from plan.caching()
    yield from plan.prepare()
    if not (train.skip_first_sample or train.disable_sampling) and plan.makes_previews:
        yield from plan.sampling("first")
    yield from plan.enter_loop()


def steps(plan: Plan, order: Sequence[Step], started: bool = False) -> Iterator[Operation]:
    """Training steps in an order. `started`: the optimizer has its state already."""
    for number, step in enumerate(order):
        yield from plan.step(step, first=number == 0 and not started)


def after_steps(plan: Plan) -> Iterator[Operation]:
    """A save, and previews with all that training holds."""
    yield from plan.save()
    if not plan.job.train.disable_sampling and plan.makes_previews:
        yield from plan.sampling("later")
