"""Calibration overlays: found where the user's system keeps such files, applied to their card and no other, refused when broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator import cli, overlays
from estimator.errors import InputError
from estimator.gpus import MIB, find_gpu
from estimator.overlay import Overlay, Range
from estimator.overlay_file import document, read_overlay, write_overlay
from estimator.overlays import file_name, overlays_dir, with_overlay
from estimator.residual import Interval, Residual, Seen, Spread
from tests.made_overlays import overlay_of, put

ROOT = Path(__file__).resolve().parent.parent
CARD = find_gpu("A100-80G")
CONFIG = str(ROOT / "examples" / "flux_dev_24gb.yaml")
MORE_BYTES = 700 * MIB


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's config folder, empty."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(overlays, "_listed", {})
    return tmp_path


def estimate(capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    assert cli.main([CONFIG, "--gpu", CARD.name, "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_estimate_moves_by_what_the_card_has_more_and_names_the_overlay(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = estimate(capsys)
    path = put(overlay_of(CARD, MORE_BYTES), home)
    overlays._listed.clear()
    after, ignored = estimate(capsys), estimate(capsys, "--no-overlay")
    assert before["gpu"]["overlay"] is None
    assert after["gpu"]["overlay"]["path"] == str(path)
    for name in ("device_bytes", "device_low_bytes", "device_high_bytes"):
        moved = [new[name] - old[name] for new, old in zip(after["phases"], before["phases"], strict=True)]
        assert moved == [MORE_BYTES] * len(before["phases"])
    assert [new["reserved_bytes"] for new in after["phases"]] == [old["reserved_bytes"] for old in before["phases"]]
    assert ignored == before
    assert cli.main([CONFIG, "--gpu", CARD.name]) == 0
    text = capsys.readouterr().out
    assert "The card as calibrated on 2026-11-22 (overlay a100-80g.overlay.json)." in text
    assert "driver 580.95" in " ".join(text.split())


def test_a_calibrated_residual_takes_the_place_of_the_shipped_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = estimate(capsys)
    wide = {"any": Spread(0.0, 0.1)}
    put(replace(overlay_of(CARD), residual=Residual(wide, wide, Interval(0, 0, 0), "cells of this card")), home)
    overlays._listed.clear()
    after = estimate(capsys)
    for new, old in zip(after["phases"], before["phases"], strict=True):
        assert new["device_high_bytes"] - new["device_bytes"] > old["reserved_bytes"] * 0.1
        assert new["device_low_bytes"] >= old["reserved_bytes"]


def test_a_card_says_what_its_bounds_rest_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = {"any": Spread(0.0, 0.1)}
    own = Residual(wide, wide, Interval(0, 0, 0), "cells of this card")
    for residual, emulated in ((None, False), (None, True), (own, False), (own, True)):
        put(replace(overlay_of(CARD), emulated=emulated, residual=residual), home)
        overlays._listed.clear()
        said = " ".join(estimate(capsys)["assumptions"])
        assert ("published rows of real cards" in said) == (residual is None)
        assert ("cells of this card" in said) == (residual is not None)
        assert ("emulated: no measurement" in said) == emulated


def test_a_file_named_by_hand_serves_instead_of_the_users(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(overlay_of(CARD, MORE_BYTES), home)
    own = tmp_path / "own.json"
    write_overlay(overlay_of(CARD, 2 * MORE_BYTES), str(own))
    assert estimate(capsys, "--overlay", str(own))["gpu"]["context_bytes"] == CARD.context_bytes + 2 * MORE_BYTES


def test_an_overlay_is_of_one_card(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(overlay_of(CARD, MORE_BYTES), home)
    other = find_gpu("RTX4090")
    assert with_overlay(other) is other
    assert with_overlay(find_gpu("79.15GiB")).calibration is None, "a size is not a card"
    with pytest.raises(InputError, match="it is of A100-80G, not of RTX4090"):
        with_overlay(other, str(home / "vram-preflight" / "a100-80g.overlay.json"))
    assert cli.main([CONFIG, "--gpu", "all", "--overlay", "x.json"]) == 2
    assert "--overlay takes one card" in capsys.readouterr().err


def test_an_overlay_of_another_system_is_not_used_and_that_is_said(home: Path) -> None:
    put(overlay_of(find_gpu("RTX4090")), home)
    on_windows = with_overlay(find_gpu("RTX4090", "windows"))
    assert on_windows.calibration is None
    assert any("made on linux" in note for note in on_windows.notes)


def test_where_overlays_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")  # must be ignored, says the specification
    monkeypatch.setenv("HOME", "/home/someone")
    assert overlays_dir() == "/home/someone/.config/vram-preflight"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert overlays_dir() == "/home/someone/Library/Application Support/vram-preflight"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("APPDATA", "/somewhere/Roaming")
    assert overlays_dir() == "/somewhere/Roaming/vram-preflight"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/elsewhere")
    assert overlays_dir() == "/elsewhere/vram-preflight"


def test_looking_for_an_overlay_that_is_not_there_is_one_call(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: (asked.append(path), real(path))[1])
    for name in ("RTX4090", "A100-80G", "H100-80G"):
        with_overlay(find_gpu(name))
    assert asked == [overlays_dir()]


def test_starting_without_an_overlay_does_not_read_json_of_overlays(tmp_path: Path) -> None:
    code = "from estimator.gpus import find_gpu; from estimator.overlays import with_overlay; import sys; with_overlay(find_gpu('RTX4090'))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; assert 'estimator.overlay_file' not in sys.modules; assert 'json' not in sys.modules"],
        env={"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=40)
RATIOS = st.lists(st.floats(0.5, 2.0), min_size=3, max_size=3).map(sorted).map(lambda three: Range(*three))
SIZES = st.lists(st.integers(0, 2**30), min_size=3, max_size=3).map(sorted).map(lambda three: Range(*three))
SHARES, BYTES = st.floats(0, 0.5), st.integers(0, 2**30)
SPREADS = st.builds(Spread, SHARES, SHARES, BYTES, BYTES, st.floats(-0.2, 0.2), st.integers(-(2**30), 2**30))
OF_PHASES = st.dictionaries(st.sampled_from(("train", "sample", "load")), SPREADS)
PHASES = st.tuples(SPREADS, OF_PHASES).map(lambda two: {"any": two[0], **two[1]})
PIXELS = st.lists(st.integers(0, 5000), min_size=3, max_size=3).map(sorted).map(lambda three: Interval(*three))
RESIDUALS = st.none() | st.builds(Residual, PHASES, PHASES, PIXELS, TEXTS)
OVERLAYS = st.builds(
    replace, st.just(overlay_of(CARD)), device=TEXTS, context=SIZES, allocated=RATIOS, reserved=RATIOS, cells=st.integers(0, 500),
    emulated=st.booleans(), others_bytes=st.none() | st.integers(0, 2**30), residual=RESIDUALS,
    workspace_bytes=st.integers(0, 2**26), seen=st.lists(st.builds(Seen, TEXTS, st.integers(1, 99), SPREADS, SPREADS), max_size=3,
                                                         unique_by=lambda one: one.arch).map(tuple),
)  # fmt: skip


@given(OVERLAYS)
def test_what_is_written_is_read_again(made: Overlay) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "one.json")
        write_overlay(made, path)
        assert read_overlay(path) == replace(made, path=path)


GOOD = document(overlay_of(CARD))


def test_an_overlay_of_before_cells_were_told_apart_is_read(tmp_path: Path) -> None:
    older = {key: value for key, value in GOOD.items() if key != "seen"}
    (tmp_path / "older.json").write_text(json.dumps(older), encoding="utf-8")
    assert read_overlay(str(tmp_path / "older.json")).seen == ()


@given(st.text(max_size=80))
def test_file_names_suit_every_file_system(card: str) -> None:
    name = file_name(card)
    assert name.isascii()
    assert not set(name) & set('/\\:*?"<>| ')


def changed(path: str, value: object) -> bytes:
    data = json.loads(json.dumps(GOOD))
    *sections, last = path.split(".")
    section = data
    for name in sections:
        section = section[name]
    section[last] = value
    return json.dumps(data).encode()


SEEN = asdict(Spread(0.01, 0.01))
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "zeros": b"\0" * 4096,
    "cut short": json.dumps(GOOD).encode()[:-40],
    "another JSON": b'{"schema": 1}',
    "a list": b"[]",
    "deep": b"[" * 200_000,
    "huge": b" " * (1 << 20),
    "utf-16": json.dumps(GOOD).encode("utf-16"),
    "key twice": json.dumps(GOOD).encode()[:-1] + b', "card": {}}',
    "a later schema": changed("schema", 2),
    "schema true": changed("schema", True),
    "no card": changed("card", None),
    "context falls": changed("context.low_bytes", GOOD["context"]["high_bytes"] + 1),
    "context negative": changed("context.low_bytes", -1),
    "context of a terabyte": changed("context.high_bytes", 2**40),
    "context half a byte": changed("context.likely_bytes", 0.5),
    "context NaN": changed("context.likely_bytes", float("nan")),
    "context infinite": changed("context.likely_bytes", float("inf")),
    "context true": changed("context.likely_bytes", True),
    "context a text": changed("context.likely_bytes", "500"),
    "total of a toy": changed("card.total_bytes", 12),
    "total of another": changed("card.total_bytes", 24 * 2**30),
    "a number without end": changed("card.total_bytes", 0).replace(b'"total_bytes": 0', b'"total_bytes": ' + b"9" * 5000),
    "terminal codes": changed("card.device", "\x1b[2Jcard"),
    "long text": changed("made.driver", "x" * 10_000),
    "capability": changed("card.compute_capability", "eight"),
    "system": changed("card.os", "plan9"),
    "emulated": changed("card.emulated", "no"),
    "ratio": changed("ratios.reserved", {"low": 0, "likely": 1, "high": 1}),
    "residual without spreads": changed("residual", {"source": "x"}),
    "residual of no figure": changed("residual", {"source": "x", "spreads": {"allocated": {}, "reserved": {}}}),
    "seen a list": changed("seen", []),
    "seen without spreads": changed("seen", {"zimage": {"cells": 8}}),
    "seen of no cells": changed("seen", {"zimage": {"cells": 0, "allocated": SEEN, "reserved": SEEN}}),
    "seen twice as much": changed("seen", {"zimage": {"cells": 8, "allocated": {**SEEN, "high_share": 2.0}, "reserved": SEEN}}),
    "no rows": changed("rows", []),
    "date missing": changed("made", {}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_overlay_is_one_clear_refusal(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(overlay_of(CARD), home)
    path.write_bytes(HOSTILE[name])
    started = time.monotonic()
    assert cli.main([CONFIG, "--gpu", CARD.name]) == 2
    assert time.monotonic() - started < 10
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2, err
    assert str(path) in err
    assert "--no-overlay" in err
    assert err.isprintable() or set(err) - set("\n") <= {c for c in err if c.isprintable()}
    assert cli.main([CONFIG, "--gpu", CARD.name, "--no-overlay"]) == 0


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(make: Callable[[str], None], home: Path) -> None:
    path = put(overlay_of(CARD), home)
    path.unlink()
    make(str(path))
    with pytest.raises(InputError, match="no regular file"):
        with_overlay(CARD)


def test_a_failed_write_leaves_the_old_overlay(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(overlay_of(CARD), home)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_overlay(overlay_of(CARD, MORE_BYTES), str(path))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
