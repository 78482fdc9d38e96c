"""LTX-2: how its clips, their sound and its texts are counted, and in which order its timeline takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.architectures import ARCHITECTURES
from calibration.architectures.ltx2 import LTX2
from calibration.clips import write_clip
from calibration.extract import sounded
from calibration.extract.parts import Occurrence
from calibration.extract.programs import extract
from calibration.extract.runs import Phase
from estimator.archs import load_archs
from estimator.batches import Batch, steps_of
from estimator.datasets import scan
from estimator.features import Cells, feature, image_values
from estimator.job import Bucket, Dataset, Job, Model, Network, Sample, Train
from estimator.ltx2 import Ltx2Plan
from estimator.operations import MoveIn, Operation, Part, Release
from estimator.plans import before_steps, steps
from estimator.programs import load_profile
from estimator.sizes import sizes_of
from estimator.trainers.aitoolkit_video import FrameRule, preview_frames
from estimator.videos import read_clip
from tests.test_extract import recorded

ARCH = load_archs().archs["ltx2"]
CLIP = Bucket(512, 320, 81, count=1, text_tokens=40, sound_tokens=84, sound=True)


def clips(low_vram: bool = True, cached: bool = False, sampling: bool = True) -> Job:
    dataset = Dataset("/clips", 512, 1, (CLIP,), scanned=True, cache_latents_to_disk=cached)
    samples = (Sample(512, 512, 41, 4.0, 20, 1, batch=2, guided=True, sound_tokens=43),)
    model = Model("Lightricks/LTX-2", weights="qfloat8", te_weights="qfloat8", low_vram=low_vram)
    train = Train(disable_sampling=not sampling, optimizer="adamw8bit")
    return Job("made", "ai-toolkit", "ltx2", "ltx2", "lora", model, Network(rank=16), train, (dataset,), samples)


def plan(job: Job) -> Ltx2Plan:
    return Ltx2Plan(job, ("text_encoder0",))


@pytest.mark.parametrize("sound", [True, False])
def test_sound_is_trained_where_it_is_asked_for_and_there(tmp_path: Path, sound: bool) -> None:
    write_clip(tmp_path / "a.avi", 640, 480, 50, sound=sound)
    assert read_clip(str(tmp_path / "a.avi")).sound == sound
    (image,) = scan(str(tmp_path), video=True).images
    asked = FrameRule(True, 49, step=8, sound=True).with_sound(Bucket(640, 480, 49), ARCH, image)
    # 49 / 24 seconds: 51 tokens of silence; 205 frames of a spectrogram, each fourth of which begins a token
    assert (asked.sound, asked.sound_tokens, asked.sound_frames) == ((True, 52, 205) if sound else (False, 51, 0))
    not_asked = FrameRule(True, 49, step=8).with_sound(Bucket(640, 480, 49), ARCH, image)
    assert (not_asked.sound, not_asked.sound_tokens) == (False, 51)
    slower = FrameRule(True, 49, per_second=16, step=8, sound=True).with_sound(Bucket(640, 480, 49), ARCH, image)
    assert slower.sound_tokens == 77
    still = FrameRule(True, 49, step=8, sound=True).with_sound(Bucket(640, 480, 1), ARCH, image)
    assert (still.sound, still.sound_tokens) == (False, 1)


def test_clips_that_are_not_here_are_taken_to_sound() -> None:
    assert FrameRule(True, 33, step=8, sound=True).with_sound(Bucket(640, 480, 33), ARCH, None).sound


def test_frames_of_previews_go_down_to_whole_groups() -> None:
    assert [preview_frames(asked, ARCH, low) for asked in (121, 120, 8, 1) for low in (True, False)] == [121, 121, 113, 113, 1, 1, 1, 1]


def test_a_token_is_of_32_pixels_and_8_frames() -> None:
    assert sizes_of(ARCH, CLIP) == {"T": 16 * 10 * 11, "E": 26, "A": 160, "F": 11, "O": 84}
    assert sizes_of(ARCH, Sample(768, 768, 1, sound_tokens=1))["T"] == 24 * 24


def test_recordings_and_estimates_count_tokens_alike() -> None:
    for key, family in ARCHITECTURES.items():
        if key in load_archs().archs and load_archs().archs[key].bucket_divisor:
            arch = load_archs().archs[key]
            if arch.modelled or key == "ltx2":
                assert (family.layout.cells.edge, family.layout.cells.frames) == (arch.cell_pixels, arch.cell_frames), key
                assert family.layout.sound_per_second == arch.sound_per_second, key


@pytest.mark.parametrize(("low_vram", "encoded", "decoded"), [(True, [9, 9, 7, 5, 3, 1], [3, 3, 3, 3, 2, 1]), (False, [11], [6])])
def test_low_vram_takes_clips_in_tiles_of_frames(low_vram: bool, encoded: list[int], decoded: list[int]) -> None:
    """81 frames in tiles of 64 and one every 16; a preview of 41 in tiles of 16 and one every 8 (encode_images, generate_single_image)."""
    parts = [one for one in before_steps(plan(clips(low_vram, cached=True))) if isinstance(one, Part)]
    assert [one.values["F"] for one in parts if one.key.startswith("encode.")] == encoded
    assert [one.values["F"] for one in parts if one.key.startswith(("decode.image", "decode.clip"))] == decoded


def in_steps(job: Job) -> list[Operation]:
    return list(steps(plan(job), steps_of(job, 512)))


@pytest.mark.parametrize("cached", [True, False])
def test_sounds_are_encoded_in_the_step_unless_they_are_cached(cached: bool) -> None:
    keys = [one.key for one in in_steps(clips(cached=cached)) if isinstance(one, Part)]
    assert any(key.startswith("step.core.sound") for key in keys)
    assert ("sound/one" in keys) == (not cached)


def test_captions_are_gone_when_they_were_padded() -> None:
    made = in_steps(clips())
    padded = next(n for n, op in enumerate(made) if isinstance(op, Part) and op.key.startswith("text.padded"))
    assert made[padded + 1] == Release("captions")


def test_the_text_that_is_padded_is_the_longest_of_the_batch() -> None:
    job = clips()
    made = list(plan(job).step((Batch(CLIP, 2, 77),), first=False))
    (padded,) = (op for op in made if isinstance(op, Part) and op.key.startswith("text.padded"))
    assert (padded.key, padded.values) == ("text.padded/many", {"X": 77, "B": 2})


def test_connectors_come_with_the_first_preview_or_step_and_the_vocoder_with_a_preview() -> None:
    silent = clips(sampling=False)
    assert MoveIn("connectors") not in list(before_steps(plan(silent)))
    assert MoveIn("connectors") in in_steps(silent)
    assert MoveIn("vocoder") not in in_steps(silent)
    made = list(before_steps(plan(clips())))
    assert {MoveIn("connectors"), MoveIn("vocoder")} <= {op for op in made if isinstance(op, MoveIn)}


def clip_through_a_norm(width: int, height: int, latent_frames: int) -> Occurrence:
    """What the encoder's last norm makes and lets go: squares, mean, perhaps partial results and counters, mean and epsilon, quotient."""
    values = image_values(width, height, (latent_frames - 1) * 8 + 1, Cells(32, 8))
    places, partial = values["T"], 4 * feature("mean2048_T", {**values, "B": 1})
    label = "encoder.norm1|forward"
    made = [("a", f"{label}#squares", 4096 * places), ("a", f"{label}#mean", 2 * places)]
    parts = [("a", f"{label}#parts", partial), ("a", f"{label}#counters", 4), ("f", f"{label}#parts", 0), ("f", f"{label}#counters", 0)]
    made += parts if partial else []
    made += [("f", f"{label}#squares", 0), ("a", f"{label}#sum", 2 * places), ("a", f"{label}#root", 2 * places), ("f", f"{label}#sum", 0)]
    made += [("a", f"{label}#quotient", 4096 * places), ("f", f"{label}#mean", 0), ("f", f"{label}#root", 0), ("f", f"{label}#quotient", 0)]
    run = recorded(made)
    shape = [1, 3, (latent_frames - 1) * 8 + 1, height, width]
    run.root.inner = [Phase("vae_encoder", 0, {"shape": shape}, len(run.events))]
    (part,) = sounded._tiles(Occurrence(run, "latents", list(range(len(run.events))), {}), "encode", run.root.inner, LTX2.layout)
    return part


