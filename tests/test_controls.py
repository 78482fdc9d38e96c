"""Control images of FLUX.1 Kontext and FLUX.2 klein, which the prompts know nothing of: in configs, in steps and in previews."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from config_writer import process, read, refusal, train, unmodelled_keys
from hypothesis import given
from hypothesis import strategies as st
from made_jobs import job
from PIL import Image

from estimator.controls import capped_size
from estimator.job import Job
from estimator.operations import MoveOut, Operation
from estimator.plans import plan_of
from estimator.programs import load_profile
from estimator.timeline import simulate

KONTEXT = {"name_or_path": "black-forest-labs/FLUX.1-Kontext-dev", "arch": "flux_kontext"}
CHROMA = {"name_or_path": "lodestones/Chroma1-Base", "arch": "chroma"}
PREVIEW = {"samples": [{"prompt": "a fox", "ctrl_img": "/nowhere/a.png"}]}
MIB = 2**20


def pictures(folder: Path, **sizes: tuple[int, int]) -> str:
    folder.mkdir()
    for name, size in sizes.items():
        Image.new("RGB", size).save(folder / f"{name}.png")
    return str(folder)


def kontext(tmp_path: Path, entry: dict[str, Any] | None = None, **sections: Any) -> Job:
    dataset = {"folder_path": "/nowhere/images", "resolution": 512, **(entry or {})}
    return read(tmp_path, **{"model": KONTEXT, "datasets": [dataset], "sample": PREVIEW, **sections})


# ---------------------------------------------------------------- reading


def test_pictures_with_and_without_a_control_image_are_trained_side_by_side(tmp_path: Path) -> None:
    images = pictures(tmp_path / "after", a=(512, 512), b=(640, 384))
    before = pictures(tmp_path / "before", a=(300, 900))
    (dataset,) = kontext(tmp_path, {"folder_path": images, "control_path": before}).datasets
    assert {bucket.width: len(bucket.controls) for bucket in dataset.buckets} == {512: 1, 640: 0}


def test_the_size_of_kontexts_control_images_does_not_matter(tmp_path: Path) -> None:
    images = pictures(tmp_path / "after", a=(512, 512))
    folders = [pictures(tmp_path / name, a=size) for name, size in (("small", (64, 64)), ("large", (3000, 2000)))]
    small, large = (kontext(tmp_path, {"folder_path": images, "control_path": folder}).datasets for folder in folders)
    assert small[0].buckets == large[0].buckets


def test_absent_control_images_are_assumed_and_said(tmp_path: Path) -> None:
    read_job = kontext(tmp_path, {"control_path": "/nowhere/before"})
    assert len(read_job.datasets[0].buckets[0].controls) == 1
    assert any("/nowhere/before is not here" in said for said in read_job.warnings)
    assert not kontext(tmp_path).datasets[0].buckets[0].controls


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({"control_path": ["/a", "/b"]}, "datasets.0.control_path"),
        ({"control_path_1": "/a", "control_path_2": "/b"}, "datasets.0.control_path_1"),
        ({"control_path": "/a", "buckets": False}, "datasets.0.buckets"),
        ({"control_path": 5}, "datasets.0.control_path"),
    ],
)
def test_what_kontext_stops_on_is_refused(tmp_path: Path, entry: dict[str, Any], key: str) -> None:
    datasets = [{"folder_path": "/nowhere", "resolution": 512, **entry}]
    assert {p.place.key for p in refusal(tmp_path, model=KONTEXT, datasets=datasets, sample=PREVIEW) if p.place} == {key}


def test_control_images_resized_before_are_named(tmp_path: Path) -> None:
    assert unmodelled_keys(kontext(tmp_path, {"control_path": "/a", "full_size_control_images": False})) == {
        "datasets.0.full_size_control_images"
    }
    assert unmodelled_keys(kontext(tmp_path, {"full_size_control_images": False})) == set()


def test_a_preview_of_kontext_needs_a_control_image(tmp_path: Path) -> None:
    bare = {"samples": [{"prompt": "a fox"}]}
    (problem,) = refusal(tmp_path, model=KONTEXT, sample=bare)
    assert "ctrl_img" in problem.fix
    assert problem.place
    assert problem.place.key == "sample.samples"
    assert kontext(tmp_path, sample=bare, train=train(disable_sampling=True)).samples[0].controls == ()
    in_prompt = kontext(tmp_path, sample={"prompts": ["a fox --ctrl_img /nowhere/a.png"]})
    assert in_prompt.samples == kontext(tmp_path).samples


@pytest.mark.parametrize("model", [KONTEXT, CHROMA], ids=["kontext", "chroma"])
@pytest.mark.parametrize("where", ["train", "datasets.0"])
def test_cached_text_is_refused_where_the_trainer_stops_on_it(tmp_path: Path, model: dict[str, str], where: str) -> None:
    sections = process(model=model, sample=PREVIEW)
    (sections["train"] if where == "train" else sections["datasets"][0])["cache_text_embeddings"] = True
    (problem,) = refusal(tmp_path, **sections)
    assert problem.place
    assert problem.place.key == f"{where}.cache_text_embeddings"
    assert "unload_text_encoder" in problem.fix


# ---------------------------------------------------------------- steps and previews


def kontext_job(controlled: bool, **changes: Any) -> Job:
    made = job("flux1-kontext", **changes)
    controls = ((1024, 1024),) if controlled else ()
    data = tuple(replace(d, buckets=tuple(replace(b, controls=controls) for b in d.buckets)) for d in made.datasets)
    return replace(made, datasets=data)


def operations(made: Job, when: str) -> list[Operation]:
    return list(plan_of(made, load_profile(made.arch)).sampling(when))


def peak(made: Job, phase: str) -> int:
    return max(one.allocated_bytes for one in simulate(made).phases if one.phase == phase)


def test_a_control_image_doubles_the_tokens_of_a_step() -> None:
    """Beside twice the image without one: a little less, for the image's own tensors alone are not doubled."""
    plain, with_one = kontext_job(False), kontext_job(True)
    wide = tuple(
        replace(d, buckets=tuple(replace(b, width=2 * b.width) for b in d.buckets)) for d in plain.datasets
    )
    assert peak(plain, "train") < peak(with_one, "train")
    assert abs(peak(with_one, "train") / peak(replace(plain, datasets=wide), "train") - 1) < 0.05


