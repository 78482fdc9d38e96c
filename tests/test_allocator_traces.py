"""The allocator's model against traces recorded on a real GPU: every address, every segment; and that the check can fail."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibration.check_allocator import main

DATA = Path(__file__).parent / "data" / "allocator_traces"
FORWARD = DATA / "lm_forward_mixed_ctx256.json.gz"
FULL_STEP = DATA / "lm_full_step_ctx512.json.gz"
TWO_STREAMS = DATA / "torch_two_streams.json.gz"  # torch on the emulated device: the trainer's layer offloading on layers of three kinds


def test_command_passes() -> None:
    command = [sys.executable, "-m", "calibration.check_allocator", str(FULL_STEP)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "addresses 6769 of 6769, segments 1610 of 1610, peak reserved 62830673920 bytes\n"


def test_other_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(FORWARD)]) == 0
    assert capsys.readouterr().out == "addresses 2702 of 2702, segments 1286 of 1286, peak reserved 28848422912 bytes\n"


def test_two_streams(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(TWO_STREAMS)]) == 0
    assert capsys.readouterr().out == "addresses 1115 of 1115, segments 50 of 50, peak reserved 329252864 bytes\n"


def test_streams_do_not_share_free_blocks(tmp_path: Path) -> None:
    """The same events on one stream get other addresses."""
    trace = json.loads(gzip.decompress(TWO_STREAMS.read_bytes()))
    trace["events"] = [event[:3] for event in trace["events"]]
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    assert main([str(tmp_path / "trace.json")]) == 1


def nth(trace: dict[str, Any], action: str, number: int = 500) -> int:
    return [index for index, event in enumerate(trace["events"]) if event[0] == action][number]


def address_moved(trace: dict[str, Any]) -> None:
    trace["events"][nth(trace, "alloc")][1] += 512


def size_changed(trace: dict[str, Any]) -> None:
    event = trace["events"][nth(trace, "alloc")]
    event[2] += 30 * 2**20


def free_lost(trace: dict[str, Any]) -> None:
    del trace["events"][nth(trace, "free", 0)]


def addresses_swapped(trace: dict[str, Any]) -> None:
    events = trace["events"]
    first, second = events[nth(trace, "alloc", 500)], events[nth(trace, "alloc", 501)]
    first[1], second[1] = second[1], first[1]


def segment_lost(trace: dict[str, Any]) -> None:
    del trace["events"][nth(trace, "segment_alloc", 100)]


def segment_size_changed(trace: dict[str, Any]) -> None:
    trace["events"][nth(trace, "segment_alloc", 100)][2] += 2 * 2**20


def segment_given_back_later(trace: dict[str, Any]) -> None:
    trace["events"].insert(1000, trace["events"].pop(nth(trace, "segment_free", 10)))


def empty_cache_too_late(trace: dict[str, Any]) -> None:
    events = trace["events"]
    row = [events.pop(0) for _ in range(nth(trace, "segment_alloc", 0))]
    events[1000:1000] = row


def end_differs(trace: dict[str, Any]) -> None:
    segment = next(s for s in trace["segments_at_end"] if len(s["blocks"]) == 2)
    segment["blocks"][0][1] -= 512
    segment["blocks"][1][0] -= 512
    segment["blocks"][1][1] += 512


def blocks_overlap_at_start(trace: dict[str, Any]) -> None:
    segment = next(s for s in trace["segments_at_end"] if s["blocks"][0][3] == "active_allocated")
    segment["blocks"][0][1] *= 3


PERTURBATIONS = [
    address_moved, size_changed, free_lost, addresses_swapped, segment_lost, segment_size_changed, segment_given_back_later,
    empty_cache_too_late, end_differs, blocks_overlap_at_start,
]  # fmt: skip


@pytest.mark.parametrize("perturb", PERTURBATIONS, ids=lambda perturb: perturb.__name__)
@pytest.mark.parametrize("path", [FORWARD, FULL_STEP], ids=["forward", "full_step"])
def test_perturbed_trace_fails(
    perturb: Callable[[dict[str, Any]], None], path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = json.loads(gzip.decompress(path.read_bytes()))
    perturb(trace)
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    assert main([str(tmp_path / "trace.json")]) == 1
    said = capsys.readouterr()
    addresses, segments, _ = said.out.split(", ")
    right = [part.split()[1] == part.split()[3] for part in (addresses, segments)]
    assert said.err
    assert not all(right), said


@pytest.mark.parametrize("content", [b"", b"[]", b"\x1f\x8bnot gzip", b'{"events": [["alloc", 1]]}', b'{"events": [["map", 1, 2]]}', b"{}"])
def test_no_trace(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace").write_bytes(content)
    assert main([str(tmp_path / "trace")]) == 2
    assert "not an allocator trace" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
