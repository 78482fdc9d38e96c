"""Wan 2.2 5B: a VAE of factor 16, tokens with timesteps of their own, clips that begin with their own first frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from config_writer import read
from PIL import Image as Pillow

from calibration.clips import write_clip
from estimator.batches import steps_of
from estimator.errors import CannotTell, InputError
from estimator.job import Bucket, Job
from estimator.operations import MoveIn, MoveOut, Operation, Part
from estimator.plans import after_steps, before_steps, plan_of, steps
from estimator.programs import load_profile
from estimator.rows import bound
from estimator.timeline import simulate
from tests.made_jobs import job

ARCH = "wan22-5b"
TI2V = {"name_or_path": "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "arch": "wan22_5b", "quantize": True}
SIZE = (480, 320)
PICTURE = ((512, 512),)


def made(
    frames: int = 9, *, begins: bool = False, low_vram: bool = False, cached: bool = False, pictured: bool = False, **train: Any
) -> Job:
    one = job(ARCH)
    bucket = Bucket(*SIZE, frames=frames, count=1, begins=begins)
    data = replace(one.datasets[0], buckets=(bucket,), cache_latents=False, cache_latents_to_disk=cached)
    preview = replace(one.samples[0], width=SIZE[0], height=SIZE[1], frames=frames, controls=PICTURE if pictured else ())
    model = replace(one.model, low_vram=low_vram, weights="qfloat8", te_weights="qfloat8")
    return replace(one, model=model, datasets=(data,), samples=(preview,), train=replace(one.train, **train))


def whole(one: Job) -> list[Operation]:
    plan = plan_of(one, load_profile(one.arch))
    return [*before_steps(plan), *steps(plan, steps_of(one, 512) * 2), *after_steps(plan)]


def keys(one: Job, beginning: str) -> list[str]:
    return [o.key for o in whole(one) if isinstance(o, Part) and o.key.startswith(beginning)]


def highest(one: Job, phase: str) -> int:
    return max(p.allocated_bytes for p in bound(one).phases if p.phase == phase)


# ---------------------------------------------------------------- the timeline


def test_only_clips_that_begin_with_a_frame_have_it_encoded_and_images_beside_them_have_timesteps_too() -> None:
    assert {key.split("/")[0] for key in keys(made(), "step.core")} == {"step.core"}
    assert {key.split("/")[0] for key in keys(made(begins=True), "step.core")} == {"step.core.timed"}
    assert {key.split("/")[0] for key in keys(made(1, begins=True), "step.core")} == {"step.core.timed_image"}
    assert keys(made(), "step.given_frame") == keys(made(1, begins=True), "step.given_frame") == []
    assert len(keys(made(begins=True), "step.given_frame/encoded/one")) == len(keys(made(begins=True), "step.core.timed/"))
    assert len(keys(made(begins=True, cached=True), "step.given_frame/cached/one")) == 2


def test_a_first_frame_is_cached_with_its_clip() -> None:
    assert keys(made(begins=True, cached=True), "latents")[0].startswith("latents.begun/")
    assert keys(made(cached=True), "latents")[0].startswith("latents/")


def test_a_timestep_for_each_token_needs_more_in_a_step() -> None:
    plain, begun = (highest(made(33, begins=begins, cached=True), "train") for begins in (False, True))
    assert begun > plain


def test_a_preview_from_a_picture_has_one_frame_more_through_the_vae() -> None:
    assert len(keys(made(pictured=True), "preview.given_frame")) == 2
    assert keys(made(), "preview.given_frame") == []


@pytest.mark.parametrize("low_vram", [True, False])
def test_with_low_vram_transformer_text_encoder_and_vae_take_turns_in_a_preview(low_vram: bool) -> None:
    """Wan22Pipeline with aggressive_offload; without it nothing moves."""
    there: set[str] = {"transformer", "text_encoder0"}
    seen: dict[str, list[set[str]]] = {}
    for operation in before_steps(plan_of(made(low_vram=low_vram), load_profile(ARCH))):
        if isinstance(operation, MoveIn):
            there.add(operation.component)
        elif isinstance(operation, MoveOut):
            there.discard(operation.component)
        elif isinstance(operation, Part):
            seen.setdefault(operation.key.split("/")[0], []).append(set(there))
    whole_card = {"transformer", "text_encoder0", "vae"}
    assert seen["preview"] == [{"transformer"} if low_vram else whole_card]
    decoding = seen["tile.first" if low_vram else "decode"]
    assert all(one == ({"vae"} if low_vram else whole_card) for one in decoding)
    assert there >= {"transformer"}  # it is back for training


def test_after_previews_the_transformer_comes_back_before_the_cache_is_emptied() -> None:
    """It finds the segments that VAE and text encoder have left (wan5b-images: one of 2 GiB, and 152 MiB less reserved in steps)."""
    operations = whole(made(low_vram=True, cached=True))
    leaving = next(n for n, o in enumerate(operations) if isinstance(o, Part) and o.key.startswith("sample.leave"))
    moves = [n for n, o in enumerate(operations[:leaving]) if o == MoveIn("transformer") or o == MoveOut("vae")]
    back = max(n for n in moves if operations[n] == MoveOut("vae"))
    assert operations[back + 1] == MoveIn("transformer")


def test_a_step_copies_the_empty_prompt_where_the_text_encoder_was_unloaded() -> None:
    """One prompt's embedding of 4 MiB beside the batch's: seen in wan5b-images."""

    def copies(**train: Any) -> int:
        return len(keys(made(cached=True, **train), "step.blank"))

    steps_made = len(keys(made(), "step.core"))
    assert (copies(), copies(unload_text_encoder=True), copies(unload_text_encoder=True, cache_text_embeddings=True)) == (0, steps_made, 0)


def test_a_decode_in_tiles_covers_the_picture() -> None:
    rows = [o.values for o in whole(made(low_vram=True)) if isinstance(o, Part) and o.key == "tile.row"]
    assert sum(values["A"] for values in rows) == 2 * SIZE[0] * SIZE[1] // 32**2  # two rounds of previews


@pytest.mark.parametrize("low_vram", [True, False])
@pytest.mark.parametrize("begins", [True, False])
def test_more_frames_never_need_less(low_vram: bool, begins: bool) -> None:
    for phase in ("train", "sample"):
        needs = [highest(made(frames, begins=begins, low_vram=low_vram), phase) for frames in (9, 17, 33, 81)]
        assert needs == sorted(needs)


@pytest.mark.parametrize("kind", ["bf16", "float8", "uint4", "uint3"])
def test_steps_and_previews_of_further_kinds_differ_in_the_weights_alone(kind: str) -> None:
    """With a given frame and without: what is live at a peak beside the transformer is within a layer's weights of qfloat8's."""
    layer_bytes = 3 * 4 * 3072 * 14336  # in bf16 three tensors in fp32 as an adapter is merged
    for one in (made(), made(begins=True, pictured=True)):
        was, now = (simulate(replace(one, model=replace(one.model, weights=weights))) for weights in ("qfloat8", kind))
        for before, after in zip(was.phases, now.phases, strict=True):
            if before.phase in ("train", "sample"):
                beside = [p.allocated_bytes - p.components["transformer"] for p in (before, after)]
                assert abs(beside[0] - beside[1]) <= layer_bytes, (before.phase, before.detail)


def test_what_was_not_recorded_is_named() -> None:
    with pytest.raises(CannotTell, match="convrot"):
        simulate(replace(made(), model=replace(made().model, weights="convrot")))
    # clips of two latent frames, not cached, alone in their batch: said without the part's key
    with pytest.raises(CannotTell, match=r"clips of 5 to 8 frames \(one in a batch\).*\n.*cache_latents_to_disk: true"):
        simulate(made(5))


# ---------------------------------------------------------------- configs


def datasets(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    return [{"folder_path": str(folder / "data"), "resolution": 512, **settings}]


def with_clip_and_picture(folder: Path, clip: bool = True, picture: bool = True) -> Path:
    (folder / "data").mkdir()
    if clip:
        write_clip(folder / "data" / "a.avi", 640, 480, 40)
    if picture:
        Pillow.new("RGB", (640, 480)).save(folder / "data" / "b.png")
    return folder


def test_do_i2v_holds_for_all_of_a_dataset(tmp_path: Path) -> None:
    folder = with_clip_and_picture(tmp_path)
    for asked in (True, False):
        buckets = read(tmp_path, model=TI2V, datasets=datasets(folder, num_frames=33, do_i2v=asked)).datasets[0].buckets
        assert {(b.frames, b.begins) for b in buckets} == {(33, asked), (1, asked)}
        assert all(b.width % 32 == b.height % 32 == 0 for b in buckets)
    (still,) = read(tmp_path, model=TI2V, datasets=datasets(folder, do_i2v=True)).datasets[0].buckets
    assert (still.frames, still.begins) == (1, True)


def test_another_model_takes_no_notice_of_do_i2v(tmp_path: Path) -> None:
    model, data = {"name_or_path": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "arch": "wan21"}, datasets(with_clip_and_picture(tmp_path))
    asked = [{**one, "num_frames": 33, "do_i2v": True} for one in data]
    assert not any(b.begins for b in read(tmp_path, model=model, datasets=asked).datasets[0].buckets)


@pytest.mark.parametrize("frames", [1, 33])
def test_the_trainer_stops_on_images_with_do_i2v_whose_latents_are_cached(tmp_path: Path, frames: int) -> None:
    folder = with_clip_and_picture(tmp_path, clip=False)
    asked = {"num_frames": frames, "cache_latents_to_disk": True}
    with pytest.raises(InputError, match="do_i2v"):
        read(tmp_path, model=TI2V, datasets=datasets(folder, do_i2v=True, **asked))
    assert read(tmp_path, model=TI2V, datasets=datasets(folder, **asked)).arch == ARCH


def test_clips_alone_may_be_cached_with_do_i2v(tmp_path: Path) -> None:
    folder = with_clip_and_picture(tmp_path, picture=False)
    assert read(tmp_path, model=TI2V, datasets=datasets(folder, num_frames=33, do_i2v=True, cache_latents_to_disk=True)).arch == ARCH


def test_a_preview_may_begin_with_a_picture_and_its_sizes_are_rounded_down(tmp_path: Path) -> None:
    asked = [{"prompt": "a", "ctrl_img": "/nowhere/a.png"}, {"prompt": "b"}]
    one = read(tmp_path, model=TI2V, sample={"num_frames": 40, "width": 500, "height": 410, "samples": asked})
    assert one.unmodelled == ()
    assert [(s.width, s.height, s.frames, bool(s.controls)) for s in one.samples] == [(480, 384, 37, True), (480, 384, 37, False)]
    assert len({s.memory_key for s in one.samples}) == 2
