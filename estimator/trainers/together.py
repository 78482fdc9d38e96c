"""Settings of which each has a model and both together have none, asked of a job: advice changes jobs, where no reader of configs sees it.

The readers say the same of what a config asks for, with its place (aitoolkit_model, aitoolkit_network, aitoolkit_passes, aitoolkit_padded);
tests/test_together.py holds the two against each other.
"""

from __future__ import annotations

from estimator.archs import Arch, load_archs
from estimator.errors import CannotTell, Problem
from estimator.job import Job, Model, Network, Train
from estimator.optimizers import is_fused
from estimator.recipes import kind_named
from estimator.trainers import modelled
from estimator.trainers.typed import lacks_type


def modelled_job(job: Job) -> Job:
    """The job as it is. Raises CannotTell where settings of it have no model together."""
    arch = load_archs().archs[job.arch]
    what = _of_adapter(job.network, job.model, arch, job.train.optimizer) or _of_text(job, arch)
    what = what or _compiled(job.model, job.network, arch) or lacks_type(arch, job.model, job.network, job.train) or _by_recipe(job)
    if not what and job.model.layer_offloading and arch.layer_offloading != "nothing":
        what = _offloaded(job.model, arch) or _beside_offloading(job.train, job.network)
    if what:
        raise CannotTell(Problem(f"not modelled: {what}", None, "", ""))
    return job


def _of_adapter(network: Network | None, model: Model, arch: Arch, optimizer: str) -> str:
    if network is not None and network.kind == "lokr" and model.weights not in modelled.LOKR.get(arch.key, ()):
        return f"a LoKr on {arch.name} in {model.weights}"
    if network is not None and network.kind == "dora":
        if model.weights not in modelled.DORA.get(arch.key, ()):
            return f"a DoRA on {arch.name} in {model.weights}"
        return "a DoRA with an optimizer that updates it within the backward pass" if is_fused(optimizer) else ""
    return ""


def _compiled(model: Model, network: Network | None, arch: Arch) -> str:
    known = not model.layer_offloading and model.weights in modelled.COMPILED.get(arch.key, ())
    if model.compiled and not (known and (network is None or arch.key in modelled.COMPILED_ADAPTERS.get(network.kind, ()))):
        return "compiled blocks with offloaded layers, of other weights or with another adapter"
    return ""


def _by_recipe(job: Job) -> str:
    """Kinds of weights that are made by rule of what was recorded (estimator.recipes): with an adapter on all layers, and one pass."""
    network, train = job.network, job.train
    if not kind_named(job.model.weights):
        return ""
    parts = network is not None and (network.ignore_if_contains or network.only_if_contains)
    passes = train.preserves is not None or train.slider is not None or train.prior or train.guides_loss or train.guided or train.mean_flow
    met = parts or passes or train.validation is not None
    return f"{job.model.weights} with a filtered adapter or further passes" if met else ""


def _of_text(job: Job, arch: Arch) -> str:
    """Of an architecture whose texts are not joined: see aitoolkit_padded.check_pictures."""
    if not arch.single_captions:
        return ""
    if job.text_cached and max((each.batch_size for each in job.datasets), default=1) > 1:
        return "cached text in batches of more than one"
    return "no text encoders" if job.train.unload_text_encoder and not job.text_cached else ""


def _offloaded(model: Model, arch: Arch) -> str:
    """Layers that are moved in and out of the card, by their architecture and their kind of weights."""
    only = modelled.OFFLOADED_ALONE.get(arch.key, {model.weights})
    if arch.key not in modelled.OFFLOADING or model.weights not in only:
        return f"layer offloading of {arch.name} in {model.weights}"
    if arch.offloads_as_it_is and model.layer_offloading_transformer_percent > 0 and (model.low_vram or model.weights != model.dtype):
        return f"layer offloading of {arch.name} with low_vram or quantised, on which the trainer stops"
    shares = (model.layer_offloading_transformer_percent, model.layer_offloading_text_encoder_percent)
    for share, weights, known in zip(shares, (model.weights, model.te_weights), (modelled.OFFLOADED_BY_RECIPE, {}), strict=True):
        if share > 0 and weights not in (model.dtype, arch.prequantised, *modelled.OFFLOADED_WEIGHTS, *known.get(arch.key, ())):
            return f"layer offloading of weights in {weights}"
    return ""


def _beside_offloading(train: Train, network: Network | None) -> str:
    """What a step has that was never recorded beside layers that are moved."""
    settings = {
        "a LoKr": network is not None and network.kind == "lokr", "a DoRA": network is not None and network.kind == "dora",
        "dropout": network is not None and network.dropout,
        "an adapter on a part of the layers": network is not None and bool(network.ignore_if_contains or network.only_if_contains),
        "an output that is preserved": train.preserves is not None, "a slider": train.slider is not None,
        "passes besides the one that is trained": train.prior or train.guides_loss or train.guided or train.mean_flow,
        "a validation": train.validation is not None,
    }  # fmt: skip
    return next((f"layer offloading together with {what}" for what, met in settings.items() if met), "")
