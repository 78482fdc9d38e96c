"""HiDream-I1: pictures that are padded unless they are squares, previews of one area, experts, and what the trainer stops on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_writer import read, refusal, train, unmodelled_keys

from calibration.architectures.base import Layout, passes
from calibration.architectures.hidream import LAYOUT, TEXT_TOKENS, shares
from calibration.extract import padded
from calibration.extract.parts import Occurrence
from estimator.archs import load_archs
from estimator.features import feature, image_values
from estimator.job import Bucket, Job
from estimator.operations import MoveIn, MoveOut, Part
from estimator.padded import is_square, scaled_to_area, unequal
from estimator.plans import PLANS
from tests.test_extract import recorded

WORDS = ["ff_i.experts", "ff_i.gate"]
MODEL = {"name_or_path": "HiDream-ai/HiDream-I1-Full", "arch": "hidream", "quantize": True, "quantize_te": True}
ENCODERS = tuple(f"text_encoder{n}" for n in range(4))


def adapter(words: list[str] | None) -> dict[str, Any]:
    return {"type": "lora", "linear": 16, **({} if words is None else {"network_kwargs": {"ignore_if_contains": words}})}


def hidream(tmp_path: Path, **sections: Any) -> Job:
    return read(tmp_path, **{"model": MODEL, "network": adapter(WORDS), **sections})


def asked(width: int, height: int, guidance: float = 4.0) -> dict[str, Any]:
    return {"samples": [{"prompt": "a heron"}], "width": width, "height": height, "guidance_scale": guidance}


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("size", "made"),
    [
        ((1024, 1024), (1024, 1024)), ((512, 512), (1024, 1024)), ((768, 1344), (768, 1344)), ((832, 1216), (832, 1232)),
        ((1280, 720), (1360, 768)), ((64, 64), (1024, 1024)), ((2048, 512), (2048, 512)),
    ],
)  # fmt: skip
def test_previews_have_the_area_of_1024_squared(tmp_path: Path, size: tuple[int, int], made: tuple[int, int]) -> None:
    (sample,) = hidream(tmp_path, sample=asked(*size)).samples
    assert (sample.width, sample.height) == made
    assert image_values(*made)["T"] <= load_archs().archs["hidream"].padded_to


def test_every_scaled_size_fits_what_pictures_are_padded_to() -> None:
    for width in range(64, 2049, 72):
        for height in range(64, 2049, 56):
            assert 0 < image_values(*scaled_to_area(width, height, 1024, 16))["T"] <= 4096


def test_an_absent_folder_has_pictures_that_are_no_squares(tmp_path: Path) -> None:
    """At 512 px a square is 1024 tokens, any other picture 4096."""
    (plain,) = hidream(tmp_path).datasets
    assert (plain.buckets[0].width, plain.buckets[0].height) == (512, 496)
    (cropped,) = hidream(tmp_path, datasets=[{"folder_path": "/nowhere", "resolution": 512, "square_crop": True}]).datasets
    assert (cropped.buckets[0].width, cropped.buckets[0].height) == (512, 512)
    assert unequal(640, 448, 16) == (640, 448)


def test_larger_pictures_than_they_are_padded_to_stop_the_trainer(tmp_path: Path) -> None:
    larger = {"folder_path": "/nowhere", "resolution": 1280}
    (problem,) = refusal(tmp_path, model=MODEL, network=adapter(WORDS), datasets=[larger])
    assert "4,096 tokens" in problem.what
    assert hidream(tmp_path, datasets=[{**larger, "square_crop": True}]).unmodelled == ()


@pytest.mark.parametrize(
    ("words", "known"),
    [(WORDS, True), (WORDS[:1], True), (WORDS[1:], False), ([], False), (None, False), ([*WORDS, "ff_t"], False)],
)
def test_the_adapter_leaves_the_experts_out(tmp_path: Path, words: list[str] | None, known: bool) -> None:
    found = unmodelled_keys(hidream(tmp_path, network=adapter(words)))
    assert found == (set() if known else {"network.network_kwargs.ignore_if_contains"})


def test_the_recorded_adapter_is_one_without_filters(tmp_path: Path) -> None:
    job = hidream(tmp_path)
    assert job.network is not None
    assert job.network.ignore_if_contains == ()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"cache_text_embeddings": True, "batch_size": 2}, "train.batch_size"), ({"batch_size": 4}, None),
        ({"cache_text_embeddings": True}, None), ({"unload_text_encoder": True}, "train.unload_text_encoder"),
        ({"unload_text_encoder": True, "cache_text_embeddings": True}, None),
    ],
)  # fmt: skip
def test_cached_texts_are_of_single_pictures(tmp_path: Path, settings: dict[str, Any], key: str | None) -> None:
    """concat_prompt_embeds puts the lists of two samples one behind the other: two are trained on 64 tokens of each (read, not run)."""
    assert unmodelled_keys(hidream(tmp_path, train=train(**settings))) == ({key} if key else set())


def test_a_dataset_of_its_own_batch_size_counts(tmp_path: Path) -> None:
    entry = {"folder_path": "/nowhere", "resolution": 512, "batch_size": 2, "cache_text_embeddings": True}
    assert unmodelled_keys(hidream(tmp_path, datasets=[entry])) == {"train.batch_size"}


def test_without_gradient_checkpointing_the_trainer_stops(tmp_path: Path) -> None:
    """Run: one of the variables needed for gradient computation has been modified by an inplace operation (ScatterReduce)."""
    (problem,) = refusal(tmp_path, model=MODEL, network=adapter(WORDS), train=train(gradient_checkpointing=False))
    assert problem.place is not None
    assert problem.place.key == "train.gradient_checkpointing"


# ---------------------------------------------------------------- the timeline


def plan(job: Job) -> Any:
    return PLANS["hidream"](job, ENCODERS)


def test_cores_and_previews_go_by_the_shape_of_pictures(tmp_path: Path) -> None:
    made = plan(hidream(tmp_path))
    assert [made.core(Bucket(*size)) for size in ((512, 512), (512, 528))] == ["step.core", "step.core.padded"]
    for size, kind in (((512, 512), "preview"), ((512, 528), "preview.padded")):
        job = hidream(tmp_path, sample=asked(*size))
        keys = [one.key for one in plan(job)._preview(job.samples[0], "first") if isinstance(one, Part)]
        assert keys[-1] == f"{kind}/qfloat8/cfg/encoded"


@pytest.mark.parametrize("low", [False, True])
def test_llama_is_loaded_first_and_with_low_vram_waits_on_the_host(tmp_path: Path, low: bool) -> None:
    made = list(plan(hidream(tmp_path, model=MODEL | {"low_vram": low})).load())
    keys = [one.key.split("/")[0] for one in made if isinstance(one, Part)]
    assert keys == ["load.text", "load.transformer", "load.beside", "load.text.t5", "load.rest"]
    moves = [one for one in made if isinstance(one, (MoveIn, MoveOut))]
    llama = "text_encoder3"
    assert moves == ([MoveOut(llama), MoveOut(llama), MoveIn("transformer"), MoveIn(llama)] if low else [])


# ---------------------------------------------------------------- recordings


@pytest.mark.parametrize("tokens", [1, 2, 3, 1408, 4480])
def test_as_many_tokens_go_to_each_expert(tokens: int) -> None:
    counts = shares(tokens)
    assert sum(counts) == 2 * tokens
    assert max(counts) - min(counts) <= 1


def test_a_block_sees_a_picture_and_three_texts() -> None:
    given = {"T": 1024, "X": TEXT_TOKENS, "B": 1}
    assert (feature("SX", given), feature("SX128", given)) == (1408, 1408)
    assert feature("SX128", {**given, "T": 1025}) == 1536


def occurrence(key: str, width: int, height: int) -> Occurrence:
    return Occurrence(recorded(()), key, [], {**image_values(width, height), "B": 1, "r": 8, "X": TEXT_TOKENS, "N": TEXT_TOKENS})


@pytest.mark.parametrize(
    ("key", "size", "cut", "made"),
    [
        ("step.core/qfloat8/checkpointed/one", (512, 512), "step.core/qfloat8/checkpointed/one", (512, 512)),
        ("step.core/qfloat8/checkpointed/many", (512, 640), "step.core.padded/qfloat8/checkpointed/many", (512, 640)),
        ("preview/qfloat8/cfg/encoded", (512, 512), "preview/qfloat8/cfg/encoded", (1024, 1024)),
        ("preview/qfloat8/cfg/cached", (832, 1216), "preview.padded/qfloat8/cfg/cached", (832, 1232)),
        ("step.head/cached/encoded/one", (512, 640), "step.head/cached/encoded/one", (512, 640)),
    ],
)
def test_recordings_are_told_apart_by_the_shape_of_pictures(key: str, size: tuple[int, int], cut: str, made: tuple[int, int]) -> None:
    (part,) = padded.split(iter([occurrence(key, *size)]), LAYOUT)
    assert part.key == cut
    assert {name: part.values[name] for name in ("T", "E")} == {name: image_values(*made)[name] for name in ("T", "E")}


def test_a_padded_picture_takes_what_its_length_takes() -> None:
    """Only what is made of its own pixels goes with them; without padding nothing is of a fixed length."""
    for key in ("step.core.padded/qfloat8/checkpointed/one", "preview.padded/qfloat8/cfg/encoded"):
        assert not any("SX" in name for name in LAYOUT.features(key))
    assert LAYOUT.features("preview/qfloat8/plain/encoded") == ("1", "r")
    plain = Layout({}, ("T",), 2560, ("T",))
    assert "T" in plain.features("preview/qfloat8/plain/encoded")


def test_squares_are_told_by_area_and_edge() -> None:
    assert is_square(image_values(352, 352))
    assert not is_square(image_values(1008, 1040))


def test_probes_of_models_that_stop_without_checkpointing_have_each_step_once() -> None:
    assert [passes("hidream", True), passes("zimage", True), passes("hidream", False)] == [(True,), (True, False), (None,)]
