"""Replays that go on from one another are what they would be from the start; and what a replay says of other capacities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from random import Random

import pytest

from estimator import beginnings
from estimator import operations as op
from estimator.job import Job
from estimator.residents import Simulation
from estimator.timeline import simulate
from estimator.trainers import read_jobs

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SETS = (
    (), ("sample.width=512",), ("train.batch_size=2",), ("train.disable_sampling=true",), ("train.gradient_checkpointing=false",),
    ("train.cache_text_embeddings=true",), ("datasets.0.cache_latents_to_disk=true", "sample.width=768"),
)  # fmt: skip
SHARES = (None, 0.999, 0.97, 0.9, 0.6)
"""Capacities, of what is reserved with room to spare."""


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    beginnings.forget()
    yield
    beginnings.forget()


def jobs(name: str) -> list[Job]:
    return [read_jobs(EXAMPLES / f"{name}.yaml", sets)[0] for sets in SETS]


def alone(job: Job, capacity_bytes: int | None) -> Simulation:
    beginnings.forget()
    return simulate(job, capacity_bytes=capacity_bytes)


@pytest.mark.parametrize("name", ["zimage_turbo_ui", "flux2_klein_4b_ui", "wan21_1b_ui"])
def test_what_was_replayed_before_makes_no_difference(name: str) -> None:
    random, asked = Random(name), []
    for job in jobs(name):
        most = max(peak.reserved_bytes for peak in alone(job, None).phases)
        asked += [(job, None if share is None else round(most * share)) for share in random.sample(SHARES, 2)]
    random.shuffle(asked)
    expected = [alone(job, capacity) for job, capacity in asked]
    beginnings.forget()
    assert [simulate(job, capacity_bytes=capacity) for job, capacity in asked] == expected


@pytest.mark.parametrize("share", [0.97, 0.85, 0.6])
def test_a_replay_is_that_of_every_capacity_down_to_what_it_was_granted(share: float) -> None:
    (job,) = read_jobs(EXAMPLES / "zimage_turbo_ui.yaml", ("model.low_vram=false",))
    capacity = round(share * max(peak.reserved_bytes for peak in simulate(job).phases))
    tight = alone(job, capacity)
    assert 0 < tight.granted_bytes <= capacity
    assert alone(job, tight.granted_bytes) == tight
    assert alone(job, tight.granted_bytes - 1) != tight


def test_with_expandable_segments_no_other_capacity_is_served() -> None:
    """Addresses depend on it."""
    job = replace(jobs("zimage_turbo_ui")[0], expandable_segments=True)
    most = max(peak.reserved_bytes for peak in simulate(job, only_before_steps=True).phases)
    capacity = most - 2**20
    after_another = simulate(job, capacity_bytes=capacity, only_before_steps=True)
    beginnings.forget()
    assert simulate(job, capacity_bytes=capacity, only_before_steps=True) == after_another


def test_parts_that_differ_in_anything_have_other_names() -> None:
    part, move = op.Part("text/bf16/plain/one", {"X": 7}), (op.MoveIn("vae"),)
    others: dict[str, object] = {
        "key": "text/bf16/plain/many", "values": {"X": 8}, "scope": "item", "accumulate": True, "inside": (move, ()), "holds": "batch",
        "between": move,
    }  # fmt: skip
    assert others.keys() == {each.name for each in fields(op.Part)}
    names = [beginnings.name_of(part), *(beginnings.name_of(replace(part, **{name: value})) for name, value in others.items())]
    assert len(set(names)) == len(names)


def test_states_are_kept_in_bounds() -> None:
    for name in ("zimage_turbo_ui", "flux2_klein_4b_ui"):
        for job in jobs(name):
            simulate(job)
    assert 0 < beginnings.kept() <= beginnings.MOST_KEPT
