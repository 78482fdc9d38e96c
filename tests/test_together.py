"""Edits of a job lead nowhere that a reader of the config with that edit would call not modelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_writer import FLUX_DEV, TURBO, ZIMAGE, process, write

from estimator.advice import Edit, edits
from estimator.commands.check import _advice
from estimator.engine import estimate_job
from estimator.errors import CannotTell, InputError
from estimator.estimate import OOM
from estimator.gpus import find_gpu
from estimator.trainers import modelled, read_jobs
from estimator.trainers.together import modelled_job

QWEN = {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image", "quantize": True}
HIDREAM = {"name_or_path": "HiDream-ai/HiDream-I1-Full", "arch": "hidream", "quantize": True, "quantize_te": True,
           "model_kwargs": {"llama_model_path": "unsloth/Meta-Llama-3.1-8B-Instruct"}}  # fmt: skip
EIGHT_BIT = {"quantize": True, "quantize_te": True}
FOUR_BIT = {**EIGHT_BIT, "qtype": "uint4", "qtype_te": "uint4"}
BLOCKS = {"compile": True, "block_compile": True}
LOKR, WORDS = {"type": "lokr"}, ["ff_i.experts", "ff_i.gate"]
VALIDATION = {"validation_items": [{"image_path": "/nowhere/a.png", "prompt": "a"}]}
SLIDER = {"positive_prompt": "glad", "target_class": "person", "negative_prompt": "sad"}


def lora(**settings: Any) -> dict[str, Any]:
    return {"type": "lora", "linear": 16, **settings}


def trained(**settings: Any) -> dict[str, Any]:
    return {"dtype": "bf16", "noise_scheduler": "flowmatch", "disable_sampling": True, **settings}


JOBS: dict[str, dict[str, Any]] = {
    "plain": {"model": ZIMAGE | EIGHT_BIT}, "plain in bf16": {"model": ZIMAGE},
    "plain in nvfp4": {"model": ZIMAGE | EIGHT_BIT | {"qtype": "nvfp4"}},
    "plain in uint4": {"model": ZIMAGE | FOUR_BIT},
    "plain in fp16": {"model": ZIMAGE | EIGHT_BIT, "train": trained(dtype="fp16")},
    "plain in qint8": {"model": ZIMAGE | {"quantize": True, "qtype": "qint8"}}, "turbo": {"model": TURBO | EIGHT_BIT},
    "lokr": {"model": ZIMAGE | EIGHT_BIT, "network": LOKR}, "lokr on flux": {"model": FLUX_DEV | EIGHT_BIT, "network": LOKR},
    "lokr on turbo in bf16": {"model": TURBO, "network": LOKR}, "lokr on qwen": {"model": QWEN, "network": LOKR},
    "dropout": {"model": ZIMAGE | EIGHT_BIT, "network": lora(dropout=0.1)},
    "some layers": {"model": ZIMAGE | EIGHT_BIT, "network": lora(network_kwargs={"only_if_contains": ["layers.1."]})},
    "preserved": {"model": ZIMAGE | EIGHT_BIT, "train": trained(blank_prompt_preservation=True)},
    "a prior": {"model": ZIMAGE | EIGHT_BIT, "train": trained(correct_pred_norm=True)},
    "guidance": {"model": ZIMAGE | EIGHT_BIT, "train": trained(do_guidance_loss=True)},
    "cfg": {"model": ZIMAGE | EIGHT_BIT, "train": trained(do_cfg=True)},
    "validated": {"model": QWEN, "train": trained(validation_config=VALIDATION)},
    "slider": {"model": ZIMAGE | EIGHT_BIT, "type": "concept_slider", "slider": SLIDER},
    "compiled": {"model": ZIMAGE | EIGHT_BIT | BLOCKS}, "compiled flux": {"model": FLUX_DEV | BLOCKS},
    "hidream": {"model": HIDREAM, "network": lora(network_kwargs={"ignore_if_contains": WORDS}), "train": trained(batch_size=2)},
    "edit 2511": {
        "model": {"name_or_path": "Qwen/Qwen-Image-Edit-2511", "arch": "qwen_image_edit_plus:2511"},
        "datasets": [{"folder_path": "/nowhere/images", "control_path": "/nowhere/controls", "resolution": 512}],
    },
}  # fmt: skip
UNRECORDED = {("hidream", "model.qtype")}  # whoever looks for its programs says so (estimator.programs)


def as_set(edit: Edit) -> list[str]:
    """What a user would write for it."""
    if edit.key == "sample.width, sample.height":
        width, height = str(edit.after).split("x")
        return [f"sample.width={width}", f"sample.height={height}"]
    return [f"{edit.key}={json.dumps(edit.after)}"]


def is_modelled(path: Path, edit: Edit) -> bool:
    try:
        (job,) = read_jobs(path, as_set(edit), None)
    except (InputError, CannotTell):
        return False
    return not job.unmodelled


@pytest.mark.parametrize("name", JOBS)
def test_an_edit_of_a_job_has_a_model_where_the_config_with_it_has_one(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, process(**{"train": trained(), **JOBS[name]}))
    (job,) = read_jobs(path, (), None)
    assert not job.unmodelled
    assert modelled_job(job) is job
    found = [edit for edit in edits(job) if (name, edit.key) not in UNRECORDED]
    said = {}
    for edit in found:
        try:
            said[edit.key] = modelled_job(edit.job) is edit.job
        except CannotTell:
            said[edit.key] = False
    assert said == {edit.key: is_modelled(path, edit) for edit in found}
    assert len(said) > 2


def test_weights_of_which_no_lokr_is_known_are_not_advised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Was: "model.qtype: qfloat8 -> uint4", and with it the answer is exit status 3. With a LoRA, of which it is known, it is advised."""
    monkeypatch.setitem(modelled.LOKR, "qwen-image", frozenset({"qfloat8"}))
    advised, card = {}, find_gpu("RTX4080")
    for network in (LOKR, lora()):
        (job,) = read_jobs(write(tmp_path, process(model=QWEN | EIGHT_BIT, network=network, train=trained(batch_size=4))), (), None)
        estimate = estimate_job(job, card, fast=True)
        assert estimate.verdict == OOM
        advised[network["type"]] = {advice.key for advice in _advice(job, card, estimate)}
    assert "train.batch_size" in advised["lokr"] & advised["lora"]
    assert ("model.qtype" in advised["lokr"], "model.qtype" in advised["lora"]) == (False, True)


