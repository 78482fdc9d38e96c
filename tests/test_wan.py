"""Wan: configs of a video model, and its timeline."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from config_writer import read, refusal
from PIL import Image as Pillow

from calibration.clips import write_clip
from calibration.extract import clips_joined, stored
from estimator.archs import load_archs
from estimator.batches import steps_of
from estimator.engine import estimate_job
from estimator.errors import CannotTell
from estimator.gpus import find_gpu
from estimator.job import Bucket, Job, Model
from estimator.offload_profile import profile_of
from estimator.operations import MoveIn, MoveOut, Part
from estimator.paths import profiles_dir
from estimator.plans import before_steps, plan_of
from estimator.programs import load_profile
from estimator.replay import Replay
from estimator.residents import PhasePeak
from estimator.rows import bound
from estimator.timeline import simulate
from estimator.trainers import read_jobs
from estimator.trainers.together import modelled_job
from estimator.wan import tiled
from tests.made_jobs import job

WAN = {"name_or_path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "arch": "wan21"}
WANS = ("wan21-1.3b", "wan21-14b")


def buckets(folder: Path, **settings: Any) -> tuple[Bucket, ...]:
    return read(folder, model=WAN, datasets=[{"folder_path": str(folder / "data"), "resolution": 512, **settings}]).datasets[0].buckets


def test_images_and_clips_fall_into_buckets_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, frames in (("a", 50), ("b", 90), ("c", 50)):
        write_clip(tmp_path / "data" / f"{name}.avi", 640, 480, frames)
    Pillow.new("RGB", (640, 480)).save(tmp_path / "data" / "d.png")
    assert {(b.frames, b.count) for b in buckets(tmp_path, num_frames=41)} == {(41, 3), (1, 1)}
    assert {(b.frames, b.count) for b in buckets(tmp_path, auto_frame_count=True, fps=16)} == {(49, 2), (89, 1), (1, 1)}
    assert {(b.frames, b.count) for b in buckets(tmp_path)} == {(1, 1)}


def test_clips_that_are_not_here(tmp_path: Path) -> None:
    job = read(tmp_path, model=WAN, datasets=[{"folder_path": "/nowhere", "resolution": 480, "num_frames": 81}])
    assert job.unmodelled == ()
    assert [b.frames for b in job.datasets[0].buckets] == [81]
    unknown = read(tmp_path, model=WAN, datasets=[{"folder_path": "/nowhere", "auto_frame_count": True}])
    assert [one.place.key.split(".")[-1] for one in unknown.unmodelled] == ["auto_frame_count"]


def test_frames_of_previews(tmp_path: Path) -> None:
    samples = [{"prompt": "a"}, {"prompt": "b", "num_frames": 41}, {"prompt": "c --frames 80"}]
    job = read(tmp_path, model=WAN, sample={"num_frames": 17, "samples": samples})
    assert [one.frames for one in job.samples] == [17, 41, 81]
    tight = read(tmp_path, model={**WAN, "low_vram": True}, sample={"num_frames": 17, "samples": samples})
    assert [one.frames for one in tight.samples] == [17, 41, 77]


@pytest.mark.parametrize(("name", "arch"), [("Wan-AI/Wan2.1-T2V-14B-Diffusers", "wan21-14b"), ("/models/wan-1.3B-mine", "wan21-1.3b")])
def test_sizes_of_wan_are_told_apart(tmp_path: Path, name: str, arch: str) -> None:
    assert read(tmp_path, model={**WAN, "name_or_path": name}).arch == arch


# ---------------------------------------------------------------- the timeline


def clip_job(arch: str, frames: int, low_vram: bool = False, size: tuple[int, int] = (480, 320), **train: bool) -> Job:
    made = job(arch)
    data = replace(made.datasets[0], buckets=(Bucket(*size, frames=frames, count=1),))
    preview = replace(made.samples[0], width=size[0], height=size[1], frames=frames)
    return replace(
        made, model=replace(made.model, low_vram=low_vram), datasets=(data,), samples=(preview,), train=replace(made.train, **train)
    )


def highest(made: Job, phase: str) -> PhasePeak:
    return max((p for p in bound(made).phases if p.phase == phase), key=lambda p: p.allocated_bytes)


@pytest.mark.parametrize("arch", WANS)
@pytest.mark.parametrize("low_vram", [False, True])
def test_more_frames_never_need_less(arch: str, low_vram: bool) -> None:
    for phase in ("train", "sample"):
        needs = [highest(clip_job(arch, frames, low_vram), phase).allocated_bytes for frames in (1, 9, 17, 33, 81)]
        assert needs == sorted(needs)


@pytest.mark.parametrize("arch", WANS)
def test_with_low_vram_a_preview_is_denoised_without_text_encoder_and_vae(arch: str) -> None:
    """AggressiveWanUnloadPipeline: the VAE is back for decoding, the text encoder is not."""
    made, there = clip_job(arch, 81, True, (832, 480)), {"transformer", "text_encoder0"}
    seen: dict[str, set[str]] = {}
    for operation in before_steps(plan_of(made, load_profile(arch))):
        if isinstance(operation, MoveIn):
            there.add(operation.component)
        elif isinstance(operation, MoveOut):
            there.discard(operation.component)
        elif isinstance(operation, Part):
            seen.setdefault(operation.key.split("/")[0], set(there))
    assert seen["preview"] == {"transformer"}
    assert seen["tile.first"] == {"transformer", "vae"}


@pytest.mark.parametrize("arch", WANS)
@pytest.mark.parametrize("low_vram", [False, True])
@pytest.mark.parametrize("frames", [1, 9, 33])
def test_a_preview_leaves_nothing_behind(arch: str, low_vram: bool, frames: int) -> None:
    made = clip_job(arch, frames, low_vram, (400, 304))
    twice = replace(made, samples=(made.samples[0], replace(made.samples[0], width=416)))
    replay = Replay(load_profile(arch), twice, None)
    assert replay.run(before_steps(plan_of(twice, load_profile(arch))))
    assert "activations" not in {name for name, size in replay.state.bytes_of.items() if size > 2**24}
    assert not replay.state.named.get("clip_features")


def test_only_diffusers_pipeline_keeps_a_mask_of_the_latents_through_a_preview() -> None:
    """480x320, 33 frames: 5,400 tokens of 64 values, in fp32. With low_vram the trainer has a pipeline of its own."""
    profile, values = load_profile("wan21-1.3b"), {"T": 5400, "X": 512, "N": 512, "r": 16, "B": 1}
    stays = [profile.outline(f"preview/bf16/plain/first{kind}").sums(values, 512)[0] for kind in ("", "/low_vram")]
    assert sum(stays[0].values()) - sum(stays[1].values()) == 5400 * 64 * 4


def test_a_tiled_decode_covers_the_picture() -> None:
    rows = [operation.values for operation in tiled(832, 480, 9) if isinstance(operation, Part) and operation.key == "tile.row"]
    assert sum(values["A"] for values in rows) == 832 * 480 // 256
    firsts = [o for o in tiled(832, 480, 9) if isinstance(o, Part) and o.key == "tile.first"]
    assert len(firsts) == 5 * 3  # a tile every 192 pixels
    assert max(o.values["A"] for o in firsts) == 256  # of 256 x 256 pixels at most


def test_clips_and_images_are_steps_of_their_own() -> None:
    made = clip_job("wan21-1.3b", 33)
    mixed = replace(made.datasets[0], buckets=(*made.datasets[0].buckets, Bucket(480, 320, count=1)))
    assert [step[0].bucket.frames for step in steps_of(replace(made, datasets=(mixed,)), 512)] == [1, 33]


@pytest.mark.parametrize("arch", [*WANS, "wan22-14b"])
def test_previews_are_decoded_in_tiles_with_low_vram_or_where_the_config_asks_for_it(tmp_path: Path, arch: str) -> None:
    wan21 = {**WAN, "name_or_path": load_archs().archs[arch].hub[0]}
    model = {**wan21, "arch": "wan22_14b"} if arch == "wan22-14b" else wan21
    asked = read(tmp_path, model={**model, "model_kwargs": {"vae_tiling": True}})
    assert (asked.model.vae_tiling, [text for text in asked.warnings if "vae_tiling" in text]) == (True, [])
    whole, tiles = (clip_job(arch, 9, size=(480, 320)) for _ in range(2))
    tiles = replace(tiles, model=replace(tiles.model, vae_tiling=True))
    keys = [{o.key.split(".")[0] for o in before_steps(plan_of(one, load_profile(arch))) if isinstance(o, Part)} for one in (whole, tiles)]
    assert ["tile" in found for found in keys] == [False, True]
    assert highest(tiles, "sample").allocated_bytes <= highest(whole, "sample").allocated_bytes


@pytest.mark.parametrize("batch", [1, 4])
def test_peak_rows_keep_nothing_of_an_encoded_clip(batch: int) -> None:
    """Rows are a lower bound: with joined latents left behind by each step they were 0.9 GiB above the replay (batch 7, 3000 px)."""
    sets = ("datasets.*.resolution=[2048]", f"train.batch_size={batch}", "train.disable_sampling=true")
    (made,) = read_jobs(Path(__file__).resolve().parent.parent / "examples" / "wan21_1b_ui.yaml", sets)
    card = find_gpu("A100-80G")
    rows, replayed = (estimate_job(made, card, fast=fast) for fast in (True, False))
    for least, phase in zip(rows.phases, replayed.phases, strict=True):
        assert (least.phase, least.variant) == (phase.phase, phase.variant)
        assert least.allocated_bytes <= phase.allocated_bytes


def test_what_an_encode_frees_is_mended_once() -> None:
    """The profile is as `calibration.extract.clips_joined` leaves it; of what it was made of, that is the only thing that moves."""
    kept = stored.read(profiles_dir() / "wan21-1.3b").programs
    ends = {key: program for key, program in kept.items() if key.startswith(clips_joined.ENCODED) and key.endswith(clips_joined.LAST)}
    assert len(ends) == 2
    for key, program in kept.items():
        assert clips_joined.corrected(key, program) is program
    for key, program in ends.items():
        place = program.sequence.names.index(clips_joined.JOINED)
        blunt = list(program.coefficients)
        blunt[place] = tuple(int(name == "1") for name in program.features)
        again = clips_joined.corrected(key, replace(program, coefficients=blunt))
        assert again.coefficients == program.coefficients


@pytest.mark.parametrize(("frames", "cached", "told"), [(5, False, False), (8, False, False), (9, False, True), (5, True, True)])
def test_short_clips_that_were_never_recorded_are_named_in_words(frames: int, cached: bool, told: bool) -> None:
    """The key of the missing part, 'step.head/encoded/encoded/one/two', says nothing to a user."""
    sets = (f"datasets.*.num_frames={frames}", f"datasets.*.cache_latents_to_disk={str(cached).lower()}", "train.disable_sampling=true")
    (made,) = read_jobs(Path(__file__).resolve().parent.parent / "examples" / "wan21_1b_ui.yaml", sets)
    if told:
        assert bound(made).phases
        return
    with pytest.raises(CannotTell, match="5 to 8 frames"):
        bound(made)


OFFLOADED = {"layer_offloading": True}


@pytest.mark.parametrize(
    "model",
    [
        {"quantize": True},
        {"quantize": True, "qtype": "uint4"},
        {"low_vram": True},
        {"quantize": True, "layer_offloading_transformer_percent": 0.1},
    ],
)
@pytest.mark.parametrize("name", ["Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B"])
def test_offloading_on_which_the_trainer_stops_is_a_problem_of_the_config(tmp_path: Path, name: str, model: dict[str, Any]) -> None:
    """What quantising or low_vram has left on the host and is no layer's stays there (scale_shift_table of each block)."""
    (problem,) = refusal(tmp_path, model=WAN | {"name_or_path": f"Wan-AI/{name}-Diffusers"} | OFFLOADED | model)
    assert problem.place is not None
    assert problem.place.key.endswith("model.layer_offloading")
    assert "layer_offloading_transformer_percent: 0" in problem.fix


