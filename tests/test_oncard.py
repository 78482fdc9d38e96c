"""Calibration on a card, as far as it needs none: cells, what programs say of them, rows that survive anything, the overlay they make."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.oncard import cells, control, own_run
from calibration.oncard.cells import DECODE, STEP, VAE, Cell
from calibration.oncard.command import architectures
from calibration.oncard.families import FAMILIES
from calibration.oncard.reduced import contributions, predicted, segments_of, whole_activations_bytes, whole_bytes
from calibration.oncard.report import render
from calibration.oncard.rows import Busy, Rows, digest, measured, whole_lines
from calibration.oncard.summary import overlay_of, spread_of_cells, student_quantile
from estimator import cli
from estimator.errors import CannotTell, InputError
from estimator.gpus import GIB, MIB, find_gpu, named
from estimator.intervals import profile
from estimator.overlay_file import read_overlay, write_overlay
from estimator.programs import load_profile
from estimator.residual import Interval

ROOT = Path(__file__).resolve().parent.parent
ARCHS = tuple(FAMILIES)
CELLS = st.sampled_from([cell for arch in ARCHS for cell in cells.candidates(arch)])


# --- cells ----------------------------------------------------------------------------------------------------------------------------


@given(st.sampled_from(ARCHS), st.integers(5, 180))
def test_the_cells_of_a_plan_fit_and_are_different(arch: str, free_gib: int) -> None:
    plan = cells.plan((arch,), free_gib * GIB)
    assert plan[0].part == cells.CONTEXT
    assert plan[-1].part == cells.LIMIT
    assert len({cell.name for cell in plan}) == len(plan)
    assert all(cells.fits(cell, free_gib * GIB) for cell in plan if cell.part == STEP)
    assert plan == cells.plan((arch,), free_gib * GIB), "an interrupted calibration must find the same plan"


@pytest.mark.parametrize("arch", ARCHS)
def test_chosen_cells_tell_features_apart(arch: str) -> None:
    """No worse than the candidates as they come, and every direction in which a coefficient can be wrong shows in some cell."""
    possible = [cell for cell in cells.candidates(arch) if cells.fits(cell, 23 * GIB)]

    def information(chosen: list[Cell]) -> float:
        names = sorted({name for cell in possible for name in contributions(cell)})
        x = np.array([[contributions(cell).get(name, 0) for name in names] for cell in chosen], dtype=float)
        x /= x.sum(axis=1, keepdims=True)
        return float(np.linalg.slogdet(x.T @ x + cells.RIDGE * np.eye(len(names)))[1])

    chosen = [cell for cell in cells.plan((arch,), 23 * GIB) if cell.part == STEP]
    assert information(chosen) > information(possible[: len(chosen)])
    assert {cell.checkpointing for cell in chosen} == {True, False}
    assert {cell.batch for cell in chosen} == {1, 2}


@given(CELLS)
def test_a_cell_is_the_same_from_its_row(cell: Cell) -> None:
    assert cells.of_row(json.loads(json.dumps(cell.as_row()))) == cell


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1e9)), min_size=1, max_size=12), st.integers(0, 14))
def test_choosing_gives_as_many_different_cells_as_there_are(rows: list[dict[str, float]], count: int) -> None:
    named_cells = [Cell(STEP, width=n) for n in range(len(rows))]
    chosen = cells.choose(named_cells, rows, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(rows))


def test_what_no_cells_can_be_made_of() -> None:
    assert architectures(["flux1-dev,zimage", "zimage"]) == ("flux1-dev", "zimage")
    with pytest.raises(InputError, match="no such architecture"):
        architectures(["flux9"])
    with pytest.raises(CannotTell, match="no cells of it can be made"):
        architectures(["qwen-image"])


# --- programs with fewer blocks ---------------------------------------------------------------------------------------------------------


@given(CELLS)
def test_contributions_of_the_whole_depth_are_the_programs_peak(cell: Cell) -> None:
    whole = replace(cell, depth=FAMILIES[cell.arch].depth)
    values = {"T": cell.width * cell.height // 256, "E": (cell.width + cell.height) // 16, "r": cell.rank, "B": cell.batch, "X": cell.text}
    assert sum(contributions(whole).values()) == load_profile(cell.arch).program(cell.key).peak(values)[0]


@given(CELLS)
def test_fewer_blocks_never_need_more(cell: Cell) -> None:
    deeper = replace(cell, depth=tuple(number + 1 for number in cell.depth))
    own, more = (sum(contributions(each).values()) for each in (cell, deeper))
    assert 0 < own <= more <= whole_activations_bytes(cell) < whole_bytes(cell)


def test_without_checkpointing_the_peak_grows_by_the_same_for_each_block() -> None:
    depths = [Cell(STEP, "zimage", (n,), 1024, 1024, 1, 16, 96, False) for n in (3, 4, 5, 6)]
    peaks = [sum(contributions(cell).values()) for cell in depths]
    assert len(set(np.diff(peaks).tolist())) == 1


def snapshot(*sizes: int) -> list[dict[str, Any]]:
    """torch's memory snapshot of one segment per tensor."""
    return [
        {"address": n * GIB, "total_size": size, "segment_type": "large", "blocks": [{"size": size, "state": "active_allocated"}]}
        for n, size in enumerate(sizes, 1)
    ]


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("cell", [Cell(STEP, "zimage", (1,), 512, 512, 1, 16, 96), Cell(VAE, "flux1-dev", width=512, height=512)])
def test_prediction_stands_on_what_was_there(cell: Cell, expandable: bool) -> None:
    start = segments_of(snapshot(20 * MIB, 100 * MIB))
    allocated, reserved = predicted(cell, start, expandable)
    empty = predicted(cell, [], expandable)
    assert allocated == empty[0] + 120 * MIB
    assert reserved >= allocated


