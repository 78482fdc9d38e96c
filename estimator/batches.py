"""The different training steps that a Job can meet: which buckets, how many items of each, how long their captions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from estimator.archs import load_archs
from estimator.job import Bucket, Dataset, Job

MOST_BATCHES = 3  # of an accumulated step: from the second on each finds what the one before it found
MOST_TEXTS = 2  # of captions whose lengths are not known: the second is encoded among what the first has left in the allocator's cache
MOST_LONGER = 4  # captions, each longer than all before, that are replayed


def texts_cached(dataset: Dataset, longest: int, empty: int) -> tuple[int, ...]:
    """Tokens of the captions that caching encodes one after the other, as far as they count: a caption that is no longer than one before
    it finds that one's blocks. Where lengths are not known, the longest, twice if there are more (what follows lies among what it left).
    """
    count = sum(bucket.count for bucket in dataset.buckets) if dataset.scanned else MOST_TEXTS
    longer = dataset.longer_captions[-MOST_LONGER:] or (longest,)
    if len(longer) > 1 and dataset.drops_captions:
        return tuple(tokens for each in longer for tokens in (each, empty))
    more = dataset.drops_captions or count > len(longer)
    return (*longer, longest) if more else longer


def one_or_many(count: int) -> str:
    """How programs call a batch: one of a single sample has a structure of its own."""
    return "one" if count == 1 else "many"


def encodes_latents(job: Job, bucket: Bucket) -> bool:
    """Whether a batch of this training size goes through the VAE in its step: one of any dataset with this size does, if not cached."""
    size = bucket.width, bucket.height, bucket.frames
    return any((b.width, b.height, b.frames) == size for d in job.datasets if not d.latents_cached for b in d.buckets)


@dataclass(frozen=True, slots=True)
class Batch:
    """`size` items of one bucket; `text_tokens` of its longest caption."""

    bucket: Bucket
    size: int
    text_tokens: int


def preserved(job: Job, batch: Batch) -> dict[str, int]:
    """`W`: text tokens of the prompts whose output a step preserves; nothing where it preserves none.

    Captions, if the step has them (encoded in it, or cached), else one prompt that was encoded before the loop.
    Source: SDTrainer.train_single_accumulation.
    """
    train = job.train
    if train.preserves is None:
        return {}
    captions = train.preserves_captions and (job.text_cached or not train.unload_text_encoder)
    return {"W": batch.text_tokens if captions else load_archs().archs[job.arch].text_tokens(train.preserves)}


def preserved_before(job: Job) -> tuple[int, ...]:
    """Text tokens of each such prompt that is encoded before the loop: the class where text encoders go, else the empty one."""
    train, away = job.train, job.train.unload_text_encoder or job.text_cached
    if train.preserves is None or train.preserves_captions != away:
        return ()
    return (load_archs().archs[job.arch].text_tokens(train.preserves),)


Step = tuple[Batch, ...]
"""One training step: the batches that are accumulated in it (one, unless gradient accumulation)."""


def steps_of(job: Job, text_tokens: int) -> tuple[Step, ...]:
    """The different training steps of a job, smallest first; all accumulated batches as large as the largest of them.

    `text_tokens`: what an unknown caption counts.
    """
    found: dict[tuple[object, ...], Batch] = {}
    for dataset in job.datasets:
        for bucket in dataset.buckets:
            tokens = bucket.text_tokens or dataset.text_tokens or text_tokens
            size, sound = (bucket.width, bucket.height, bucket.frames), (bucket.sound_tokens, bucket.sound)
            bucket = replace(bucket, uneven=False) if bucket.uneven and dataset.batch_size == 1 else bucket
            key = (*size, dataset.batch_size, bucket.controls, *sound, bucket.begins, bucket.masked, bucket.uneven)
            if key not in found or found[key].text_tokens < tokens:
                found[key] = Batch(bucket, dataset.batch_size, tokens)
    ordered = sorted(found.values(), key=lambda b: (b.bucket.width * b.bucket.height * b.bucket.frames * b.size, b.text_tokens, b.bucket))
    count = min(job.train.gradient_accumulation, MOST_BATCHES)
    return tuple((batch,) * count for batch in ordered)
