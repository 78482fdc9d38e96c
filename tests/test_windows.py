"""Windows of a vision tower: a layer's attention is as many tensors as there are windows, and as many bytes as together."""

from __future__ import annotations

import numpy as np
import pytest

from estimator import operations as op
from estimator import windows
from estimator.allocator import FREE, Allocator
from estimator.part_events import events_of, requests
from estimator.programs import load_profile
from estimator.residents import State

SMALL = 2**20
PATCHES = {"I": 14 * 21, "Ib": 0, "R": 0, "X": 300, "Y": 300, "B": 1}  # of a picture of 392 x 588 pixels: tokens, each of 4 patches


def laid(key: str) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Keys and events as recorded and with windows apart, and the further keys that outlive the part."""
    program, state = load_profile("qwen-image-edit-2509").program(key), State(Allocator())
    part = op.Part(key, PATCHES, "item")
    sizes, requested = requests(program, PATCHES)
    run = events_of(program, part, requested, state.take_keys(len(program.names)), state)
    after, staying = windows.apart(program, run, sizes, state)
    return run.keys.tolist(), run.events.tolist(), after.keys.tolist(), after.events.tolist(), staying


@pytest.mark.parametrize("key", ["text/bf16/plain/one/1 images", "text/uint4/graph/one/1 images"])
def test_windows_are_small_blocks_of_the_same_bytes_and_go_when_the_whole_goes(key: str) -> None:
    keys, events, more_keys, more_events, staying = laid(key)
    assert sum(size for size in events if size > 0) == sum(size for size in more_events if size > 0)
    further = set(more_keys) - set(keys)
    assert {event for one, event in zip(more_keys, more_events, strict=True) if one in further} - {FREE} == {windows.WINDOW_BYTES}
    apart = 28 * (-(-28 * 42 * 1280 * 2 // windows.WINDOW_BYTES) - 1)  # layers that attend in windows, all windows but the last
    assert len(further) == apart
    freed = {one for one, event in zip(more_keys, more_events, strict=True) if event == FREE}
    assert further - freed == set(staying)
    assert bool(staying) == ("graph" in key)
    large = [np.array([size for size in some if size > SMALL]) for some in (events, more_events)]
    assert len(large[0]) - len(large[1]) == 28


def test_what_is_no_encode_has_no_windows() -> None:
    program = load_profile("qwen-image-edit-2509").program("control.encode")
    assert windows.joined(program) == []