def test_partial_results_of_a_mean_are_told_from_the_squares_that_they_are_as_large_as() -> None:
    sizes = ((256, 288, 2), (288, 352, 3), (288, 416, 2), (352, 384, 4), (288, 352, 5), (640, 544, 3))
    program = extract("encode.clip/one", [clip_through_a_norm(*size) for size in sizes], LTX2.layout)
    assert (program.recordings, program.worst_error, program.inexact) == (6, 0.0, [])


def test_of_joined_tiles_only_the_whole_is_kept() -> None:
    blends = [("a", "blended", 6), ("f", "blended", 0), ("a", "blended#2", 6), ("f", "blended#2", 0)]
    run = recorded([*blends, ("a", "whole", 600), ("a", "view", 2)])
    assert sounded._joined(run, 0, len(run.events)) == [4, 5]


@pytest.mark.parametrize("kind", ["bf16", "float8", "uint4", "uint3"])
@pytest.mark.parametrize("key", ["step.core.sound/{}/checkpointed/one", "step.core/{}/full/many", "text/{}/plain/many"])
def test_steps_and_texts_of_other_kinds_are_made_of_qfloat8s(kind: str, key: str) -> None:
    """A kind whose layers rebuild nothing holds no more at the peak; those that keep what they rebuilt for the backward pass more."""
    values = {"T": 480, "E": 26, "A": 80, "F": 6, "O": 44, "M": 173, "B": 1, "X": 24, "r": 16, "N": 1}
    profile = load_profile("ltx2")
    peak, of_qfloat8 = (profile.program(key.format(each)).peak(values)[0] for each in (kind, "qfloat8"))
    assert peak <= of_qfloat8 if kind == "bf16" else "full" not in key or peak > of_qfloat8


def test_float8_loads_with_low_vram_as_without() -> None:
    profile = load_profile("ltx2")
    assert profile.program("load.transformer/float8/low_vram").peak({}) == profile.program("load.transformer/float8/plain").peak({})
    assert not [name for name in profile.program("load.rest/float8/low_vram").names if (name or "").startswith("transformer")]
