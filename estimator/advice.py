"""What to change when a job is not safe: single edits of it, tried on the model, kept if they lower its peak.

Listed in the order that hurts least, which is the order of rollback of the guides: checkpointing on, what merely moves things off the
card, shorter clips, batch 1, the largest bucket, the previews, then low_vram, quantisation and layer offloading. Where none is enough
alone, they are put together in that order, each that lowers the peak then, until the job fits; weighing combinations against each other
is the planner's work, not this file's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from estimator.archs import load_archs
from estimator.controls import CHANNELS
from estimator.dtypes import BF16, FLOATS, FP32, TO_BF16, TYPE_KEY
from estimator.errors import CannotTell, InputError
from estimator.estimate import BORDERLINE, OOM, Advice, Estimate
from estimator.gpus import GIB, MIB, Gpu
from estimator.job import Bucket, Job
from estimator.kernels import unsure_of_attention

Run = Callable[[Job], Estimate]

WORTH_BYTES = 64 * MIB
"""Edits that save less are not shown: the allocator's rounding alone moves a peak by tens of MiB."""
SMALL_PREVIEW = 512
"""Side in pixels of the smaller preview that is tried: the trainer's own default."""
MOST_TOGETHER = 8
"""Edits that are put together at most: a job that needs more is another job."""
PHASE_WORDS = {
    "load": "loading", "prepare": "preparing", "cache_latents": "caching latents", "cache_text": "caching text", "sample": "previewing",
    "train": "training", "save": "saving",
}  # fmt: skip
TOGETHER = " + "
"""Between the keys of an advice of several edits; its `before` and `after` are then lists."""
SMALLEST_RANK = 4
"""Ranks are not halved below the trainer's default."""
WHOLE_FRAMES = 8
"""Frames that the coarsest of the video VAEs (LTX's) takes together, behind the first one; the others' 4 divide it."""
FACTORED = "adafactor"  # of a whole model: with it a second batch of a step has no model (estimator.trainers.aitoolkit_whole)
_EIGHT_BIT = (
    "adam8bit", "adamw8bit", "adam8", "adamw8", "lion8bit", "ademamix8bit", "prodigy8bit",
    "adafactor", "automagic", "automagic2", "automagic3",
)  # fmt: skip
"""Optimizers whose state is 8 bit or smaller already (the trainer's toolkit/optimizer.py)."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of a job: the config's key, the value before and after, what it costs the user, and the job with it."""

    key: str
    before: object
    after: object
    why: str
    job: Job


def advise(job: Job, gpu: Gpu, estimate: Estimate, run: Run) -> tuple[Advice, ...]:
    """Edits of `job` that lower its peak on `gpu`, in the order that hurts least; none if it is safe or cannot be told, or
    if nothing of it is to blame.

    `run` estimates a job on the card; it is called once for the job itself and once for each edit, so it should be the fast kind.
    `saves_bytes` compares these runs with each other. Edits that lead to what is not modelled are left out.
    """
    if estimate.verdict not in (BORDERLINE, OOM) or unsure_of_attention(estimate):
        return ()
    start = run(job)
    before = _peak_bytes(start)
    found = []
    for edit in edits(job):
        try:
            changed = run(edit.job)
        except (CannotTell, InputError):
            continue
        saves = before - _peak_bytes(changed)
        if changed.phases and saves >= WORTH_BYTES:
            found.append(Advice(edit.key, edit.before, edit.after, saves, "; ".join([edit.why, *worse(start, changed)]), changed.verdict))
    if all(advice.verdict == OOM for advice in found):
        found.extend(_together(start, run))
    return tuple(found)


