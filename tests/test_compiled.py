"""Compiled blocks: what of model.compile is modelled, and runs in which the compiler chose what is kept beside the estimate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from config_writer import unmodelled_keys

from calibration.accuracy_compare import ALLOCATED_BAR, Row, compare
from calibration.accuracy_rows import Run, read_rows
from calibration.validation_rows import COMPILED
from estimator.engine import estimate_job
from estimator.estimate import OOM
from estimator.gpus import find_gpu
from estimator.intervals import profile, residual_for
from estimator.job import Job
from estimator.trainers import read_jobs

TURBO = Path(__file__).parent.parent / "examples" / "zimage_turbo_ui.yaml"
BLOCKS = ("model.compile=true", "model.block_compile=true")
GPU = find_gpu("A100-40G")
RUNS = read_rows(COMPILED)


def turbo(*sets: str) -> Job:
    (job,) = read_jobs(TURBO, sets)
    return job


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        (("model.compile=true",), "model.compile"),
        ((*BLOCKS, "model.compile_mode=max-autotune"), "model.compile_mode"),
        ((*BLOCKS, "model.layer_offloading=true"), "model.compile"),
        ((*BLOCKS, "model.arch=qwen_image", "model.name_or_path=Qwen/Qwen-Image", "model.assistant_lora_path="), "model.compile"),
        ((*BLOCKS, "model.qtype=uint4"), "model.compile"),
    ],
)
def test_what_no_compiled_run_had_is_named(sets: tuple[str, ...], named: str) -> None:
    assert named in unmodelled_keys(turbo(*sets))


def test_blocks_are_compiled_only_with_compile() -> None:
    job = turbo("model.block_compile=true")
    assert not job.unmodelled
    assert any("block_compile" in warning and "no effect" in warning for warning in job.warnings)
    assert replace(job, warnings=()) == replace(turbo(), warnings=())


def test_a_compiled_job_is_said_to_be_approximate_and_may_take_less() -> None:
    job, plain = turbo(*BLOCKS), turbo()
    assert any("approximate" in warning for warning in job.warnings)
    estimate, without = estimate_job(job, GPU), estimate_job(plain, GPU)
    for one, other in zip(estimate.phases, without.phases, strict=True):
        assert one.device.high_bytes >= other.device.high_bytes
        lower = other.device.low_bytes - one.device.low_bytes
        assert (lower > 0.2 * one.device.low_bytes) == (one.phase in ("train", "sample", "save")), one.phase


def test_too_little_for_the_blocks_as_they_are_is_not_certain_to_be_too_little_for_compiled_ones() -> None:
    plain = turbo("train.batch_size=4")
    card = find_gpu("20GiB")
    assert estimate_job(plain, card).verdict == OOM
    assert estimate_job(turbo("train.batch_size=4", *BLOCKS), card).verdict != OOM


def test_the_transformer_stays_on_the_card() -> None:
    """With cached text it leaves in preparing, and comes back for its first use: compiled, it is there before."""
    job, plain = (turbo(*sets, "train.cache_text_embeddings=true", "sample.samples=[]") for sets in (BLOCKS, ()))
    end, away = (next(p for p in estimate_job(one, GPU).phases if p.phase == "sample").allocated_bytes for one in (job, plain))
    assert end >= away


@pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])
def test_runs_with_the_compilers_choice_take_no_more_than_estimated_and_not_less_than_the_low_end(run: Run) -> None:
    residual, rows = residual_for(GPU), [row for row in compare(run) if isinstance(row, Row)]
    assert residual.spread("allocated", "train").low_share < profile().compiled
    assert len(rows) > 10
    for row in rows:
        low = profile().compiled if row.phase in ("train", "sample", "save") else ALLOCATED_BAR
        assert -ALLOCATED_BAR < row.allocated_error < low / (1 - low), (row.phase, row.label)
