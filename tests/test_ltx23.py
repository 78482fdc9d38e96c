"""LTX-2.3 beside LTX-2: the same text encoder and timeline, previews that are always guided, another transformer and VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_writer import read

from calibration.architectures import ARCHITECTURES
from calibration.extract import sounded
from calibration.extract.parts import Occurrence
from calibration.extract.runs import Phase
from estimator import rebuilt_loading, stays
from estimator.archs import load_archs
from estimator.errors import CannotTell
from estimator.features import feature
from estimator.operations import Part, Release
from estimator.plans import PLANS
from estimator.programs import Profile, load_profile
from estimator.stays import STEP_BEFORE
from tests.test_extract import recorded

MODEL = {"name_or_path": "Lightricks/LTX-2.3/ltx-2.3-22b-dev.safetensors", "arch": "ltx2.3", "quantize": True, "quantize_te": True}
TEXT, IMAGE = "text/qfloat8/plain/one", "decode.image/one"


def job_of(tmp_path: Path, guidance: float, **model: Any) -> Any:
    sample = {"samples": [{"prompt": "a heron"}], "width": 512, "height": 512, "num_frames": 9, "guidance_scale": guidance}
    return read(tmp_path, model=MODEL | model, sample=sample)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_previews_run_both_prompts_whatever_their_scale(tmp_path: Path, guidance: float) -> None:
    """The trainer asks its pipeline for guidance of the sound (audio_guidance_scale 7), which takes both prompts."""
    (sample,) = job_of(tmp_path, guidance).samples
    assert (sample.guided, sample.batch) == (True, 2)
    (other,) = job_of(tmp_path, guidance, name_or_path="Lightricks/LTX-2", arch="ltx2").samples
    assert (other.guided, other.batch) == ((False, 1) if guidance == 1.0 else (True, 2))


def test_a_preview_is_the_guided_program(tmp_path: Path) -> None:
    job = job_of(tmp_path, 1.0)
    made = PLANS["ltx2"](job, ("text_encoder0",))._preview(job.samples[0], "first")
    assert [one.key for one in made if isinstance(one, Part) and one.key.startswith("preview/")] == ["preview/qfloat8/cfg"]


@pytest.mark.parametrize(("arch", "guidance", "count"), [("ltx2.3", 1.0, 8), ("ltx2", 4.0, 4), ("ltx2", 1.0, 2)])
def test_predictions_of_the_step_before_stay_while_a_preview_is_denoised(tmp_path: Path, arch: str, guidance: float, count: int) -> None:
    """As in whole runs, of two steps: at 768x768 and 121 frames LTX-2.3 has 37,748,736 bytes more than a recorded preview of one step."""
    job = job_of(tmp_path, guidance, arch=arch)
    made = list(PLANS["ltx2"](job, ("text_encoder0",))._preview(job.samples[0], "first"))
    keys = [one.key if isinstance(one, Part) else one for one in made]
    at = keys.index(f"{STEP_BEFORE}/{count}")
    assert (keys[at + 1].split("/")[0], keys[at + 2]) == ("preview", Release("step before"))
    assert stays.PROGRAMS[keys[at]].sizes({"T": 9216}).tolist() == [512 * 9216] * count


def borrower(shares: str | None) -> Profile:
    data = {"arch": "made", "relative": "ltx2", "parts": {}, "residents": {}, **({"shares": shares} if shares else {})}
    return Profile("made", data, Path("nowhere"))


def test_what_shares_the_text_encoder_alone_borrows_no_part_of_the_vae() -> None:
    assert borrower("text").program(TEXT) is load_profile("ltx2").program(TEXT)
    assert borrower("text").resident("text_encoder0", "qfloat8") == load_profile("ltx2").resident("text_encoder0", "qfloat8")
    for ask in (lambda: borrower("text").program(IMAGE), lambda: borrower("text").resident("vae", "bf16")):
        with pytest.raises(CannotTell):
            ask()
    assert borrower(None).program(IMAGE) is load_profile("ltx2").program(IMAGE)


def test_parts_of_keys_are_told_in_forwards_of_one_prompt_too() -> None:
    """A sum and a result of each part, one behind the other, of sound that looks at pictures; what is as large elsewhere is left."""
    values = {"T": 1000, "A": 1000, "O": 25, "F": 1, "E": 60, "B": 2}
    sizes = {batch: 32 * 4 * feature("B*O*narrow32_O_T", values | {"B": batch}) for batch in (2, 1)}
    assert len({*sizes.values(), 0}) == 3
    events = [("a", "blocks.0.video_to_audio_attn|forward#rotated", 64 * sizes[1])]
    for batch, size in sizes.items():
        label = f"blocks.{batch}.video_to_audio_attn|forward"
        events += [("a", f"{label}#sums", size), ("a", f"{label}#results", 64 * size)]
    run = recorded(events)
    sounded._tell_parts_of_keys(Occurrence(run, "preview", list(range(len(events))), values))
    assert [tensor.label.endswith("partial results") for tensor in run.tensors] == [False, True, True, True, True]


@pytest.mark.parametrize("sound", [True, False])
def test_an_optimizer_s_first_step_is_taken_from_a_batch_with_sound(sound: bool) -> None:
    """Without, the last block's layers for sound have no gradient, and no state is made for them."""
    run = recorded([("a", "step", 8), ("a", "optimizer_step", 8)])
    run.root.inner = [Phase("step", 0, {"buckets": [{"sound": sound}]}, 2)]
    found = [Occurrence(run, "step.update/adamw/first", [1], {}), Occurrence(run, "step.update/adamw/later", [1], {})]
    kept = [part.key for part in sounded.split(run, found, ARCHITECTURES["ltx2.3"].layout)]
    assert kept == ["step.update/adamw/first"] * sound + ["step.update/adamw/later"]


