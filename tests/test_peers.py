"""Other estimators beside ours: the data is of published peaks, the page's figures are those of the data, and the tracker counts right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from calibration import accuracy_peers, peers
from calibration.accuracy_published import Judged, Reading
from calibration.accuracy_rows import GIB

PEAKS = peers.peaks()
TRAINED = [row for row in PEAKS if peers.left(PEAKS[row]) is None and peers.until(PEAKS[row]) == peers.TRAIN]
LOADED = [row for row in PEAKS if peers.left(PEAKS[row]) is None and peers.until(PEAKS[row]) != peers.TRAIN]


def said(row: str, peer: str, gib: float, seconds: float = 1.0) -> peers.Said:
    return peers.Said(row, peer, "1.0", round(gib * GIB), "its class", seconds, {"torch": "2.14.1"})


def judged(row: str, observed: float, likely: float, high: float) -> Judged:
    reading = Reading("reserved", round(observed * GIB), 0, round(likely * GIB), round(high * GIB))
    return Judged(row, "a source", "a trainer", "an architecture", "", "an estimate", False, (), reading=reading)


def cells(text: str, name: str) -> list[list[str]]:
    """The lines of an estimator in the section's tables."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(f"| {name} |")]


# --- the data ------------------------------------------------------------------------------------------------------------------------


def test_every_peer_was_asked_about_every_row_that_it_can_be_asked_about() -> None:
    """And about nothing else: a peer of training alone not about what comes before."""
    found = {(one.row, one.peer) for one in peers.read()}
    all_rows = {(row, peer.name) for peer in peers.PEERS for row in (TRAINED if peer.steps_alone else [*TRAINED, *LOADED])}
    assert found == all_rows | {(row, peers.OURS) for row in [*TRAINED, *LOADED]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"row": "cvxf-99-train"}, "no published peak"),
        ({"row": "modl-qwen-23"}, "no published peak"),  # relayed, not judged
        ({"peer": "xmem"}, "no peer"),
        ({}, "twice"),
    ],
)
def test_a_line_that_is_of_no_published_peak_or_there_twice_is_refused(change: dict[str, str], words: str, tmp_path: Path) -> None:
    good = said(TRAINED[0], "formula", 1.0)
    path = tmp_path / "peers.jsonl"
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in (good, replace(good, **change))), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        peers.read(path)


def test_rows_that_no_peer_can_be_asked_about_are_named_on_the_page() -> None:
    left = [row for row in PEAKS if peers.left(PEAKS[row])]
    text = accuracy_peers.section([judged(TRAINED[0], 10.0, 10.0, 11.0)], [said(TRAINED[0], peer, 9.0) for peer in ("formula", peers.OURS)])
    assert left
    assert all(row in text for row in left)


def test_what_was_asked_already_is_not_asked_again() -> None:
    new = [one for one in peers.missing((), "", ["formula"]) if one["peer"] == "formula"]
    kept = [said(one["row"], "formula", 1.0) for one in new[1:]]
    assert [one["row"] for one in peers.missing(kept, "", ["formula"])] == [new[0]["row"]]


def test_a_row_of_an_older_class_waits_for_that_version() -> None:
    now, older = ([one["row"] for one in peers.missing((), version, ["formula"])] for version in ("", "0.32.0"))
    assert now
    assert older
    assert sorted(now + older) == sorted(TRAINED)


def test_a_peer_gets_what_the_row_says() -> None:
    """The batch, the rank, the optimizer and where its states are."""
    (one,) = [one for one in peers.missing((), "0.32.0", ["formula"]) if one["row"] == "cvxf-45-train"]
    run = PEAKS["cvxf-45-train"]["compare"]["config"]["run"]
    assert one["job"]["buckets"][0] == (run["width"], run["height"], run["batch_size"], run["text_tokens"], run["frames"])
    assert (one["job"]["rank"], one["job"]["checkpointing"]) == (run["lora"]["rank"], [run["gradient_checkpointing"]])
    assert one["on_host"] is run["optimizer_on_host"] is True


# --- the page ------------------------------------------------------------------------------------------------------------------------


