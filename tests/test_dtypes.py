"""Compute types other than bf16 (train.dtype): what has a model, what is as in bf16, and what is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from config_writer import FLUX_DEV, TURBO, ZIMAGE, process, read, train, unmodelled_keys, write

from estimator.advice import edits
from estimator.cli import main
from estimator.dtypes import FLOATS
from estimator.errors import CannotTell
from estimator.host import host_memory
from estimator.job import Job, Model
from estimator.rows import bound
from estimator.timeline import simulate
from estimator.trainers import modelled
from estimator.trainers.together import modelled_job

SD15 = {"name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5", "arch": "sd15"}
EIGHT_BIT = {"quantize": True, "quantize_te": True}
XL = {"name_or_path": "stabilityai/stable-diffusion-xl-base-1.0", "arch": "sdxl"}
QWEN = {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image", "quantize": True, "quantize_te": True}
DDPM = {"noise_scheduler": "ddpm"}
PREVIEW = {"samples": [{"prompt": "a heron"}], "width": 512, "height": 512}


def peaks(job: Job) -> list[tuple[str, int, int]]:
    return [(phase.phase, phase.allocated_bytes, phase.reserved_bytes) for phase in simulate(job).phases]


@pytest.mark.parametrize(
    ("model", "settings"), [(SD15, DDPM), (ZIMAGE | EIGHT_BIT, {}), (TURBO | EIGHT_BIT, {"gradient_checkpointing": False}), (QWEN, {})]
)
def test_fp16_is_as_large_as_bf16(model: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    half, brain = (read(tmp_path, model=model, sample=PREVIEW, train=train(dtype=one, **settings)) for one in ("fp16", "bf16"))
    assert half.model.dtype == "fp16"
    assert not half.unmodelled
    assert peaks(half) == peaks(brain)


def test_sdxl_decodes_in_fp32(tmp_path: Path) -> None:
    half, brain = (read(tmp_path, model=XL, sample=PREVIEW, train=train(dtype=one, **DDPM)) for one in ("fp16", "bf16"))
    for way in (simulate, bound):
        (made, usual) = (way(job).phases for job in (half, brain))
        for one, other in zip(made, usual, strict=True):
            assert (one.allocated_bytes > 1.05 * other.allocated_bytes) == (one.phase == "sample")
    at_last = {phase.phase: phase.components["vae"] for phase in simulate(half).phases if phase.phase in ("sample", "train")}
    assert at_last["sample"] == pytest.approx(2 * at_last["train"], rel=0.02)  # and back in fp16 after


def test_rows_of_recast_components_are_the_replays(tmp_path: Path) -> None:
    job = read(tmp_path, model=XL, sample=PREVIEW, train=train(dtype="fp16", **DDPM))
    for row, replayed in zip(bound(job).phases, simulate(job).phases, strict=True):
        assert row.allocated_bytes == pytest.approx(replayed.allocated_bytes, rel=0.03)  # rows are without what blocks round up


def test_fp32_holds_all_but_the_adapter_twice(tmp_path: Path) -> None:
    full, brain = (read(tmp_path, model=XL, sample=PREVIEW, train=train(dtype=one, **DDPM)) for one in ("fp32", "bf16"))
    for one, other in zip(simulate(full).phases, simulate(brain).phases, strict=True):
        assert 1.5 < one.allocated_bytes / other.allocated_bytes < 2.2
        if one.phase == "train":
            assert one.components["adapter"] == other.components["adapter"]
            assert one.components["transformer"] == pytest.approx(2 * other.components["transformer"], rel=0.01)


def test_quantised_weights_stay_small_in_fp32(tmp_path: Path) -> None:
    full, brain = (read(tmp_path, model=ZIMAGE | EIGHT_BIT, sample=PREVIEW, train=train(dtype=one)) for one in ("fp32", "bf16"))
    assert not full.unmodelled
    (wide, usual) = (next(phase for phase in simulate(job).phases if phase.phase == "train").components for job in (full, brain))
    assert wide["transformer"] == pytest.approx(usual["transformer"], rel=0.05)
    assert wide["activations"] > 1.5 * usual["activations"]


def test_fp32_waits_in_ram_twice_as_large(tmp_path: Path) -> None:
    full, brain = (host_memory(read(tmp_path, model=SD15, train=train(dtype=one, **DDPM))) for one in ("fp32", "bf16"))
    assert full is not None
    assert brain is not None
    assert full.components["transformer"] == pytest.approx(2 * brain.components["transformer"], rel=0.01)


def test_advice_and_plans_take_bf16_before_what_is_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = read(tmp_path, model=SD15, sample=PREVIEW, train=train(dtype="fp32", **DDPM))
    (edit,) = (one for one in edits(job) if one.key == "train.dtype")
    assert (edit.before, edit.after) == ("fp32", "bf16")
    assert edit.job.model == replace(job.model, dtype="bf16", weights="bf16", te_weights="bf16")
    path = write(tmp_path, process(model=SD15, sample=PREVIEW, train={"batch_size": 14, **DDPM}))  # the type is not set
    assert main(["plan", str(path), "--gpu", "RTX3060"]) == 0
    out = capsys.readouterr().out
    assert "train.dtype: not set -> bf16" in out


def test_unquantised_weights_are_called_what_they_are(tmp_path: Path) -> None:
    job = read(tmp_path, model=SD15, train=train(dtype="float16", **DDPM))
    assert (job.model.weights, job.model.te_weights) == ("fp16", "fp16")
    job = read(tmp_path, model=ZIMAGE | EIGHT_BIT, train=train(dtype="half"))
    assert (job.model.dtype, job.model.weights) == ("fp16", "qfloat8")


@pytest.mark.parametrize("kind", [*FLOATS, "qfloat8"])
def test_profiles_name_unquantised_weights_alike(kind: str) -> None:
    model = Model("", dtype="fp16", weights=kind, te_weights=kind)
    assert (model.kind, model.te_kind) == ((kind, kind) if kind == "qfloat8" else ("bf16", "bf16"))


@pytest.mark.parametrize(
    ("dtype", "sections"),
    [
        ("fp16", {"model": ZIMAGE | {"quantize": True, "qtype": "qint8"}}), ("fp16", {"network": {"type": "lokr"}}),
        ("fp16", {"network": {"type": "lora", "linear": 8, "dropout": 0.1}}), ("fp16", {"network": None}),
        ("fp16", {"network": {"type": "lora", "linear": 8, "network_kwargs": {"only_if_contains": ["layers.1."]}}}),
        ("fp16", {"model": ZIMAGE | {"layer_offloading": True}}), ("fp16", {"train": {"blank_prompt_preservation": True}}),
        ("fp16", {"model": {"name_or_path": "ostris/Flex.1-alpha", "arch": "flex1"}}), ("fp32", {"model": FLUX_DEV}), ("float8", {}),
        ("fp16", {"model": QWEN, "train": {"gradient_checkpointing": False}}),
        ("fp32", {"model": XL, "train": {"unload_text_encoder": True, **DDPM}}),
        ("fp32", {"model": XL, "network": {"type": "lora", "linear": 8, "conv": 8}, "train": DDPM}),
    ],
)  # fmt: skip
def test_what_no_run_had_is_named(dtype: str, sections: dict[str, Any], tmp_path: Path) -> None:
    settings = sections.pop("train", {})
    job = read(tmp_path, **{"model": ZIMAGE | EIGHT_BIT, "train": train(dtype=dtype, **settings), **sections})
    assert "train.dtype" in unmodelled_keys(job)
    (entry,) = (one for one in job.unmodelled if one.place.key == "train.dtype")
    assert entry.value == dtype
    assert "set train.dtype: bf16" in entry.why


def test_a_type_that_is_not_set_is_said_to_be_fp32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, process(model=FLUX_DEV, train={"noise_scheduler": "flowmatch"}))
    assert main([str(path), "--gpu", "RTX4090"]) == 3
    assert "train.dtype is not set and defaults to fp32 in the trainer; set train.dtype: bf16" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("key", ["vae_dtype", "te_dtype"])
@pytest.mark.parametrize(
    ("dtype", "part", "known"), [("bf16", "bf16", True), ("fp16", "float16", True), ("fp16", "bf16", False), ("bf16", "fp32", False)]
)
def test_parts_of_a_model_are_in_its_type(key: str, dtype: str, part: str, known: bool, tmp_path: Path) -> None:
    job = read(tmp_path, model=ZIMAGE | EIGHT_BIT | {key: part}, train=train(dtype=dtype))
    assert unmodelled_keys(job) == (set() if known else {f"model.{key}"})


def test_advice_keeps_to_what_has_a_model(tmp_path: Path) -> None:
    job = read(tmp_path, model=ZIMAGE, sample=PREVIEW, train=train(dtype="fp16", batch_size=4))
    possible = set()
    for edit in edits(job):
        try:
            possible.add(modelled_job(edit.job) and edit.key)
        except CannotTell:
            continue
    assert "model.quantize" in possible
    assert "model.layer_offloading" not in possible


def test_types_are_of_architectures_with_programs() -> None:
    for dtype, archs in modelled.TYPED.items():
        assert dtype in FLOATS
        assert all(kinds <= modelled.WEIGHTS for kinds in archs.values())