def test_calibration_and_the_table_say_the_same_of_guidance() -> None:
    for key, family in ARCHITECTURES.items():
        arch = load_archs().archs.get(key)
        if arch is not None:
            assert family.layout.always_guided == arch.always_guided, key


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"qtype": "float8"}, set()), ({"quantize": False}, set()), ({"qtype_te": "uint4"}, set()),
        ({"qtype": "uint4"}, set() if "ltx2.3" in rebuilt_loading.CHECKED else {"model.qtype"}),
        ({"qtype": "uint4", "low_vram": True}, set()), ({"layer_offloading": True}, set()),
    ],
)  # fmt: skip
def test_what_was_not_recorded_is_named(tmp_path: Path, changed: dict[str, Any], named: set[str]) -> None:
    places = [entry.place.key.removeprefix("config.process.0.") for entry in read(tmp_path, model=MODEL | changed).unmodelled]
    assert set(places) == named


def test_previews_in_bf16_merge_the_adapter() -> None:
    """Merging makes each layer's product in fp32; its size is the layer's, whatever the rank. One job was recorded."""
    profile, layer = load_profile("ltx2.3"), 4 * 4096 * 16384
    assert all(profile.program("sample.enter/bf16/none/later").peak({"r": rank})[0] > 3 * layer for rank in (4, 64))
    values = {"T": 6144, "A": 384, "F": 16, "O": 121, "M": 200, "B": 1, "X": 24, "r": 16, "N": 20}
    assert profile.program("preview/qfloat8/cfg").peak(values)[0] > profile.program("preview/bf16/cfg/later").peak(values)[0]


def test_with_low_vram_bf16_loads_its_text_encoder_alone() -> None:
    profile = load_profile("ltx2.3")
    assert not [name for name in profile.program("load.rest/bf16/low_vram").names if (name or "").startswith("transformer")]
    assert profile.program("load.rest/bf16/plain").peak({})[0] > 35 * 2**30
