"""The table of what whole runs cover: it counts what configs say, and tells what is refused from what nobody has run."""

from __future__ import annotations

from functools import cache

import pytest

from calibration import accuracy_matrix as matrix
from calibration.accuracy_rows import Run, read_job, read_rows

RUNS = {run.name: run for run in read_rows() if run.total_bytes is None}
CELLS = {cell.name: cell for cell in matrix.CELLS}


@cache
def found() -> dict[str, tuple[str, ...]]:
    return matrix.counts(tuple(RUNS.values()))


def entry(counted: dict[str, tuple[str, ...]], arch: str, name: str) -> str:
    return dict(zip((matrix.SIZES, *CELLS), counted[arch], strict=True))[name]


def test_a_run_counts_in_the_columns_of_its_settings() -> None:
    # batch 4, uint4, low_vram, EMA: web UI's FLUX.1 with text encoded in each step
    counted = matrix.counts([RUNS["flux-uint4-b4"]])
    assert list(counted) == ["flux1-dev"]
    assert {name for name in CELLS if entry(counted, "flux1-dev", name) == "1"} == {
        "checkpointing", "uint4", "batch 2 or more", "low_vram", "text resident",
    }  # fmt: skip
    assert {name for name in CELLS if entry(counted, "flux1-dev", name) == ""} == {
        "1 frame", "33 frames", "81 frames", "0 controls", "1 control", "3 controls",
    }  # fmt: skip


def test_frames_and_control_images_are_those_that_were_trained() -> None:
    counted = matrix.counts([RUNS["wan1b-81-low-vram"], RUNS["edit-example"]])
    assert [entry(counted, "wan21-1.3b", f"{n} frame{'s' * (n > 1)}") for n in (1, 33, 81)] == [matrix.NONE, matrix.NONE, "1"]
    of_edit = [entry(counted, "qwen-image-edit-2509", name) for name in ("0 controls", "1 control", "3 controls")]
    assert of_edit == [matrix.NONE, matrix.NONE, "1"]
    assert entry(counted, "wan21-1.3b", "1 control") == ""


def test_what_the_trainer_stops_on_is_refused_and_what_nobody_ran_is_none() -> None:
    counted = matrix.counts([RUNS["chroma-ui"], RUNS["turbo-ui"]])
    assert entry(counted, "chroma", "cached") == matrix.REFUSED  # the trainer stops
    assert entry(counted, "chroma", "unloaded") == matrix.NONE
    assert entry(counted, "zimage-turbo", "qfloat8") == matrix.REFUSED  # it becomes float8
    assert entry(counted, "zimage-turbo", "bf16") == matrix.NONE


def test_sizes_of_probe_jobs_are_no_other_sizes() -> None:
    run = RUNS["zimage-ui"]
    met = {(bucket[0], bucket[1], bucket[4]) for peak in run.peaks for bucket in peak.buckets}
    assert met
    assert entry(matrix.counts([run]), "zimage", matrix.SIZES) == str(len(met - matrix.probe_sizes("zimage")))
    assert matrix.probe_sizes("qwen-image-edit-2509") == matrix.probe_sizes("qwen-image") != matrix.probe_sizes("ltx2")
    assert all(len(matrix.probe_sizes(arch)) >= 4 for arch in found())


@pytest.mark.parametrize("cell", [cell for cell in matrix.CELLS if not cell.name.endswith(("control", "controls", "frame", "frames"))])
def test_each_way_puts_its_setting_into_a_config(cell: matrix.Cell) -> None:
    run = RUNS["zimage-ui"]
    assert any(cell.has(read_job(matrix.changed(run, way))) for way in cell.ways)
    assert run == RUNS["zimage-ui"]
    assert matrix.modelled(run, cell)


def test_a_way_leaves_the_run_as_it_was() -> None:
    run = RUNS["edit-ui"]
    before = repr(run)
    without = CELLS["0 controls"].ways[-1]  # the text encoder is unloaded too: it encodes them with every prompt
    three: Run = matrix.changed(run, CELLS["3 controls"].ways[0])
    assert max(len(b.controls) for d in read_job(three).datasets for b in d.buckets) == 3
    assert max(len(b.controls) for d in read_job(matrix.changed(run, without)).datasets for b in d.buckets) == 0
    assert repr(run) == before


def test_gaps_name_what_is_modelled_and_has_no_run() -> None:
    entries = ("2", *("1" for _ in matrix.CELLS[:-2]), matrix.NONE, matrix.REFUSED)
    assert matrix.gaps({"flex1": entries}) == ["flex1: other sizes", f"flex1: {matrix.CELLS[-2].name}"]
    assert matrix.table({"flex1": entries}).rows == (("flex1", *entries),)


def test_every_setting_that_is_modelled_has_a_whole_run() -> None:
    assert found()
    assert matrix.gaps(found()) == []
