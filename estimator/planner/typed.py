"""The compute type as a setting of the planner: of jobs in fp32, which is the trainer's default."""

from __future__ import annotations

from collections.abc import Iterator

from estimator.dtypes import BF16, FP32, TO_BF16, TYPE_KEY
from estimator.planner.edits import Edit, Level, Loss
from estimator.planner.subject import Subject

NARROWER = 2  # points of the planner's scale (estimator.planner.space): more than caching latents, less than low_vram


def narrower(subject: Subject) -> Iterator[Level]:
    if subject.job.model.dtype == FP32:
        yield Level((Edit(TYPE_KEY, BF16),), Loss(trouble=NARROWER), TO_BF16)
