"""What the search for a plan skips could not have been its answer: laws of peak rows, and the answer beside that of trying all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random

import pytest

from estimator.engine import surely_unsafe
from estimator.errors import CannotTell, InputError
from estimator.gpus import all_gpus, find_gpu
from estimator.intervals import residual_for
from estimator.kernels import without_flash
from estimator.offload_profile import profile_of
from estimator.outside import allocated_on_card, extra_at_peak
from estimator.planner.edits import NOTHING, Dimension, Edit, merged
from estimator.planner.judge import Judge
from estimator.planner.plans import make_plan, smallest_card
from estimator.planner.search import cheapest
from estimator.planner.sight import ENDS, LOAD, LOWERING, START, UNSEEN, UNTOLD, lowering, phase_of, seen
from estimator.planner.space import dimensions
from estimator.planner.subject import Subject, read_subject
from estimator.plans import before_previews, plan_of
from estimator.rows import bound
from estimator.timeline import granted_at_start

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.yaml"))
WASTEFUL = ("train.batch_size=4", "train.gradient_checkpointing=false", "train.optimizer=adamw", "model.low_vram=false")
GPU = find_gpu("A100-40G")
RESIDUAL = residual_for(GPU)
SEGMENTS_BYTES = 16 * 2**20


@cache
def subject_of(name: str) -> Subject:
    path = next(path for path in EXAMPLES if path.stem == name)
    for sets in (WASTEFUL, WASTEFUL[1:]):  # one image at a time
        try:
            return read_subject(str(path), sets, None, ())
        except (InputError, CannotTell):
            continue
    return read_subject(str(path), (WASTEFUL[0], *WASTEFUL[2:]), None, ())  # never without checkpointing


def edits_at(space: Sequence[Dimension], places: Sequence[int]) -> tuple[Edit, ...]:
    return merged(edit for each, n in zip(space, places, strict=True) for edit in each.levels[n].edits)


def phases(subject: Subject, space: Sequence[Dimension], places: Sequence[int]) -> dict[str, list[tuple[int, int]]] | None:
    """By phase, what each of its parts needs on a card at the most: allocated, and with what cuDNN adds. None: cannot be told."""
    job = subject.read(edits_at(space, places))
    try:
        peaks = () if job is None else bound(job).phases
    except CannotTell:
        return None
    found: dict[str, list[tuple[int, int]]] = {}
    for peak in peaks:
        most = allocated_on_card(peak, RESIDUAL).high_bytes + extra_at_peak(peak, RESIDUAL).high_bytes
        found.setdefault(phase_of(peak), []).append((peak.allocated_bytes, most))
    return found or None


def drawn(random: Random, space: Sequence[Dimension]) -> tuple[int, ...]:
    """Anywhere, but half the settings as they are: much is not recorded together."""
    return tuple(random.randrange(len(each.levels)) if random.random() < 0.5 else 0 for each in space)


def other_places(places: Sequence[int], dimension: int, level: int) -> tuple[int, ...]:
    return (*places[:dimension], level, *places[dimension + 1 :])


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_phases_are_blind_to_what_they_are_said_to_be_blind_to(name: str) -> None:
    """One alternative in place of another, from anywhere in the space: a phase that sees the same has the same peak rows."""
    subject, random = subject_of(name), Random(name)
    space, compared = dimensions(subject, "quality"), 0
    for _ in range(15):
        places = drawn(random, space)
        before = phases(subject, space, places)
        job = subject.read(edits_at(space, places))
        for d, each in enumerate(space) if before is not None and job is not None else ():
            level = random.randrange(len(each.levels))
            after = phases(subject, space, other_places(places, d, level))
            if each.name == "text" or after is None:  # whether text is cached is part of what is seen
                continue
            assert before is not None
            for phase in UNSEEN:
                away = job is not None and job.train.cache_text_embeddings
                if seen(each.levels[level].edits, phase, away) == seen(each.levels[places[d]].edits, phase, away):
                    assert sorted(before.get(phase, ())) == sorted(after.get(phase, ())), (phase, each.name, places)
                    compared += 1
    assert compared > 30


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_a_phase_is_least_where_it_is_said_to_be(name: str) -> None:
    """At a setting's last alternative, or at one of its ends. Nothing can be told between where it cannot be told at either."""
    subject, random = subject_of(name), Random(name)
    space, compared = dimensions(subject, "batch"), 0
    for _ in range(10):
        places = drawn(random, space)
        at = phases(subject, space, places)
        for d, each in enumerate(space):
            if not any(each.name in names for names in (*LOWERING.values(), *ENDS.values())):
                continue
            job = subject.read(edits_at(space, other_places(places, d, 0)))
            first, last = (phases(subject, space, other_places(places, d, level)) for level in (0, len(each.levels) - 1))
            if each.name in ENDS[UNTOLD] and first is None and last is None:
                assert at is None, (each.name, places)
            for phase in UNSEEN if first is not None and last is not None and at is not None else ():
                assert first is not None
                assert last is not None
                assert at is not None
                tops = [max((most for _, most in found.get(phase, ())), default=0) for found in (first, last)]
                here = max((most for _, most in at.get(phase, ())), default=0)
                if each.name in lowering(phase, job is not None and job.train.gradient_checkpointing):
                    assert tops[1] <= here, (phase, each.name, places)
                    compared += 1
                if each.name in ENDS.get(phase, ()):
                    assert min(tops) <= here, (phase, each.name, places)
                    compared += 1
    assert compared > 10


