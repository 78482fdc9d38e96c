"""The compiled replay does what the reference does, event by event; and without it estimates are the same."""

from __future__ import annotations

import random

import numpy as np
import pytest
from allocator_answers import MIB, Events, model_answers, stored
from hypothesis import given, settings
from hypothesis import strategies as st
from made_jobs import ROOT
from test_allocator import event_lists

import hatch_build
from estimator import allocator_compiled
from estimator.allocator import EMPTY_CACHE, FREE, Allocator, OutOfMemory
from estimator.allocator_compiled import CompiledAllocator, replaying_allocator
from estimator.timeline import simulate
from estimator.trainers import read_jobs

pytestmark = pytest.mark.skipif(allocator_compiled.library() is None, reason="installed without a C compiler: nothing compiled to test")

Either = Allocator | CompiledAllocator
ROOMS = st.one_of(st.none(), st.integers(0, 400 * MIB))


def safe_address(allocator: Either, key: int) -> int | None:
    try:
        return allocator.address(key)
    except KeyError:
        return None


def outcome(allocator: Either, events: Events) -> list[object]:
    """All that a replay reads: the run's answer, or how it failed and where; counters; addresses of what is live."""
    try:
        answer: object = allocator.run([key for key, _ in events], [size for _, size in events])
    except OutOfMemory as error:
        answer = (str(error), error.event, error.requested_bytes, error.reserved_bytes)
    except ValueError as error:
        answer = str(error)
    counters = (allocator.allocated_bytes, allocator.reserved_bytes, allocator.peak_allocated_bytes, allocator.peak_reserved_bytes)
    addresses = [(key, safe_address(allocator, key)) for key in {key for key, _ in events}]
    return [answer, allocator.peak_event, allocator.retries, counters, addresses]


@settings(deadline=None)
@given(events=event_lists(120), room=ROOMS, downwards=st.booleans())
def test_same_answers(events: Events, room: int | None, downwards: bool) -> None:
    assert outcome(CompiledAllocator(room, downwards=downwards), events) == outcome(Allocator(room, downwards=downwards), events)


@pytest.mark.parametrize("allocator", [CompiledAllocator(downwards=True), Allocator(downwards=True)], ids=["compiled", "reference"])
def test_downwards_the_newest_of_equal_blocks_is_taken_first(allocator: Either) -> None:
    """Best fit breaks ties by address: upwards it is the oldest one."""
    allocator.run([1, 2], [30 * MIB, 30 * MIB])
    assert allocator.address(2) == allocator.address(1) - 30 * MIB
    newest = allocator.address(2)
    allocator.run([1, 2, 3], [FREE, FREE, 30 * MIB])
    assert allocator.address(3) == newest


@settings(deadline=None)
@given(events=st.lists(st.tuples(st.integers(-3, 6), st.integers(-4, 60 * MIB)), max_size=40), room=ROOMS)
def test_same_refusals(events: Events, room: int | None) -> None:
    """Keys used twice, frees of nothing, unknown sizes: the same message, after the same events."""
    assert outcome(CompiledAllocator(room), events) == outcome(Allocator(room), events)


@settings(deadline=None)
@given(events=event_lists(120), room=ROOMS, choice=st.randoms(use_true_random=False))
def test_same_answers_on_two_streams(events: Events, room: int | None, choice: random.Random) -> None:
    """Each key on a stream of its own choice; releases are of both."""
    stream_of = {key: choice.randrange(2) for key, _ in events}
    streams = np.array([0 if size == EMPTY_CACHE else stream_of[key] for key, size in events], dtype=np.int64)
    answers = []
    for allocator in (CompiledAllocator(room), Allocator(room)):
        try:
            run: object = allocator.run_streams([key for key, _ in events], [size for _, size in events], streams)
        except OutOfMemory as error:
            run = (str(error), error.event)
        answers.append([run, *outcome(allocator, []), [(key, safe_address(allocator, key)) for key in stream_of]])
        answers[-1] += outcome(allocator.copy(), [(-1, 3 * MIB), (-2, 512)])
    assert answers[0] == answers[1]


@settings(deadline=None)
@given(before=event_lists(), one=event_lists(), other=event_lists(), room=ROOMS)
def test_copies_go_their_own_way(before: Events, one: Events, other: Events, room: int | None) -> None:
    def renamed(events: Events, by: int) -> Events:
        return [(key + by if size != EMPTY_CACHE else key, size) for key, size in events]

    answers = []
    for start in (CompiledAllocator(room), Allocator(room)):
        allocator: Either = start
        row = outcome(allocator, before)
        twin: Either = allocator.copy()
        allocator.reset_peaks()
        row += outcome(twin, renamed(one, 1000)) + outcome(allocator, renamed(other, 2000)) + outcome(twin, renamed(other, 3000))
        answers.append(row)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["native", "native_thresholds"])
def test_answers_are_torchs(name: str) -> None:
    recorded = stored(name)
    events = [(key, size) for key, size in recorded["events"]]
    assert model_answers(events, CompiledAllocator(recorded["room_mib"] * MIB)) == recorded["answers"]


def test_many_keys() -> None:
    """Tables grow, and keys that were removed do not hide those behind them."""
    order = random.Random(5)
    keys = [order.randrange(-(2**62), 2**62) for _ in range(5000)]
    events = [(key, order.choice((512, 3 * MIB, 0))) for key in keys]
    order.shuffle(keys)
    events += [(key, FREE) for key in keys[:4000]]
    assert outcome(CompiledAllocator(), events) == outcome(Allocator(), events)


def test_without_a_compiler_or_with_expandable_segments_it_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(replaying_allocator(None, False), CompiledAllocator)
    assert isinstance(replaying_allocator(None, True), Allocator)
    monkeypatch.setattr(allocator_compiled, "library", lambda: None)
    assert isinstance(replaying_allocator(None, False), Allocator)


def test_estimates_are_the_same_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = read_jobs(ROOT / "examples" / "zimage_turbo_ui.yaml")
    compiled = [simulate(job, capacity_bytes=room) for room in (None, 14 * 1024 * MIB)]
    monkeypatch.setattr(allocator_compiled, "library", lambda: None)
    assert [simulate(job, capacity_bytes=room) for room in (None, 14 * 1024 * MIB)] == compiled


def test_the_library_is_named_as_it_is_built() -> None:
    assert hatch_build.LIBRARY.name == allocator_compiled.LIBRARY


def test_a_library_of_an_older_source_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Was: an editable installation after an update stopped on an event that its library did not know."""
    built = allocator_compiled.library()
    assert built is not None
    monkeypatch.setattr(allocator_compiled, "VERSION", allocator_compiled.VERSION + 1)
    assert allocator_compiled.library.__wrapped__() is None
