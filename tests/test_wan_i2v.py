"""Wan 2.1 I2V: its timeline, whose programs are not recorded yet. CLIP and VAE see a picture in every step and preview."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from config_writer import read

from estimator.batches import steps_of
from estimator.errors import CannotTell
from estimator.job import Bucket, Job
from estimator.operations import MoveIn, MoveOut, Operation, Part, Release
from estimator.plans import after_steps, before_steps, steps
from estimator.wan_i2v import Wan21FromImagePlan
from tests.made_jobs import job

ARCH = "wan21-i2v-14b"
I2V = {"name_or_path": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "arch": "wan21_i2v", "quantize": True}
PICTURED = {"num_frames": 17, "samples": [{"prompt": "a", "ctrl_img": "/nowhere/a.png"}]}
SIZE = (320, 256)


def made(low_vram: bool = True, frames: int = 9, **train: Any) -> Job:
    one = replace(job("wan21-14b"), arch=ARCH)
    data = replace(one.datasets[0], buckets=(Bucket(*SIZE, frames=frames, count=1),), cache_latents=False, cache_latents_to_disk=False)
    preview = replace(one.samples[0], width=SIZE[0], height=SIZE[1], frames=frames, controls=((512, 512),))
    return replace(
        one, model=replace(one.model, low_vram=low_vram), datasets=(data,), samples=(preview,), train=replace(one.train, **train)
    )


def whole(one: Job) -> list[Operation]:
    plan = Wan21FromImagePlan(one, ("text_encoder0",))
    return [*before_steps(plan), *steps(plan, steps_of(one, 512) * 2), *after_steps(plan)]


def on_the_card(one: Job) -> dict[str, list[set[str]]]:
    """Part -> what is on the card at each of its occurrences. The image encoder is loaded on the card without low_vram."""
    there = {"transformer", "text_encoder0"} | ({"image_encoder"} if not one.model.low_vram else set())
    seen: dict[str, list[set[str]]] = {}
    for operation in whole(one):
        if isinstance(operation, MoveIn):
            there.add(operation.component)
        elif isinstance(operation, MoveOut):
            there.discard(operation.component)
        elif isinstance(operation, Part):
            seen.setdefault(operation.key.split("/")[0], []).append(set(there))
    return seen


@pytest.mark.parametrize("low_vram", [True, False])
def test_a_picture_goes_through_both_encoders_in_each_step_and_preview(low_vram: bool) -> None:
    seen = on_the_card(made(low_vram))
    for kind in ("step", "preview"):
        assert len(seen[f"{kind}.picture"]) == len(seen["step.core" if kind == "step" else "preview"]) == 2
        assert all({"image_encoder", "vae"} <= there for there in seen[f"{kind}.picture"])
        assert all("vae" in there for there in seen[f"{kind}.first_frame"])
    assert "tile.first" not in seen  # never decoded in tiles


def test_with_low_vram_a_preview_is_denoised_with_the_transformer_alone() -> None:
    assert on_the_card(made())["preview"] == [{"transformer"}] * 2
    plain = on_the_card(made(low_vram=False))["preview"]
    assert all(there == {"transformer", "text_encoder0", "vae", "image_encoder"} for there in plain)


def test_with_low_vram_the_image_encoder_comes_with_the_first_step_and_goes_with_the_next_previews() -> None:
    seen = on_the_card(made())
    assert all("image_encoder" in there for there in seen["step.core"])
    assert all("image_encoder" not in there for there in seen["sample.enter"] + seen["sample.leave"])


def test_with_low_vram_caching_text_moves_nothing_out() -> None:
    """Its presets are switched off: the transformer stays beside the text encoder."""
    low, plain = (on_the_card(made(low_vram, cache_text_embeddings=True))["text"][0] for low_vram in (True, False))
    assert "transformer" in low
    assert "transformer" not in plain


def test_what_only_the_forward_needs_is_gone_in_the_backward_pass() -> None:
    (first, *_) = [o for o in whole(made()) if isinstance(o, Part) and o.key.startswith("step.core")]
    assert {o.scope for o in first.inside[1] if isinstance(o, Release)} == {"picture", "first frame"}


def test_it_is_not_modelled_yet_and_the_answer_names_it(tmp_path: Path) -> None:
    with pytest.raises(CannotTell, match=r"Wan 2\.1 I2V"):
        read(tmp_path, model=I2V, sample=PICTURED)
