"""What every plan must be: safe by the rule of `check`, the least that is, nothing pinned touched, and nothing left to plan afterwards."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from estimator.engine import estimate_job, failure, needed_at_start, room_bytes, rows_of, surely_safe, surely_unsafe
from estimator.errors import CannotTell, InputError
from estimator.estimate import SAFE, UNKNOWN
from estimator.gpus import find_gpu
from estimator.planner.edits import Dimension, merged
from estimator.planner.growth import _last
from estimator.planner.judge import Judge
from estimator.planner.output import edited_text
from estimator.planner.plans import Plan, make_plan
from estimator.planner.search import cheapest
from estimator.planner.space import dimensions
from estimator.planner.subject import Subject, covers, read_subject
from estimator.trainers import read_jobs

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = ("flux_dev_24gb", "zimage_turbo_ui", "zimage_base_ui")
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # no shrinking: a replay takes seconds on a busy machine
few = settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)

SETS = st.lists(
    st.sampled_from(
        [
            "train.batch_size=2", "train.batch_size=4", "train.gradient_checkpointing=false", "train.optimizer=adamw",
            "model.low_vram=false", "sample.width=1536", "model.quantize=false",
            "datasets.0.resolution=1024", "datasets.0.cache_latents_to_disk=true",
            "train.gradient_accumulation=2",
        ]
    ),
    max_size=4, unique=True,
).map(tuple)  # fmt: skip
KEEPS = st.sampled_from([(), ("train.batch_size",), ("sample", "train.disable_sampling"), ("datasets.*.resolution",), ("model.q*",)])


def subject_of(name: str, sets: tuple[str, ...] = (), keep: tuple[str, ...] = ()) -> Subject:
    return read_subject(str(EXAMPLES / f"{name}.yaml"), sets, None, keep)


def written(plan: Plan, folder: str) -> str:
    path = str(Path(folder) / "planned.yaml")
    _, text = edited_text(plan.subject, plan.edits)
    Path(path).write_text(text, encoding="utf-8", newline="")
    return path


def check_plan(plan: Plan) -> None:
    """The written file is safe by `check`, pinned keys are as they were, and planning it again proposes nothing."""
    assert plan.after is not None
    assert not [edit.key for edit in plan.edits if any(covers(pattern, edit.key) for pattern in plan.subject.keep)]
    with tempfile.TemporaryDirectory() as folder:
        path = written(plan, folder)
        (job,) = read_jobs(path)
        assert estimate_job(job, plan.gpu).verdict == SAFE
        again = make_plan(read_subject(path, (), None, plan.subject.keep), plan.gpu, plan.aim, look_further=False)
    assert again.edits == ()


@few
@given(name=st.sampled_from(NAMES), sets=SETS, keep=KEEPS, gib=st.sampled_from([10, 12, 16, 20, 23, 31, 47]))
def test_a_plan_is_safe_and_each_of_its_changes_is_needed(name: str, sets: tuple[str, ...], keep: tuple[str, ...], gib: int) -> None:
    subject, gpu = subject_of(name, sets, keep), find_gpu(f"{gib}GiB")
    plan = make_plan(subject, gpu, "quality", look_further=False)
    if plan.after is None:
        strongest = merged(edit for each in dimensions(subject, "quality") for edit in each.levels[-1].edits)
        job = subject.read(strongest)
        assert job is None or estimate_job(job, gpu).verdict != SAFE
        return
    check_plan(plan)
    for change in plan.changes:
        rest = merged(edit for other in plan.changes if other is not change for edit in other.edits)
        job = subject.read(rest)
        assert job is not None
        assert estimate_job(job, gpu).verdict != SAFE, change


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
@given(name=st.sampled_from(NAMES), aim=st.sampled_from(["batch", "resolution", "speed"]), gib=st.sampled_from([16, 23, 31, 47]))
def test_the_next_step_up_is_not_safe(name: str, aim: str, gib: int) -> None:
    subject, gpu = subject_of(name, ("sample.width=768", "sample.height=768")), find_gpu(f"{gib}GiB")
    plan = make_plan(subject, gpu, aim)
    assume(plan.after is not None)
    check_plan(plan)
    for growth in plan.growth:
        if growth.beyond is None:
            continue
        key = {"batch": "train.batch_size", "resolution": "datasets.0.resolution"}[growth.what]
        value: object = growth.beyond
        if growth.what == "resolution":  # one more bucket besides the config's own, where these are a list
            own = subject.value("datasets.0.resolution")
            value = [*own, growth.beyond] if isinstance(own, list) else growth.beyond
        try:
            (job,) = read_jobs(subject.file.name, (*(edit.override for edit in plan.edits), f"{key}={value}"))
            verdict = estimate_job(job, gpu).verdict
        except (InputError, CannotTell):
            verdict = UNKNOWN
        assert verdict == UNKNOWN if growth.refused else verdict != SAFE


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
@given(name=st.sampled_from((*NAMES, "qwen_edit_2509_ui", "wan22_5b_ui", "ltx2_ui")), sets=SETS, data=st.data())
def test_what_edits_leave_alone_is_read_as_it_would_be_anew(name: str, sets: tuple[str, ...], data: st.DataObject) -> None:
    """A subject remembers what it has read: each of many edits in turn gives the job, warnings and all, that a fresh reading does."""
    path = EXAMPLES / f"{name}.yaml"
    try:
        subject = read_subject(str(path), sets, None, ())
    except (InputError, CannotTell):
        assume(False)
    levels = [level for each in dimensions(subject, "quality") for level in each.levels if level.edits]
    for _ in range(6):
        edits = merged(edit for level in data.draw(st.lists(st.sampled_from(levels), max_size=4)) for edit in level.edits)
        try:
            (fresh,) = read_jobs(path, (*sets, *(edit.override for edit in edits)))
        except (InputError, CannotTell):
            assert subject.read(edits) is None
            continue
        assert subject.read(edits) == (None if fresh.unmodelled else fresh)


def test_faster_never_counts_as_slower() -> None:
    plan = make_plan(subject_of("zimage_turbo_ui"), find_gpu("A100-80G"), "speed")
    assert plan.ratio is not None
    assert plan.ratio < 1
    assert "train.gradient_checkpointing" in {edit.key for edit in plan.edits}


@pytest.mark.parametrize(
    ("name", "gib", "settings"),
    [("zimage_turbo_ui", 12, ("text", "weights")), ("flux2_klein_4b_ui", 10, ("latents", "previews", "weights"))],
)
def test_the_search_finds_what_trying_all_finds(name: str, gib: int, settings: tuple[str, ...]) -> None:
    """On a space small enough to replay whole."""
    subject, gpu = subject_of(name, ()), find_gpu(f"{gib}GiB")
    chosen = [each for each in dimensions(subject, "quality") if each.name in settings]
    space = [Dimension(each.name, each.levels[:: max(1, len(each.levels) // 4)]) for each in chosen]
    every = [
        (sum(level.loss.order[1] * 1000 + level.loss.order[2] for level in levels), levels)
        for levels in itertools.product(*(each.levels for each in space))
    ]
    safe = []
    for loss, levels in every:
        job = subject.read(merged(edit for level in levels for edit in level.edits))
        if job is not None and estimate_job(job, gpu).verdict == SAFE:
            safe.append(loss)
    found = cheapest(Judge(subject, gpu), space)
    assert safe
    assert found is not None
    assert found.loss.learned * 1000 + found.loss.trouble == min(safe)


@few
@given(name=st.sampled_from(NAMES), sets=SETS, gib=st.sampled_from([9, 12, 16, 20, 23, 31]))
def test_what_one_replay_decides_is_what_check_says(name: str, sets: tuple[str, ...], gib: int) -> None:
    (job,) = read_jobs(EXAMPLES / f"{name}.yaml", sets)
    gpu = find_gpu(f"{gib}GiB")
    capacity = room_bytes(job, gpu, rows_of(job, gpu))
    alone = failure(job, gpu, capacity)
    if surely_safe(job, gpu, capacity):
        assert alone is None
        assert estimate_job(job, gpu).verdict == SAFE
    rows = rows_of(job, gpu).phases
    early = any(needed_at_start(job, gpu, rows, loading_only=loading_only) is None for loading_only in (True, False))
    if surely_unsafe(job, gpu) or early or (alone is not None and alone.decides):
        assert estimate_job(job, gpu).verdict != SAFE


@given(count=st.integers(0, 200), limit=st.integers(-1, 199), likely=st.integers(-1, 199))
def test_the_last_good_one_stands_next_to_one_that_is_not(count: int, limit: int, likely: int) -> None:
    assume(limit < count)
    assume(likely < count)
    tried: set[int] = set()

    def good(number: int) -> bool:
        tried.add(number)
        return number <= limit

    assert _last(count, good, likely) == limit
    assert limit < 0 or limit in tried
    assert limit + 1 == count or limit + 1 in tried
    assert len(tried) <= 20
