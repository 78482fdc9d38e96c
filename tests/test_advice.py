"""Advice: which edits are tried, in which order, and what is kept. A made-up sum stands in for the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from estimator.advice import WORTH_BYTES, advise, edits
from estimator.archs import load_archs
from estimator.engine import estimate_job
from estimator.errors import CannotTell, Problem
from estimator.estimate import BORDERLINE, OOM, SAFE, UNKNOWN, Estimate
from estimator.gpus import find_gpu
from estimator.job import Bucket, Job
from estimator.trainers import read_jobs
from tests import made_estimates as made

GIB = 2**30
CARD = find_gpu("RTX4080")


def heavy_job() -> Job:
    """Everything at its most expensive, so that every edit applies."""
    job = made.job()
    return replace(
        job,
        train=replace(job.train, gradient_checkpointing=False, batch_size=4, optimizer="adamw"),
        model=replace(job.model, weights="bf16", te_weights="bf16"),
        datasets=tuple(replace(each, batch_size=4, cache_latents_to_disk=False) for each in job.datasets),
    )


def model(job: Job) -> Estimate:
    """A made-up model in which every setting counts, each phase by what it depends on."""
    weights = {"bf16": 22.0, "qfloat8": 11.0, "float8": 11.0, "uint4": 6.0}[job.model.weights]
    te = {"bf16": 9.0, "qfloat8": 5.0, "float8": 5.0, "uint4": 3.0}[job.model.te_weights]
    if job.model.layer_offloading:  # as in FLUX's class, it moves nothing
        weights += 0.01
    te_stays = not (job.train.cache_text_embeddings or job.train.unload_text_encoder)
    area = max(each.resolution for each in job.datasets) ** 2 / 2**20
    step = area * max(each.batch_size for each in job.datasets) * (1.0 if job.train.gradient_checkpointing else 8.0)
    state = 0.2 if job.train.optimizer == "adamw8bit" else 1.0
    adapter = job.network.rank / 16 if job.network else 0
    latents = 0.0 if all(each.cache_latents_to_disk for each in job.datasets) else 0.3
    resident = weights + te * te_stays + adapter
    phases = [made.phase("load", weights * (1.0 if job.model.low_vram else 1.1)), made.phase("train", resident + step + state + latents)]
    if not job.train.disable_sampling:
        phases.append(made.phase("sample", resident + 2 * max(each.width * each.height for each in job.samples) / 2**20))
    peak = max(range(len(phases)), key=lambda index: phases[index].allocated_bytes)
    verdict = OOM if phases[peak].allocated_bytes > CARD.usable_bytes else SAFE
    return made.estimate(CARD, verdict, job=job, phases=tuple(phases), peak=peak)


def keys(job: Job) -> list[str]:
    return [each.key for each in advise(job, CARD, model(job), model)]


def test_everything_that_lowers_the_peak_least_hurtful_first() -> None:
    assert [key for key in keys(heavy_job()) if " + " not in key] == [
        "train.gradient_checkpointing",
        "train.cache_text_embeddings",
        "datasets.*.cache_latents_to_disk",
        "train.optimizer",
        "train.batch_size",
        "datasets.*.resolution",
        "model.quantize",
        "model.quantize_te",
        "network.linear",
        "train.unload_text_encoder",
    ]


def test_savings_are_differences_of_the_job_s_peak() -> None:
    job = heavy_job()
    by_key = {each.key: each for each in advise(job, CARD, model(job), model)}
    checkpointed = replace(job, train=replace(job.train, gradient_checkpointing=True))
    before, after = (max(phase.allocated_bytes for phase in model(each).phases) for each in (job, checkpointed))
    assert by_key["train.gradient_checkpointing"].saves_bytes == before - after > 20 * GIB
    assert all(each.saves_bytes >= WORTH_BYTES for each in by_key.values())


def test_before_and_after_are_the_config_s_values() -> None:
    values = {each.key: (each.before, each.after) for each in advise(heavy_job(), CARD, model(heavy_job()), model)}
    assert values["train.gradient_checkpointing"] == (False, True)
    assert values["train.batch_size"] == (4, 1)
    assert values["datasets.*.resolution"] == ([512, 768, 1024], [512, 768])
    assert values["train.optimizer"] == ("adamw", "adamw8bit")
    assert values["network.linear"] == (16, 8)


def test_edits_that_do_not_lower_the_peak_are_left_out() -> None:
    """Where loading peaks, nothing about the step helps."""
    job = made.job(model=replace(made.job().model, weights="bf16"), train=replace(made.job().train, cache_text_embeddings=True))
    assert model(job).phases[model(job).peak].phase == "load" or "model.low_vram" not in keys(job)
    light = replace(job, datasets=job.datasets[:1], network=None, samples=(), train=replace(job.train, disable_sampling=True))
    assert model(light).peak_phase.phase == "load"  # type: ignore[union-attr]
    assert keys(light) == ["model.low_vram", "model.quantize"]


def test_previews_shrink_before_they_go() -> None:
    job = made.job(
        samples=(replace(made.job().samples[0], width=2048, height=2048),),
        train=replace(made.job().train, cache_text_embeddings=True),
        model=replace(made.job().model, weights="qfloat8"),
    )
    found = keys(job)
    assert found[:2] == ["sample.width, sample.height", "train.disable_sampling"]


def test_a_verdict_comes_with_each() -> None:
    job = made.job()
    advice = advise(job, CARD, replace(model(job), verdict=OOM), model)
    assert {each.verdict for each in advice} <= {SAFE, OOM}
    for each in advice:
        if each.key == "train.cache_text_embeddings":
            assert each.verdict == SAFE  # 11 + 1 + 1 + 0.2 GiB on a card of 15


@pytest.mark.parametrize("verdict", [SAFE, UNKNOWN])
def test_nothing_is_tried_where_there_is_nothing_to_advise(verdict: str) -> None:
    def forbidden(_: Job) -> Estimate:
        raise AssertionError("must not be called")

    assert advise(heavy_job(), CARD, made.estimate(CARD, verdict), forbidden) == ()


def test_borderline_is_advised_too() -> None:
    assert advise(heavy_job(), CARD, replace(model(heavy_job()), verdict=BORDERLINE), model)


def test_edits_into_the_unknown_are_left_out() -> None:
    """An edit can lead to what is not modelled; that is no advice, and no error either."""

    def partial(job: Job) -> Estimate:
        if job.train.gradient_checkpointing:
            raise CannotTell(Problem("not recorded"))
        if job.model.weights == "qfloat8":
            return made.estimate(CARD, UNKNOWN, job=job, phases=(), peak=-1)
        return model(job)

    found = [each.key for each in advise(heavy_job(), CARD, model(heavy_job()), partial)]
    assert "train.gradient_checkpointing" not in found
    assert "model.quantize" not in found
    assert "train.batch_size" in found


def test_z_image_with_its_adapter_becomes_float8() -> None:
    tried: list[Job] = []

    def watch(job: Job) -> Estimate:
        tried.append(job)
        return model(job)

    turbo = made.job(arch="zimage-turbo", model=replace(made.job().model, weights="bf16", assistant_lora="adapter"))
    advise(turbo, CARD, model(turbo), watch)
    weights = {job.model.weights for job in tried}
    assert "float8" in weights
    assert "qfloat8" not in weights


def clips(*frames: int, **changes: bool) -> Job:
    job = replace(heavy_job(), arch="wan21-1.3b")
    (first, *_) = job.datasets
    return replace(job, datasets=tuple(replace(first, buckets=(Bucket(512, 512, each),), **changes) for each in frames))


@pytest.mark.parametrize(("longest", "half"), [(1001, 497), (81, 41), (33, 17), (17, 9), (9, None), (1, None)])
def test_clips_are_halved_to_what_every_video_vae_takes(longest: int, half: int | None) -> None:
    found = {edit.key: edit for edit in edits(clips(longest, longest))}.get("datasets.*.num_frames")
    assert (found and found.after) == half
    if found:
        assert {bucket.frames for each in found.job.datasets for bucket in each.buckets} == {half}


def test_clips_are_left_alone_where_one_number_for_all_would_lengthen_others_or_change_nothing() -> None:
    for job in (clips(81, 1), clips(81, 41), clips(81, own_lengths=True)):
        assert "datasets.*.num_frames" not in {edit.key for edit in edits(job)}


def test_the_effective_batch_can_be_kept() -> None:
    job = replace(heavy_job(), train=replace(heavy_job().train, gradient_accumulation=2))
    batch = next(each for each in advise(job, CARD, model(job), model) if each.key == "train.batch_size")
    assert "train.gradient_accumulation=8" in batch.why


def test_where_none_is_enough_alone_several_are_put_together() -> None:
    job = made.job(model=replace(made.job().model, weights="bf16", te_weights="bf16"))
    advice = advise(job, CARD, model(job), model)
    *alone, together = advice
    assert alone
    assert all(each.verdict == OOM for each in alone)
    assert together.verdict == SAFE
    chosen = together.key.split(" + ")
    assert "model.quantize" in chosen
    assert len(chosen) == len(together.before) == len(together.after) > 1  # type: ignore[arg-type]
    assert together.saves_bytes > max(each.saves_bytes for each in alone)


def test_nothing_is_put_together_where_one_is_enough_or_all_are_not() -> None:
    enough = advise(made.job(), CARD, replace(model(made.job()), verdict=OOM), model)
    assert not any(" + " in each.key for each in enough)

    def never(job: Job) -> Estimate:
        return replace(model(job), verdict=OOM)

    assert not any(" + " in each.key for each in advise(heavy_job(), CARD, never(heavy_job()), never))


def test_four_bits_take_the_text_encoder_along_where_the_key_is_shared() -> None:
    tried: list[Job] = []

    def watch(job: Job) -> Estimate:
        tried.append(job)
        return replace(model(job), verdict=OOM)

    for arch in ("flux1-dev", "zimage"):
        job = made.job(arch=arch)
        tried.clear()
        advise(job, CARD, replace(model(job), verdict=OOM), watch)
        te = {each.model.te_weights for each in tried if each.model.weights == "uint4" and not each.model.layer_offloading}
        assert te == ({"uint4"} if arch == "flux1-dev" else {"qfloat8"})


@pytest.mark.parametrize(("arch", "cached"), [("flux1-dev", True), ("flux1-kontext", False), ("chroma", False)])
def test_text_is_not_to_be_cached_where_the_trainer_stops_on_it(arch: str, cached: bool) -> None:
    job = replace(heavy_job(), arch=arch)
    assert ("train.cache_text_embeddings" in {edit.key for edit in edits(job)}) == cached


@pytest.mark.parametrize(("arch", "both"), [("flux1-dev", True), ("wan21-1.3b", True), ("qwen-image", False), ("zimage", False)])
def test_four_bits_are_the_text_encoders_too_where_it_has_no_key_of_its_own(arch: str, both: bool) -> None:
    """model.qtype alone is edited: what qtype_te says stays."""
    job = replace(heavy_job(), arch=arch)
    job = replace(job, model=replace(job.model, weights="qfloat8", te_weights="qfloat8"))
    (edit,) = (each for each in edits(job) if each.key == "model.qtype")
    assert (edit.job.model.weights, edit.job.model.te_weights) == ("uint4", "uint4" if both else "qfloat8")


@pytest.mark.parametrize(
    ("arch", "model", "offered"),
    [
        *((arch, {}, True) for arch in ("zimage", "zimage-turbo", "qwen-image", "wan21-14b", "wan22-14b")), ("flux1-dev", {}, False),
        ("wan22-14b", {"low_vram": True, "weights": "qfloat8"}, True), ("wan21-14b", {"low_vram": True}, False),
        ("wan22-5b", {"weights": "qfloat8"}, False),
    ],
)  # fmt: skip
def test_layers_are_offloaded_only_where_the_trainer_does_it_and_it_is_modelled(arch: str, model: dict[str, Any], offered: bool) -> None:
    job = replace(heavy_job(), arch=arch)
    job = replace(job, model=replace(job.model, **model))
    assert ("model.layer_offloading" in {edit.key for edit in edits(job)}) == offered


def test_layers_are_not_offloaded_where_the_trainer_then_stops_at_a_preview() -> None:
    job = replace(heavy_job(), arch="flux2-dev")
    without = replace(job, train=replace(job.train, disable_sampling=True))
    assert ["model.layer_offloading" in {edit.key for edit in edits(one)} for one in (job, without)] == [False, True]


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_advised_can_be_read_back_and_is_modelled(path: Path) -> None:
    """Every single edit of every example, written with --set, is understood as the job that the advice was computed for."""
    (job,) = read_jobs(path)
    card = find_gpu("8GiB")
    estimate = replace(estimate_job(job, card, fast=True), verdict=OOM)
    for advice in advise(job, card, estimate, lambda changed: estimate_job(changed, card, fast=True)):
        if " + " in advice.key:
            continue
        keys, after = advice.key.split(", "), [json.dumps(advice.after)]
        (changed,) = read_jobs(path, tuple(map("{}={}".format, keys, after if len(keys) == 1 else str(advice.after).split("x"))))
        assert changed.unmodelled == (), f"{advice.key}: {advice.before} -> {advice.after}"
        saved = estimate_job(job, card, fast=True), estimate_job(changed, card, fast=True)
        lower = [max(phase.allocated_bytes for phase in each.phases) for each in saved]
        assert lower[0] - lower[1] == advice.saves_bytes, f"{advice.key}: {advice.before} -> {advice.after}"


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_advice_makes_a_phase_worse_without_saying_so(path: Path) -> None:
    """With checkpointing on, for instance, encoding captions keeps the text encoder's whole graph."""
    sets = ("train.gradient_checkpointing=false", "model.low_vram=false", "train.optimizer=adamw")
    (plain,) = read_jobs(path)
    sets = sets[load_archs().archs[plain.arch].needs_checkpointing :]
    (job,) = read_jobs(path, sets)
    card = find_gpu("8GiB")

    def highest(changed: Job) -> dict[str, int]:
        phases = sorted(estimate_job(changed, card, fast=True).phases, key=lambda phase: phase.allocated_bytes)
        return {phase.phase: phase.allocated_bytes for phase in phases}

    before, words = highest(job), {"cache_text": "caching text", "cache_latents": "caching latents", "sample": "previewing"}
    estimate = replace(estimate_job(job, card, fast=True), verdict=OOM)
    for advice in advise(job, card, estimate, lambda changed: estimate_job(changed, card, fast=True)):
        if " + " not in advice.key:
            (changed,) = read_jobs(path, (*sets, f"{advice.key}={json.dumps(advice.after)}"))
            after = highest(changed)
            risen = {name for name in before if after.get(name, 0) - before[name] >= WORTH_BYTES}
            said = {name for name in before if f"{words.get(name, name)} takes" in advice.why.replace("training", "train")}
            assert risen == said, advice


