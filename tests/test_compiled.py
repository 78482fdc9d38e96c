"""Compiled blocks: what of model.compile is modelled, and runs in which the compiler chose what is kept beside the estimate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from config_writer import unmodelled_keys

from calibration.accuracy_compare import ALLOCATED_BAR, Row, compare
from calibration.accuracy_rows import Run, read_job, read_rows
from calibration.validation_rows import COMPILED
from estimator.engine import estimate_job
from estimator.errors import InputError
from estimator.estimate import OOM
from estimator.gpus import find_gpu
from estimator.intervals import COMPILED_RUN, residual_for
from estimator.job import Job
from estimator.residual import ends
from estimator.trainers import modelled, read_jobs

TURBO = Path(__file__).parent.parent / "examples" / "zimage_turbo_ui.yaml"
BLOCKS = ("model.compile=true", "model.block_compile=true")
# What runs take more, as a share: parts of an operation that are kernels of their own there and one kernel on a card (docs/log.md)
UNFUSED = 0.035
NO_ADAPTER = "model.assistant_lora_path=null"
KLEIN = ("model.arch=flux2_klein_4b", "model.name_or_path=black-forest-labs/FLUX.2-klein-base-4B", NO_ADAPTER)
FLUX1 = {
    "flux": "black-forest-labs/FLUX.1-dev", "flux_kontext": "black-forest-labs/FLUX.1-Kontext-dev", "flex1": "ostris/Flex.1-alpha",
    "flex2": "ostris/Flex.2-preview",
}  # fmt: skip
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
        ((*BLOCKS, *KLEIN, "network.type=lokr"), "model.compile"),
        ((*BLOCKS, "model.compile_fullgraph=true"), "model.compile_fullgraph"),
        ((*BLOCKS, "model.arch=ltx2.5", "model.name_or_path=Lightricks/LTX-2.5", "model.qtype=convrot8", NO_ADAPTER), "model.compile"),
        ((*BLOCKS, "model.qtype=convrot8"), "model.compile"),
    ],
)
def test_what_no_compiled_run_had_is_named(sets: tuple[str, ...], named: str) -> None:
    assert named in unmodelled_keys(turbo(*sets))


@pytest.mark.parametrize("arch", FLUX1)
@pytest.mark.parametrize("qtype", ["qfloat8", "qint8", "float8"])
def test_the_trainer_stops_on_flux1s_single_blocks_with_weights_that_are_tensor_subclasses(arch: str, qtype: str) -> None:
    of_flux = (f"model.arch={arch}", f"model.name_or_path={FLUX1[arch]}", NO_ADAPTER, "sample.samples=[]", f"model.qtype={qtype}")
    with pytest.raises(InputError) as stopped:
        turbo(*of_flux, *BLOCKS)
    assert [problem.place.key for problem in stopped.value.problems if problem.place] == ["model.compile"]
    assert "two parts of one tensor" in str(stopped.value)
    assert not turbo(*of_flux).unmodelled
    for plain in ("model.quantize=false", "model.qtype=uint4"):
        assert not [one for one in unmodelled_keys(turbo(*of_flux, *BLOCKS, plain)) if "compile" in one]


def test_what_stops_the_trainer_is_not_called_modelled() -> None:
    for arch in modelled.COMPILE_STOPS:
        assert not modelled.COMPILED[arch] & modelled.SUBCLASSES


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
def test_runs_with_the_compilers_choice_take_no_more_than_estimated_and_are_between_low_and_high(run: Run) -> None:
    job, rows = read_job(run), [row for row in compare(run) if isinstance(row, Row)]
    residual = residual_for(GPU, job)
    assert any("compiled" in reason for reason in residual.reasons)
    assert len(rows) > 8
    for row in rows:
        assert row.allocated_error > -(UNFUSED if row.phase == "train" else ALLOCATED_BAR), (row.phase, row.label)
        assert row.phase in COMPILED_RUN or not row.misses, (row.phase, row.label)
        for figure, taken, estimated in (
            ("allocated", row.allocated_bytes, row.estimated_allocated_bytes),
            ("reserved", row.reserved_bytes, row.estimated_reserved_bytes),
        ):
            low, _, high = ends(estimated, residual.spread(figure, row.phase))
            assert low < taken < max(high, estimated * (1 + UNFUSED)), (row.phase, row.label, figure)