def _together(start: Estimate, run: Run) -> Iterator[Advice]:
    """The edits one upon the other, again from the first where another peak comes to light; one advice if several are enough. Of a single
    key that is lowered again and again, its first and last value."""
    current, applied = start, []
    for _ in range(MOST_TOGETHER):
        step = next(_lowering(current, run), None)
        if step is None:
            return
        current, edit = step
        applied.append(edit)
        if current.verdict != OOM:
            break
    if len(applied) > 1 and current.verdict != OOM:
        first = {edit.key: edit.before for edit in reversed(applied)}  # an edit that comes twice, such as a rank halved again
        last = {edit.key: (edit.after, edit.why) for edit in applied}
        keys = list(dict.fromkeys(edit.key for edit in applied))
        values, why = [last[key][0] for key in keys], "; ".join([*(last[key][1] for key in keys), *worse(start, current)])
        saves = _peak_bytes(start) - _peak_bytes(current)
        if len(keys) == 1:
            yield Advice(keys[0], first[keys[0]], values[0], saves, why, current.verdict)
        else:
            yield Advice(TOGETHER.join(keys), [first[key] for key in keys], values, saves, why, current.verdict)


def _lowering(current: Estimate, run: Run) -> Iterator[tuple[Estimate, Edit]]:
    """The edits of a job that lower its peak, with what comes of them."""
    for edit in edits(current.job):
        try:
            changed = run(edit.job)
        except (CannotTell, InputError):
            continue
        if changed.phases and _peak_bytes(current) - _peak_bytes(changed) >= WORTH_BYTES:
            yield changed, edit


def worse(before: Estimate, after: Estimate) -> list[str]:
    """The phases of both that allocate more afterwards, by as much as is worth showing, in words."""
    tops: list[dict[str, int]] = []
    for estimate in (before, after):
        top: dict[str, int] = {}
        for phase in estimate.phases:
            top[phase.phase] = max(top.get(phase.phase, 0), phase.allocated_bytes)
        tops.append(top)
    rises = {name: tops[1][name] - size for name, size in tops[0].items() if name in tops[1]}
    return [f"{PHASE_WORDS.get(name, name)} takes {rise / GIB:.2f} GiB more" for name, rise in rises.items() if rise >= WORTH_BYTES]


def _peak_bytes(estimate: Estimate) -> int:
    return max((phase.allocated_bytes for phase in estimate.phases), default=0)


def edits(job: Job) -> Iterator[Edit]:
    """Every edit that applies to a job, least hurtful first."""
    for group in (_free_edits, _frame_edits, _batch_edits, _control_edits, _bucket_edits, _preview_edits, _weight_edits, _last_edits):
        yield from group(job)


def _train(job: Job, key: str, value: object, why: str) -> Edit:
    before = getattr(job.train, key)
    return Edit(f"train.{key}", before, value, why, replace(job, train=replace(job.train, **{key: value})))  # type: ignore[arg-type]


def _free_edits(job: Job) -> Iterator[Edit]:
    """What costs time at most."""
    arch = load_archs().archs[job.arch]
    if job.model.dtype == FP32:
        held = {name: BF16 for name in ("dtype", "weights", "te_weights") if getattr(job.model, name) == FP32}
        yield Edit(TYPE_KEY, FP32, BF16, TO_BF16, replace(job, model=replace(job.model, **held)))  # type: ignore[arg-type]
    if not job.train.gradient_checkpointing:
        yield _train(job, "gradient_checkpointing", True, "same result; each step takes about a third longer")
    previews = bool(job.samples) and not job.train.disable_sampling
    goes_on = not (arch.previews_need_text and previews) and (arch.cached_previews or job.train.disable_sampling)
    if not job.text_cached and arch.caches_text and goes_on:
        datasets = tuple(replace(each, cache_text_embeddings=True) for each in job.datasets)
        why = "the text encoder is used once, then leaves the card; captions can no longer be dropped or changed while training"
        edit = _train(job, "cache_text_embeddings", True, why)
        yield replace(edit, job=replace(edit.job, datasets=datasets))
    # the trainer stops on cached images of a dataset with do_i2v, and (Flex.2) on those with control images
    sized = arch.control_images == CHANNELS
    needed = any((b.begins and b.frames == 1) or (sized and b.controls) for each in job.datasets for b in each.buckets)
    if arch.caches_latents and not needed and not all(each.latents_cached for each in job.datasets):
        datasets = tuple(replace(each, cache_latents_to_disk=True) for each in job.datasets)
        why = "images are encoded once, ahead of training; rules out augmentations"
        yield Edit("datasets.*.cache_latents_to_disk", False, True, why, replace(job, datasets=datasets))
    if job.method != "inference" and job.train.optimizer.lower() not in _EIGHT_BIT:
        yield _train(job, "optimizer", "adamw8bit", "optimizer state in 8 bit; learning rates may need another look")