def test_free_blocks_beside_each_other_are_one() -> None:
    states = ("active_allocated", "inactive", "inactive", "active_allocated")
    blocks = [{"size": 5 * MIB, "state": state} for state in states]
    (segment,) = segments_of([{"address": GIB, "total_size": 20 * MIB, "segment_type": "large", "blocks": blocks}])
    assert [(address - GIB, size) for address, size, *_ in segment["blocks"]] == [(0, 5 * MIB), (5 * MIB, 10 * MIB), (15 * MIB, 5 * MIB)]


# --- rows -----------------------------------------------------------------------------------------------------------------------------

VALUES = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=10), max_size=4)


@given(st.lists(VALUES, max_size=6), st.integers(0, 400), st.binary(max_size=20))
def test_a_file_cut_anywhere_keeps_its_whole_rows_and_goes_on(written: list[dict[str, Any]], cut: int, garbage: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        file = Rows(path)
        for row in written:
            assert file.append(row) == ""
        file.close()
        raw = path.read_bytes()[:cut]
        path.write_bytes(raw + garbage.replace(b"\n", b""))
        again = Rows(path)
        kept = len(again.rows)
        assert again.rows == written[:kept]
        assert kept >= raw.count(b"\n")
        again.append({"next": 1})
        again.close()
        rows, end = whole_lines(path.read_bytes())
        assert rows == [*written[:kept], {"next": 1}]
        assert end == path.stat().st_size


def test_two_calibrations_do_not_write_to_one_file(tmp_path: Path) -> None:
    first = Rows(tmp_path / "rows.jsonl")
    with pytest.raises(Busy):
        Rows(tmp_path / "rows.jsonl")
    first.close()
    Rows(tmp_path / "rows.jsonl").close()


def test_a_full_disk_keeps_rows_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    file, real, full = Rows(path), os.pwrite, [False]
    file.append({"cell": "a", "kind": "cell"})

    def pwrite(handle: int, data: bytes, at: int) -> int:
        if full[0]:
            real(handle, data[:3], at)  # a part of it still fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    full[0] = True
    assert file.append({"cell": "b", "kind": "cell"}) == "No space left on device"
    assert whole_lines(path.read_bytes()) == ([{"cell": "a", "kind": "cell"}], path.stat().st_size), "nothing torn is left"
    full[0] = False
    assert file.append({"cell": "c", "kind": "cell"}) == ""
    file.close()
    kept, _ = whole_lines(path.read_bytes())
    assert [row["cell"] for row in kept] == ["a", "b", "c"]
    assert kept[1]["delayed"] == "No space left on device"
    assert digest(kept) == digest([{k: v for k, v in row.items() if k != "delayed"} for row in reversed(kept)])


# --- the overlay ------------------------------------------------------------------------------------------------------------------------

FOUND = {
    "device": "NVIDIA GeForce RTX 4090", "total_bytes": 24080 * MIB, "compute_capability": "8.9", "os": "linux", "emulated": False,
    "others_bytes": 0,
    "made": {"driver": "580.95", "torch": "2.14.1+cu130", "cuda": "13.0", "python": "3.11.7", "allocator_backend": "native",
             "allocator_settings": "default"},
}  # fmt: skip
HEADER = control.header_of(FOUND, "RTX4090", "0.1.0", "estimate calibrate")


def step_row(cell: Cell, more_bytes: int = 0, outside_bytes: int = 480 * MIB) -> dict[str, Any]:
    start = 2 * GIB
    allocated = start + sum(contributions(cell).values())
    return {
        "kind": "cell", "cell": cell.name, **cell.as_row(), "outcome": "ok", "outside_bytes": outside_bytes, "allocated_start_bytes": start,
        "predicted_allocated_bytes": allocated, "predicted_reserved_bytes": allocated, "max_allocated_bytes": allocated + more_bytes,
        "max_reserved_bytes": allocated + more_bytes,
    }  # fmt: skip


PLAN = [cell for cell in cells.plan(("flux1-dev", "zimage"), 23 * GIB) if cell.part == STEP]


def test_an_overlay_of_cells_as_predicted_changes_no_residual(tmp_path: Path) -> None:
    own = {"outside_bytes": 400 * MIB, "context_bare_bytes": 300 * MIB, "workspace_bytes": 8 * MIB}
    rows = [{"kind": "cell", "cell": "context", "part": "context", "outcome": "ok", **own}, *map(step_row, PLAN)]
    made = overlay_of(HEADER, rows, "x.rows.jsonl")
    assert (made.context.low, made.context.likely) == (300 * MIB, 480 * MIB)
    assert made.workspace_bytes == 8 * MIB
    assert made.residual is not None
    assert made.residual.spread("allocated", "train").share == 0
    write_overlay(made, str(tmp_path / "x.json"))
    assert replace(read_overlay(str(tmp_path / "x.json")), path="") == made


def test_a_difference_is_carried_over_to_the_whole_depth() -> None:
    """A cell whose activations are 10 % more than predicted: so are the whole model's, which are a smaller part of it."""
    rows = [step_row(cell, round(0.1 * sum(contributions(cell).values()))) for cell in PLAN]
    made = overlay_of(HEADER, rows, "x")
    assert made.residual is not None
    expected = sorted(0.1 * whole_activations_bytes(cell) / whole_bytes(cell) for cell in PLAN)
    assert made.allocated.low - 1 == pytest.approx(expected[0], abs=1e-5)
    assert made.allocated.high - 1 == pytest.approx(expected[-1], abs=1e-5)
    spread = made.residual.spread("allocated", "train")
    assert spread.share + spread.high_share >= expected[-1] - 1e-5


def test_cells_of_an_architecture_are_told_apart_and_kept(tmp_path: Path) -> None:
    """One whose cells took more than predicted leaves the other's as they were."""
    more = {"flux1-dev": 0.05, "zimage": 0.0}
    rows = [step_row(cell, round(more[cell.arch] * sum(contributions(cell).values()))) for cell in PLAN]
    made = overlay_of(HEADER, rows, "x")
    seen = {one.arch: one for one in made.seen}
    assert set(seen) == {"flux1-dev", "zimage"}
    assert {one.cells for one in seen.values()} == {cells.STEPS_PER_ARCH}
    assert seen["zimage"].allocated.share == 0
    assert seen["flux1-dev"].allocated.share > 0.01
    write_overlay(made, str(tmp_path / "x.json"))
    assert read_overlay(str(tmp_path / "x.json")).seen == made.seen
    assert "jobs of flux1-dev, zimage: low and high rest on these cells" in render(control.Outcome(made, tmp_path, rows), None)


@pytest.mark.parametrize(("freedom", "point"), [(1, 31.821), (2, 6.965), (5, 3.365), (10, 2.764), (120, 2.358)])
def test_students_99_percent_points_are_those_of_the_tables(freedom: int, point: float) -> None:
    assert student_quantile(0.99, freedom) == pytest.approx(point, abs=6e-4)


def test_more_cells_know_more_and_none_is_left_out() -> None:
    widths = [spread_of_cells([0.0] * count).high_share for count in (1, 2, 4, 8, 16)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 5
    apart = [0.0, 0.001, 0.001, 0.002, 0.05]
    found = spread_of_cells(apart)
    assert found.share + found.high_share >= max(apart)
    assert found.share - found.low_share <= min(apart)
    assert found.high_share > spread_of_cells([0.001] * 5).high_share


def test_failed_cells_are_rows_and_say_nothing_of_the_card() -> None:
    good = step_row(PLAN[0])
    outcomes = ("oom", "error", "died")
    failed = [{**step_row(cell, GIB, 9 * GIB), "outcome": outcome} for cell, outcome in zip(PLAN[1:4], outcomes, strict=True)]
    made = overlay_of(HEADER, [good, *failed], "x")
    assert (made.cells, made.rows["count"]) == (1, 4)
    assert made.context.likely == 480 * MIB
    with pytest.raises(ValueError, match="no cell went through"):
        overlay_of(HEADER, failed, "x")


def test_the_digest_is_of_what_was_measured_not_of_when() -> None:
    rows = [step_row(cell) for cell in PLAN]
    later = [{**row, "at": "2027-01-01", "seconds": 3.0} for row in reversed(rows)]
    first, second = (overlay_of({**HEADER, "date": date}, some, "x") for date, some in (("2026-01-01T00:00:00Z", rows), ("2027", later)))
    assert first.rows == second.rows
    assert overlay_of(HEADER, [*rows[1:], step_row(PLAN[0], 512)], "x").rows != first.rows


def test_workspaces_of_cudnn_are_the_decoders_at_the_largest_image() -> None:
    def image(part: str, side: int, per_pixel: int) -> dict[str, Any]:
        cell = Cell(part, "zimage", width=side, height=side)
        sizes = {"predicted_allocated_bytes": GIB, "max_allocated_bytes": GIB + per_pixel * side * side, "outside_bytes": 400 * MIB}
        return {"kind": "cell", "cell": cell.name, **cell.as_row(), "outcome": "ok", **sizes}

    images = [image(VAE, 1024, 256), image(DECODE, 512, 904), image(DECODE, 1024, 898)]
    residual = overlay_of(HEADER, [step_row(PLAN[0]), *images], "x").residual
    assert residual is not None
    assert residual.cudnn_bytes_per_pixel == Interval(256, 898, 904)
    shipped = overlay_of(HEADER, [step_row(PLAN[0]), images[0]], "x").residual
    assert shipped is not None
    assert shipped.cudnn_bytes_per_pixel == profile().residual.cudnn_bytes_per_pixel, "the encoder alone says too little"


@pytest.mark.parametrize("arch", ARCHS)
def test_the_decoder_of_a_preview_grows_with_the_image(arch: str) -> None:
    sizes = [sum(contributions(Cell(DECODE, arch, width=side, height=side)).values()) for side in (512, 768, 1024)]
    assert sizes == sorted(sizes)
    assert sizes[0] > sum(contributions(Cell(VAE, arch, width=512, height=512)).values()) / 2


# --- running ----------------------------------------------------------------------------------------------------------------------------


class Scripted(control.Worker):
    """Answers as the worker would, without a card."""

    def __init__(self, stop_after: int = 10**6, outcome: str = "ok") -> None:
        self.asked: list[str] = []
        self.stop_after, self.outcome = stop_after, outcome

    def ask(self, request: Any) -> dict[str, Any]:
        if request["do"] == "hello":
            return dict(FOUND)
        cell = cells.of_row(request)
        self.asked.append(cell.name)
        if len(self.asked) > self.stop_after:
            raise KeyboardInterrupt
        figures = step_row(cell) if cell.part == STEP else {"outside_bytes": 400 * MIB}
        return {**figures, "outcome": self.outcome, "seconds": 0.0}


def run_once(path: Path, worker: Scripted, minutes: float = 20) -> control.Outcome:
    notes: list[str] = []
    rows, header = control.open_rows(path.with_suffix(".jsonl"), HEADER, notes)
    try:
        left = control.calibrate(worker, rows, header, PLAN, minutes, lambda *_: None)
        return control.finish(rows, header, path, left, notes)
    finally:
        rows.close()


def test_an_interrupted_run_goes_on_and_a_finished_one_begins_anew(tmp_path: Path) -> None:
    whole = run_once(tmp_path / "whole.json", Scripted()).overlay
    path = tmp_path / "card.json"
    with pytest.raises(KeyboardInterrupt):
        run_once(path, Scripted(stop_after=5))
    second = Scripted()
    outcome = run_once(path, second)
    assert len(second.asked) == len(PLAN) - 5
    assert outcome.overlay is not None
    assert whole is not None
    assert replace(outcome.overlay, rows={}, made={}) == replace(whole, rows={}, made={})
    assert outcome.overlay.rows["sha256"] == whole.rows["sha256"]
    third = Scripted()
    assert "an earlier calibration: kept as card.jsonl.old" in run_once(path, third).notes
    assert len(third.asked) == len(PLAN)


def test_time_that_is_over_leaves_the_rest_for_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    assert len(run_once(path, Scripted(), minutes=0).left) == len(PLAN)
    outcome = run_once(path, Scripted())
    assert not outcome.left
    assert len(measured(outcome.rows)) == len(PLAN)


def test_rows_of_another_driver_are_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "card.jsonl"
    older = {**HEADER, "made": {**HEADER["made"], "driver": "550.1"}}
    rows, _ = control.open_rows(path, older, [])
    rows.append({"kind": "cell", "cell": "x"})
    rows.close()
    notes: list[str] = []
    rows, header = control.open_rows(path, HEADER, notes)
    rows.close()
    assert header == HEADER
    assert "rows of other software or another card: kept as card.jsonl.old" in notes
    assert (tmp_path / "card.jsonl.old").exists()


def test_nothing_that_went_through_is_no_overlay(tmp_path: Path) -> None:
    outcome = run_once(tmp_path / "card.json", Scripted(outcome="oom"))
    assert outcome.overlay is None
    assert not (tmp_path / "card.json").exists()


def test_a_worker_that_dies_is_an_outcome_and_is_started_again(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nread line; echo '{\"device\": 1}'\n[ -e $0.died ] && { read line; echo '{\"outcome\": \"ok\"}'; exit; }\n"
                      "touch $0.died; echo 'last words' >&2; exit 7\n")  # fmt: skip
    python.chmod(0o755)
    worker = control.Worker(str(python))
    assert worker.ask({"do": "hello"}) == {"device": 1}
    assert worker.ask({"do": "cell"}) == {"outcome": "died", "error": "the process ended with status 7: last words", "seconds": 0.0}
    assert worker.ask({"do": "cell"}) == {"outcome": "ok"}
    worker.stop()


def test_what_is_missing_is_said_with_what_to_install(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    python = tmp_path / "python"  # an environment without torch
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -S \"$@\"\n")
    python.chmod(0o755)
    assert cli.main(["calibrate", "--python", str(python), "--out", str(tmp_path / "x.json")]) == 2
    err = capsys.readouterr().err
    assert "not installed: torch, diffusers, transformers" in err
    assert "fix: install" in err
    assert list(tmp_path.iterdir()) == [python]


def test_mistakes_of_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for options, words in (
        (["--config", "c.yaml"], "--config needs --trainer"),
        (["--minutes", "-3"], "--minutes"),
        (["--python", str(tmp_path / "none")], "cannot be started"),
        (["--trainer", str(tmp_path), "--config", "c.yaml"], "no checkout of AI Toolkit"),
    ):
        assert cli.main(["calibrate", *options]) == 2
        assert words in capsys.readouterr().err


def test_help_of_calibrate_imports_no_torch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "estimator", "calibrate", "--help"], cwd=tmp_path,
                          env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0
    assert "torch" not in done.stderr
    assert "calibration" not in done.stderr


@pytest.mark.parametrize(
    ("device", "mib", "card"),
    [
        ("NVIDIA GeForce RTX 4090", 24080, "RTX4090"),
        ("NVIDIA A100-SXM4-80GB", 81044, "A100-80G"),
        ("NVIDIA H100 80GB HBM3", 81559, "H100-80G"),
        ("NVIDIA A100", 40300, "A100-40G"),
        ("NVIDIA A100", 60000, None),
        ("Some Card", 24080, None),
    ],
)
def test_the_drivers_name_and_size_find_the_card(device: str, mib: int, card: str | None) -> None:
    found = named(device, mib * MIB)
    assert found == (None if card is None else find_gpu(card))


# --- the user's own run -----------------------------------------------------------------------------------------------------------------


def test_the_users_config_is_shortened_in_a_copy(tmp_path: Path) -> None:
    process = {"train": {"steps": 3000, "lr": 1e-4}, "sample": {"sample_every": 250, "prompts": ["x"]}, "save": None}
    config = {"job": "extension", "config": {"name": "x", "process": [process]}}
    before = json.dumps(config)
    (made,) = own_run.shortened(config, 4, tmp_path)["config"]["process"]
    assert json.dumps(config) == before
    assert made["train"] == {"steps": 4, "lr": 1e-4}
    assert made["sample"]["prompts"] == ["x"]
    assert made["training_folder"] == str(tmp_path)


def test_phases_of_a_run_stand_beside_the_predicted_ones() -> None:
    sizes = (("load", 5), ("load", 9), ("setup", 2), ("train", 7))
    rows = [{"phase": name, "allocated_peak": size, "reserved_peak": size + 1} for name, size in sizes]
    measured_phases = own_run.highest(rows)
    assert measured_phases == [("load", 9, 10), ("prepare", 2, 3), ("train", 7, 8)]
    same = own_run.beside(measured_phases, [("load", 8, 8), ("prepare", 2, 2), ("train", 6, 6)])
    assert [one["predicted_allocated_bytes"] for one in same] == [8, 2, 6]
    other = own_run.beside(measured_phases, [("train", 6, 6), ("load", 8, 8), ("train", 9, 9)])
    assert [one["predicted_allocated_bytes"] for one in other] == [8, None, 9]