def granted(subject: Subject, space: Sequence[Dimension], places: Sequence[int]) -> int | None:
    """Bytes that a replay of all before the first previews is granted with room to spare. None: cannot be told."""
    job = subject.read(edits_at(space, places))
    try:
        return None if job is None else granted_at_start(job, 2**40, loading_only=False)
    except CannotTell:
        return None


def test_a_start_is_granted_least_where_it_is_said_to_be() -> None:
    """But for where its blocks come to lie, which is worth some segments of 2 MiB."""
    random, compared = Random(1), 0
    for name in (path.stem for path in EXAMPLES):
        subject = subject_of(name)
        space = dimensions(subject, "quality")
        places, wanted = drawn(random, space), LOWERING[START] | ENDS[START]
        d = random.choice([d for d, each in enumerate(space) if each.name in wanted and len(each.levels) > 1])
        last = len(space[d].levels) - 1
        here, least, most = (granted(subject, space, other_places(places, d, n)) for n in (random.randrange(last + 1), last, 0))
        if here is None or least is None or most is None:
            continue
        assert here >= (least if space[d].name in LOWERING[START] else min(least, most)) - SEGMENTS_BYTES, (name, space[d].name, places)
        compared += 1
    assert compared > 10


@pytest.mark.parametrize(("name", "gpu"), [("qwen_edit_ui", "RTX4090"), ("flux2_dev_ui", "8GB")])
def test_the_smallest_card_is_the_first_of_all_that_are_larger(name: str, gpu: str) -> None:
    subject, card = read_subject(str(EXAMPLES[0].parent / f"{name}.yaml"), (), None, ("model.*",)), find_gpu(gpu)
    larger = (each for each in all_gpus("linux") if each.total_bytes > card.total_bytes and not without_flash(each))
    space = dimensions(subject, "quality")
    first = next((each for each in larger if cheapest(Judge(subject, each), space) is not None), None)
    found = smallest_card(subject, card, "quality")
    assert first is not None
    assert found is not None
    assert found.name == first.name


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_what_starts_alike_does_the_same_before_the_first_previews(name: str) -> None:
    subject, random = subject_of(name), Random(name)
    space, compared = dimensions(subject, "quality"), 0

    def operations(places: Sequence[int]) -> dict[str, list[object]] | None:
        job = subject.read(edits_at(space, places))
        if job is None:
            return None
        plan = plan_of(job, profile_of(job.arch, job.model))
        return {LOAD: list(plan.load()), START: list(before_previews(plan))}

    for _ in range(15):
        places = drawn(random, space)
        for d, each in enumerate(space):
            level = random.randrange(len(each.levels))
            before, after = operations(places), operations(other_places(places, d, level))
            for part in (LOAD, START) if before is not None and after is not None else ():
                assert before is not None
                assert after is not None
                if seen(each.levels[level].edits, part) == seen(each.levels[places[d]].edits, part):
                    assert before[part] == after[part], (part, each.name, places, level)
                    compared += level != places[d]
    assert compared > 10