def _frame_edits(job: Job) -> Iterator[Edit]:
    """Clips of half as many frames, whole steps of every video VAE.

    Where all have the number that the config gives: `datasets.*` would lengthen others. Of trained sound it is not known what goes with it.
    """
    clips = [bucket for each in job.datasets for bucket in each.buckets]
    longest = max((bucket.frames for bucket in clips), default=1)
    frames = longest // 2 // WHOLE_FRAMES * WHOLE_FRAMES + 1
    own = any(each.own_lengths for each in job.datasets) or any(bucket.sound or bucket.frames != longest for bucket in clips)
    if frames == 1 or own:
        return
    why = f"clips of {frames} frames: less motion is learned"
    datasets = tuple(replace(each, buckets=tuple(_shortened(bucket, frames, job) for bucket in each.buckets)) for each in job.datasets)
    yield Edit("datasets.*.num_frames", longest, frames, why, replace(job, datasets=datasets))


def _shortened(bucket: Bucket, frames: int, job: Job) -> Bucket:
    arch, tokens = load_archs().archs[job.arch], bucket.sound_tokens
    return replace(bucket, frames=frames, sound_tokens=tokens and arch.sound_tokens(frames, bucket.frames * arch.sound_per_second / tokens))


def _batch_edits(job: Job) -> Iterator[Edit]:
    largest = max([job.train.batch_size, *(each.batch_size for each in job.datasets)])
    if largest > 1:
        datasets = tuple(replace(each, batch_size=1) for each in job.datasets)
        keep = largest * job.train.gradient_accumulation
        edit = _train(job, "batch_size", 1, f"train.gradient_accumulation={keep} keeps the effective batch; steps then count accordingly")
        yield replace(edit, before=largest, job=replace(edit.job, datasets=datasets))


def _bucket_edits(job: Job) -> Iterator[Edit]:
    sizes = sorted({each.resolution for each in job.datasets})
    if len(sizes) > 1:
        kept = tuple(each for each in job.datasets if each.resolution < sizes[-1])
        why = f"no training at {sizes[-1]} px: less fine detail is learned"
        yield Edit("datasets.*.resolution", sizes, sizes[:-1], why, replace(job, datasets=kept))


def _control_edits(job: Job) -> Iterator[Edit]:
    if not job.model.match_target_res and any(bucket.controls for each in job.datasets for bucket in each.buckets):
        why = "control images are seen at the size of the trained image, not at a megapixel: less of their detail"
        changed = replace(job, model=replace(job.model, match_target_res=True))
        yield Edit("model.model_kwargs.match_target_res", False, True, why, changed)


def _preview_edits(job: Job) -> Iterator[Edit]:
    if not job.samples or job.train.disable_sampling:
        return
    largest = max(job.samples, key=lambda each: each.width * each.height * each.frames)
    if largest.width * largest.height > SMALL_PREVIEW**2:
        samples = tuple(replace(each, width=min(each.width, SMALL_PREVIEW), height=min(each.height, SMALL_PREVIEW)) for each in job.samples)
        before, after = f"{largest.width}x{largest.height}", f"{SMALL_PREVIEW}x{SMALL_PREVIEW}"
        yield Edit("sample.width, sample.height", before, after, "smaller previews; training is the same", replace(job, samples=samples))
    yield _train(job, "disable_sampling", True, "no previews; training is the same")


