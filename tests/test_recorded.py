"""Weights that an architecture was not recorded with: named with their place, and just those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_writer import TURBO, read, train

from estimator.archs import load_archs
from estimator.derived_weights import DERIVED
from estimator.errors import CannotTell
from estimator.programs import Profile, load_profile
from estimator.trainers.modelled import WEIGHTS
from estimator.trainers.recorded import TEXT, TRANSFORMER, kinds, trained

WAN_5B = {"name_or_path": "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "arch": "wan22_5b", "low_vram": True}
QUANTISED = {"quantize": True, "quantize_te": True, "low_vram": True}
EDIT_2511 = {"name_or_path": "Qwen/Qwen-Image-Edit-2511", "arch": "qwen_image_edit_plus"} | QUANTISED
WAN_14B = {"name_or_path": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "arch": "wan21"}


def has_program(profile: Profile, *keys: str) -> bool:
    """Of one of the keys."""
    for key in keys:
        try:
            profile.program(key)
        except CannotTell:
            continue
        return True
    return False


@pytest.mark.parametrize("arch", load_archs().trained())
@pytest.mark.parametrize("low", ["low_vram", "plain"])
def test_kinds_are_those_that_have_a_program(arch: str, low: str) -> None:
    profile, recorded = load_profile(arch), WEIGHTS - DERIVED.keys()
    loading = {kind for kind in recorded if has_program(profile, f"{TRANSFORMER}{kind}/{low}")}
    assert kinds(profile, TRANSFORMER, low) & recorded == loading
    for kind in recorded:
        steps = has_program(profile, *(f"step.core/{kind}/{kept}/one" for kept in ("checkpointed", "full")))
        assert (kind in trained(profile, low)) == (steps and kind in loading)
    text = {kind for kind in recorded if has_program(profile, f"{TEXT}{kind}", f"{TEXT}{kind}/{low}")}
    assert kinds(profile, TEXT, low) & recorded == text


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (WAN_5B | {"quantize": True}, set()),
        (WAN_5B | {"quantize": True, "qtype": "qint8"}, set()),
        (WAN_5B, set()),
        (WAN_5B | {"quantize": True, "quantize_te": False}, set()),
        (WAN_5B | {"quantize": True, "qtype": "uint3"}, set()),
        (WAN_14B | {"low_vram": True}, set()),
        (WAN_14B, set()),
        (TURBO | {"quantize": True}, set()),
        (WAN_5B | {"quantize": True, "qtype": "orbit3"}, {"model.qtype"}),
    ],
)  # fmt: skip
def test_what_was_not_recorded_is_named_with_its_key(tmp_path: Path, model: dict[str, Any], named: set[str]) -> None:
    job = read(tmp_path, train=train(), model=model, network={"linear": 16})
    assert {entry.place.key.removeprefix("config.process.0.") for entry in job.unmodelled} == named


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({}, set()),
        ({"qtype": "float8"}, set()),
        ({"qtype": "uint4"}, set()),
        ({"qtype": "uint3"}, set()),
        ({"qtype": "uint3|owner/repository/file.safetensors"}, set()),
        ({"qtype": "uint4|owner/repository/file.safetensors"}, {"model.qtype"}),
        ({"qtype": "uint3|owner/repository/file.safetensors", "layer_offloading": True}, {"model.qtype"}),
        ({"layer_offloading": True}, set()),
        ({"layer_offloading": True, "qtype": "uint4"}, set()),
        ({"layer_offloading": True, "quantize": False}, set()),
        ({"layer_offloading": True, "layer_offloading_transformer_percent": 0.0, "quantize": False}, set()),
    ],
)
def test_weights_that_only_a_relatives_steps_have_are_named(tmp_path: Path, model: dict[str, Any], named: set[str]) -> None:
    """Qwen-Image-Edit-2511 loads as 2509 does, and its steps are of another transformer: a setting is named, not a part of the profile."""
    datasets = [{"folder_path": "/nowhere/images", "control_path": "/nowhere/sketches", "resolution": 512}]
    job = read(tmp_path, model=EDIT_2511 | model, network={"linear": 16}, datasets=datasets)
    assert {entry.place.key.removeprefix("config.process.0.") for entry in job.unmodelled} == named