def test_the_vae_stays_once_a_step_has_encoded_a_control_image() -> None:
    def leaves(made: Job, when: str) -> bool:
        cached = tuple(replace(d, cache_latents=True) for d in made.datasets)
        return MoveOut("vae") in operations(replace(made, datasets=cached), when)

    assert leaves(kontext_job(True), "first")
    assert not leaves(kontext_job(True), "later")
    assert leaves(kontext_job(False), "later")


@given(st.integers(64, 8000), st.integers(64, 8000))
def test_a_reference_image_is_a_megapixel_at_most_and_whole_tokens(width: int, height: int) -> None:
    small = capped_size((width, height))
    assert small[0] % 16 == small[1] % 16 == 0
    assert 0 < small[0] * small[1] <= MIB
    assert small[0] <= width
    assert small[1] <= height
    if width * height <= MIB:
        assert (width - small[0], height - small[1]) == (width % 16, height % 16)


def test_kontexts_control_images_are_at_the_targets_size_already(tmp_path: Path) -> None:
    """So no advice can be to bring them to it."""
    assert kontext(tmp_path, {"control_path": "/a"}).model.match_target_res


def test_kleins_control_images_are_named_as_long_as_they_are_not_recorded(tmp_path: Path) -> None:
    """A preview's would pass unseen otherwise: other architectures ignore them."""
    klein = {"name_or_path": "black-forest-labs/FLUX.2-klein-base-4B", "arch": "flux2_klein_4b"}
    data = [{"folder_path": "/nowhere", "resolution": 512, "control_path": "/a", "control_path_2": ""}]
    preview = {"samples": [{"prompt": "a fox", "ctrl_img_1": "/a.png"}, {"prompt": "a --ctrl_img /b.png", "ctrl_img": None}]}
    read_job = read(tmp_path, model=klein, datasets=data, sample=preview)
    assert unmodelled_keys(read_job) == {"datasets.0.control_path", "sample.samples.0.ctrl_img_1", "sample.samples.1.prompt"}
