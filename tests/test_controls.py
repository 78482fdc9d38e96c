"""Control images of FLUX.1 Kontext and FLUX.2, which the prompts know nothing of: in configs, in steps and in previews."""

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

from estimator.batches import steps_of
from estimator.controls import ENCODE, capped_size
from estimator.job import Job
from estimator.operations import MoveOut, Operation, Part, Release, flat
from estimator.plans import plan_of, steps
from estimator.programs import load_profile
from estimator.timeline import simulate

KONTEXT = {"name_or_path": "black-forest-labs/FLUX.1-Kontext-dev", "arch": "flux_kontext"}
CHROMA = {"name_or_path": "lodestones/Chroma1-Base", "arch": "chroma"}
FLUX2 = {
    "flux2-dev": {"name_or_path": "black-forest-labs/FLUX.2-dev", "arch": "flux2"},
    "flux2-klein-4b": {"name_or_path": "black-forest-labs/FLUX.2-klein-base-4B", "arch": "flux2_klein_4b"},
    "flux2-klein-9b": {"name_or_path": "black-forest-labs/FLUX.2-klein-base-9B", "arch": "flux2_klein_9b"},
}
LARGE = (1024, 1024)
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


@pytest.mark.parametrize("model", FLUX2.values(), ids=FLUX2)
def test_flux2s_control_images_keep_their_sizes(tmp_path: Path, model: dict[str, str]) -> None:
    images = pictures(tmp_path / "after", a=(512, 512), b=(640, 384))
    first, second = (pictures(tmp_path / name, a=size) for name, size in (("first", (300, 900)), ("second", (2000, 1000))))
    data = [{"folder_path": images, "resolution": 512, "control_path_1": first, "control_path_2": second}]
    prompts = {"prompt": "a fox", "ctrl_img_1": f"{second}/a.png"}, {"prompt": f"a --ctrl_img {first}/a.png", "ctrl_img": None}
    previews = {"samples": list(prompts)}
    read_job = read(tmp_path, model=model, datasets=data, sample=previews)
    assert read_job.unmodelled == ()
    assert {bucket.width: bucket.controls for bucket in read_job.datasets[0].buckets} == {512: ((300, 900), (2000, 1000)), 640: ()}
    assert [sample.controls for sample in read_job.samples] == [((2000, 1000),), ((300, 900),)]


@pytest.mark.parametrize(("batch_size", "second", "said"), [(2, (900, 300), True), (1, (900, 300), False), (2, (300, 900), False)])
def test_control_images_that_cannot_meet_in_a_batch_are_said(tmp_path: Path, batch_size: int, second: tuple[int, int], said: bool) -> None:
    images = pictures(tmp_path / "after", a=(512, 512), b=(512, 512), c=(512, 512))
    before = pictures(tmp_path / "before", a=(300, 900), c=second)  # b has none
    data = [{"folder_path": images, "resolution": 512, "control_path": before}]
    read_job = read(tmp_path, model=FLUX2["flux2-klein-4b"], datasets=data, train=train(batch_size=batch_size))
    assert any("meet in a batch" in warning for warning in read_job.warnings) is said


def flux2_job(arch: str, controls: tuple[tuple[int, int], ...], **changes: Any) -> Job:
    made = job(arch, **changes)
    data = tuple(replace(d, buckets=tuple(replace(b, controls=controls) for b in d.buckets)) for d in made.datasets)
    return replace(made, datasets=data, samples=(replace(made.samples[0], controls=controls),))


@pytest.mark.parametrize("arch", FLUX2)
def test_each_control_image_of_flux2_takes_more(arch: str) -> None:
    none, one, three = (flux2_job(arch, (LARGE,) * count) for count in (0, 1, 3))
    assert peak(none, "train") < peak(one, "train") < peak(three, "train")
    assert peak(none, "sample") <= peak(one, "sample") < peak(three, "sample")  # the VAE's decode may be the highest of small previews
    assert peak(replace(three, model=replace(three.model, match_target_res=True)), "train") < peak(three, "train")


@pytest.mark.parametrize("arch", FLUX2)
def test_a_control_image_is_encoded_while_the_prompts_are_on_the_card(arch: str) -> None:
    """In the middle of the step's core; who does not look into parts finds it before."""
    made = flux2_job(arch, (LARGE, LARGE))
    plan = plan_of(made, load_profile(arch))
    (core,) = (one for one in steps(plan, steps_of(made, 30)[:1]) if isinstance(one, Part) and any(one.inside))
    encoding, over = core.inside
    assert [one.key for one in encoding if isinstance(one, Part)].count(ENCODE) == 2
    kept = {one.scope for one in encoding if isinstance(one, Part)} - {one.scope for one in encoding[1:] if isinstance(one, Release)}
    assert kept | {"pictures"} == {one.scope for one in over if isinstance(one, Release)}
    apart = list(flat([core]))
    assert apart[:-1] == [*encoding, *over]
    assert apart[-1] == replace(core, inside=((), ()))


@pytest.mark.parametrize("arch", FLUX2)
def test_an_encode_of_its_own_leaves_out_the_copies_of_pixels(arch: str) -> None:
    profile, values = load_profile(arch), {"T": 4096, "E": 128}
    alone, cached = profile.program(ENCODE), profile.program("cache_latents.item")
    pixels = 3 * 2 * 1024 * 1024
    assert cached.peak(values)[0] - alone.peak(values)[0] == 2 * pixels
    assert len(cached.names) - len(alone.names) == cached.labels.count(cached.moments.index("cache_latents")) > 0
    born = int((alone.events == 0).sum())
    assert born == len(alone.names)
    assert sorted(alone.tensor_of_event[alone.events != 0].tolist()) == sorted(set(range(born)) - set(alone.exported))


@pytest.mark.parametrize("arch", FLUX2)
def test_flux2s_transformer_gets_the_tokens_of_all_images(arch: str) -> None:
    """A preview is decoded at its own size all the same."""
    made = flux2_job(arch, ((2048, 2048), (300, 900)))
    plan = plan_of(made, load_profile(arch))
    parts = [one for one in [*plan.sampling("first"), *steps(plan, steps_of(made, 30)[:1])] if isinstance(one, Part)]
    own = {"preview": made.samples[0], "decode": made.samples[0], "step.core": made.datasets[0].buckets[0]}
    for name, image in own.items():
        (part,) = (one for one in parts if one.key.startswith(f"{name}/"))
        controls = 0 if name == "decode" else 1024 * 1024 // 256 + 288 * 896 // 256
        assert part.values["T"] == image.width * image.height // 256 + controls
