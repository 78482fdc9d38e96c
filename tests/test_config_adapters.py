"""Adapters other than a LoRA on all layers, and steps that preserve outputs, as a config asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_writer import FLUX_DEV, TURBO, read, train

from estimator.errors import InputError
from estimator.job import Job

CHROMA = {"name_or_path": "lodestones/Chroma", "arch": "chroma"}
KONTEXT = {"name_or_path": "black-forest-labs/FLUX.1-Kontext-dev", "arch": "flux_kontext"}
KLEIN = {"name_or_path": "black-forest-labs/FLUX.2-klein-base-4B", "arch": "flux2_klein_4b", "quantize": True}
QWEN = {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image", "quantize": True}
SDXL = {"name_or_path": "stabilityai/stable-diffusion-xl-base-1.0", "arch": "sdxl"}
ZIMAGE = {"name_or_path": "Tongyi-MAI/Z-Image", "arch": "zimage", "quantize": True}
UINT4 = TURBO | {"quantize": True, "qtype": "uint4"}
ONLY = {"linear": 16, "network_kwargs": {"only_if_contains": ["layers.3."]}}


def named(job: Job) -> set[str]:
    return {entry.place.key for entry in job.unmodelled}


def test_filters_are_read_where_they_are_modelled(tmp_path: Path) -> None:
    kwargs = {"ignore_if_contains": ["norm", "ff"], "only_if_contains": ["transformer_blocks.7."]}
    job = read(tmp_path, train=train(), model=FLUX_DEV, network={"linear": 16, "network_kwargs": kwargs})
    assert job.unmodelled == ()
    assert job.network is not None
    assert (job.network.ignore_if_contains, job.network.only_if_contains) == (("norm", "ff"), ("transformer_blocks.7.",))


@pytest.mark.parametrize("model", [CHROMA, ZIMAGE | {"layer_offloading": True}], ids=["another architecture", "offloaded layers"])
def test_filters_are_named_where_they_are_not(tmp_path: Path, model: dict[str, Any]) -> None:
    job = read(tmp_path, train=train(), model=model, network=ONLY)
    assert any(key.endswith("network_kwargs.only_if_contains") for key in named(job))


@pytest.mark.parametrize(
    ("kwargs", "what"),
    [
        ({"only_if_contains": []}, "an empty list leaves no layer"),
        ({"only_if_contains": ""}, "an empty text leaves no layer"),
        ({"only_if_contains": False}, "expected a list of name parts, got false"),
        ({"ignore_if_contains": 0}, "expected a list of name parts, got 0"),
        ({"only_if_contains": ["attn9"]}, "no layer is left with an adapter"),
        ({"ignore_if_contains": [""]}, "no layer is left with an adapter"),
        ({"only_if_contains": ["attn"], "ignore_if_contains": ["transformer"]}, "by it and ignore_if_contains"),
        (None, "nothing below network_kwargs"),
    ],
)  # fmt: skip
def test_a_filter_that_leaves_no_layer_or_stops_the_trainer_is_an_error(tmp_path: Path, kwargs: object, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        read(tmp_path, train=train(), model=FLUX_DEV, network={"linear": 16, "network_kwargs": kwargs})
    place = caught.value.problems[0].place
    assert place is not None
    assert "network_kwargs" in place.key
    assert place.line is not None


@pytest.mark.parametrize("kwargs", [{"ignore_if_contains": ""}, {"ignore_if_contains": []}, {"only_if_contains": None}, {}])
def test_filters_without_a_word_are_none(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    job = read(tmp_path, train=train(), model=FLUX_DEV, network={"linear": 16, "network_kwargs": kwargs})
    assert job.network is not None
    assert (job.network.ignore_if_contains, job.network.only_if_contains) == ((), ())


@pytest.mark.parametrize(
    ("settings", "prompt", "captions"),
    [
        ({"diff_output_preservation": True, "diff_output_preservation_class": "person"}, "person", True),
        ({"blank_prompt_preservation": True}, "", False),
        ({}, None, False),
    ],
)
def test_what_a_step_preserves(tmp_path: Path, settings: dict[str, Any], prompt: str | None, captions: bool) -> None:
    job = read(tmp_path, train=train(**settings), model=FLUX_DEV, network={"linear": 16}, trigger_word="p3rs0n")
    assert job.unmodelled == ()
    assert (job.train.preserves, job.train.preserves_captions) == (prompt, captions)


@pytest.mark.parametrize(("word", "why"), [(None, "the trainer stops without it"), ("", "between all letters")])
def test_preserving_a_class_needs_a_trigger_word(tmp_path: Path, word: str | None, why: str) -> None:
    """The trainer takes an empty one, and makes of a caption what no-one wants: each letter is followed by the class."""
    with pytest.raises(InputError, match=f"trigger word.*{why}"):
        read(tmp_path, train=train(diff_output_preservation=True), model=FLUX_DEV, network={"linear": 16}, trigger_word=word)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (CHROMA, {}), (ZIMAGE | {"layer_offloading": True}, {}), (ZIMAGE, {"optimizer": "automagic3"}),
    ],
    ids=["another architecture", "offloaded layers", "an optimizer in the backward pass"],
)  # fmt: skip
def test_preservation_is_named_where_it_is_not_modelled(tmp_path: Path, model: dict[str, Any], settings: dict[str, Any]) -> None:
    job = read(tmp_path, train=train(blank_prompt_preservation=True, **settings), model=model, network={"linear": 16})
    assert any(key.endswith("train.blank_prompt_preservation") for key in named(job))


@pytest.mark.parametrize(
    ("written", "factor"),
    [
        ({}, -1), ({"lokr_factor": 8, "linear": 32}, 8), ({"linear": 9_999_999_999, "conv": "x"}, -1), ({"lokr_factor": "8"}, 8),
        ({"lokr_factor": 4.7}, 4), ({"lokr_factor": 4096}, 4096), ({"lokr_factor": -3}, 0), ({"lokr_full_rank": "false"}, -1),
    ],
)  # fmt: skip
def test_a_lokr_is_read_with_its_factor(tmp_path: Path, written: dict[str, Any], factor: int) -> None:
    model = TURBO | {"quantize": True, "qtype": "qfloat8"}  # the trainer makes float8 of it
    job = read(tmp_path, train=train(), model=model, network={"type": "lokr", **written})
    assert job.unmodelled == ()
    assert job.network is not None
    assert job.network.variables == {"f": factor}


@pytest.mark.parametrize(
    ("model", "more"),
    [
        (KONTEXT, {}), (UINT4 | {"qtype": "orbit3"}, {}),
        (TURBO | {"quantize": True}, {"network_kwargs": {"only_if_contains": ["layers.3."]}}),
    ],
    ids=["another architecture", "other weights", "some layers"],
)
def test_a_lokr_is_named_where_it_was_not_recorded(tmp_path: Path, model: dict[str, Any], more: dict[str, Any]) -> None:
    job = read(tmp_path, train=train(), model=model, network={"type": "lokr", **more})
    assert any(key.endswith("network.type") for key in named(job))


@pytest.mark.parametrize(
    "model",
    [
        FLUX_DEV, FLUX_DEV | {"quantize": True}, KLEIN, ZIMAGE, ZIMAGE | {"quantize": False}, ZIMAGE | {"qtype": "uint4"}, UINT4, TURBO,
        CHROMA | {"quantize": True}, QWEN,
    ],
)
def test_a_dora_is_read_where_it_is_modelled(tmp_path: Path, model: dict[str, Any]) -> None:
    job = read(tmp_path, train=train(), model=model, network={"type": "dora", "linear": 24, "conv": 16})
    assert job.unmodelled == ()
    assert job.network is not None
    assert (job.network.kind, job.network.variables) == ("dora", {"r": 24})


def test_a_dora_on_float8_stops_the_trainer(tmp_path: Path) -> None:
    """torchao's tensors cannot be added to: tried on the emulated device with a layer of each kind."""
    turbo = TURBO | {"quantize": True, "qtype": "qfloat8"}  # the trainer makes float8 of it
    with pytest.raises(InputError, match="dora on weights in float8"):
        read(tmp_path, train=train(), model=turbo, network={"type": "dora", "linear": 16})


