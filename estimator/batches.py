"""The different training steps that a Job can meet: which buckets, how many items of each, how long their captions."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.job import Bucket, Job

MOST_BATCHES = 3  # of an accumulated step: from the second on each finds what the one before it found


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
            key = (bucket.width, bucket.height, bucket.frames, dataset.batch_size, bucket.controls, bucket.sound_tokens, bucket.sound)
            if key not in found or found[key].text_tokens < tokens:
                found[key] = Batch(bucket, dataset.batch_size, tokens)
    ordered = sorted(found.values(), key=lambda b: (b.bucket.width * b.bucket.height * b.bucket.frames * b.size, b.text_tokens, b.bucket))
    count = min(job.train.gradient_accumulation, MOST_BATCHES)
    return tuple((batch,) * count for batch in ordered)
