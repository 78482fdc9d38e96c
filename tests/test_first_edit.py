"""The first Qwen-Image-Edit: one control image, at a megapixel in the prompt and at the picture's size behind the image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from config_writer import read
from test_edit import SQUARE, TALL, WIDE, pictures

from estimator.advice import edits
from estimator.batches import steps_of
from estimator.controls import ENCODE, LATENT_AREA, RAW, Size, cells
from estimator.edited import ALONE
from estimator.edited import TOGETHER as TOGETHER_TEXTS
from estimator.errors import InputError
from estimator.features import image_values
from estimator.job import Bucket, Job, Sample
from estimator.operations import Part
from estimator.plans import before_steps, plan_of, steps
from estimator.programs import load_profile
from estimator.references import TOGETHER
from estimator.tokens import qwen_first_edit_tokens
from tests.made_jobs import job

FIRST_EDIT = "qwen-image-edit"
MODEL = {"name_or_path": "Qwen/Qwen-Image-Edit", "arch": "qwen_image_edit"}


def edit(train: dict[str, Any] | None = None, samples: Any = (), folder: Path = Path(), **entry: Any) -> Job:
    sample = {"sample": {"samples": list(samples)}} if samples else {}
    return read(folder, model=MODEL, train=train or {}, datasets=[{"resolution": 512, **entry}], **sample)


def test_the_prompt_sees_a_megapixel(tmp_path: Path) -> None:
    data, control = pictures(tmp_path / "d", SQUARE), pictures(tmp_path / "c", WIDE)
    one = edit(folder=tmp_path, folder_path=data, control_path=control)
    assert one.arch == FIRST_EDIT
    assert one.datasets[0].buckets[0].text_tokens == qwen_first_edit_tokens("fox " * 12, [cells(WIDE, LATENT_AREA)])
    assert cells(SQUARE, LATENT_AREA) == 37 * 37


@pytest.mark.parametrize(
    ("train", "entry", "sample", "said"),
    [
        ({}, {}, {"ctrl_img": "c/0.png"}, "no control images"),
        ({}, {"control_path": ["c", "c"]}, {"ctrl_img": "c/0.png"}, "2 folders of control images"),
        ({}, {"control_path": "c", "buckets": False}, {"ctrl_img": "c/0.png"}, "need buckets"),
        ({}, {"control_path": "c"}, {"ctrl_img_1": "c/0.png"}, "no control image for preview 1"),
    ],
)
def test_what_the_trainer_stops_on_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], entry: dict[str, Any], sample: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "d", SQUARE)
    pictures(tmp_path / "c", SQUARE)
    with pytest.raises(InputError, match=said):
        edit(train, [{"prompt": "a", **sample}], tmp_path, folder_path="d", **entry)


@pytest.mark.parametrize("cached", [False, True])
def test_batches_of_control_images_are_known_whether_their_text_is_cached_or_not(cached: bool, tmp_path: Path) -> None:
    data, control = pictures(tmp_path / "d", SQUARE), pictures(tmp_path / "c", SQUARE)
    one = edit({"batch_size": 2, "cache_text_embeddings": cached}, folder=tmp_path, folder_path=data, control_path=control)
    assert "batch_size" not in {unknown.place.key.rpartition(".")[2] for unknown in one.unmodelled}


def made(**train: Any) -> Job:
    plain = job(FIRST_EDIT)
    bucket, control = Bucket(512, 768, count=1, text_tokens=1400, controls=(SQUARE,)), (TALL,)
    datasets = tuple(replace(one, buckets=(bucket,)) for one in plain.datasets[:1])
    sample = Sample(768, 512, text_tokens=1400, negative_tokens=1390, controls=control, seen=control)
    return replace(plain, datasets=datasets, samples=(sample,), train=replace(plain.train, **train))


def parts(one: Job, kind: str) -> list[dict[str, int]]:
    """Values of the parts of a kind, up to the end of the first step."""
    plan = plan_of(one, load_profile(FIRST_EDIT))
    operations = [*before_steps(plan), *steps(plan, steps_of(one, 30)[:1])]
    return [dict(op.values) for op in operations if isinstance(op, Part) and op.key.startswith(kind)]


def tokens(*sizes: Size) -> int:
    return sum(image_values(*size)["T"] for size in sizes)


def test_a_step_has_the_control_image_at_the_pictures_size_and_a_preview_at_a_megapixel() -> None:
    assert [values["T"] for values in parts(made(), "step.core")] == [tokens((512, 768), (512, 768))]
    assert [values["T"] for values in parts(made(), "preview/")] == [tokens((768, 512), (1248, 832))]


def test_the_prompts_picture_is_the_bucket_in_a_step_and_the_file_where_text_is_cached() -> None:
    preview, again, *step = [values["R"] for values in parts(made(), RAW)]
    assert (preview, again, set(step)) == (640 * 960, 640 * 960, {512 * 768})
    cached = made(cache_text_embeddings=True)
    assert {values["I"] for values in parts(cached, "text/") if "I" in values} == {cells(SQUARE, LATENT_AREA), cells(TALL, LATENT_AREA)}


def test_a_text_without_a_picture_is_qwen_images() -> None:
    key = "text/bf16/plain/one"
    assert load_profile(FIRST_EDIT).program(key) is load_profile("qwen-image").program(key)
    pictured = f"{key}/1 images"
    assert load_profile(FIRST_EDIT).program(pictured) is load_profile("qwen-image-edit-2509").program(pictured)


@pytest.mark.parametrize("train", [{"unload_text_encoder": True}, {"unload_text_encoder": True, "cache_text_embeddings": True}])
def test_the_trainer_refuses_an_unloaded_text_encoder(train: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be trained with its text encoder unloaded"):
        edit(train, folder=tmp_path, folder_path=pictures(tmp_path / "d", SQUARE), control_path=pictures(tmp_path / "c", SQUARE))


def test_nothing_advises_what_the_trainer_refuses(tmp_path: Path) -> None:
    one = edit(folder=tmp_path, folder_path=pictures(tmp_path / "d", SQUARE), control_path=pictures(tmp_path / "c", SQUARE))
    assert "train.unload_text_encoder" not in {tried.key for tried in edits(one)}
    assert "train.unload_text_encoder" in {tried.key for tried in edits(job("flux1-dev"))}


@pytest.mark.parametrize("kind", ["bf16", "qfloat8", "uint4"])
def test_texts_of_a_batch_go_through_the_tower_in_a_row_and_through_the_rest_side_by_side(kind: str) -> None:
    """A batch of one is a text by itself; of three, what grows with words or is the template's is there three times."""
    key = f"text/{kind}/plain/one/1 images"
    single, batch = (load_profile(FIRST_EDIT).program(f"{key}{ending}") for ending in (ALONE, TOGETHER_TEXTS))
    values = {"X": 1500, "I": 1369, "Ib": 1369, "R": 1024 * 1024}
    once = single.sizes(values | {"B": 1})
    assert batch.sizes(values | {"B": 1}).tolist() == once.tolist()
    of_pictures = {name: 3 * values[name] for name in ("I", "Ib", "R")}
    more = batch.sizes(values | of_pictures | {"B": 3})
    of_weights = once == single.sizes(dict.fromkeys(values, 0) | {"B": 1})
    template = single.coefficients[:, single.features.index("X")] != 0
    assert (more[of_weights & ~template] == once[of_weights & ~template]).all()
    assert (more[template] == 3 * once[template]).all()