def _weight_edits(job: Job) -> Iterator[Edit]:
    """What costs speed, or some precision of the frozen weights."""
    model, makes_previews = job.model, bool(job.samples) and not job.train.disable_sampling
    follows = load_archs().archs[job.arch].text_as_transformer  # its text encoder is quantised with the transformer
    if not model.low_vram and (load_archs().archs[job.arch].low_vram_previews or not makes_previews):
        why = "weights are quantised on the CPU and wait there while not needed: slower load, some slower steps"
        yield Edit("model.low_vram", False, True, why, replace(job, model=replace(model, low_vram=True)))
    if job.method == "full":
        return
    if model.weights in FLOATS:
        why, text = "frozen weights in 8 bit: little loss, somewhat slower steps", _eight_bit(job) if follows else model.te_weights
        yield Edit("model.quantize", False, True, why, replace(job, model=replace(model, weights=_eight_bit(job), te_weights=text)))
    if model.te_weights in FLOATS and not follows:
        why = "text encoder quantised: hardly a loss in 8 bit"
        shared = load_archs().archs[job.arch].te_qtype_key == "qtype" and model.weights not in FLOATS  # by the transformer's key
        te_weights = model.weights if shared else "float8" if model.layer_offloading else "qfloat8"
        yield Edit("model.quantize_te", False, True, why, replace(job, model=replace(model, te_weights=te_weights)))
    arch = load_archs().archs[job.arch]
    stops = arch.offloads_as_it_is and (model.low_vram or model.weights not in FLOATS)
    offloads = arch.layer_offloading not in (None, "nothing") and not stops
    if not model.layer_offloading and offloads and (arch.offloaded_previews or not makes_previews):
        coerced = {key: "float8" for key in ("weights", "te_weights") if getattr(model, key) == "qfloat8"}
        why = "weights wait in RAM and are copied in for each layer's use: slower steps, the slower the smaller the batch"
        changed = replace(model, layer_offloading=True, **coerced)  # type: ignore[arg-type]
        yield Edit("model.layer_offloading", False, True, why, replace(job, model=changed))


def _eight_bit(job: Job) -> str:
    """What quantize: true makes of the transformer. Z-Image with a training adapter turns qfloat8 into float8 (trainer's z_image.py)."""
    coerced = job.model.layer_offloading or (job.model.assistant_lora is not None and job.arch.startswith("zimage"))
    return "float8" if coerced else "qfloat8"


def _last_edits(job: Job) -> Iterator[Edit]:
    """What changes what is learned."""
    model, train = job.model, job.train
    if job.method == "full" and train.optimizer != FACTORED and train.gradient_accumulation == 1 and not train.gradients_stay:
        why = "state of rows and columns in place of two values a weight: another optimizer, learning rates need another look"
        yield _train(job, "optimizer", FACTORED, why)
    if model.weights in ("qfloat8", "float8", "convrot8") and job.method != "full":
        # some classes of the trainer quantise the text encoder with the same key, others with one of its own
        both = model.te_weights not in FLOATS and load_archs().archs[job.arch].te_qtype_key == "qtype"
        changed_model = replace(model, weights="uint4", te_weights="uint4" if both else model.te_weights)
        why = "frozen weights in 4 bit: clearly less exact than in 8"
        yield Edit("model.qtype", model.weights, "uint4", why, replace(job, model=changed_model))
    if job.network is not None and job.network.kind == "lora" and job.network.rank >= 2 * SMALLEST_RANK:
        half = job.network.rank // 2
        changed = replace(job, network=replace(job.network, rank=half))
        yield Edit("network.linear", job.network.rank, half, "a smaller adapter: it can hold less", changed)
    away = job.train.unload_text_encoder or job.train.cache_text_embeddings
    arch = load_archs().archs[job.arch]
    if not away and arch.unloads_text and not arch.previews_need_text:
        yield _train(job, "unload_text_encoder", True, "captions are ignored: only the trigger word is learned")