@pytest.mark.parametrize(
    ("model", "more", "settings", "key"),
    [
        (UINT4 | {"qtype": "uint3"}, {}, {}, "network.type"), (KONTEXT, {}, {}, "network.type"),
        (ZIMAGE | {"qtype": "qint8"}, {}, {}, "network.type"),
        (ZIMAGE | {"quantize": False, "layer_offloading": True}, {}, {}, "network.type"),
        (KLEIN, {"network_kwargs": {"only_if_contains": ["double_blocks.3."]}}, {}, "network.network_kwargs.only_if_contains"),
        (ZIMAGE, {"dropout": 0.1}, {}, "network.dropout"), (ZIMAGE, {}, {"optimizer": "automagic3"}, "network.type"),
        (ZIMAGE, {}, {"blank_prompt_preservation": True}, "train.blank_prompt_preservation"),
        (ZIMAGE, {}, {"do_cfg": True}, "train.do_cfg"),
    ],
)  # fmt: skip
def test_a_dora_is_named_where_it_is_not(
    tmp_path: Path, model: dict[str, Any], more: dict[str, Any], settings: dict[str, Any], key: str
) -> None:
    job = read(tmp_path, train=train(**settings), model=model, network={"type": "dora", "linear": 16, **more})
    assert any(name.endswith(key) for name in named(job))