def test_the_sections_figures_are_those_of_the_data() -> None:
    """Of three peaks of 10 GiB one is met at +2 %, one at -1 %, and one is missed by +50 %."""
    rows = TRAINED[:3]
    found = [judged(row, 10.0, 10.1, 11.0) for row in rows]
    data = [said(row, "formula", gib, seconds) for row, gib, seconds in zip(rows, (10.2, 9.9, 15.0), (3.0, 5.0, 4.0), strict=True)]
    text = accuracy_peers.section(found, [*data, *(said(row, peers.OURS, 1.0, 0.1) for row in rows)])
    assert cells(text, "closed formula") == [["closed formula", "3", "2.00", "2", "+50.00", "-1.00", "1 of 3", "4"]]
    assert cells(text, "estimate, likely") == [["estimate, likely", "3", "1.00", "3", "+1.00", "+0.00", "0 of 3", "0.1"]]
    assert cells(text, "estimate, high")[0][:3] == ["estimate, high", "3", "10.00"]


def test_estimators_stand_beside_each_other_on_the_same_rows() -> None:
    """A row that one of them was not asked about is in no line of the table."""
    found = [judged(row, 10.0, 10.0, 11.0) for row in TRAINED[:3]]
    data = [said(row, peers.OURS, 1.0) for row in TRAINED[:3]]
    data += [said(row, "formula", 9.0) for row in TRAINED[:3]] + [said(row, peers.MEMTRACKER, 9.5) for row in TRAINED[:2]]
    text = accuracy_peers.section(found, data)
    names = ("closed formula", "MemTracker, FakeTensorMode", "estimate, likely", "estimate, high")
    assert {cells(text, name)[0][1] for name in names} == {"2"}


def test_a_peak_that_is_met_to_the_published_digits_is_not_too_low() -> None:
    line = accuracy_peers.Line("", ((round(9.9996 * GIB), 10 * GIB), (round(9.9994 * GIB), 10 * GIB)), 1.0)
    assert line.too_low == 1


def test_peaks_before_training_are_a_table_of_their_own() -> None:
    found = [judged(TRAINED[0], 10.0, 10.0, 11.0), judged(LOADED[0], 5.0, 5.0, 6.0)]
    data = [said(row, peer, gib) for row, gib in ((TRAINED[0], 9.0), (LOADED[0], 4.0)) for peer in (peers.MEMTRACKER, peers.OURS)]
    text = accuracy_peers.section(found, data)
    assert [line[5] for line in cells(text, "MemTracker, FakeTensorMode")] == ["-10.00", "-20.00"]


def test_without_data_there_is_no_section() -> None:
    assert accuracy_peers.section([judged(TRAINED[0], 10.0, 10.0, 11.0)], []) == ""


# --- the tracker ---------------------------------------------------------------------------------------------------------------------

MODEL = """
import contextlib
from calibration.peers_fake import tracking

def adapted():
    "A frozen part between two that are trained."
    frozen = torch.nn.Sequential(torch.nn.Linear(300, 700), torch.nn.GELU(), torch.nn.Linear(700, 100)).requires_grad_(False)
    return torch.nn.ModuleList([torch.nn.Linear(100, 300), frozen, torch.nn.Linear(100, 100)])

def step(model, samples):
    model = model.to("cuda")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, foreach=False)
    for _ in range(2):
        hidden = model[0](torch.empty(samples, 100, device="cuda"))
        hidden = torch.utils.checkpoint.checkpoint(model[1], hidden, use_reentrant=False)
        model[2](hidden).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

import torch.utils.checkpoint
found = {}
for samples in (100, 333):
    with tracking() as tracker:
        step(adapted(), samples)
    found[samples] = [tracker.peak_bytes]
    torch.nn.Linear(8, 8).cuda()(torch.ones(8, 8, device="cuda")).sum().backward()  # cuBLAS's workspaces are no tensors of the model's
    before = allocated()
    torch.cuda.reset_peak_memory_stats()
    step(adapted(), samples)
    found[samples].append(peak() - before)
result(**{str(samples): pair for samples, pair in found.items()})
"""


@pytest.mark.emulated
def test_the_tracker_gives_what_a_run_of_the_same_model_allocates(emulated: Callable[..., Any]) -> None:
    """A small model with frozen and trained layers, checkpointed, two steps of AdamW: fake tensors beside torch's own allocator. Each
    tensor is of 1 MiB or less, where the allocator rounds as the tracker does."""
    found = emulated(MODEL, CC="8.0", TOTAL_MIB=4096, CONTEXT_MIB=0)
    assert all(tracked == allocated for tracked, allocated in found.values())
    assert found["333"][0] > found["100"][0] > 0
