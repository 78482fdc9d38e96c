"""Counted time of a step: rough, but it must grow as the work does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from estimator.archs import load_archs
from estimator.engine import estimate_job
from estimator.gpus import GIB, find_gpu
from estimator.job import Job
from estimator.planner.costs import headroom_bytes, time_ratio
from estimator.trainers import read_jobs

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def job_of(name: str, *sets: str) -> Job:
    return read_jobs(EXAMPLES / f"{name}.yaml", sets)[0]


def ratio(name: str, before: str, after: str) -> float:
    found = time_ratio(job_of(name, before), job_of(name, after))
    assert found is not None
    return found


PLANNED = sorted(
    arch for arch in {arch for each in load_archs().trainer.values() for arch in each.archs} & {*load_archs().modelled()}
    if load_archs().archs[arch].model_class != "unet"
)  # fmt: skip
"""Not those of explicit run files, which cannot be planned for; of a UNet, which attends at several widths, attention is left out."""


@pytest.mark.parametrize("arch", PLANNED)
def test_of_every_architecture_that_is_planned_for_it_is_known_what_attention_computes(arch: str) -> None:
    layers, width = load_archs().archs[arch].attention or (0, 0)
    assert layers > 0
    assert width > 0


def test_a_clip_four_times_as_long_takes_much_more_than_four_times_as_long() -> None:
    """832 x 480: 16,380 tokens at 41 frames, 65,520 at 165, where attention is most of the work."""
    assert 6 < ratio("wan21_14b_24gb", "datasets.0.num_frames=41", "datasets.0.num_frames=165") < 16


def test_of_small_images_the_weights_are_most_of_the_work() -> None:
    assert ratio("flux_dev_24gb", "datasets.0.resolution=512", "datasets.0.resolution=768") < 2.25, "less than in proportion to the pixels"


def test_an_architecture_whose_attention_is_not_known_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    known = load_archs()
    unknown = {**known.archs, "zimage": replace(known.archs["zimage"], attention=None)}
    monkeypatch.setattr("estimator.planner.costs.load_archs", lambda: replace(known, archs=unknown))
    assert time_ratio(job_of("zimage_base_ui"), job_of("zimage_base_ui")) is None


def test_what_waits_behind_a_failure_does_not_count_with_all_its_cache() -> None:
    """A preview of 2048 pixels would reserve 34 GiB with room to spare; what it allocates, 23.4, is 0.3 too much for the card."""
    card = find_gpu("RTX4090")
    estimate = estimate_job(job_of("flux_dev_24gb", "sample.width=2048", "sample.height=2048"), card)
    allocated = max(phase.allocated_bytes for phase in estimate.phases)
    assert max(phase.device.likely_bytes for phase in estimate.phases) > card.total_bytes + 10 * GIB
    assert headroom_bytes(estimate) == card.total_bytes - card.context_bytes - allocated