@pytest.mark.parametrize(
    ("name", "model", "unmodelled"),
    [
        ("Wan2.1-T2V-1.3B", {}, set()),
        ("Wan2.1-T2V-1.3B", {"quantize_te": True, "layer_offloading_transformer_percent": 0.5}, set()),
        ("Wan2.1-T2V-1.3B", {"quantize": True, "layer_offloading_transformer_percent": 0}, {"layer_offloading"}),
        ("Wan2.1-T2V-14B", {}, set()),
    ],
)
def test_which_offloading_of_wan_is_modelled(tmp_path: Path, name: str, model: dict[str, Any], unmodelled: set[str]) -> None:
    made = read(tmp_path, model=WAN | {"name_or_path": f"Wan-AI/{name}-Diffusers"} | OFFLOADED | model)
    assert {entry.place.key.split(".")[-1] for entry in made.unmodelled} == unmodelled


def offloaded(share: float, text: float = 1.0, model: Model | None = None) -> Job:
    made = clip_job("wan21-1.3b", 33)
    shares = {"layer_offloading_transformer_percent": share, "layer_offloading_text_encoder_percent": text}
    kinds = {"weights": "bf16", "te_weights": "bf16", "layer_offloading": share + text > 0}
    return replace(made, model=model or replace(made.model, **shares, **kinds))  # type: ignore[arg-type]