def test_a_batch_has_its_texts_in_one_encode() -> None:
    one = made()
    one = replace(one, datasets=tuple(replace(each, batch_size=2) for each in one.datasets))
    (text,) = [op for op in steps(plan_of(one, load_profile(FIRST_EDIT)), steps_of(one, 30)[:1]) if op_is_text(op)]
    assert isinstance(text, Part)
    assert text.key.endswith(TOGETHER_TEXTS)
    assert (text.values["B"], text.values["I"]) == (2, 2 * cells((512, 768), LATENT_AREA))


def op_is_text(operation: object) -> bool:
    return isinstance(operation, Part) and operation.key.startswith("text/")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_vae_takes_the_control_images_of_a_batch_at_once(count: int) -> None:
    one = made(cache_text_embeddings=True)
    one = replace(one, datasets=tuple(replace(each, batch_size=count) for each in one.datasets))
    plan, seen = plan_of(one, load_profile(FIRST_EDIT)), list[Part]()
    for operation in steps(plan, steps_of(one, 30)[:1]):
        inside = operation.inside[0] if isinstance(operation, Part) and operation.inside else ()
        seen += [each for each in inside if isinstance(each, Part)]
    (encode,) = [each for each in seen if each.key.startswith(ENCODE)]
    assert (encode.key == TOGETHER, encode.values.get("B", 1)) == (count > 1, count)
    assert {each.values["R"] for each in seen if each.key == RAW} == {count * 512 * 768}


def test_a_batch_of_control_images_is_encoded_as_that_of_pictures_is() -> None:
    """At two pictures each tensor of the VAE's is twice that of one, but for seeds of attention; one copy is a view."""
    profile, values = load_profile(FIRST_EDIT), image_values(512, 768) | {"X": 0}
    one, many = profile.program(ENCODE), profile.program(TOGETHER)
    assert all("vae" in many.moments[row] for row in many.labels)
    once, twice = (sorted(program.sizes({**values, "B": count}).tolist()) for program, count in ((one, 1), (many, 2)))
    assert len(once) - len(twice) == 1
    assert sum(twice) < 2 * sum(once) < 1.01 * sum(twice)