SOME = {"network_kwargs": {"only_if_contains": ["layers.1.", "layers.20."]}}
ADAPTERS: dict[str, dict[str, Any]] = {"some layers": SOME, "dropout": {"dropout": 0.1}, "both": {**SOME, "dropout": 0.1}}
PASSES: dict[str, dict[str, Any]] = {
    "cfg": {"do_cfg": True}, "a prior in cfg": {"do_cfg": True, "correct_pred_norm": True}, "guidance": {"do_guidance_loss": True},
    "validated": {"validation_config": VALIDATION}, "weighed": {"timestep_type": "weighted"},
    "weighed in cfg": {"timestep_type": "weighted", "do_cfg": True},
}  # fmt: skip


def training_bytes(folder: Path, network: dict[str, Any], settings: dict[str, Any], weights: str) -> int:
    model = ZIMAGE | {"quantize": True, "qtype": weights}
    (job,) = read_jobs(write(folder, process(model=model, network=lora(**network), train=trained(**settings))), (), None)
    assert not job.unmodelled
    return max(phase.allocated_bytes for phase in estimate_job(job, find_gpu("A100-80G"), fast=True).phases if phase.phase == "train")


PAIRS = [*(("some layers", passes) for passes in PASSES), ("dropout", "weighed"), ("both", "weighed")]  # dropout is known of steps alone


@pytest.mark.parametrize("weights", ["qfloat8", "uint3", "qint8"])
@pytest.mark.parametrize(("adapter", "passes"), PAIRS)
def test_some_layers_go_with_every_pass_and_dropout_with_weighed_losses(adapter: str, passes: str, weights: str, tmp_path: Path) -> None:
    """Was: an internal error ("unknown variable 'b'") of some layers in cfg, and "another loss" of dropout on some layers, weighed."""
    settings = PASSES[passes]
    found, plain = (training_bytes(tmp_path, ADAPTERS[adapter], each, weights) for each in (settings, {}))
    assert found >= plain
    if adapter == "some layers":
        assert found < training_bytes(tmp_path, {}, settings, weights)
    if adapter == "both":
        assert found >= training_bytes(tmp_path, SOME, settings, weights)