def test_the_more_layers_of_wan_wait_on_the_host_the_less_a_step_needs() -> None:
    needs = [[peak.allocated_bytes for peak in simulate(offloaded(share)).phases if peak.phase == "train"] for share in (0, 0.5, 1)]
    assert all(more > less for before, after in pairwise(needs) for more, less in zip(before, after, strict=True))


def test_wans_transformer_is_on_the_card_before_its_layers_are_taken_and_off_it_before_the_text_encoder_comes() -> None:
    """Loading is highest at the text encoder, which is larger, offloaded or not; what the transformer had left is given back (a flush)."""
    whole, text = (sum(load_profile("wan21-1.3b").resident(name, "bf16")) for name in ("transformer", "text_encoder0"))
    for share in (0.0, 1.0):
        loads = [p for p in simulate(offloaded(share, share)).phases if p.phase == "load"]
        assert loads[0].allocated_bytes >= whole
        assert (max(p.reserved_bytes for p in loads) >= whole + text) == (share == 0)


def test_previews_of_wan_with_layers_offloaded_never_merge_the_adapter() -> None:
    profile = profile_of("wan21-1.3b", offloaded(1.0).model)
    merged, apart = load_profile("wan21-1.3b").program("preview/bf16/cfg/first"), profile.program("preview/bf16/cfg/first")
    assert len(apart.names) > 1.5 * len(merged.names)  # the adapter's products in each layer


def test_no_advice_offloads_layers_of_wan_where_the_trainer_would_stop() -> None:
    low_vram = replace(offloaded(1.0).model, low_vram=True)
    for model in (low_vram, replace(offloaded(1.0).model, weights="float8")):
        with pytest.raises(CannotTell, match="layer offloading"):
            modelled_job(offloaded(1.0, model=model))
    assert modelled_job(offloaded(1.0)) == offloaded(1.0)
    assert modelled_job(offloaded(0.0, model=replace(low_vram, layer_offloading_transformer_percent=0.0))).model.low_vram
