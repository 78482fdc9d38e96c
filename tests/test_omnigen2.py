"""OmniGen2: previews with a control image or without, what the trainer stops on, and kernels that are measured at their first calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config_writer import read, refusal, train, unmodelled_keys

from estimator import tuned
from estimator.allocator import FREE, Allocator
from estimator.archs import load_archs
from estimator.engine import estimate_job
from estimator.errors import CannotTell
from estimator.gpus import find_gpu
from estimator.job import Job
from estimator.kernels import NORMS_BY_TRITON
from estimator.operations import MoveIn, MoveOut, Part
from estimator.part_events import events_of, requests
from estimator.plans import PLANS
from estimator.programs import load_profile
from estimator.residents import State
from estimator.tokens import omnigen2_tokens
from tests.made_jobs import values

MODEL = {"name_or_path": "OmniGen2/OmniGen2", "arch": "omnigen2", "quantize_te": True}
ENCODERS = ("text_encoder0",)
CONTROL = "/nowhere/control.png"


def omnigen2(tmp_path: Path, **sections: Any) -> Job:
    return read(tmp_path, **{"model": MODEL, **sections})


def asked(width: int, height: int, **entry: Any) -> dict[str, Any]:
    return {"samples": [{"prompt": "a heron", **entry}], "width": width, "height": height, "guidance_scale": 4}


# ---------------------------------------------------------------- reading


def test_a_prompt_is_in_the_chat_template_twice_and_cut_at_256_tokens() -> None:
    assert omnigen2_tokens("") == 50
    assert omnigen2_tokens("a red fox") == 53
    assert omnigen2_tokens("fox " * 500) == 256


@pytest.mark.parametrize(
    ("size", "made"), [((512, 768), (512, 768)), ((1024, 1024), (1024, 1024)), ((1344, 768), (1344, 768)), ((2048, 1024), (1440, 720))]
)
def test_previews_of_more_than_a_megapixel_are_made_as_one(tmp_path: Path, size: tuple[int, int], made: tuple[int, int]) -> None:
    (sample,) = omnigen2(tmp_path, sample=asked(*size)).samples
    assert (sample.width, sample.height) == made


def test_previews_need_no_control_image_and_may_have_one(tmp_path: Path) -> None:
    assert omnigen2(tmp_path, sample=asked(768, 1024)).samples[0].controls == ()
    assert len(omnigen2(tmp_path, sample=asked(768, 1024, ctrl_img=CONTROL)).samples[0].controls) == 1


@pytest.mark.parametrize(("width", "known"), [(1024, True), (1040, False), (1344, False)])
def test_control_images_of_previews_are_no_larger_than_1024_pixels(tmp_path: Path, width: int, known: bool) -> None:
    """The pipeline makes them smaller by itself, and the preview stays as large as it is."""
    job = omnigen2(tmp_path, sample=asked(width, 640, ctrl_img=CONTROL))
    assert unmodelled_keys(job) == (set() if known else {"sample"})
    assert not unmodelled_keys(omnigen2(tmp_path, sample=asked(width, 640)))


def test_pictures_have_control_images_of_their_own_size_or_none(tmp_path: Path) -> None:
    both = [{"folder_path": "/nowhere/images", "resolution": 512, "control_path": path} for path in ("/nowhere/controls", None)]
    controlled, plain = omnigen2(tmp_path, datasets=both).datasets
    assert all(bucket.controls for bucket in controlled.buckets)
    assert not any(bucket.controls for bucket in plain.buckets)


def test_with_cached_text_the_trainer_stops_at_a_preview(tmp_path: Path) -> None:
    """Run: IndexError, list index out of range (get_generation_pipeline: self.text_encoder[0])."""
    (problem,) = refusal(tmp_path, model=MODEL, train=train(cache_text_embeddings=True), sample=asked(512, 512))
    assert problem.place is not None
    assert problem.place.key == "train.cache_text_embeddings"
    for settings in ({"cache_text_embeddings": True}, {"unload_text_encoder": True}):
        assert not unmodelled_keys(omnigen2(tmp_path, train=train(**settings, disable_sampling=True), sample=asked(512, 512)))
    assert not unmodelled_keys(omnigen2(tmp_path, train=train(unload_text_encoder=True), sample=asked(512, 512)))


def test_its_norms_are_tritons(tmp_path: Path) -> None:
    job, card = omnigen2(tmp_path), find_gpu("RTX4090")
    assert estimate_job(job, card).phases
    with pytest.raises(CannotTell, match="Triton"):
        estimate_job(job, replace(card, os="windows"))


def test_flash_attn_is_warned_of(tmp_path: Path) -> None:
    """The trainer's Docker image has it, its requirements have not."""
    (warning,) = [text for text in omnigen2(tmp_path, model=MODEL).warnings if "flash-attn" in text]
    assert warning.startswith("OmniGen2 is estimated without flash-attn")
    assert "computes attention and SwiGLU" in warning


# ---------------------------------------------------------------- the timeline


@pytest.mark.parametrize("low", [False, True])
def test_with_low_vram_the_text_encoder_waits_on_the_host(tmp_path: Path, low: bool) -> None:
    made = list(PLANS["omnigen2"](omnigen2(tmp_path, model=MODEL | {"low_vram": low}), ENCODERS).load())
    keys = [one.key.split("/")[0] for one in made if isinstance(one, Part)]
    assert keys == ["load.text", "load.transformer", "load.beside"]
    moves = [one for one in made if isinstance(one, (MoveIn, MoveOut))]
    assert moves == ([MoveOut("text_encoder0"), MoveIn("transformer"), MoveIn("text_encoder0")] if low else [])


