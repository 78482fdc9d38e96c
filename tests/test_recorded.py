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
from estimator.trainers.recorded import TEXT, TRANSFORMER, kinds

WAN_5B = {"name_or_path": "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "arch": "wan22_5b", "low_vram": True}
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
    text = {kind for kind in recorded if has_program(profile, f"{TEXT}{kind}", f"{TEXT}{kind}/{low}")}
    assert kinds(profile, TEXT, low) & recorded == text


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (WAN_5B | {"quantize": True}, set()),
        (WAN_5B | {"quantize": True, "qtype": "qint8"}, set()),
        (WAN_5B, {"model.quantize", "model.quantize_te"}),
        (WAN_5B | {"quantize": True, "quantize_te": False}, {"model.quantize_te"}),
        (WAN_5B | {"quantize": True, "qtype": "uint3"}, {"model.qtype"}),
        (WAN_14B | {"low_vram": True}, {"model.quantize"}),
        (WAN_14B, set()),
        (TURBO | {"quantize": True}, set()),
        (WAN_5B | {"quantize": True, "qtype": "nvfp4"}, {"model.qtype"}),
    ],
)  # fmt: skip
def test_what_was_not_recorded_is_named_with_its_key(tmp_path: Path, model: dict[str, Any], named: set[str]) -> None:
    job = read(tmp_path, train=train(), model=model, network={"linear": 16})
    assert {entry.place.key.removeprefix("config.process.0.") for entry in job.unmodelled} == named
