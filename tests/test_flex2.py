"""Flex.2: control images and masks beside the noisy latents, in configs, in steps and in previews."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from config_writer import process, read, refusal, train, unmodelled_keys
from made_jobs import job
from PIL import Image

from calibration import probes
from calibration.accuracy_compare import order
from calibration.accuracy_rows import read_job, read_rows
from calibration.architectures import ARCHITECTURES
from calibration.extract.conditions import cut
from calibration.extract.runs import Phase
from estimator.batches import steps_of
from estimator.controls import ENCODE, RAW
from estimator.job import Bucket, Job
from estimator.operations import Operation, Part
from estimator.plans import plan_of, steps
from estimator.programs import load_profile
from estimator.timeline import simulate

FLEX2 = {"name_or_path": "ostris/Flex.2-preview", "arch": "flex2"}


def flex2(tmp_path: Path, entry: dict[str, Any] | None = None, kwargs: dict[str, Any] | None = None, **sections: Any) -> Job:
    dataset = {"folder_path": "/nowhere/images", "resolution": 768, **(entry or {})}
    return read(tmp_path, **{"model": {**FLEX2, "model_kwargs": kwargs or {}}, "datasets": [dataset], **sections})


def bucket(made: Job) -> Bucket:
    return made.datasets[0].buckets[0]


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("entry", "kwargs", "controls", "masked"),
    [
        ({}, {}, 0, False),
        ({"controls": ["depth", "line"]}, {}, 2, False),
        ({"controls": "inpaint"}, {}, 0, True),
        ({"controls": ["pose", "inpaint"]}, {"control_dropout": 1.0}, 0, True),
        ({"controls": ["pose", "inpaint"]}, {"inpaint_dropout": 1.0}, 1, False),
        ({"control_path": ["/a", "/b"], "inpaint_path": "/c"}, {"control_dropout": 0.5}, 2, True),
        ({}, {"do_random_inpainting": True}, 0, True),
        ({}, {"do_random_inpainting": True, "inpaint_dropout": 1}, 0, False),
        ({"mask_path": "/masks"}, {}, 0, True),
    ],
)
def test_what_a_step_may_get_is_what_the_data_set_has_and_chance_allows(
    tmp_path: Path, entry: dict[str, Any], kwargs: dict[str, Any], controls: int, masked: bool
) -> None:
    made = flex2(tmp_path, entry, kwargs)
    assert made.unmodelled == ()
    assert (len(bucket(made).controls), bucket(made).masked) == (controls, masked)


def test_control_images_that_the_trainer_makes_are_small_unless_a_folder_is_given(tmp_path: Path) -> None:
    """ControlFileItemDTOMixin looks at full_size_control_images only where there is a control_path."""
    entries = [{"controls": ["depth"]}, {"control_path": "/a"}, {"control_path": "/a", "full_size_control_images": False}]
    small = [bucket(flex2(tmp_path, entry)).controls[0] == (512, 512) for entry in entries]
    assert small == [True, False, True]
    assert any("once" in said for said in flex2(tmp_path, entries[0]).warnings)


@pytest.mark.parametrize("key", ["cache_latents", "cache_latents_to_disk"])
def test_control_images_beside_cached_latents_are_refused(tmp_path: Path, key: str) -> None:
    """Run: AttributeError, 'NoneType' object has no attribute 'shape' (batch.tensor)."""
    entry = {"folder_path": "/nowhere", "resolution": 512, "controls": ["depth"], key: True}
    (problem,) = refusal(tmp_path, model=FLEX2, datasets=[entry])
    assert problem.place
    assert problem.place.key == f"datasets.0.{key}"
    assert flex2(tmp_path, {"controls": ["inpaint"], key: True}).datasets[0].latents_cached
    never = {"control_dropout": 1.0}
    assert flex2(tmp_path, {"controls": ["depth"], key: True}, never).datasets[0].latents_cached


@pytest.mark.parametrize(
    ("sample", "refused"),
    [
        ({"ctrl_img": "/a/pose.png"}, True),
        ({"ctrl_img": "/a/pose.png", "ctrl_idx": 1}, False),
        ({"ctrl_img": "/a/pose.png", "ctrl_idx": "1"}, True),  # not made a number of: the index of a list
        ({"ctrl_img": "/a/cut.inpaint.png"}, False),
        ({"ctrl_img": "/a/cut.inpaint.png", "ctrl_idx": 1}, True),
        ({"prompt": "a --ctrl_idx 1 --ctrl_img /a/pose.png"}, False),
        ({"prompt": "a --ctrl_img /a/pose.png"}, True),
        ({"ctrl_idx": 1}, False),
    ],
)
def test_a_previews_picture_has_a_place_of_its_own(tmp_path: Path, sample: dict[str, Any], refused: bool) -> None:
    """Run: mat1 and mat2 shapes cannot be multiplied (1024x192 and 196x3072)."""
    sections = {"model": FLEX2, "sample": {"samples": [{"prompt": "a fox", **sample}]}}
    if refused:
        (problem,) = refusal(tmp_path, **sections)
        assert problem.place
        assert problem.place.key == "sample.samples.0.ctrl_idx"
    else:
        pictured = "pose" in str(sample) or "cut" in str(sample)
        assert len(read(tmp_path, **sections).samples[0].controls) == pictured


@pytest.mark.parametrize("written", ["+-1", "9" * 5000, "one", ""])
def test_a_place_that_is_no_number_is_refused(tmp_path: Path, written: str) -> None:
    """Digits with two signs, and more of them than Python reads, ended in an internal error."""
    prompt = f"a --ctrl_img /a/pose.png --ctrl_idx {written}"
    problems = refusal(tmp_path, model=FLEX2, sample={"samples": [{"prompt": prompt}]})
    assert any("--ctrl_idx in the prompt takes a number" in problem.what for problem in problems)


def test_what_the_trainer_stops_on_is_refused(tmp_path: Path) -> None:
    sections = process(model=FLEX2, train=train(cache_text_embeddings=True))
    (problem,) = refusal(tmp_path, **sections)  # run: index is on cuda:0, different from other tensors on cpu
    assert "unload_text_encoder" in problem.fix
    unknown = [{"folder_path": "/nowhere", "resolution": 512, "controls": ["canny"]}]
    assert "canny" in refusal(tmp_path, model=FLEX2, datasets=unknown)[0].what
    text = {**FLEX2, "model_kwargs": {"control_dropout": "half"}}
    assert refusal(tmp_path, model=text)[0].place.key == "model.model_kwargs.control_dropout"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("entry", "sections", "key"),
    [
        ({"control_from_same_folder": True}, {}, "datasets.0.control_from_same_folder"),
        ({"controls": ["depth"], "load_image_when_caching_latents": True}, {}, "datasets.0.load_image_when_caching_latents"),
        ({}, {"network": {"type": "lokr", "linear": 16}}, "network.type"),
        ({}, {"train": train(diff_output_preservation=True), "trigger_word": "p3rs0n"}, "train.diff_output_preservation"),
    ],
)
def test_what_was_not_recorded_is_named(tmp_path: Path, entry: dict[str, Any], sections: dict[str, Any], key: str) -> None:
    assert unmodelled_keys(flex2(tmp_path, entry, **sections)) == {key}


def test_other_architectures_have_no_such_channels(tmp_path: Path) -> None:
    made = read(tmp_path, datasets=[{"folder_path": "/nowhere", "resolution": 512, "controls": ["depth"], "inpaint_path": "/a"}])
    assert unmodelled_keys(made) == {"datasets.0.controls", "datasets.0.inpaint_path"}


def test_different_numbers_of_control_images_cannot_meet_in_a_batch(tmp_path: Path) -> None:
    for name, files in {"after": "abc", "first": "ab", "second": "a"}.items():
        (tmp_path / name).mkdir()
        for file in files:
            Image.new("RGB", (512, 512)).save(tmp_path / name / f"{file}.png")
    entry = {"folder_path": str(tmp_path / "after"), "control_path": [str(tmp_path / "first"), str(tmp_path / "second")]}
    said = [flex2(tmp_path, entry, train=train(batch_size=size)).warnings for size in (1, 2)]
    assert [any("meet in a batch" in warning for warning in warnings) for warnings in said] == [False, True]


# ---------------------------------------------------------------- steps and previews


def made(controls: tuple[tuple[int, int], ...] = (), masked: bool = False, pictured: bool = False) -> Job:
    plain = job("flex2")
    data = tuple(replace(d, buckets=tuple(replace(b, controls=controls, masked=masked) for b in d.buckets)) for d in plain.datasets)
    return replace(plain, datasets=data, samples=(replace(plain.samples[0], controls=((1024, 1024),) * pictured),))


def parts(operations: Any) -> list[str]:
    return [one.key for one in operations if isinstance(one, Part)]


def in_step(one: Job) -> list[Operation]:
    plan = plan_of(one, load_profile("flex2"))
    return list(steps(plan, steps_of(one, 512)[-1:]))


def test_every_step_joins_channels_and_only_those_with_control_images_run_the_vae_for_them() -> None:
    for masked, kind in ((False, "plain"), (True, "masked")):
        keys = parts(in_step(made(masked=masked)))
        assert f"step.condition/{kind}/one" in keys
        assert "step.control/one" not in keys
    keys = parts(in_step(made(((1024, 1024),))))
    assert keys.index("step.control/one") < keys.index("step.condition/plain/one") < next(n for n, k in enumerate(keys) if "core" in k)


def test_a_control_image_of_another_size_is_on_the_card_twice_at_first() -> None:
    def pixels(size: tuple[int, int]) -> list[int]:
        return [one.values["R"] for one in in_step(made((size,))) if isinstance(one, Part) and one.key == RAW]

    assert pixels((512, 512)) == [512 * 512, 768 * 640]
    assert pixels((1024, 1024)) == [768 * 640]


def test_nothing_of_the_channels_stays_when_a_step_is_over() -> None:
    """Allocated before the step and after it."""
    for one in (made(), made(((512, 512),), True)):
        trained = [phase for phase in simulate(one).phases if phase.phase == "train"]
        assert trained[-1].allocated_bytes == max(phase.allocated_bytes for phase in trained[1:])


def test_a_previews_picture_goes_through_the_vae_first() -> None:
    plan = plan_of(made(pictured=True), load_profile("flex2"))
    keys = parts(plan.sampling("first"))
    assert keys.index(ENCODE) < next(n for n, key in enumerate(keys) if key.startswith("preview/"))
    assert ENCODE not in parts(plan_of(made(), load_profile("flex2")).sampling("first"))


# ---------------------------------------------------------------- extraction


def test_a_recorded_step_is_cut_where_the_vae_encodes_control_images() -> None:
    encode = Phase("control_encode", 12, {}, 30)
    assert cut(Phase("condition", 10, {"masked": True}, 40, [encode]), True) == ("step.control", 12, 30)
    assert cut(Phase("condition", 10, {"masked": True}, 20), True) == ("step.condition/masked", 10, 20)
    assert cut(Phase("condition", 10, {"masked": False}, 20), True) == ("step.condition/plain", 10, 20)
    assert cut(Phase("condition", 10, {}, 20), False) == ("step.control", 10, 20)


def test_probes_have_masks_and_control_images_in_every_pair_that_the_trainer_takes(tmp_path: Path) -> None:
    seen, masked_sizes = set(), set()
    for run, (weights, index) in probes.folders("flex2", tmp_path).items():
        for entry in probes.config("flex2", weights, index, run)["config"]["process"][0]["datasets"]:
            mask, control, cached = "inpaint_path" in entry, "control_path" in entry, entry["cache_latents_to_disk"]
            assert control != cached
            seen.add((mask, control))
            masked_sizes |= {entry["folder_path"].rsplit("/", 1)[1]} if mask and not control else set()
    assert seen == {(False, False), (False, True), (True, False), (True, True)}
    assert len(masked_sizes) > len(ARCHITECTURES["flex2"].buckets) // 2


def test_a_run_is_compared_with_what_chance_gave_each_of_its_steps() -> None:
    (run,) = (one for one in read_rows() if one.name == "flex2-accumulated")
    drawn = [given for peak in run.peaks for given in peak.given]
    batches = [batch for step in order(run, read_job(run)) for batch in step]
    assert [(bool(batch.bucket.controls), batch.bucket.masked) for batch in batches] == drawn
    assert {True, False} == {control for control, _ in drawn}
