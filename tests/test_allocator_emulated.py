"""The allocator's model against torch's own allocator, on the emulated device: the same events, every answer compared.

Needs a Python with torch's CUDA build, named by EMULATED_CUDA_PYTHON, and the emulated device (calibration/emulated_cuda).
`PYTHONPATH=tests:. python tests/test_allocator_emulated.py` writes torch's answers to data/allocator_traces/torch_*.json.gz, which
tests/test_allocator.py compares with wherever there is no such Python.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from allocator_answers import DATA, MIB, RESET_PEAKS, Answers, Events, model_answers, relative, stored, stored_path

from estimator.allocator import EMPTY_CACHE, FREE, Allocator, OutOfMemory

RUN = Path(__file__).parent.parent / "calibration" / "emulated_cuda" / "run.sh"
ON_TORCH = DATA / "on_torch.py"

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(
        not os.environ.get("EMULATED_CUDA_PYTHON"), reason="EMULATED_CUDA_PYTHON does not name a Python with torch's CUDA build"
    ),
]


def torch_answers(events: Events, room_mib: int, expandable: bool, folder: Path, addresses: str = "up") -> dict[str, object]:
    """What torch says to each event on an emulated card with `room_mib` for segments, which lie upwards, as the model's, or "down"."""
    (folder / "events.json").write_text(json.dumps(events))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("FAKECUDA_", "PYTORCH_", "PYTHON"))},
        "FAKECUDA_PYTHON": os.environ["EMULATED_CUDA_PYTHON"],
        "FAKECUDA_CC": "8.9",
        "FAKECUDA_TOTAL_MIB": str(room_mib),
        "FAKECUDA_CONTEXT_MIB": "0",
        "FAKECUDA_ADDRESSES": addresses,
        "PYTORCH_ALLOC_CONF": f"expandable_segments:{expandable}",
    }
    command = [str(RUN), str(ON_TORCH), str(folder / "events.json"), str(folder / "answers.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert (folder / "answers.json").exists(), done.stderr
    said = json.loads((folder / "answers.json").read_text())
    assert said["total_bytes"] == room_mib * MIB
    return {"torch": said["torch"], "answers": relative(said["answers"])}


def random_size(choose: random.Random, scale_mib: int) -> int:
    """Sizes around every threshold of the allocator, and between."""
    kind = choose.random()
    if kind < 0.2:
        return choose.randint(1, 4096)
    if kind < 0.45:
        return choose.randint(1, MIB + 600)
    if kind < 0.75:
        return choose.randint(MIB, 10 * MIB + 1)
    if kind < 0.85:
        return choose.choice([MIB, 2 * MIB, 10 * MIB, 20 * MIB, 22 * MIB]) + choose.randint(-2, 2) * 512 + choose.randint(-1, 1)
    return choose.randint(10 * MIB, scale_mib * MIB)


def random_events(seed: int, count: int, room_mib: int, fill: float) -> Events:
    """Mallocs, frees in any order and in bursts, repeated sizes, empty_cache, around `fill` of the room; the model decides what is live."""
    choose = random.Random(seed)
    live: dict[int, int] = {}
    past: list[int] = []
    events: Events = []
    used = 0

    def free(key: int) -> None:
        nonlocal used
        used -= live.pop(key)
        events.append((key, FREE))

    while len(events) < count:
        action = choose.random()
        if action < 0.002:
            events.append((0, EMPTY_CACHE))
        elif action < 0.004:
            events.append((0, RESET_PEAKS))
        elif action < 0.01 and live:
            keys = list(live)
            for key in choose.sample(keys, choose.randint(1, len(keys))):
                free(key)
        elif live and (action < 0.4 or used > fill * room_mib * MIB):
            free(choose.choice(list(live)))
        else:
            size = choose.choice(past) if past and choose.random() < 0.4 else random_size(choose, room_mib // 6)
            past.append(size)
            events.append((len(events) + 1, size))
            live[events[-1][0]] = size
            used += size
    return events


def drop_failed(events: Events, allocator: Allocator) -> Events:
    """The events without the frees of what the allocator refused."""
    kept: Events = []
    refused: set[int] = set()
    for key, size in events:
        if size == FREE and key in refused:
            continue
        kept.append((key, size))
        if size == RESET_PEAKS:
            continue
        try:
            allocator.run([key], [size])
        except OutOfMemory:
            refused.add(key)
    return kept


def compare_with_torch(events: Events, room_mib: int, expandable: bool, folder: Path) -> Answers:
    """Asserts that torch and the model agree on everything after every event; returns the answers."""
    answers = model_answers(events, Allocator(room_mib * MIB, expandable))
    expected = torch_answers(events, room_mib, expandable, folder)["answers"]
    assert isinstance(expected, list)
    for index, (event, mine, torchs) in enumerate(zip(events, answers, expected, strict=True)):
        assert mine == torchs, f"event {index}: {event}"
    return answers


@pytest.mark.parametrize(
    ("expandable", "seed", "room_mib", "fill", "retries", "fails"),
    [
        (False, 1, 24_000, 0.3, False, False),
        (False, 3, 1_200, 0.45, True, False),
        (False, 1, 601, 1.0, True, True),
        (True, 1, 24_000, 0.3, False, False),
        (True, 1, 1_200, 0.7, True, False),
        (True, 1, 601, 1.0, True, True),
    ],
    ids=["roomy", "tight", "over", "expandable-roomy", "expandable-tight", "expandable-over"],
)
def test_random_events(tmp_path: Path, expandable: bool, seed: int, room_mib: int, fill: float, retries: bool, fails: bool) -> None:
    events = drop_failed(random_events(seed, 3000, room_mib, fill), Allocator(room_mib * MIB, expandable))
    answers = compare_with_torch(events, room_mib, expandable, tmp_path)
    assert (answers[-1][5] != 0, answers[-1][6] != 0) == (retries, fails), "the events do not exercise what they are meant to"


def test_of_equal_blocks_the_oldest_segments_is_taken_wherever_segments_lie(tmp_path: Path) -> None:
    """torch before 2.13 takes the lowest address: on cards, whose drivers lay segments downwards, the newest segment's."""
    room_mib, choose = 24_000, random.Random(1)
    sizes = [choose.choice([3, 5, 20, 40]) * MIB for _ in range(60)]
    events: Events = [(key, size) for key, size in enumerate(sizes)]
    for start in range(100, 1000, 100):
        gone = choose.sample(sorted(key for key, _ in enumerate(sizes)), 30)
        events += [(key if start == 100 else start - 100 + key, FREE) for key in gone]
        events += [(start + key, sizes[key] // choose.choice([1, 2])) for key in gone]
        events += [(key if start == 100 else start - 100 + key, FREE) for key in range(60) if key not in gone]
        events += [(start + key, sizes[key]) for key in range(60) if key not in gone]
    model = [figures for _, *figures in model_answers(events, Allocator(room_mib * MIB))]
    for addresses in ("up", "down"):
        answers = torch_answers(events, room_mib, False, tmp_path, addresses)["answers"]
        assert isinstance(answers, list)
        assert [figures for _, *figures in answers] == model, addresses
    assert [figures for _, *figures in model_answers(events, Allocator(room_mib * MIB, downwards=True))] != model


def test_expandable_segment_runs_out_of_addresses(tmp_path: Path) -> None:
    """With holes of one page, a request of two pages goes to the end of the range of addresses, and then to a second range beside it."""
    room_mib, page = 200, 20 * MIB
    fill = [(key, page) for key in range(10)]
    holes = [(key, FREE) for key in range(0, 10, 2)]
    fits_at_the_end, needs_another = (20, page + MIB), (21, page + MIB)
    then = [
        (22, 3 * MIB),
        (20, FREE),
        (1, FREE),
        (23, 2 * page),
        (21, FREE),
        (0, EMPTY_CACHE),
        (24, 2 * page),
        (22, FREE),
        (0, EMPTY_CACHE),
    ]
    events = [*fill, *holes, (0, EMPTY_CACHE), fits_at_the_end, needs_another, *then]
    answers = compare_with_torch(events, room_mib, True, tmp_path)
    last_of_first_range = 12 * page  # 9/8 of the card, in whole pages
    assert answers[events.index(needs_another)][0] == last_of_first_range


def test_expandable_request_larger_than_the_card(tmp_path: Path) -> None:
    """Each attempt reserves a range of addresses that stays, and later requests find."""
    small, huge = 3 * MIB, 900 * MIB
    events = [(1, small), (2, huge), (3, huge), (4, 150 * MIB), (5, 60 * MIB), (6, 700), (1, FREE), (4, FREE), (7, 180 * MIB), (8, 512)]
    answers = compare_with_torch(events, 200, True, tmp_path)
    assert [answer[-1] for answer in answers][1:5] == [1, 2, 2, 3]


def threshold_events() -> Events:
    """For blocks of every kind, a request that leaves just too little to split, and just enough."""
    events: Events = []
    key = 0
    for block in (2 * MIB, 3 * MIB, 9 * MIB, 10 * MIB - 512, 10 * MIB, 10 * MIB + 1, 20 * MIB, 21 * MIB, 22 * MIB, 40 * MIB):
        for rest in (0, 1, 511, 512, MIB - 1, MIB, MIB + 1, MIB + 512, 2 * MIB):
            events += [
                (key + 1, block),
                (key + 1, FREE),
                (key + 2, max(1, block - rest)),
                (key + 3, MIB),
                (key + 4, MIB + 1),
                (key + 5, 1536),
            ]
            events += [(key + 4, FREE), (key + 2, FREE)] + [(0, EMPTY_CACHE)] * (rest != 511)
            key += 5
    return events


def crowded_events(seed: int, count: int, room_mib: int) -> Events:
    """Few large blocks and much empty_cache: holes between mapped pages, until ranges of addresses of 9/8 of the card are used up."""
    choose = random.Random(seed)
    live: dict[int, int] = {}
    events: Events = []
    while len(events) < count:
        action = choose.random()
        if action < 0.15:
            events.append((0, EMPTY_CACHE))
        elif live and (action < 0.4 or sum(live.values()) > 0.7 * room_mib * MIB):
            events.append((choose.choice(list(live)), FREE))
            del live[events[-1][0]]
        else:
            size = int(choose.choice([0.5, 1, 1, 2, 2, 3]) * choose.choice([MIB, 20 * MIB, 20 * MIB])) - choose.choice([0, 0, 512, 300_000])
            events.append((len(events) + 1, size))
            live[len(events)] = size
    return events


STORED: dict[str, tuple[bool, int, Callable[[], Events]]] = {
    "native": (False, 1_200, lambda: random_events(5, 1500, 1_200, 0.9)),
    "native_thresholds": (False, 1_200, threshold_events),
    "expandable": (True, 1_200, lambda: random_events(5, 1500, 1_200, 1.0)),
    "expandable_crowded_1": (True, 80, lambda: crowded_events(1, 1500, 80)),
    "expandable_crowded_3": (True, 80, lambda: crowded_events(3, 1500, 80)),
    "expandable_crowded_41": (True, 62, lambda: crowded_events(41, 1500, 62)),
}
"""Of the stored answers: expandable segments, room in MiB, events. Seeds are chosen so that each rule on neighbouring ranges matters."""


@pytest.mark.parametrize("name", STORED)
def test_stored_answers_are_what_torch_says(tmp_path: Path, name: str) -> None:
    then = stored(name)
    assert torch_answers(then["events"], then["room_mib"], then["expandable"], tmp_path)["answers"] == then["answers"]


def record() -> None:
    for name, (expandable, room_mib, make) in STORED.items():
        events = drop_failed(make(), Allocator(room_mib * MIB, expandable))
        with tempfile.TemporaryDirectory() as folder:
            said = torch_answers(events, room_mib, expandable, Path(folder))
        answers = {"torch": said["torch"], "expandable": expandable, "room_mib": room_mib, "events": events, "answers": said["answers"]}
        stored_path(name).write_bytes(gzip.compress(json.dumps(answers, separators=(",", ":")).encode(), mtime=0))


if __name__ == "__main__":
    record()
