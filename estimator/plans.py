"""The timeline of a job: as its architecture's class in the trainer goes through it, from loading to the last preview.

Here is what each class does differently from the common phases (estimator.phases), and the order of phases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from estimator.archs import load_archs
from estimator.batches import Step, steps_of
from estimator.edit import QwenEditPlan, QwenFirstEditPlan, QwenPlan
from estimator.flex2 import Flex2Plan
from estimator.flux2 import Flux2KleinPlan, Flux2Plan
from estimator.hidream import HiDreamPlan
from estimator.job import Dataset, Job
from estimator.ltx2 import Ltx2Plan
from estimator.lumina2 import Lumina2Plan
from estimator.omnigen2 import OmniGen2Plan
from estimator.operations import Begin, EmptyCache, End, MoveOut, Operation
from estimator.phases import Plan
from estimator.pixels import L2pPlan, PixelPreviews
from estimator.programs import TEXT_ENCODERS, Profile
from estimator.prompts import FittedControls, PromptsApart
from estimator.steponly import StepOnlyPlan
from estimator.unet import UNetPlan
from estimator.wan import WanPlan
from estimator.wan22 import Wan22FromImagePlan, Wan22Plan
from estimator.wan_5b import Wan5bPlan
from estimator.wan_i2v import Wan21FromImagePlan


class ChromaPlan(PromptsApart):
    """ChromaModel: only its stand-in for CLIP is brought back for a prompt, so that text is cached by a T5 that stays on the host.

    Source: extensions_built_in/diffusion_models/chroma/chroma_model.py (get_prompt_embeds); toolkit/models/base_model.py
    (set_device_state_preset, which knows no preset for text caching).
    """

    @property
    def first_on_host(self) -> bool:
        return self.put_away

    def _cache_text(self, dataset: Dataset, home: dict[str, bool]) -> Iterator[Operation]:
        yield Begin("cache_text", f"resolution {dataset.resolution}")
        yield MoveOut("vae")
        yield MoveOut("transformer")
        yield from self.text_out()
        yield EmptyCache()
        yield End()
        home.update(transformer=False, text=False)


class RadiancePlan(PixelPreviews, ChromaPlan):
    """ChromaRadianceModel: Chroma's class on pixels, with a stand-in for the VAE."""

    kept = ("chroma", "chroma guided")

    @property
    def first_on_host(self) -> bool:
        """With cached text the first prompt comes from the host into the blocks that the transformer has left: a flush, where latents are
        cached too, spares the segment that it lies in. T5 comes behind that flush."""
        return self.text_cached or super().first_on_host


class KontextPlan(FittedControls, PromptsApart):
    """FluxKontextModel.

    Source: extensions_built_in/diffusion_models/flux_kontext/flux_kontext.py (condition_noisy_latents, get_noise_prediction).
    """


# By `model_class` of profiles/archs.yaml
PLANS: Mapping[str, type[Plan]] = {
    "stable_diffusion": Plan, "base": Plan, "unet": UNetPlan, "flux_kontext": KontextPlan, "flex2": Flex2Plan, "flux2": Flux2Plan,
    "flux2_klein": Flux2KleinPlan, "chroma": ChromaPlan, "chroma_radiance": RadiancePlan, "zimage_l2p": L2pPlan,
    "wan": WanPlan, "wan22_14b": Wan22Plan, "wan22_14b_i2v": Wan22FromImagePlan, "wan22_5b": Wan5bPlan, "wan21_i2v": Wan21FromImagePlan,
    "qwen": QwenPlan, "qwen_edit": QwenEditPlan, "qwen_first_edit": QwenFirstEditPlan, "ltx2": Ltx2Plan, "hidream": HiDreamPlan,
    "omnigen2": OmniGen2Plan, "lumina2": Lumina2Plan, "harness": StepOnlyPlan,
}  # fmt: skip


def plan_of(job: Job, profile: Profile, order_known: bool = False) -> Plan:
    """The timeline of a job as its architecture's class in the trainer goes through it.

    `order_known`: the steps will be those of a run. Otherwise experts alternate from step to step, so that each meets all buckets.
    """
    encoders = tuple(name for name in TEXT_ENCODERS if profile.has_resident(name))
    kind = PLANS[load_archs().archs[job.arch].model_class]
    if kind is Plan and profile.has("step.prompts/one"):  # a profile says how it was cut
        kind = PromptsApart
    if not order_known and job.train.switch_boundary_every > 1:
        job = replace(job, train=replace(job.train, switch_boundary_every=1))
    if not order_known and job.train.validation is not None:  # it meets what each bucket has left
        job = replace(job, train=replace(job.train, validation=replace(job.train.validation, every=1)))
    return kind(job, encoders)


def warm_up(plan: Plan, up: tuple[Step, ...]) -> tuple[Step, ...]:
    """Steps after which the optimizer has all of its state: the smallest bucket's, once for each expert that is trained."""
    return (up[0],) * (len(plan.trained) if isinstance(plan, Wan22Plan) else 1)


def before_previews(plan: Plan) -> Iterator[Operation]:
    """Everything up to the first round of previews."""
    yield from plan.load()
    yield from plan.set_up()
    yield from plan.caching()
    yield from plan.prepare()


def before_steps(plan: Plan) -> Iterator[Operation]:
    """Everything up to the first training step."""
    yield from before_previews(plan)
    yield from first_previews(plan)


def first_previews(plan: Plan) -> Iterator[Operation]:
    """The previews before training, if there are, and the way into it."""
    train = plan.job.train
    if not (train.skip_first_sample or train.disable_sampling) and plan.makes_previews:
        yield from plan.sampling("first")
    yield from plan.enter_loop()


def steps(plan: Plan, order: Sequence[Step], started: bool = False) -> Iterator[Operation]:
    """Training steps in an order. `started`: the optimizer has its state already."""
    for number, step in enumerate(order):
        yield from plan.step(step, first=number == 0 and not started, number=number)


def after_steps(plan: Plan) -> Iterator[Operation]:
    """A save, and previews with all that training holds: the gradients too, where the step before them was without an update."""
    if plan.job.train.gradients_stay:
        yield from plan.step(steps_of(plan.job, plan.tokens(None))[0], first=False, updates=False)
    yield from plan.save()
    if not plan.job.train.disable_sampling and plan.makes_previews:
        yield from plan.sampling("later")
