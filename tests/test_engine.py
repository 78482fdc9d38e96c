"""Verdicts on the shipped examples: where they flip, what a capacity must be, and what the command line makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from estimator import cli
from estimator.engine import estimate_job
from estimator.estimate import BORDERLINE, OOM, SAFE, UNKNOWN
from estimator.gpus import MIB, Gpu, find_gpu
from estimator.job import Job, Place, Unmodelled
from estimator.trainers import read_jobs
from tests import golden
from tests.made_jobs import dataset, example, job

ROOT = Path(__file__).resolve().parent.parent
FLUX = "examples/flux_dev_24gb.yaml"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    status = cli.main([*arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("card", "changes", "verdict", "status"),
    [
        ("A100-40G", (), SAFE, 0),
        ("RTX4090", (), BORDERLINE, 1),
        ("RTX4090", ("model.low_vram=true",), SAFE, 0),
        ("RTX4080", (), OOM, 1),
        ("RTX4090", ("train.gradient_checkpointing=false",), OOM, 1),
        ("A100-80G", ("train.gradient_checkpointing=false",), BORDERLINE, 1),
        ("H200", ("train.gradient_checkpointing=false",), SAFE, 0),
        ("RTX4090", ("datasets.0.resolution=1536", "train.batch_size=4"), OOM, 1),
        ("A100-80G", ("datasets.0.resolution=1536", "train.batch_size=4"), SAFE, 0),
        ("RTX5090", ("model.quantize=false",), OOM, 1),
        ("A100-40G", ("model.quantize=false",), SAFE, 0),
    ],
)
def test_verdicts_flip_where_they_should(
    card: str, changes: tuple[str, ...], verdict: str, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    sets = [word for change in changes for word in ("--set", change)]
    found, document = run(capsys, FLUX, "--gpu", card, *sets)
    assert (document["verdict"], found) == (verdict, status)


def test_what_is_not_modelled_cannot_be_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    status, document = run(capsys, FLUX, "--gpu", "RTX4090", "--set", "network.type=fullrank")
    assert (status, document["verdict"]) == (3, UNKNOWN)


def test_an_unmodelled_job_has_no_phases() -> None:
    odd = replace(job("zimage"), unmodelled=(Unmodelled(Place("job.yaml", "train.odd", 3), True, "nobody knows"),), warnings=("odd",))
    estimate = estimate_job(odd, find_gpu("RTX4090"))
    assert (estimate.verdict, estimate.phases, estimate.peak_phase, estimate.warnings) == (UNKNOWN, (), None, ("odd",))


EDGES = [example("flux_dev_24gb"), example("zimage_base_ui"), job("zimage")]


@pytest.mark.parametrize("made", EDGES, ids=lambda made: made.name)
def test_the_required_capacity_is_the_edge(made: Job) -> None:
    """A card of that capacity is safe, and one 128 MiB smaller is not: twice the precision of the search."""
    card = find_gpu("RTX4090")
    required = estimate_job(made, card, required=True).required_bytes
    assert required is not None
    assert estimate_job(made, sized(card, required)).verdict == SAFE
    assert estimate_job(made, sized(card, required - 128 * MIB)).verdict != SAFE


def sized(card: Gpu, total_bytes: int) -> Gpu:
    return replace(card, total_bytes=total_bytes)


def test_the_required_capacity_does_not_depend_on_the_card_asked_about() -> None:
    made = job("zimage")
    small, large = (estimate_job(made, replace(find_gpu("RTX4090"), total_bytes=size * 2**30), required=True) for size in (6, 80))
    assert (small.verdict, large.verdict) == (OOM, SAFE)
    assert small.required_bytes == large.required_bytes


def test_a_failure_points_at_the_phase_that_fails() -> None:
    """On 16 GB the transformer in bf16 cannot even be loaded; with large buckets alone it is training that fails."""
    bf16 = job("flux1-dev", model=replace(job("flux1-dev").model, weights="bf16"))
    early = estimate_job(bf16, find_gpu("RTX4080"))
    assert early.peak_phase is not None
    assert (early.verdict, early.peak_phase.phase) == (OOM, "load")
    large = job("flux1-dev", datasets=(dataset((512, 512), (2048, 2048), batch=4),), samples=())
    late = estimate_job(large, find_gpu("A100-40G"))
    assert late.peak_phase is not None
    assert (late.verdict, late.peak_phase.phase, late.peak_phase.variant.width) == (OOM, "train", 2048)
    assert [p.verdict for p in late.phases if p.phase == "load"] == [SAFE] * 3


@pytest.mark.parametrize("fast", [False, True])
def test_nothing_is_safe_where_another_attention_kernel_runs(fast: bool) -> None:
    """FlashAttention-2 needs Ampere: Volta's 32 GB are plenty for what was recorded, which is not what runs there."""
    volta, ampere = (estimate_job(job("zimage"), find_gpu(card), fast=fast) for card in ("V100-32G", "RTX3090"))
    assert (volta.verdict, ampere.verdict) == (BORDERLINE, SAFE)
    assert any("FlashAttention" in note for note in volta.assumptions)


def test_a_busy_desktop_can_make_the_difference() -> None:
    made, card = example("zimage_base_ui"), find_gpu("RTX4090")
    required = estimate_job(made, card, required=True).required_bytes
    assert required is not None
    alone = sized(card, required)
    beside = replace(alone, desktop_low_bytes=0, desktop_bytes=2**30, desktop_high_bytes=2**31)
    crowded = replace(alone, desktop_low_bytes=2**32, desktop_bytes=2**32, desktop_high_bytes=2**32)
    assert [estimate_job(made, gpu).verdict for gpu in (alone, beside, crowded)] == [SAFE, BORDERLINE, OOM]


def test_the_examples_give_what_they_gave() -> None:
    """Every phase of the shipped examples on two cards, to the byte. After an intended change: python -m tests.golden --write."""
    assert golden.present() == json.loads(golden.PATH.read_text(encoding="utf-8"))


def test_phases_that_fit_are_not_borderline_because_another_is_far_too_large() -> None:
    """Batch 512 is a thousand GiB uncertain; what loads and caches in front of it is not."""
    (far_job,) = read_jobs(ROOT / FLUX, ("train.batch_size=512",))
    far = estimate_job(far_job, find_gpu("RTX4090"))
    before = [phase for phase in far.phases if phase.phase in ("prepare", "cache_latents")]
    assert far.verdict == OOM
    assert {phase.verdict for phase in before} == {SAFE}
    assert all(phase.device.high_bytes <= far.gpu.total_bytes for phase in far.phases if phase.verdict == SAFE)