ALL_LAYERS = {"linear": 16, "transformer_only": False}


@pytest.mark.parametrize(
    ("model", "network"),
    [
        (SDXL, ALL_LAYERS), (ZIMAGE, ALL_LAYERS | {"network_kwargs": {"only_if_contains": ["layers.3.", "transformer$$layers$$4$$"]}}),
        (FLUX_DEV, ALL_LAYERS | {"network_kwargs": {"ignore_if_contains": ["embed", "norm_out", "transformer.proj_out"]}}),
        (FLUX_DEV, {"linear": 16, "transformer_only": "false"}),
    ],
    ids=["a UNet", "layers in blocks", "none outside them", "in quotes it is on"],
)  # fmt: skip
def test_all_layers_are_no_more_where_none_is_outside_the_blocks(tmp_path: Path, model: dict[str, Any], network: dict[str, Any]) -> None:
    settings = train(noise_scheduler="ddpm") if model is SDXL else train()
    assert read(tmp_path, train=settings, model=model, network=network).unmodelled == ()


@pytest.mark.parametrize(
    ("model", "network"),
    [
        (FLUX_DEV, ALL_LAYERS), (FLUX_DEV, {"linear": 16, "transformer_only": None}), (CHROMA, ALL_LAYERS),
        (FLUX_DEV, ALL_LAYERS | {"network_kwargs": {"only_if_contains": ["proj_out"]}}),
        (ZIMAGE, ALL_LAYERS | {"network_kwargs": {"only_if_contains": ["attention."]}}),
    ],
)  # fmt: skip
def test_layers_outside_the_blocks_are_named(tmp_path: Path, model: dict[str, Any], network: dict[str, Any]) -> None:
    job = read(tmp_path, train=train(), model=model, network=network)
    assert any(key.endswith("network.transformer_only") for key in named(job))


@pytest.mark.parametrize("factor", [None, "many", [], float("inf"), 10**9])
def test_a_factor_that_is_no_number_is_an_error(tmp_path: Path, factor: object) -> None:
    with pytest.raises(InputError, match="lokr_factor"):
        read(tmp_path, train=train(), model=TURBO, network={"type": "lokr", "lokr_factor": factor})


def test_full_rank_in_quotes_is_on_and_said(tmp_path: Path) -> None:
    job = read(tmp_path, train=train(), model=TURBO, network={"type": "lokr", "lokr_full_rank": "false"})
    assert any("lokr_full_rank" in warning and "counts as true" in warning for warning in job.warnings)


def test_a_decomposed_lokr_is_named(tmp_path: Path) -> None:
    job = read(tmp_path, train=train(), model=ZIMAGE, network={"type": "lokr", "linear": 16, "lokr_full_rank": False})
    assert any(key.endswith("network.lokr_full_rank") for key in named(job))