def by_trying_all(judge: Judge, space: Sequence[Dimension]) -> tuple[tuple[int, int, int], int] | None:
    """(loss, number of edits) of the best that peak rows do not rule out."""
    best = None
    for levels in itertools.product(*(each.levels for each in space)):
        edits = merged(edit for level in levels for edit in level.edits)
        job = judge.subject.read(edits)
        try:
            fits = job is not None and not surely_unsafe(job, judge.gpu)
        except CannotTell:
            continue
        if fits:
            found = sum((level.loss for level in levels), NOTHING).order, sum(len(level.edits) for level in levels)
            best = found if best is None else min(best, found)
    return best


@pytest.mark.parametrize(
    ("name", "gib"),
    [("zimage_base_ui", 8), ("zimage_base_ui", 10), ("zimage_turbo_ui", 9), ("flux_dev_24gb", 20), ("flux2_klein_4b_ui", 8),
     ("flux2_klein_9b_ui", 12), ("qwen_edit_2509_ui", 24), ("wan21_1b_ui", 10), ("wan21_14b_24gb", 22), ("chroma_24gb", 16)],
)  # fmt: skip
def test_the_search_finds_what_trying_all_finds(name: str, gib: int) -> None:
    """On spaces of some hundred choices, drawn from the whole one."""
    subject, gpu, random = subject_of(name), find_gpu(f"{gib}GiB"), Random(f"{name}{gib}")
    whole = dimensions(subject, "quality")
    for _ in range(2):
        space, size = [], 1
        for each in random.sample(whole, len(whole)):
            count = min(len(each.levels), 3)
            if size * count <= 300:
                chosen = sorted(random.sample(range(1, len(each.levels)), count - 1))
                space.append(Dimension(each.name, (each.levels[0], *(each.levels[n] for n in chosen))))
                size *= count
        judge = Judge(subject, gpu)
        found = cheapest(judge, space, by_rows=True)
        assert (None if found is None else (found.loss.order, len(found.edits))) == by_trying_all(Judge(subject, gpu), space)
        assert judge.by_rows <= size


def test_a_card_that_loading_fails_on_by_a_hair_is_soon_given_up() -> None:
    """With the transformer's layers offloaded Qwen-Image's text encoder loads but for the wider interval: each of 200,000 ways was tried
    for itself. (With its own layers offloaded too, the last level, there is a plan.)"""
    judge = Judge(subject_of("qwen_image_ui"), find_gpu("RTX4080"))
    space = dimensions(judge.subject, "quality")
    without_text = [Dimension(each.name, each.levels[:-1]) if each.name == "offloading" else each for each in space]
    assert cheapest(judge, without_text) is None
    assert judge.by_rows < 3_000


@pytest.mark.parametrize("gib", [18, 24])
def test_of_many_lengths_of_clips_the_longest_that_fits_is_found_and_most_are_not_tried(gib: int) -> None:
    subject = read_subject(str(next(path for path in EXAMPLES if path.stem == "wan21_1b_ui")), ("datasets.0.num_frames=257",), None, ())
    by_name = {each.name: each for each in dimensions(subject, "quality")}
    space = [by_name["frames"], by_name["text"], Dimension("buckets", by_name["buckets"].levels[:2])]
    judge = Judge(subject, find_gpu(f"{gib}GiB"))
    found = cheapest(judge, space, by_rows=True)
    assert found is not None
    assert (found.loss.order, len(found.edits)) == by_trying_all(Judge(subject, judge.gpu), space)
    assert judge.by_rows < len(by_name["frames"].levels)


def test_another_kind_of_as_many_bits_is_tried_where_loading_is_too_much() -> None:
    """nvfp4 takes six times a layer's weights in fp32 to quantise it; uint4, of as many bits, a quarter of that."""
    sets = ("model.qtype=nvfp4", "model.qtype_te=nvfp4")
    subject = read_subject(str(next(path for path in EXAMPLES if path.stem == "zimage_turbo_ui")), sets, None, ())
    plan = make_plan(subject, find_gpu("RTX4070"), "quality")
    assert {edit.key: edit.value for edit in plan.edits} == {"model.qtype": "uint4", "model.qtype_te": "uint4"}
