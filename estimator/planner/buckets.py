"""Training sizes in a config: smaller ones, largest bucket first, and larger ones; likewise the frames of clips."""

from __future__ import annotations

from collections.abc import Iterator

from estimator.planner.edits import Edit, Level, Loss
from estimator.planner.subject import Subject
from estimator.trainers.aitoolkit_entry import DEFAULT_RESOLUTION

STEP, SMALLEST, LARGEST = 64, 256, 2048  # px
FRAME_STEP, MOST_FRAMES = 4, 257  # video VAEs take 4 frames together, after the first: 4 n + 1
PERCENT = 100


def resolutions(subject: Subject) -> list[int]:
    """The resolutions of the config, ascending."""
    return sorted({each.resolution for each in subject.job.datasets})


def _values(entry: dict[str, object]) -> list[int]:
    raw = entry.get("resolution", DEFAULT_RESOLUTION)
    return [int(each) for each in (raw if isinstance(raw, list) else [raw]) if isinstance(each, (int, float))]


def _resolution(number: int, entry: dict[str, object], values: list[int]) -> Edit:
    """A list where the config has one, else the largest."""
    return Edit(f"datasets.{number}.resolution", tuple(values) if isinstance(entry.get("resolution"), list) else values[-1])


def capped(subject: Subject, cap: int) -> tuple[Edit, ...]:
    """No bucket above `cap`: larger ones are dropped, and where none is left `cap` takes their place."""
    edits = []
    for n, entry in enumerate(subject.entries()):
        values = _values(entry)
        if max(values, default=0) > cap:
            kept = [value for value in values if value <= cap] or [cap]
            edits.append(_resolution(n, entry, kept))
    return subject.allowed(edits)


def grown(subject: Subject, *larger: int) -> tuple[Edit, ...]:
    """Larger buckets besides those of a list, the last in place of a single one, in each dataset whose largest is the config's."""
    top = resolutions(subject)[-1]
    edits = []
    for n, entry in enumerate(subject.entries()):
        values = _values(entry)
        if max(values, default=0) == top:
            edits.append(_resolution(n, entry, [*values, *larger]))
    return subject.allowed(edits)


def bucket_levels(subject: Subject, aimed: bool) -> Iterator[Level]:
    """Fewer buckets, the largest dropped first; below the smallest of the config in steps of 64 px."""
    present = resolutions(subject)
    caps = [*reversed(present[:-1]), *range((present[0] - 1) // STEP * STEP, SMALLEST - 1, -STEP)]
    for number, cap in enumerate(caps, 1):
        edits = capped(subject, cap)
        if edits:
            lost = PERCENT - PERCENT * cap**2 // present[-1] ** 2
            why = f"no training above {cap} px: less fine detail is learned"
            yield Level(edits, Loss(aimed=number if aimed else 0, learned=lost), why)


def frames_of(subject: Subject) -> int:
    """The longest clip of the config, in frames; 1 where only images are trained."""
    return max((bucket.frames for each in subject.job.datasets for bucket in each.buckets), default=1)


def frame_edits(subject: Subject, frames: int) -> tuple[Edit, ...]:
    """Clips of `frames` frames wherever they are longer, or, to grow, as long as the longest."""
    longest = frames_of(subject)
    edits = []
    for n, entry in enumerate(subject.entries()):
        own = entry.get("num_frames")
        if isinstance(own, (int, float)) and own > 1 and (own > frames or own == longest):
            edits.append(Edit(f"datasets.{n}.num_frames", frames))
    return subject.allowed(edits)


def frame_levels(subject: Subject, aimed: bool) -> Iterator[Level]:
    """Shorter clips, a VAE's step at a time."""
    longest = frames_of(subject)
    for number, frames in enumerate(range((longest - 2) // FRAME_STEP * FRAME_STEP + 1, 0, -FRAME_STEP), 1):
        edits = frame_edits(subject, frames)
        if edits:
            lost = PERCENT - PERCENT * frames // longest
            why = f"clips of {frames} frames instead of {longest}: less motion is learned"
            yield Level(edits, Loss(aimed=number if aimed else 0, learned=lost), why)