@pytest.mark.parametrize(("settings", "leaves"), [({"cache_text_embeddings": True}, False), ({"unload_text_encoder": True}, True)])
def test_with_cached_text_the_encoder_stays_on_the_card(tmp_path: Path, settings: dict[str, bool], leaves: bool) -> None:
    """Was: it left, as elsewhere, and every step of a whole run was 4,232 MiB too low."""
    plan = PLANS["omnigen2"](omnigen2(tmp_path, train=train(**settings, disable_sampling=True)), ENCODERS)
    assert any(one == MoveOut("text_encoder0") for one in (*plan.prepare(), *plan.enter_loop())) is leaves


@pytest.mark.parametrize(("control", "kind"), [(None, "preview"), (CONTROL, "preview.controlled")])
def test_a_preview_with_a_control_image_is_a_part_of_its_own(tmp_path: Path, control: str | None, kind: str) -> None:
    job = omnigen2(tmp_path, sample=asked(512, 512, **({"ctrl_img": control} if control else {})))
    keys = [one.key for one in PLANS["omnigen2"](job, ENCODERS)._preview(job.samples[0], "first") if isinstance(one, Part)]
    assert keys[-1] == f"{kind}/bf16/cfg/encoded/first"


def test_with_the_encoder_unloaded_a_round_of_previews_brings_it_back_and_keeps_the_prompts(tmp_path: Path) -> None:
    job = omnigen2(tmp_path, train=train(unload_text_encoder=True), sample=asked(512, 512, ctrl_img=CONTROL))
    plan = PLANS["omnigen2"](job, ENCODERS)
    first, later = (list(plan.sampling(when)) for when in ("first", "later"))
    for made in (first, later):
        moves = [one for one in made if one in (MoveIn("text_encoder0"), MoveOut("text_encoder0"))]
        assert moves == [MoveIn("text_encoder0"), MoveOut("text_encoder0")]
        keys = [one.key for one in made if isinstance(one, Part)]
        assert not [key for key in keys if key.startswith("text/")]
        assert any(key.startswith("preview.controlled/bf16/cfg/encoded/") for key in keys)
    profile, (kept,) = load_profile("omnigen2"), [one for one in first if isinstance(one, Part) and one.key.startswith("preview.kept")]
    assert kept not in later
    assert profile.program(kept.key).sizes({"X": 68, "N": 50}).tolist() == [278528, 544, 204800, 400]  # as a whole run has them


# ---------------------------------------------------------------- kernels that are measured


def test_each_kernel_is_measured_once() -> None:
    """A first step measures all three; then nothing is left to measure. A first preview leaves the backward pass's to the first step."""
    profile = load_profile("omnigen2")
    given = values("omnigen2", "step.core/qfloat8/checkpointed/one", 512, 512, 1, 16, 60)

    def made(state: State, key: str) -> list[int]:
        program, part = profile.program(key), Part(key, given)
        run = events_of(program, part, requests(program, given)[1], state.take_keys(len(program.names)), state)
        after, places = tuned.laid("omnigen2", program, part, run, state)
        assert len(after.events) == len(run.events) + 2 * len(places)
        assert [int(after.events[place]) for place in places] == [tuned.BUFFER_BYTES] * len(places)
        assert [int(after.events[place + 1]) for place in places] == [FREE] * len(places)
        return places

    step, preview = "step.core/qfloat8/checkpointed/one", "preview/qfloat8/cfg/encoded"
    stepped, previewed = State(Allocator()), State(Allocator())
    assert [len(made(stepped, step)) for _ in range(2)] == [3, 0]
    assert [len(made(previewed, key)) for key in (preview, preview, step)] == [2, 0, 1]
    assert made(State(Allocator()), "step.control/one") == []


def test_the_buffer_comes_and_goes_where_the_kernels_results_are_made() -> None:
    profile = load_profile("omnigen2")
    program = profile.program("step.core/qfloat8/checkpointed/one")
    places = [program.first_in(moments) for moments, _ in tuned.PLACES.values()]
    assert None not in places
    assert places == sorted(place for place in places if place is not None)
    births = np.flatnonzero(program.events == 0)
    for place in places:
        assert place is not None
        assert program.tensor_of_event[births[place]] == place
    assert FREE < 0


def test_other_architectures_measure_nothing() -> None:
    assert {key for key, arch in load_archs().archs.items() if arch.measures_kernels} == NORMS_BY_TRITON == {"omnigen2"}


def test_layers_that_are_not_checkpointed_keep_no_inputs_where_quanto_alone_did() -> None:
    """By rule in bf16: refiners run once, with all they save; their layers' inputs are let go in the forward pass, as recorded."""
    profile = load_profile("omnigen2")
    made, quantos = (profile.program(f"step.core/{kind}/checkpointed/one") for kind in ("bf16", "qfloat8"))
    lives = []
    for program in (quantos, made):
        whose = [program.moments[row] for row in program.labels]
        product = max(k for k, moment in enumerate(whose) if moment == "transformer.noise_refiner.0.feed_forward|forward")
        lives.append(int(program.deaths[product]) - product)
    assert lives[0] > 1000
    assert lives[1] < 20
