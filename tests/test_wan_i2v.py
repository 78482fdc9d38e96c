"""Wan 2.1 I2V: its timeline, and what it is made of. CLIP and VAE see a picture in every step and preview."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from config_writer import read, refusal, train

from estimator.advice import edits
from estimator.batches import steps_of
from estimator.job import Bucket, Job
from estimator.operations import MoveIn, MoveOut, Operation, Part, Release, flat
from estimator.planner.space import dimensions
from estimator.planner.subject import read_subject
from estimator.plans import after_steps, before_steps, steps
from estimator.programs import load_profile
from estimator.rows import bound
from estimator.wan_i2v import Wan21FromImagePlan
from tests.made_jobs import job

ARCH = "wan21-i2v-14b"
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "wan21_14b_i2v_ui.yaml"
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
    for kind in ("step",) if low_vram else ("step", "preview"):
        assert len(seen[f"{kind}.picture"]) == len(seen["step.core" if kind == "step" else "preview"]) == 2
        assert all({"image_encoder", "vae"} <= there for there in seen[f"{kind}.picture"])
        assert all("vae" in there for there in seen[f"{kind}.first_frame"])
    assert "tile.first" not in seen  # never decoded in tiles


def test_previews_are_denoised_beside_everything_else() -> None:
    everything = {"transformer", "text_encoder0", "vae", "image_encoder"}
    assert on_the_card(made(low_vram=False))["preview"] == [everything] * 2


def test_with_low_vram_the_image_encoder_comes_with_the_first_step_and_goes_with_the_next_round_of_previews() -> None:
    seen = on_the_card(made())
    assert "preview" not in seen
    assert all("image_encoder" in there for there in seen["step.core"])
    assert all("image_encoder" not in there for there in seen["sample.enter"] + seen["sample.leave"])


def test_with_low_vram_only_the_transformer_is_on_the_card_when_training_is_set_up() -> None:
    low, plain = (on_the_card(made(low_vram))["setup.network"] for low_vram in (True, False))
    assert low == [{"transformer"}]
    assert plain == [{"transformer", "text_encoder0", "image_encoder"}]


def test_with_low_vram_caching_text_moves_nothing_out() -> None:
    """Its presets are switched off: the transformer stays beside the text encoder."""
    low, plain = (on_the_card(made(low_vram, cache_text_embeddings=True))["text"][0] for low_vram in (True, False))
    assert "transformer" in low
    assert "transformer" not in plain


def test_what_only_the_forward_needs_is_gone_in_the_backward_pass() -> None:
    (first, *_) = [o for o in whole(made()) if isinstance(o, Part) and o.key.startswith("step.core")]
    assert {o.scope for o in first.inside[1] if isinstance(o, Release)} == {"picture", "first frame"}


def written(**changes: Any) -> dict[str, Any]:
    clips = [{"folder_path": "/nowhere/clips", "num_frames": 17, "resolution": 320}]
    return {"model": {**I2V, "low_vram": True}, "datasets": clips, "sample": PICTURED, **changes}


def test_previews_with_low_vram_are_refused_as_the_trainer_stops_on_them(tmp_path: Path) -> None:
    (problem,) = refusal(tmp_path, **written())
    assert problem.place is not None
    assert problem.place.key == "sample.samples"
    assert "low_vram" in problem.fix
    assert read(tmp_path, **written(train=train(disable_sampling=True))).arch == ARCH
    assert read(tmp_path, **written(sample={"samples": []})).samples == ()
    assert read(tmp_path, **written(model=I2V)).samples[0].frames == 17


def test_no_advice_has_previews_with_low_vram() -> None:
    assert "model.low_vram" not in {edit.key for edit in edits(made(low_vram=False))}
    assert "model.low_vram" in {edit.key for edit in edits(made(low_vram=False, disable_sampling=True))}


@pytest.mark.parametrize(("sets", "count"), [((), 2), (("train.disable_sampling=true",), 1)])
def test_a_plan_has_low_vram_without_previews(sets: tuple[str, ...], count: int) -> None:
    subject = read_subject(str(EXAMPLE), sets, None, ())
    level = next(each.levels[-1] for each in dimensions(subject, "quality") if each.name == "low_vram")
    assert len(level.edits) == count
    made = subject.read(level.edits)
    assert made is not None
    assert made.model.low_vram
    assert made.train.disable_sampling


@pytest.mark.parametrize("low_vram", [True, False])
@pytest.mark.parametrize("frames", [1, 9, 17])
@pytest.mark.parametrize("text", [{}, {"cache_text_embeddings": True}])
def test_each_part_of_its_timeline_is_recorded_or_the_relatives(low_vram: bool, frames: int, text: dict[str, bool]) -> None:
    profile = load_profile(ARCH)
    keys = {o.key for o in flat(whole(made(low_vram, frames, **text))) if isinstance(o, Part)}
    assert {profile.holder(key).arch for key in keys if key.startswith("step.core")} == {ARCH}
    assert all(profile.program(key).key == key for key in keys)


@pytest.mark.parametrize("weights", ["bf16", "float8", "uint4", "uint3"])
@pytest.mark.parametrize("frames", [1, 33])
def test_each_kind_of_weights_has_all_parts_of_its_timeline(weights: str, frames: int) -> None:
    """Loading was recorded in each, steps and previews in bf16 and qfloat8 alone; text and VAE are Wan 2.1's T2V."""
    one = made(low_vram=False, frames=frames)
    one = replace(one, model=replace(one.model, weights=weights, te_weights=weights))
    profile = load_profile(ARCH)
    keys = {o.key for o in flat(whole(one)) if isinstance(o, Part)}
    assert f"step.core/{weights}/checkpointed/one" in keys
    assert all(profile.program(key).key == key for key in keys)


def test_the_fewer_bits_the_less_a_step_needs() -> None:
    needs = []
    for weights in ("bf16", "float8", "uint4"):
        one = made(low_vram=False, frames=33)
        one = replace(one, model=replace(one.model, weights=weights, te_weights=weights))
        needs.append(max(peak.allocated_bytes for peak in bound(one).phases if peak.phase == "train"))
    assert needs == sorted(needs, reverse=True)
    assert len(set(needs)) == len(needs)


def test_bf16_with_low_vram_is_read_and_needs_as_much_in_a_step_as_with_room(tmp_path: Path) -> None:
    """The transformer waits for the text encoder while loading, and nothing of a step is smaller for it."""
    bare, silent = {**I2V, "quantize": False, "quantize_te": False}, train(disable_sampling=True)
    with_room, low = (read(tmp_path, **written(model={**bare, "low_vram": way}, train=silent)) for way in (False, True))
    assert low.unmodelled == ()
    keys = {o.key for o in flat(whole(low)) if isinstance(o, Part)}
    assert {"load.transformer/bf16/low_vram", "load.rest/bf16/low_vram"} <= keys
    assert all(load_profile(ARCH).program(key).key == key for key in keys)
    steps = [[peak.allocated_bytes for peak in bound(job).phases if peak.phase == "train"] for job in (with_room, low)]
    assert steps[0] == pytest.approx(steps[1], rel=0.001)


@pytest.mark.parametrize("qtype", ["qfloat8", "float8", "uint4"])
def test_previews_with_low_vram_are_refused_in_every_kind(tmp_path: Path, qtype: str) -> None:
    (problem,) = refusal(tmp_path, **written(model={**I2V, "qtype": qtype, "low_vram": True}))
    assert "low_vram" in problem.fix
