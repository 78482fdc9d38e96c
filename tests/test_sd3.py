"""Stable Diffusion 3.5 as AI Toolkit trains it: which model a name is, T5 that is quantised with the transformer, sides of previews."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_writer import no_answer, process, read, refusal, train, unmodelled_keys, write

from calibration.architectures.stable_diffusion3 import LOAD, TEXT_TOKENS
from estimator.advice import edits
from estimator.cli import main
from estimator.job import Job
from estimator.operations import Part
from estimator.parameters import ELEMENT_BYTES
from estimator.plans import plan_of
from estimator.programs import load_profile
from estimator.timeline import simulate

LARGE = {"name_or_path": "stabilityai/stable-diffusion-3.5-large", "arch": "sd3", "quantize": True}
MEDIUM = {**LARGE, "name_or_path": "stabilityai/stable-diffusion-3.5-medium"}
ARCHS = {"sd35-large-aitk": LARGE, "sd35-medium-aitk": MEDIUM}
of_both = pytest.mark.parametrize("arch", ARCHS)
# Inputs and outputs of the linear layers of SD3Transformer2DModel's blocks, by the width D of its stream: modulation 7 D and 7 D of the
# text, attention 16 D, feed-forward 10 D and 10 D; in the last block the text has 3 D, three layers in the attention and no
# feed-forward. Medium's first 13 blocks have 3 D of modulation more, and 8 D of a second attention
ELEMENTS = {"sd35-large-aitk": (37 * 50 + 34) * 2432, "sd35-medium-aitk": (23 * 50 + 34 + 13 * 11) * 1536}


def sd3(folder: Path, model: dict[str, Any] = LARGE, **sections: Any) -> Job:
    return read(folder, model=model, **sections)


def preview(width: int, height: int, guidance: float = 4) -> dict[str, Any]:
    return {"sample": {"samples": [{"prompt": "a heron"}], "width": width, "height": height, "guidance_scale": guidance}}


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("stabilityai/stable-diffusion-3.5-large", "sd35-large-aitk"), ("stabilityai/stable-diffusion-3.5-medium", "sd35-medium-aitk"),
        ("stabilityai/stable-diffusion-3.5-large-turbo", "sd35-large-aitk"), ("me/sd35-medium-fine-tune", "sd35-medium-aitk"),
    ],
)  # fmt: skip
def test_the_name_says_which_it_is(name: str, arch: str, tmp_path: Path) -> None:
    for key in ({"arch": "sd3"}, {"is_v3": True}):
        job = sd3(tmp_path, {"name_or_path": name, "quantize": True, **key})
        assert (job.arch, job.unmodelled) == (arch, ())


@pytest.mark.parametrize("name", ["me/fine-tune", "stabilityai/stable-diffusion-3-medium-diffusers"])
def test_other_names_have_no_answer(name: str, tmp_path: Path) -> None:
    """Stable Diffusion 3 medium has neither the normalised attention nor the second one of 3.5: another model."""
    (problem,) = no_answer(tmp_path, model={**LARGE, "name_or_path": name})
    assert problem.place.key.endswith("name_or_path")


@pytest.mark.parametrize(("quantize", "quantize_te"), [(True, False), (False, True), (True, None), (False, None), (True, True)])
def test_text_encoders_follow_the_transformer(quantize: bool, quantize_te: bool | None, tmp_path: Path) -> None:
    model = {**LARGE, "quantize": quantize, "qtype": "float8", **({} if quantize_te is None else {"quantize_te": quantize_te})}
    job = sd3(tmp_path, model)
    assert job.model.te_weights == job.model.weights == ("float8" if quantize else "bf16")
    assert any("no effect on Stable Diffusion 3.5" in text for text in job.warnings) == (quantize_te not in (None, quantize))


@of_both
def test_sides_of_previews_that_its_pipeline_does_not_round_are_a_problem(arch: str, tmp_path: Path) -> None:
    (problem,) = refusal(tmp_path, model=ARCHS[arch], **preview(1000, 1024))
    assert "1000x1024" in problem.what
    assert problem.fix.startswith("992x1024")
    assert sd3(tmp_path, ARCHS[arch], **preview(1008, 1030)).samples[0].height == 1024  # the trainer rounds to multiples of 8 before
    assert sd3(tmp_path, ARCHS[arch], train=train(disable_sampling=True), **preview(1000, 1000)).unmodelled == ()


def test_prompts_have_the_tokens_of_clip_and_of_t5(tmp_path: Path) -> None:
    (sample,) = sd3(tmp_path, **preview(512, 512)).samples
    assert (sample.text_tokens, sample.negative_tokens, sample.batch) == (TEXT_TOKENS, TEXT_TOKENS, 2)
    assert sd3(tmp_path, **preview(512, 512, 1)).samples[0].batch == 1


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("network.dropout", {"network": {"type": "lora", "dropout": 0.1}}),
        ("model.layer_offloading", {"model": {**LARGE, "quantize": False, "layer_offloading": True}}),
        ("network.network_kwargs.only_if_contains", {"network": {"type": "lora", "network_kwargs": {"only_if_contains": ["attn"]}}}),
        ("model.assistant_lora_path", {"model": {**LARGE, "assistant_lora_path": "x"}}),
    ],
)  # fmt: skip
def test_what_is_not_modelled_is_named(key: str, sections: dict[str, Any], tmp_path: Path) -> None:
    job = read(tmp_path, **{"model": LARGE, **sections})
    assert key in {found.removeprefix("config.process[0].") for found in unmodelled_keys(job)}


def test_layer_offloading_moves_nothing(tmp_path: Path) -> None:
    job = sd3(tmp_path, {**LARGE, "layer_offloading": True})
    assert job.model.weights == job.model.te_weights == "float8"
    assert any("moves nothing off the card" in text for text in job.warnings)
    assert not any(key.endswith("layer_offloading") for key in unmodelled_keys(job))


def test_advice_quantises_both_at_once(tmp_path: Path) -> None:
    found = {edit.key: edit for edit in edits(sd3(tmp_path, {**LARGE, "quantize": False}))}
    assert "model.quantize_te" not in found
    assert found["model.quantize"].job.model.te_weights == "qfloat8"


# ---------------------------------------------------------------- programs


@of_both
def test_an_adapter_has_the_elements_of_the_blocks(arch: str) -> None:
    assert sum(load_profile(arch).adapter) == ELEMENT_BYTES * ELEMENTS[arch]


@of_both
def test_unquantised_it_is_as_large_as_from_diffusers(arch: str) -> None:
    """The same checkpoint, recorded of the trainer and of diffusers' class alone: a size of the transformer that no rule has a part in."""
    trained, plain = (sum(load_profile(name).resident("transformer", "bf16")) for name in (arch, arch.removesuffix("-aitk")))
    assert trained == plain > 0


