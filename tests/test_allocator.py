"""Laws of the allocator's model, and its agreement with recorded answers of torch's own allocator."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from allocator_answers import MIB, Events, model_answers, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.allocator import EMPTY_CACHE, FREE, NOTHING, Allocator, OutOfMemory

GIB = 2**30
STORED = ["native", "native_thresholds", "expandable", *(f"expandable_crowded_{seed}" for seed in (1, 3, 41))]
no_deadline = settings(deadline=None)
BOTH = pytest.mark.parametrize("expandable", [False, True], ids=["native", "expandable"])

SIZES = st.one_of(
    st.integers(0, 5000),
    st.integers(1, 2 * MIB),
    st.integers(MIB, 12 * MIB),
    st.integers(10 * MIB, 90 * MIB),
    st.builds(lambda base, by: base * MIB + by, st.sampled_from([1, 2, 10, 20, 40]), st.integers(-513, 513)),
)


@st.composite
def event_lists(draw: st.DrawFn, most: int = 60) -> Events:
    """Well-formed events: mallocs of new keys, frees of live ones, now and then empty_cache."""
    events: Events = []
    live: list[int] = []
    for key, action in enumerate(draw(st.lists(st.integers(0, 9), max_size=most))):
        if action == 0:
            events.append((0, EMPTY_CACHE))
        elif action <= 4 and live:
            events.append((live.pop(draw(st.integers(0, len(live) - 1))), FREE))
        else:
            events.append((key, draw(SIZES)))
            live.append(key)
    return events


def run(allocator: Allocator, events: Events) -> int | None:
    return allocator.run([key for key, _ in events], [size for _, size in events])


def live_keys(events: Events) -> list[int]:
    live: dict[int, None] = {}
    for key, size in events:
        if size == FREE:
            del live[key]
        elif size >= 0:
            live[key] = None
    return list(live)


@pytest.mark.parametrize("name", STORED)
def test_answers_are_torchs(name: str) -> None:
    """Some 1500 events each, most at a full card with out-of-memory errors, as torch 2.14.1 itself answered them on the emulated device."""
    recorded = stored(name)
    events = [(key, size) for key, size in recorded["events"]]
    answers = model_answers(events, Allocator(recorded["room_mib"] * MIB, recorded["expandable"]))
    for index, (event, mine, torchs) in enumerate(zip(events, answers, recorded["answers"], strict=True)):
        assert mine == torchs, f"event {index}: {event}"


@BOTH
@no_deadline
@given(events=event_lists())
def test_blocks_tile_segments_and_sums_hold(expandable: bool, events: Events) -> None:
    allocator = Allocator(None, expandable)
    held: dict[int, int] = {}
    for key, size in events:
        allocator.run([key], [size])
        if size == FREE:
            del held[key]
        elif size >= 0:
            held[key] = size
        blocks = []
        for segment in allocator.snapshot():
            edge = segment["address"]
            for address, block, _, _ in segment["blocks"]:
                assert address == edge
                edge += block
            assert edge == segment["address"] + segment["total_size"]
            assert all({a[3], b[3]} != {"inactive"} for a, b in pairwise(segment["blocks"])), "free neighbours are merged"
            blocks += segment["blocks"]
        live = {address: block for address, block, _, state in blocks if state == "active_allocated"}
        assert {allocator.address(key): None for key, size in held.items() if size}.keys() == live.keys()
        assert all(live[allocator.address(key)] >= size for key, size in held.items() if size)
        assert allocator.allocated_bytes == sum(live.values())
        assert allocator.reserved_bytes == sum(block for _, block, _, _ in blocks) >= allocator.allocated_bytes
        assert allocator.peak_allocated_bytes >= allocator.allocated_bytes
        assert allocator.peak_reserved_bytes >= max(allocator.reserved_bytes, allocator.peak_allocated_bytes)


@BOTH
@no_deadline
@given(events=event_lists())
def test_all_freed_and_emptied_is_nothing(expandable: bool, events: Events) -> None:
    allocator = Allocator(None, expandable)
    run(allocator, events)
    run(allocator, [(key, FREE) for key in live_keys(events)])
    assert allocator.allocated_bytes == 0
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0
    assert allocator.snapshot() == []
    assert allocator.fingerprint() == Allocator(None, expandable).fingerprint()


@BOTH
@no_deadline
@given(before=event_lists(), after=event_lists())
def test_copy_is_independent(expandable: bool, before: Events, after: Events) -> None:
    allocator = Allocator(None, expandable)
    run(allocator, before)
    state, fingerprint = allocator.snapshot(), allocator.fingerprint()
    after = [(key + 1000 if size != EMPTY_CACHE else key, size) for key, size in after]
    twin = allocator.copy()
    assert type(twin) is type(allocator)
    assert (twin.snapshot(), twin.fingerprint(), twin.peak_allocated_bytes) == (state, fingerprint, allocator.peak_allocated_bytes)
    run(twin, [*after, *((key, FREE) for key in live_keys(before)), (0, EMPTY_CACHE)])
    assert (allocator.snapshot(), allocator.fingerprint()) == (state, fingerprint)
    run(allocator, after)
    again = allocator.copy()
    assert again.snapshot() == allocator.snapshot()
    assert (again.peak_reserved_bytes, again.retries) == (allocator.peak_reserved_bytes, 0)


@BOTH
@no_deadline
@given(events=event_lists(), spare=st.integers(0, GIB))
def test_room_enough_changes_nothing(expandable: bool, events: Events, spare: int) -> None:
    free = Allocator(None, expandable, device_total_bytes=64 * GIB)
    run(free, events)
    bound = Allocator(free.peak_reserved_bytes + spare, expandable, device_total_bytes=64 * GIB)
    run(bound, events)
    assert bound.snapshot() == free.snapshot()
    assert (bound.peak_allocated_bytes, bound.peak_reserved_bytes, bound.retries) == (
        free.peak_allocated_bytes,
        free.peak_reserved_bytes,
        0,
    )


@BOTH
@no_deadline
@given(events=event_lists(), room_mib=st.integers(0, 200))
def test_short_of_room(expandable: bool, events: Events, room_mib: int) -> None:
    """Reserved never exceeds the capacity; a failure leaves nothing to release and the state of before; it is not worse than unbounded."""
    allocator = Allocator(room_mib * MIB, expandable)
    refused = set()
    for key, size in events:
        if key in refused and size == FREE:
            continue
        before, failure = allocator.allocated_bytes, None
        try:
            allocator.run([key], [size])
        except OutOfMemory as error:
            failure = error
        if failure is not None:
            refused.add(key)
            assert (failure.event, failure.capacity_bytes, failure.allocated_bytes) == (0, room_mib * MIB, before)
            assert size <= failure.requested_bytes < size + 512
            assert (allocator.allocated_bytes, allocator.reserved_bytes) == (before, failure.reserved_bytes)
            if not expandable:  # an expandable one may have mapped some of the pages that the request needed
                allocator.empty_cache()
                assert allocator.reserved_bytes == failure.reserved_bytes
        assert allocator.reserved_bytes <= allocator.peak_reserved_bytes <= room_mib * MIB
    assert allocator.retries >= len(refused)


@BOTH
@no_deadline
@given(history=event_lists(), step=event_lists(), then=event_lists())
def test_equal_fingerprints_have_equal_futures(expandable: bool, history: Events, step: Events, then: Events) -> None:
    """Whatever came before and is gone leaves no mark but on addresses."""
    fresh, used = Allocator(None, expandable), Allocator(None, expandable)
    run(used, [*history, *((key, FREE) for key in live_keys(history)), (0, EMPTY_CACHE)])
    run(fresh, step)
    run(used, step)
    assert fresh.fingerprint() == used.fingerprint()
    for key, size in [(key + 1000 if size != EMPTY_CACHE else key, size) for key, size in then]:
        fresh.run([key], [size])
        used.run([key], [size])
        assert (fresh.allocated_bytes, fresh.reserved_bytes) == (used.allocated_bytes, used.reserved_bytes)
        assert fresh.fingerprint() == used.fingerprint()


@BOTH
@pytest.mark.parametrize(
    "events",
    [
        [(1, 3 * MIB), (2, 512)],
        [(1, 2 * MIB), (2, 600)],
        [(1, 2 * MIB), (3, 512)],
        [(2, 512), (1, 2 * MIB)],
        [(1, 2 * MIB), (2, 512), (3, 512)],
        [(1, 2 * MIB), (2, 512), (3, 0)],
        [(1, 2 * MIB), (3, 512), (2, 512), (3, FREE)],
        [(3, 2 * MIB), (1, 2 * MIB), (3, FREE), (2, 512)],
        [(1, 2 * MIB), (2, 512), (3, 100 * MIB), (3, FREE)],
    ],
)
def test_fingerprint_tells_states_apart(expandable: bool, events: Events) -> None:
    allocator, other = Allocator(None, expandable), Allocator(None, expandable)
    run(allocator, [(1, 2 * MIB), (2, 512)])
    run(other, events)
    assert allocator.fingerprint() != other.fingerprint()
    capped = Allocator(8 * GIB, expandable)
    run(capped, [(1, 2 * MIB), (2, 512)])
    assert allocator.fingerprint() != capped.fingerprint()


@BOTH
@no_deadline
@given(events=event_lists())
def test_run_is_malloc_and_free_one_by_one(expandable: bool, events: Events) -> None:
    whole, single = Allocator(None, expandable), Allocator(None, expandable)
    peak_event = run(whole, events)
    allocated = []
    for key, size in events:
        if size == FREE:
            single.free(key)
        elif size == EMPTY_CACHE:
            single.empty_cache()
        else:
            assert single.malloc(key, size) == single.address(key)
        allocated.append(single.allocated_bytes)
    assert whole.snapshot() == single.snapshot()
    assert whole.peak_reserved_bytes == single.peak_reserved_bytes
    assert whole.peak_allocated_bytes == max(allocated, default=0)
    assert peak_event == whole.peak_event == (allocated.index(max(allocated)) if max(allocated, default=0) else None)


def test_peak_event_is_of_the_run_that_raised_the_peak() -> None:
    allocator = Allocator()
    assert allocator.run([1, 2, 2, 3], [MIB, MIB, FREE, 512]) == 1
    assert allocator.run([4], [512]) is None
    assert allocator.peak_event == 1
    allocator.reset_peaks()
    assert (allocator.peak_event, allocator.peak_allocated_bytes) == (None, MIB + 1024)
    assert allocator.run([3, 5], [FREE, 4096]) == 1


@no_deadline
@given(events=event_lists())
def test_seeded_with_its_own_snapshot(events: Events) -> None:
    allocator, seeded = Allocator(), Allocator()
    run(allocator, events)
    seeded.malloc(77, MIB)
    seeded.seed(allocator.snapshot())
    assert seeded.snapshot() == allocator.snapshot()
    assert (seeded.allocated_bytes, seeded.reserved_bytes) == (allocator.allocated_bytes, allocator.reserved_bytes)
    assert (seeded.peak_allocated_bytes, seeded.peak_reserved_bytes) == (allocator.allocated_bytes, allocator.reserved_bytes)
    for key, size in [(-1, 700), (-2, 3 * MIB), (-3, 30 * MIB)]:
        assert seeded.malloc(key, size) - allocator.malloc(key, size) in {0, min(0, seeded.address(key) - allocator.address(key))}
        assert seeded.reserved_bytes == allocator.reserved_bytes
    for address in [allocator.address(key) for key in live_keys(events) if allocator.address(key)]:
        seeded.free(address)
    run(allocator, [(key, FREE) for key in live_keys(events)])
    assert seeded.allocated_bytes == allocator.allocated_bytes


def segment(address: int = 0, total: int = 2 * MIB, kind: str = "small", blocks: list[list[object]] | None = None) -> dict[str, object]:
    return {"address": address, "total_size": total, "type": kind, "blocks": blocks or [[address, total, 0, "inactive"]]}


@pytest.mark.parametrize(
    ("segments", "says"),
    [
        ([segment(total=4 * MIB)], "no small segment"),
        ([segment(total=2 * MIB, kind="large")], "no large segment"),
        ([segment(total=21 * MIB, kind="large")], "no large segment"),
        ([segment(), segment(MIB)], "overlaps"),
        ([segment(blocks=[[0, MIB, 0, "inactive"]])], "end at"),
        ([segment(blocks=[[512, 2 * MIB - 512, 0, "inactive"]])], "does not start where"),
        ([segment(blocks=[[0, 100, 0, "inactive"], [100, 2 * MIB - 100, 0, "inactive"]])], "does not start where"),
        ([segment(blocks=[[0, MIB, 0, "inactive"], [MIB, MIB, 0, "inactive"]])], "cannot be inactive"),
        ([segment(blocks=[[0, MIB, 0, "active_pending_free"], [MIB, MIB, 0, "inactive"]])], "cannot be active_pending_free"),
        ([segment(blocks=[[0, 2 * MIB, 0, "active_allocated"]])], "cannot be active_allocated"),
        (
            [segment(total=20 * MIB, kind="large", blocks=[[0, MIB, 0, "active_allocated"], [MIB, 19 * MIB, 0, "inactive"]])],
            "cannot be active",
        ),
    ],
)
def test_impossible_seed_is_refused(segments: list[dict[str, object]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Allocator().seed(segments)


def test_expandable_cannot_be_seeded() -> None:
    with pytest.raises(ValueError, match="expandable"):
        Allocator(expandable_segments=True).seed([])


def test_capacity_beyond_the_device_is_refused() -> None:
    with pytest.raises(ValueError, match="on a device of"):
        Allocator(2 * GIB, True, device_total_bytes=GIB)


@BOTH
def test_request_of_no_bytes_is_the_null_pointer(expandable: bool) -> None:
    allocator = Allocator(None, expandable)
    assert allocator.malloc(1, 0) == 0
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, 0)
    with pytest.raises(ValueError, match="key 1, which is live"):
        allocator.malloc(1, 0)
    allocator.free(1)
    with pytest.raises(ValueError, match="key 1, which holds no block"):
        allocator.free(1)
    assert allocator.malloc(2, 1) != 0


@BOTH
def test_wrong_events_are_refused_and_those_before_stand(expandable: bool) -> None:
    allocator = Allocator(None, expandable)
    for keys, sizes, says in [
        ([1, 1], [512, 512], "event 1: malloc for key 1"),
        ([2, 3], [512, FREE], "event 1: free of key 3"),
        ([4, 5, 6], [512, NOTHING, -4], "event 2: size -4"),
    ]:
        with pytest.raises(ValueError, match=says):
            allocator.run(keys, sizes)
    assert allocator.allocated_bytes == 3 * 512
    with pytest.raises(ValueError, match="2 keys for 1 sizes"):
        allocator.run([6, 7], [512])
    with pytest.raises(ValueError, match="malloc of -1 bytes"):
        allocator.malloc(8, -1)
    assert allocator.allocated_bytes == 3 * 512


def test_failing_event_is_named_and_the_run_before_it_stands() -> None:
    allocator = Allocator(60 * MIB)
    with pytest.raises(OutOfMemory) as failure:
        allocator.run([1, 2, 1, 3, 4], [20 * MIB, 30 * MIB, FREE, 40 * MIB, 512])
    assert failure.value.event == 3
    assert (failure.value.requested_bytes, failure.value.allocated_bytes, failure.value.reserved_bytes) == (40 * MIB, 30 * MIB, 30 * MIB)
    assert (allocator.retries, allocator.peak_event, allocator.peak_allocated_bytes) == (1, 1, 50 * MIB)
    assert allocator.run([5], [30 * MIB]) == 0


def test_place_chooses_addresses() -> None:
    """Of two free blocks of a size the lower address is taken, so where the driver puts segments matters."""
    places = iter([400 * MIB, 100 * MIB, 110 * MIB])
    allocator = Allocator(place=lambda size: next(places))
    assert [allocator.malloc(key, 40 * MIB) for key in (1, 2)] == [400 * MIB, 100 * MIB]
    allocator.run([1, 2], [FREE, FREE])
    assert allocator.malloc(3, 40 * MIB) == 100 * MIB
    allocator.malloc(4, 40 * MIB)
    with pytest.raises(ValueError, match="in use"):
        allocator.malloc(5, 40 * MIB)


def test_adjacent_segments_do_not_merge() -> None:
    allocator = Allocator()
    first, second = allocator.malloc(1, 20 * MIB), allocator.malloc(2, 20 * MIB)
    assert second == first + 20 * MIB
    allocator.run([1, 2], [FREE, FREE])
    assert allocator.malloc(3, 40 * MIB) == second + 20 * MIB
    assert allocator.reserved_bytes == 80 * MIB


def test_expandable_segments_grow_into_one() -> None:
    """Ever larger requests, one at a time: a new segment for every 2 MiB more, or one that gets a second page."""
    events = [(key, (20 + key) * MIB) for key in range(1, 11)]
    events = [event for key, size in events for event in ((key, size), (key, FREE))]
    separate, growing = Allocator(), Allocator(expandable_segments=True)
    run(separate, events)
    run(growing, events)
    assert separate.reserved_bytes == (22 + 24 + 26 + 28 + 30) * MIB
    assert growing.reserved_bytes == 40 * MIB


def test_thirty_thousand_events_are_fast() -> None:
    """A step of FLUX.1 has about 30,000 events; the limit is several times what this takes on a slow machine."""
    choose = random.Random(0)
    keys: list[int] = []
    sizes: list[int] = []
    live: list[int] = []
    for key in range(15_000):
        keys.append(key)
        sizes.append(choose.choice([512, 6144, 700_000, 3 * MIB, 25 * MIB, 26 * MIB, 75 * MIB]))
        live.append(key)
        if len(live) > 300:
            keys.append(live.pop(choose.randrange(len(live))))
            sizes.append(FREE)
    times = []
    for _ in range(3):
        started = time.process_time()
        Allocator().run(keys, sizes)
        times.append(time.process_time() - started)
    assert min(times) < 0.15