@pytest.mark.parametrize(("arch", "expected"), [("flux1-dev", "uint4"), ("zimage", "qfloat8")])
def test_a_text_encoder_without_a_key_of_its_own_is_quantised_as_the_transformer_is(arch: str, expected: str) -> None:
    job = replace(heavy_job(), arch=arch)
    job = replace(job, model=replace(job.model, weights="uint4", te_weights="bf16"))
    (edit,) = (each for each in edits(job) if each.key == "model.quantize_te")
    assert edit.job.model.te_weights == expected


@pytest.mark.parametrize(("arch", "cached"), [("wan22-14b", True), ("wan22-i2v-14b", False)])
def test_latents_are_not_to_be_cached_where_each_step_needs_the_pictures(arch: str, cached: bool) -> None:
    job = replace(heavy_job(), arch=arch)
    assert ("datasets.*.cache_latents_to_disk" in {edit.key for edit in edits(job)}) == cached


def test_one_key_that_is_lowered_again_and_again_has_its_first_and_last_value() -> None:
    """Was: lists of one value, though only keys joined by + have lists (docs/cli.md)."""
    job = clips(81)

    def model_of_frames(job: Job) -> Estimate:
        step = max(bucket.frames for each in job.datasets for bucket in each.buckets) / 2
        return made.estimate(CARD, OOM if step > 10 else SAFE, job=job, phases=(made.phase("train", step),), peak=0)

    *_, last = advise(job, CARD, model_of_frames(job), model_of_frames)
    assert (last.key, last.before, last.after, last.verdict) == ("datasets.*.num_frames", 81, 17, SAFE)
