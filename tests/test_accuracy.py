"""The committed emulated runs, re-evaluated: every phase within the bars of DESIGN section 6; and what the rows cover.

A replay takes about a second, so a selection of the runs is made here; ACCURACY=all makes all of them, as
`python -m calibration.accuracy --against emulated` does.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from calibration import probes
from calibration.accuracy import report
from calibration.accuracy_compare import (
    ALLOCATED_BAR,
    RESERVED_BAR,
    Capacity,
    Different,
    Row,
    compare,
    compare_capacity,
    grouped,
    longer_captions,
)
from calibration.accuracy_published import ROWS as PUBLISHED
from calibration.accuracy_published import Judged, explanations
from calibration.accuracy_published import evaluate as evaluate_published
from calibration.accuracy_rows import Run, read_job, read_rows
from calibration.accuracy_tables import quantile
from calibration.architectures import ARCHITECTURES
from calibration.architectures.base import OPTIMIZER_WITH, OPTIMIZER_WITH_OTHERS, kind_of
from calibration.validation_rows import FOLDER
from calibration.validation_settings import CAPTIONS
from estimator.parameters import DORA

RUNS = read_rows()
WHOLE = tuple(run for run in RUNS if run.total_bytes is None)
ON_CARDS = tuple(run for run in RUNS if run.total_bytes is not None)
SELECTED = frozenset({
    "wan22-images-cached", "wan22-recovery", "wan22i-ui", "wan21i-low-vram-b2",
    "wan14b-images", "l2p-cached-b2", "radiance-no-checkpointing",
    "wan1b-images",
    "edit11-ui", "edit11-bf16-b2", "edit11-qfloat8-no-checkpointing", "qwen-bf16-b2", "qwen-float8-1280",
    "turbo-lokr-auto-no-checkpointing-b2",
    "flux-float8-no-checkpointing", "flux-uint4-b4", "flux-accumulated-b2", "schnell-bf16-b2", "schnell-low-vram", "flex-b4",
    "flex-uint4-b2", "zimage-no-checkpointing-r8", "zimage-bf16-b2-1024", "zimage-uint4-1280", "turbo-float8-no-checkpointing",
    "turbo-bf16-b2", "turbo-uint4-b4", "flux-ui-low-vram-unloaded@16376", "zimage-ui@12282", "turbo-ui@12282", "flex-example@12282",
    "klein4b-uint4-1280", "klein4b-float8-no-checkpointing", "klein9b-qfloat8-256", "qwen-no-checkpointing-r8", "edit-ui",
    "kontext-float8-b2", "chroma-uint4-1280", "chroma-bf16-b2", "flux2dev-uint4-no-checkpointing", "flux2dev-bf16-b2", "klein9b-edit-two",
    "ltx2-images", "ltx23-images", "wan5b-ui", "first-edit-float8-cached", "flux-two-layers", "zimage-preserved", "turbo-lokr-8",
    "zimage-lokr-4-bf16-b2", "qwen-lokr-8", "flux-dropout", "zimage-dora", "flux-dora", "zimage-dora-no-checkpointing-b2",
    "flux-dora-bf16-b2", "turbo-dora-bf16", "first-edit-dora", "wan1b-dora", "chroma-lokr-8", "wan1b-lokr-auto-qfloat8", "wan1b-lokr-4",
    "klein4b-lokr-8-bf16-b2",
    "flex2-float8-b2", "flex2-uint4-unloaded", "flex2-bf16-no-checkpointing",
    "klein4b-offload-uint4", "qwen-offload-ui", "zimage-offload-half-float8-b2", "hidream-cached",
    "sdxl-ui", "sd15-ui", "wan21i-float8-81", "wan5b-uint4-33", "ltx2-float8-81", "edit11-uint4-b2", "hidream-uint4",
    "zimage-whole-adamw-b2", "zimage-whole-adafactor", "zimage-lokr-8-uint4", "flux-whole-adafactor", "sdxl-whole",
    "l2p-offload-half-uint4", "radiance-bf16-b2", "ltx25-ui", "ltx25-no-checkpointing",
    "sd35-bf16-unloaded-b2", "sd35-medium-b3", "omnigen2-float8-offload-nothing", "omnigen2-unloaded", "ltx23-offload-half-bf16-b2",
    "wan22i-offload-half-b2",
    "wan21i-bf16-81-low-vram", "lumina2-ui-b2", "sd35-medium-bf16-b2",
})  # fmt: skip
# Runs whose reserved memory hangs on where single megabytes lie: a block of 200 to 1,200 MiB finds a hole, or a segment is added
PLACED = (
    "klein9b-uint4-b4", "klein9b-ui", "flux2dev-uint4-b4", "flex-b4", "chroma-bf16-b2", "klein4b-edit-b2", "klein4b-edit-ui",
    "flux2dev-edit-ui", "klein9b-offload-uint4", "zimage-offload-bf16-no-checkpointing-b2",
    "zimage-offload-half-uint4-b2", "turbo-bf16-b2", "zimage-bf16-b2-1024",
    "flex-uint2-automagic",  # three pictures of one size: the second is encoded among what the first left
)  # fmt: skip
PLACED_WITHIN = 0.0025  # 6 MiB of 3 GiB in the last preview of zimage-offload-bf16-no-checkpointing-b2, the others 0.0015
MIB = 2**20
# In one or few kinds of weights, or without settings that the trainer stops on (docs/accuracy.md, What the runs cover).
FEW_ROWS = frozenset({
    "qwen-image-edit", "qwen-image-edit-2509", "qwen-image-edit-2511", "ltx2", "ltx2.3", "zimage-l2p", "chroma-radiance", "hidream",
    "ltx2.5", "sdxl-aitk", "sd15-aitk", "omnigen2", "sd35-large-aitk", "sd35-medium-aitk", "lumina2-aitk",
})  # fmt: skip


def runs(chosen: tuple[Run, ...]) -> pytest.MarkDecorator:
    if os.environ.get("ACCURACY") != "all":
        chosen = tuple(run for run in chosen if run.name in SELECTED)
    return pytest.mark.parametrize("run", chosen, ids=[run.name for run in chosen])


# --- the bars ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLACED)
def test_blocks_come_to_lie_where_the_trainers_do(name: str) -> None:
    (run,) = (run for run in WHOLE if run.name == name)
    rows = [row for row in compare(run) if isinstance(row, Row)]
    assert rows
    assert {(row.phase, row.label): round(row.reserved_error, 3) for row in rows if abs(row.reserved_error) > PLACED_WITHIN} == {}


@runs(WHOLE)
def test_every_phase_is_within_the_bars(run: Run) -> None:
    rows = compare(run)
    outside = [
        f"{row.phase} {row.label}: allocated {row.allocated_error:+.2%}, reserved {row.reserved_error:+.2%} ({row.moment})"
        if isinstance(row, Row)
        else f"phases {row.phases}, in the estimate {row.estimated_phases}"
        for row in rows
        if isinstance(row, Different) or abs(row.allocated_error) > ALLOCATED_BAR or abs(row.reserved_error) > RESERVED_BAR
    ]
    assert not outside, "\n".join(outside)


@runs(ON_CARDS)
def test_the_same_phase_fails_on_a_card_or_none(run: Run) -> None:
    found = compare_capacity(run)
    assert found.estimated_failed == found.failed


@cache
def published() -> tuple[Judged, ...]:
    """Every published row beside its estimate."""
    return tuple(evaluate_published())


def test_no_published_row_is_contradicted() -> None:
    assert {one.name: f"{one.said}, estimate {one.estimate}" for one in published() if one.wrong} == {}


def test_published_peaks_are_within_five_percent_and_what_is_too_low_is_explained() -> None:
    errors = {one.name: one.reading.error for one in published() if one.wrong is not None and one.reading is not None}
    assert len(errors) >= 50
    assert sum(abs(error) <= 0.05 for error in errors.values()) >= 0.95 * len(errors)
    assert sorted(map(abs, errors.values()))[len(errors) // 2] <= 0.02
    assert {name for name, error in errors.items() if error < -0.03} == explanations().keys()


# --- what the rows cover -----------------------------------------------------------------------------------------------------------


def test_rows_cover_what_users_vary() -> None:
    jobs = [read_job(run) for run in WHOLE]
    assert len(jobs) >= 36
    assert {job.arch for job in jobs} >= {"flux1-dev", "flux1-schnell", "flex1", "zimage", "zimage-turbo", *FEW_ROWS}
    assert {job.arch for job in jobs} >= {"flux2-klein-4b", "flux2-klein-9b"}
    # of Wan not every kind of weights was run in batches of four
    for arch in {job.arch for job in jobs if not job.arch.startswith("wan")} - FEW_ROWS:
        of_arch = [job for job in jobs if job.arch == arch]
        assert {job.train.gradient_checkpointing for job in of_arch} == {True, False}, arch
        # the trainer makes float8 of qfloat8 for Z-Image Turbo's transformer
        assert {job.model.weights for job in of_arch} >= {"bf16", "float8", "uint4"}, arch
        assert {job.train.batch_size for job in of_arch} == {1, 2, 4}, arch
    assert {job.train.batch_size for job in jobs} >= {1, 2, 4}
    assert {job.network.rank for job in jobs if job.network is not None} >= {8, 16, 32, 64}
    assert {job.train.optimizer for job in jobs} >= {"adamw", "adamw8bit", "adafactor", "prodigy", "automagic3"}
    assert {job.model.weights for job in jobs} >= {"bf16", "qfloat8", "float8", "uint4"}
    for setting in ("ema", "unload_text_encoder", "cache_text_embeddings"):
        assert {getattr(job.train, setting) for job in jobs} == {True, False}, setting
    assert {job.model.low_vram for job in jobs} == {True, False}
    assert {dataset.resolution for job in jobs for dataset in job.datasets} >= {512, 768, 1024, 1280}
    assert any(len({(sample.width, sample.height) for sample in job.samples}) == 2 for job in jobs)
    assert max(job.train.gradient_accumulation for job in jobs) == 2


def test_no_row_is_a_probe_job() -> None:
    probed = {
        (arch, kind_of(weights), rank, width, height, batch, *(frames or [1]))
        for arch, family in ARCHITECTURES.items()
        for weights in family.weights
        if weights not in (*family.loads, *family.quantised, *family.brief)  # jobs that stop when all is loaded, or have sizes of their own
        for rank in probes.RANKS[OPTIMIZER_WITH.get(weights, OPTIMIZER_WITH_OTHERS)]
        for width, height, batch, _, *frames in family.buckets
    }
    for run in WHOLE:
        job = read_job(run)
        assert job.network is not None
        if job.network.kind == DORA:  # no probe job has one
            continue
        met = {(*bucket[:3], bucket[4]) for peak in run.peaks for bucket in peak.buckets}
        assert not {(job.arch, job.model.weights, job.network.rank, *bucket) for bucket in met} & probed, run.name


def test_every_bucket_of_a_run_is_one_that_the_reader_expects() -> None:
    for run in WHOLE:
        expected = {(bucket.width, bucket.height) for dataset in read_job(run).datasets for bucket in dataset.buckets}
        met = {bucket[:2] for peak in run.peaks for bucket in peak.buckets}
        assert met == expected, run.name


def test_the_selection_is_of_rows_there_are() -> None:
    assert {run.name for run in RUNS} >= SELECTED
    assert {read_job(run).arch for run in WHOLE if run.name in SELECTED} == {read_job(run).arch for run in WHOLE}


def test_captions_of_rows_are_read_as_texts_whichever_way_they_are_kept() -> None:
    """Newer rows have them by name."""
    texts = {caption for run in RUNS for images in run.images.values() for _, _, caption, *_ in images}
    assert texts <= set(CAPTIONS.values())
    assert texts.isdisjoint(CAPTIONS)


def test_captions_are_taken_in_the_order_in_which_a_run_cached_them() -> None:
    """Of `edit-example` the disk gave the longest first; where a row has other texts than its captions, the order of names stays."""
    (run,) = (run for run in RUNS if run.name == "edit-example")
    dataset = read_job(run).datasets[0]
    assert (dataset.longer_captions, longer_captions(run, dataset)) == ((604, 695), (695,))
    other = replace(dataset, longer_captions=(600, 695))
    assert longer_captions(run, other) == other.longer_captions


def test_rows_are_small_and_hold_no_path() -> None:
    for path in (*FOLDER.glob("*.jsonl"), PUBLISHED):
        text = path.read_text(encoding="utf-8")
        assert len(text) < MIB
        assert not any(f'"/{folder}/' in text for folder in ("work", "opt", "home", "root", "tmp"))
    for line in PUBLISHED.read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["source"], line[:80]


# --- the check itself ----------------------------------------------------------------------------------------------------------------


def made_row(allocated: int, estimated: int, reserved: int = 1000, estimated_reserved: int = 1000) -> Row:
    return Row("a run", "zimage", "train", "step 0", allocated * MIB, reserved * MIB, estimated * MIB, estimated_reserved * MIB, "backward")


@pytest.mark.parametrize(
    ("row", "missed"),
    [
        (made_row(1000, 1009), False),
        (made_row(1000, 1011), True),
        (made_row(1000, 989), True),
        (made_row(1000, 1000, 1000, 1019), False),
        (made_row(1000, 1000, 1000, 979), True),
    ],
)
def test_a_row_outside_a_bar_is_a_miss(row: Row, missed: bool) -> None:
    assert row.misses is missed
    assert (ALLOCATED_BAR, RESERVED_BAR) == (0.01, 0.02)


def test_the_report_counts_and_names_misses() -> None:
    text = report([made_row(1000, 1000), made_row(1000, 1100)], [], [Capacity("a run@12282", "zimage", 12_282 * MIB, "load", None)])
    assert "Outside the bars: 1 of 2 phases" in text
    assert "+10.00" in text
    assert "DIFFERENT" in text


def test_quantile_is_a_value_of_the_list() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert quantile([float(n) for n in range(100)], 0.95) == 94.0
    assert quantile([5.0], 0.95) == 5.0


def test_phases_of_one_name_in_a_row_are_one_group() -> None:
    names = [name for name, _ in grouped(WHOLE[0].peaks)]
    assert names[0] == "load"
    assert all(one != other for one, other in pairwise(names))


def test_the_page_is_of_the_runs_that_are_kept() -> None:
    """After new rows: python -m calibration.accuracy --write docs/accuracy.md."""
    text = (Path(__file__).resolve().parent.parent / "docs" / "accuracy.md").read_text(encoding="utf-8")
    assert f"\n{len(WHOLE)} runs (" in text
    assert all(f"### {run.name} (" in text for run in WHOLE)


def test_writing_the_page_needs_no_run(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    from calibration.accuracy_page import page

    text = page([made_row(1000, 1001)], [], [], [])
    assert "0 of 1 phases" in text