@of_both
def test_all_stages_of_loading_were_recorded(arch: str, tmp_path: Path) -> None:
    plan = plan_of(sd3(tmp_path, ARCHS[arch]), load_profile(arch))
    assert {one.key.split("/")[0] for one in plan.load() if isinstance(one, Part)} == set(LOAD)
    assert len(plan.encoders) == 3


def in_kind(model: dict[str, Any], kind: str) -> dict[str, Any]:
    return {**model, "quantize": False} if kind == "bf16" else {**model, "qtype": kind}


@pytest.mark.parametrize("kind", ["bf16", "float8", "uint4", "uint6"])
@pytest.mark.parametrize("low_vram", [False, True])
@of_both
def test_each_kind_has_all_parts_of_its_timeline(arch: str, kind: str, low_vram: bool, tmp_path: Path) -> None:
    """Of float8 and uint4 loading, the adapter's making and a text with a graph were recorded, of bf16 previews; the rest is by rule."""
    job = sd3(tmp_path, {**in_kind(ARCHS[arch], kind), "low_vram": low_vram}, **preview(512, 512))
    assert job.unmodelled == ()
    found = simulate(job).phases
    assert {"load", "sample", "train", "save"} <= {one.phase for one in found}


@pytest.mark.parametrize("qtype", ["qfloat8", "qint8", "float8", "uint4"])
@of_both
def test_fewer_bits_need_less_while_steps_are_made(arch: str, qtype: str, tmp_path: Path) -> None:
    def training(model: dict[str, Any]) -> int:
        settings = train(disable_sampling=True, unload_text_encoder=True)
        return max(one.allocated_bytes for one in simulate(sd3(tmp_path, model, train=settings)).phases if one.phase == "train")

    assert training(in_kind(ARCHS[arch], qtype)) < training(in_kind(ARCHS[arch], "bf16"))


@of_both
def test_text_that_is_cached_or_unloaded_is_off_the_card(arch: str, tmp_path: Path) -> None:
    def training(**settings: Any) -> int:
        found = simulate(sd3(tmp_path, ARCHS[arch], train=train(**settings), **preview(512, 512))).phases
        return max(one.allocated_bytes for one in found if one.phase == "train")

    resident = training()
    for setting in ("cache_text_embeddings", "unload_text_encoder"):
        assert resident - training(**{setting: True}) > 4 * 2**30  # T5 in 8 bit


def test_medium_needs_less_than_large(tmp_path: Path) -> None:
    peaks = [max(one.reserved_bytes for one in simulate(sd3(tmp_path, model)).phases) for model in (MEDIUM, LARGE)]
    assert peaks[0] < peaks[1]


def test_a_plan_quantises_both_with_one_switch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 24 GB unquantised large does not fit. Nothing is written of quantize_te, which has no effect."""
    config = write(tmp_path, process(model={**LARGE, "quantize": False}, **preview(512, 512)))
    assert main(["plan", str(config), "--gpu", "RTX3090", "--json"]) == 0
    edits_of_plan = json.loads(capsys.readouterr().out)["edits"]
    assert {"model.quantize"} <= {edit["key"].removeprefix("config.process[0].") for edit in edits_of_plan}
    assert not any("quantize_te" in edit["key"] for edit in edits_of_plan)
