"""An adapter on the text encoders too (`train.train_text_encoder`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_writer import ZIMAGE, read, refusal, train

from estimator.job_profile import profile_of
from estimator.programs import load_profile
from estimator.texted import TextedProfile
from estimator.timeline import simulate
from estimator.trainers import modelled

SD15 = {"name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5", "arch": "sd1"}
MODELS = {"sd15-aitk": SD15, "sdxl-aitk": {"name_or_path": "stabilityai/stable-diffusion-xl-base-1.0", "arch": "sdxl"}}
BLOCKS = {"sd15-aitk": 12, "sdxl-aitk": 12 + 32}  # of CLIP; XL has two of them
LORA = {"type": "lora", "linear": 16, "linear_alpha": 16}
KEY = "train_text_encoder"


def job(tmp_path: Path, network: dict[str, Any] = LORA, model: dict[str, Any] = SD15, **settings: Any) -> Any:
    given = train(optimizer="adamw8bit", noise_scheduler="ddpm", **{KEY: True, **settings})
    return read(tmp_path, train=given, model=model, network=network)


def named(read_job: Any) -> bool:
    return any(entry.place.key.endswith(KEY) for entry in read_job.unmodelled)


def test_it_is_read(tmp_path: Path) -> None:
    found = job(tmp_path)
    assert not found.unmodelled
    assert found.network.texted
    assert not job(tmp_path, **{KEY: False}).network.texted


@pytest.mark.parametrize(
    ("network", "model", "settings"),
    [
        (LORA | {"conv": 8, "conv_alpha": 8}, SD15, {}), (LORA | {"dropout": 0.1}, SD15, {}),
        ({"type": "lokr", "lokr_full_rank": True}, SD15, {}),
        (LORA, SD15 | {"quantize": True}, {}), (LORA, ZIMAGE, {"noise_scheduler": "flowmatch"}), (LORA, SD15, {"do_cfg": True}),
        (LORA, SD15, {"gradient_checkpointing": False}),
        (None, SD15, {}),
    ],
    ids=[
        "convolutions", "dropout", "LoKr", "beside the weights", "another architecture", "several passes", "without checkpointing",
        "the whole model",
    ],
)  # fmt: skip
def test_what_was_not_recorded_with_it_is_named(
    network: dict[str, Any] | None, model: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    given = train(**{"optimizer": "adamw8bit", "noise_scheduler": "ddpm", KEY: True, **settings})
    found = read(tmp_path, train=given, model=model, network=network or ...)
    assert named(found)


@pytest.mark.parametrize("key", ["unload_text_encoder", "cache_text_embeddings"])
def test_the_text_encoder_must_be_there(key: str, tmp_path: Path) -> None:
    given = train(optimizer="adamw8bit", noise_scheduler="ddpm", **{KEY: True, key: True})
    problems = refusal(tmp_path, train=given, model=SD15, network=LORA)
    assert any(key in problem.what for problem in problems)


@pytest.mark.parametrize("arch", sorted(modelled.TEXTED))
def test_the_adapter_is_larger_by_the_text_encoders_layers(arch: str, tmp_path: Path) -> None:
    """Six linear layers in each of CLIP's blocks, first in the optimizer's order; each has a gradient."""
    found = job(tmp_path, model=MODELS[arch])
    profile, plain = profile_of(arch, found.model, found.network), load_profile(arch)
    assert isinstance(profile, TextedProfile)
    more = len(profile.adapter) - len(plain.adapter)
    assert more == 2 * 6 * BLOCKS[arch]
    assert tuple(profile.adapter[more:]) == tuple(plain.adapter)
    for kept in ("checkpointed", "full"):
        values = {"T": 1024, "u": 256, "v": 64, "B": 1, "X": 77, "r": 16}
        gradients = profile.program(f"step.core/bf16/{kept}/one").stay_bytes("gradient", values)
        reached = sum(width for k, width in enumerate(profile.adapter) if k not in profile.idle)  # of XL's first not the last block
        assert sum(gradients) == 16 * reached
        assert len(profile.idle) == (12 if arch == "sdxl-aitk" else 0)


def test_a_step_has_more_on_the_card_than_one_without(tmp_path: Path) -> None:
    peaks = [
        max(phase.allocated_bytes for phase in simulate(job(tmp_path, **{KEY: trained})).phases if phase.phase == "train")
        for trained in (True, False)
    ]
    assert peaks[0] > peaks[1] + 15 * 2**20
