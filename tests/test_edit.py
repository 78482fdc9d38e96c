"""Qwen-Image-Edit: control images in configs, in prompts, behind the image's tokens, and what they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config_writer import read
from PIL import Image as Pillow

from estimator.advice import edits
from estimator.allocator import FREE
from estimator.attention_parts import flash_splits
from estimator.batches import steps_of
from estimator.controls import RAW, Size, cells, latent_size
from estimator.edit import OF_FORWARD
from estimator.edited import EDITED
from estimator.errors import CannotTell, InputError
from estimator.features import image_values
from estimator.frequencies import kept_in
from estimator.job import Bucket, Dataset, Job, Sample
from estimator.operations import EmptyCache, MoveIn, MoveOut, Part, Release, flat
from estimator.part_events import events_of, requests
from estimator.plans import after_steps, before_steps, plan_of, steps
from estimator.positions import laid, needed
from estimator.program import ALLOCATE
from estimator.programs import load_profile
from estimator.references import first_of_backward
from estimator.replay import Replay
from estimator.stays import PROMPTS
from estimator.timeline import simulate
from estimator.tokens import qwen_edit_tokens
from tests.made_jobs import job

EDIT = "qwen-image-edit-2509"
MODEL = {"name_or_path": "Qwen/Qwen-Image-Edit-2509", "arch": "qwen_image_edit_plus"}
SQUARE, WIDE, TALL, PHONE = (1024, 1024), (1280, 720), (640, 960), (1200, 1600)
# Caption words, pictures, text tokens and cells: of runs of the trainer with the real image processor (calibration/architectures)
RECORDED = (
    (12, (SQUARE,), 220, [196]), (70, (WIDE,), 262, [180]), (150, (TALL,), 349, [187]), (33, (PHONE,), 221, [176]),
    (25, (SQUARE, SQUARE), 436, [196, 196]), (140, (PHONE, WIDE), 515, [176, 180]), (110, (WIDE, TALL, PHONE), 679, [180, 187, 176]),
)  # fmt: skip


@pytest.mark.parametrize(("words", "pictures", "tokens", "of_each"), RECORDED)
def test_prompts_have_the_tokens_that_were_recorded(words: int, pictures: tuple[Size, ...], tokens: int, of_each: list[int]) -> None:
    assert [cells(one) for one in pictures] == of_each
    assert qwen_edit_tokens(" ".join(["fox"] * words), of_each) == tokens


def test_a_picture_is_a_megapixel_of_tokens_in_its_own_shape() -> None:
    assert latent_size(SQUARE) == (1024, 1024)
    assert latent_size(WIDE) == (1376, 768)
    assert latent_size((4000, 3000)) == latent_size((400, 300))
    assert latent_size(SQUARE, (512, 512)) == (512, 512)


@pytest.mark.parametrize(("rows", "parts"), [(272, 3), (256, 2), (416, 0), (329, 3)])
def test_flash_attention_splits_keys_as_recorded(rows: int, parts: int) -> None:
    assert flash_splits(28, rows) == parts


# ---------------------------------------------------------------- reading


def pictures(folder: Path, *sizes: Size) -> str:
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        Pillow.new("RGB", size).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("fox " * 12)
    return str(folder)


def edit(folder: Path, train: dict[str, Any] | None = None, samples: Any = (), model: dict[str, Any] | None = None, **entry: Any) -> Job:
    sample = {"sample": {"samples": list(samples)}} if samples else {}
    return read(folder, model=MODEL | (model or {}), train=train or {}, datasets=[{"resolution": 512, **entry}], **sample)


def test_control_images_are_paired_by_name(tmp_path: Path) -> None:
    sizes = {"d": (SQUARE, SQUARE), "a": (WIDE, WIDE), "b": (TALL,)}
    data, first, second = (pictures(tmp_path / name, *of) for name, of in sizes.items())
    job = edit(tmp_path, folder_path=data, control_path=[first, second])
    (bucket,) = job.datasets[0].buckets
    assert bucket.controls == (WIDE, TALL)  # of the image that has most of them
    assert bucket.text_tokens == qwen_edit_tokens("fox " * 12, [cells(WIDE), cells(TALL)])
    assert [one.place.key for one in job.unmodelled] == ["train.dtype"]  # the writer's config has none


def test_the_web_ui_numbers_the_folders(tmp_path: Path) -> None:
    data, first, second = (pictures(tmp_path / name, SQUARE) for name in "dab")
    job = edit(tmp_path, folder_path=data, control_path_1=None, control_path_2=second, control_path_3=first)
    assert job.datasets[0].buckets[0].controls == (SQUARE, SQUARE)
    small = edit(tmp_path, folder_path=data, control_path=first, full_size_control_images=False)
    assert small.datasets[0].buckets[0].controls == ((512, 512),)


def test_folders_that_are_not_here_are_assumed_to_hold_squares(tmp_path: Path) -> None:
    job = edit(tmp_path, folder_path="/nowhere/d", control_path=["/nowhere/a", "/nowhere/b"])
    assert job.datasets[0].buckets[0].controls == (SQUARE, SQUARE)
    assert sum("/nowhere/a is not here" in text for text in job.warnings) == 1


@pytest.mark.parametrize(
    ("train", "entry", "said"),
    [
        ({}, {}, "no control images"),
        ({}, {"control_path": "lonely"}, "no control image for 1.png"),
        ({"batch_size": 2}, {"control_path": "all"}, "cannot encode prompts of more than one image"),
    ],
)
def test_what_the_trainer_stops_on_is_a_problem(tmp_path: Path, train: dict[str, Any], entry: dict[str, Any], said: str) -> None:
    pictures(tmp_path / "d", SQUARE, SQUARE)
    pictures(tmp_path / "lonely", SQUARE)
    pictures(tmp_path / "all", SQUARE, SQUARE)
    entry = {key: str(tmp_path / name) for key, name in entry.items()}
    with pytest.raises(InputError, match=said):
        edit(tmp_path, train, folder_path=str(tmp_path / "d"), **entry)


def test_without_prompts_to_encode_it_trains_without_control_images(tmp_path: Path) -> None:
    job = edit(tmp_path, {"unload_text_encoder": True, "disable_sampling": True}, folder_path=pictures(tmp_path / "d", SQUARE))
    assert job.datasets[0].buckets[0].controls == ()


def test_cached_text_takes_batches(tmp_path: Path) -> None:
    data, control = pictures(tmp_path / "d", SQUARE), pictures(tmp_path / "c", SQUARE)
    job = edit(tmp_path, {"batch_size": 2, "cache_text_embeddings": True}, folder_path=data, control_path=control)
    assert job.datasets[0].batch_size == 2


def test_a_preview_shows_the_text_encoder_ctrl_img_twice(tmp_path: Path) -> None:
    data, control = pictures(tmp_path / "d", SQUARE), pictures(tmp_path / "c", WIDE, TALL)
    one, two = f"{control}/0.png", f"{control}/1.png"
    samples = [{"prompt": "a", "ctrl_img": one}, {"prompt": "a", "ctrl_img_1": one}, {"prompt": "a", "ctrl_img_1": one, "ctrl_img_3": two}]
    found = edit(tmp_path, samples=samples, folder_path=data, control_path=control).samples
    assert [sample.controls for sample in found] == [(WIDE,), (WIDE,), (WIDE, TALL)]
    assert [sample.seen for sample in found] == [(WIDE, WIDE), (WIDE,), (WIDE, TALL)]
    with pytest.raises(InputError, match="preview 2"):
        edit(tmp_path, samples=[*samples[:1], {"prompt": "b"}], folder_path=data, control_path=control)
    edit(tmp_path, {"disable_sampling": True}, samples=[{"prompt": "b"}], folder_path=data, control_path=control)


def test_a_preview_may_have_its_control_image_in_the_prompt(tmp_path: Path) -> None:
    """Behind --ctrl_img it takes the place of ctrl_img, and is shown once."""
    data, control = pictures(tmp_path / "d", SQUARE), pictures(tmp_path / "c", WIDE, TALL)
    one, two = f"{control}/0.png", f"{control}/1.png"
    samples = [{"prompt": f"a --ctrl_img {one} --w 512"}, {"prompt": f"a --ctrl_img {one}", "ctrl_img": two}]
    found = edit(tmp_path, samples=samples, folder_path=data, control_path=control).samples
    assert [sample.controls for sample in found] == [(WIDE,), (WIDE,)]
    assert [sample.seen for sample in found] == [(WIDE,), (WIDE, TALL)]


def test_pictures_of_previews_that_are_not_here_are_said_once(tmp_path: Path) -> None:
    data, control = pictures(tmp_path / "d", SQUARE), pictures(tmp_path / "c", SQUARE)
    samples = [{"prompt": "a", "ctrl_img": f"/nowhere/{n % 3}.png"} for n in range(5)]
    for count, words in ((1, "/nowhere/0.png is not here"), (5, "/nowhere/0.png and 2 more control images of previews are not here")):
        job = edit(tmp_path, samples=samples[:count], folder_path=data, control_path=control)
        assert [warning for warning in job.warnings if "not here" in warning] == [one for one in job.warnings if words in one]
        assert sum(words in warning for warning in job.warnings) == 1


def test_match_target_res_is_read(tmp_path: Path) -> None:
    data, control = pictures(tmp_path / "d", SQUARE), pictures(tmp_path / "c", SQUARE)
    for value in (True, False):
        job = edit(tmp_path, model={"model_kwargs": {"match_target_res": value}}, folder_path=data, control_path=control)
        assert job.model.match_target_res is value


def test_other_architectures_have_no_model_of_control_images(tmp_path: Path) -> None:
    plain = {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image"}
    job = read(tmp_path, model=plain, datasets=[{"folder_path": "/x", "control_path": "/y"}])
    assert [one.place.key.split(".")[-1] for one in job.unmodelled] == ["control_path"]


# ---------------------------------------------------------------- timeline


def made(controls: tuple[Size, ...] = (SQUARE,), **train: Any) -> Job:
    plain = job(EDIT)
    plain = replace(plain, model=replace(plain.model, weights="uint4", te_weights="bf16"))
    bucket = Bucket(512, 512, count=1, text_tokens=30 + sum(map(cells, controls)), controls=controls)
    datasets = tuple(replace(one, buckets=(bucket,)) for one in plain.datasets[:1])
    shown = sum(map(cells, controls))
    sample = Sample(512, 512, text_tokens=30 + shown, negative_tokens=12 + shown, controls=controls, seen=controls)
    return replace(plain, datasets=datasets, samples=(sample,), train=replace(plain.train, **train))


def peaks(one: Job) -> dict[str, int]:
    """Of the last phase of each name: of a second folder's text, for which nothing has to leave the card first."""
    more = replace(one, datasets=(*one.datasets, *(replace(each, folder="/data/other") for each in one.datasets)))
    return {phase.phase: phase.allocated_bytes for phase in simulate(more).phases}


def test_each_control_image_takes_more_in_every_phase_that_sees_it() -> None:
    cached = {"cache_text_embeddings": True}
    one, two, three = (peaks(made((SQUARE,) * count, **cached)) for count in (1, 2, 3))
    for phase in ("cache_text", "train"):
        assert one[phase] < two[phase] < three[phase], phase
    assert one["sample"] <= two["sample"] < three["sample"]  # of small ones the VAE is the peak


def test_a_step_gets_the_tokens_of_all_images() -> None:
    one = made((SQUARE, WIDE))
    plan = plan_of(one, load_profile(EDIT))
    (core,) = [op for op in steps(plan, steps_of(one, 30)[:1]) if isinstance(op, Part) and op.key.startswith("step.core")]
    assert core.values["T"] == sum(image_values(*size)["T"] for size in ((512, 512), (1024, 1024), (1376, 768)))
    matched = replace(one, model=replace(one.model, match_target_res=True))
    assert peaks(matched)["train"] < peaks(one)["train"]


def test_positions_are_kept_of_each_image_by_itself() -> None:
    """A control image that two buckets share counts once; the second of a step is another than the first."""
    pictures = {"T_1": 4096, "E_1": 128, "T_2": 4096, "E_2": 128}
    part = Part("step.core/bf16/checkpointed/one", {"T": 9216, "E": 128, "T_0": 1024, "E_0": 64, **pictures})
    other = replace(part, values={**part.values, "T_0": 900, "E_0": 60})
    kept = [needed(EDIT, one) for one in (part, other)]
    tables = 2 * 2**21
    assert [sum(each.values()) for each in kept] == [tables + 512 * (1024 + 2 * 4096), tables + 512 * (900 + 2 * 4096)]
    assert sum((kept[0] | kept[1]).values()) == tables + 512 * (1024 + 900 + 2 * 4096)
    assert needed("zimage", part) == {}


def test_a_new_size_of_image_passes_through_three_tensors_and_a_known_one_through_none() -> None:
    """As in the second step of edit-recovery on the emulated device: 32 x 42 tokens, 9,408 and 7,168 bytes, and 688,128 of both."""
    one = made(cache_text_embeddings=True)
    profile = load_profile(EDIT)
    program = profile.program("step.core/uint3-recovery/checkpointed/one")
    values = {"T": 1344, "E": 74, "T_0": 1344, "E_0": 74, "X": 218, "B": 1, "r": 16}
    part, replay = Part(program.key, values, "step"), Replay(profile, one, None)
    seen = []
    for _ in range(2):
        sizes, requested = requests(program, values, kept_in(program))
        run = events_of(program, part, requested, replay.state.take_keys(len(program.names)), replay.state)
        made_there, kept = laid(program, run, needed(EDIT, part), replay.state)
        more = made_there.events[made_there.keys >= run.base + len(sizes)].tolist()
        seen.append((more, [size for _, size in kept]))
    edges = [74 * 28 * 8 // 2] * 2
    assert seen[0] == ([2**21, 2**21, *edges, 688_128, 688_128, FREE, FREE, FREE], [2**21, 2**21, 688_128])
    assert seen[1] == ([], [])


def test_smaller_control_images_are_advised_once() -> None:
    key = "model.model_kwargs.match_target_res"
    (edit,) = [edit for edit in edits(made()) if edit.key == key]
    assert edit.job.model.match_target_res
    assert key not in {edit.key for edit in edits(edit.job)} | {edit.key for edit in edits(made(()))}


def test_the_vae_comes_with_the_first_step_and_stays() -> None:
    one = made()
    one = replace(one, datasets=tuple(replace(each, cache_latents_to_disk=True) for each in one.datasets))
    plan = plan_of(one, load_profile(EDIT))
    moves = [op for op in before_steps(plan) if op in (MoveIn("vae"), MoveOut("vae"))]
    assert moves[-1] == MoveOut("vae")
    later = list(flat([*steps(plan, steps_of(one, 30)[:1]), *after_steps(plan)]))
    assert MoveIn("vae") in later
    assert MoveOut("vae") not in later


def test_one_picture_is_held_as_it_was_read_and_read_again_several_are_read_as_the_prompt_has_scaled_them() -> None:
    """Several whose prompts are cached are read once, as they are."""
    for controls, cached, times in (((PHONE,), False, 2), ((PHONE, WIDE), False, 0), ((PHONE, WIDE), True, 1)):
        one = made(controls, cache_text_embeddings=cached)
        operations = flat(steps(plan_of(one, load_profile(EDIT)), steps_of(one, 30)[:1]))
        assert [op.values["R"] for op in operations if isinstance(op, Part) and op.key == RAW].count(1200 * 1600) == times


def core_of(one: Job) -> Part:
    operations = steps(plan_of(one, load_profile(EDIT)), steps_of(one, 30)[:1])
    (core,) = [op for op in operations if isinstance(op, Part) and op.key.startswith("step.core")]
    return core


def test_what_a_step_encodes_of_its_picture_is_there_until_the_forward_is_over() -> None:
    core = core_of(made((PHONE,)))
    assert set(map(Release, OF_FORWARD)) == set(core.inside[1])
    scopes = {op.scope for op in core.inside[0] if isinstance(op, Part)}
    released = {op.scope for op in core.inside[0] if isinstance(op, Release)}
    assert scopes - released <= set(OF_FORWARD)


def test_loss_and_noise_are_the_pictures_alone() -> None:
    """Tensors of a step of edit-recovery on the emulated device: 1344 tokens of the picture, 5472 with its control image."""
    core = load_profile(EDIT).program("step.core/uint3-recovery/checkpointed/one" + EDITED)
    sizes = core.sizes({"T": 5472, "Q": 1344, "E": 74, "X": 218, "B": 1, "r": 16})
    moments = [core.moments[row] for row in core.labels]
    outside = [size for size, moment in zip(sizes.tolist(), moments, strict=True) if moment in ("step", "predict_noise")]
    assert outside.count(172_032) == 5  # noisy latents, twice as they are packed; the prediction, and in the loss's type
    assert outside.count(344_064) == 5  # of the loss, in fp32
    assert max(outside) == 344_064
    first, product = core.forward[0], first_of_backward(core)
    assert sizes[first : first + 2].tolist() == [700_416, 700_416]  # tokens of all images, of the item and of all items
    assert sizes[product - 1] == 700_416  # the gradient of all from which the prediction was cut


def test_a_preview_denoises_twice_among_what_the_first_step_left() -> None:
    profile, key = load_profile(EDIT), "preview/uint3-recovery/cfg/cached"
    plain, twice = profile.program(key), profile.program(key + EDITED)
    values = {"T": 8224, "Q": 4096, "Tj": 8224, "Tn": 0, "E": 128, "X": 210, "N": 192, "B": 1, "r": 16}
    sizes = twice.sizes(values).tolist()
    proj = [k for k, row in enumerate(twice.labels) if twice.moments[row] == "transformer.proj_out|forward"]
    assert len(proj) == 2 * len([row for row in plain.labels if plain.moments[row] == "transformer.proj_out|forward"])
    assert {sizes[k] for k in proj} == {8224 * 128}
    live = np.cumsum(np.where(twice.events == ALLOCATE, 1, -1))
    assert live.min() >= 0
    assert len(twice.exported) == len(plain.exported) + 1  # the second step's, and the joined tokens
    assert sum(size == 8224 * 128 for size in twice.sizes({**values, "Tj": 0}).tolist()) == sum(size == 8224 * 128 for size in sizes) - 2


def test_a_prompt_lets_go_of_the_pictures_that_it_was_encoded_with() -> None:
    """What stays of a prompt with a picture is its embedding and its mask, and nothing of the picture."""
    for count in (1, 2, 3):
        program = load_profile(EDIT).program(f"text/float8/plain/one/{count} images")
        cells = 196 * count
        sizes = program.sizes({"X": 208, "I": cells, "Ib": cells, "R": 384 * 384 * count, "B": 1, "T": 0})
        assert sizes[list(program.exported)].tolist() == [208 * 7168, 208 * 8]
        assert sizes[:count].tolist() == [884_736] * count


@pytest.mark.parametrize(("dropping", "encoded"), [(True, [194, 188, 305, 188]), (False, [194, 305])])
def test_captions_are_cached_in_their_order_each_with_its_picture(dropping: bool, encoded: list[int]) -> None:
    """As in edit11-recovery on the emulated device, where every other text is an empty one."""
    one = made((PHONE,), cache_text_embeddings=True)
    (each,) = one.datasets
    pair = [Bucket(512, 512, 1, text_tokens=tokens, controls=(PHONE,), count=1) for tokens in (194, 305)]
    known = replace(each, buckets=tuple(pair), scanned=True, text_tokens=305, longer_captions=(194, 305), drops_captions=dropping)

    def texts(dataset: Dataset) -> list[int]:
        operations = before_steps(plan_of(replace(one, datasets=(dataset,)), load_profile(EDIT)))
        return [op.values["X"] for op in operations if isinstance(op, Part) and op.key.startswith("text/") and "/graph/" in op.key]

    assert texts(known) == encoded
    unlike = replace(known, buckets=(replace(pair[0], controls=(WIDE,)), pair[1]))
    assert set(texts(unlike)) == {305}


def test_a_picture_is_copied_as_it_is_and_then_brought_to_whole_patches() -> None:
    """What the image processor makes of 320 x 448 pixels, which are 11 x 16 patches of 28, in edit11-recovery on the emulated device."""
    program = load_profile(EDIT).program("text/qfloat8/graph/one/1 images")
    sizes = program.sizes({"X": 194, "I": 176, "Ib": 176, "R": 320 * 448, "B": 1, "T": 0}).tolist()
    assert [size for size in sizes[:16] if size > 800_000][:6] == [860_160, 860_160, 1_720_320, 1_655_808, 827_904, 827_904]


def test_an_edits_previews_are_not_flushed_before_decoding_but_those_of_the_first() -> None:
    for arch, flushed in ((EDIT, False), ("qwen-image-edit", True)):
        one = replace(made(), arch=arch)
        one = replace(one, model=replace(one.model, low_vram=True), samples=tuple(replace(each, controls=(WIDE,)) for each in one.samples))
        operations = list(after_steps(plan_of(one, load_profile(arch))))
        at = next(n for n, op in enumerate(operations) if isinstance(op, Part) and op.key.startswith("preview/"))
        assert (operations[at + 1] == EmptyCache()) == flushed


@pytest.mark.parametrize("weights", ["bf16", "qfloat8"])
@pytest.mark.parametrize("skipped", [False, True])
def test_cached_prompts_of_previews_stay_on_the_card(weights: str, skipped: bool) -> None:
    """Live tensors of a whole run after its previews (edit11-ui on the emulated device): embeddings of 409 and 391 tokens, and masks."""
    recorded = [2_931_712, 1024, 2_802_688, 1024]
    one = made(cache_text_embeddings=True, skip_first_sample=skipped)
    sample = replace(one.samples[0], text_tokens=409, negative_tokens=391)
    one = replace(one, arch="qwen-image-edit-2511", model=replace(one.model, weights=weights), samples=(sample,))
    profile = load_profile(one.arch)
    plan, replay = plan_of(one, profile), Replay(profile, one, None)

    def kept() -> list[int]:
        return [size for scope, rows in replay.state.scopes.items() if scope.startswith("prompts") for _, _, size in rows]

    assert replay.run(before_steps(plan))
    assert kept() == ([] if skipped else recorded)
    assert replay.run([*steps(plan, steps_of(one, 30)[:1]), *after_steps(plan)])
    assert kept() == recorded
    uncached = before_steps(plan_of(replace(one, train=made().train), profile))
    assert not [op for op in uncached if isinstance(op, Part) and op.key == PROMPTS]


def test_what_was_not_recorded_for_it_is_qwen_images() -> None:
    own, relative = load_profile(EDIT), load_profile("qwen-image")
    assert own.adapter == relative.adapter
    assert own.resident("transformer", "qfloat8") == relative.resident("transformer", "qfloat8")
    assert sum(own.resident("text_encoder0", "bf16")) > sum(relative.resident("text_encoder0", "bf16"))  # the vision tower
    assert own.program("step.core/bf16/full/one") is relative.program("step.core/bf16/full/one")


def test_the_name_or_the_tag_tells_2511(tmp_path: Path) -> None:
    data, control = pictures(tmp_path / "d", SQUARE), pictures(tmp_path / "c", SQUARE)
    for model in ({"name_or_path": "Qwen/Qwen-Image-Edit-2511"}, {"name_or_path": "some/tune", "arch": "qwen_image_edit_plus:2511"}):
        assert edit(tmp_path, model=model, folder_path=data, control_path=control).arch == "qwen-image-edit-2511"


def test_2511_modulates_token_by_token() -> None:
    """zero_cond_t: shift, scale and gate of every token, so that more is kept; the text encoder is 2509's."""
    later = replace(made(), arch="qwen-image-edit-2511", model=replace(made().model, weights="bf16"))
    before = replace(later, arch=EDIT)
    assert peaks(before)["train"] < peaks(later)["train"]
    assert peaks(before)["cache_text" if "cache_text" in peaks(before) else "prepare"] == peaks(later)["prepare"]
    own = load_profile("qwen-image-edit-2511")
    with pytest.raises(CannotTell, match="no recording"):  # never Qwen-Image's instead, which is another transformer's
        own.program("step.core/uint4-recovery/full/one")
    assert own.resident("text_encoder0", "qfloat8") == load_profile(EDIT).resident("text_encoder0", "qfloat8")
    assert own.resident("transformer", "bf16") == load_profile("qwen-image").resident("transformer", "bf16")


# ---------------------------------------------------------------- prompts and pictures of a step


def before_core(one: Job, profile: str) -> int:
    """Bytes on the card when the forward of a first step begins."""
    recorded = load_profile(profile)
    plan, replay = plan_of(one, recorded), Replay(recorded, one, None)
    replay.run(before_steps(plan))
    for operation in steps(plan, steps_of(one, 0)[:1]):
        if isinstance(operation, Part) and operation.key.startswith("step.core"):
            break
        replay.run([operation])
    return sum(replay.state.bytes_of.values())


@pytest.mark.parametrize("arch", ["qwen-image", EDIT])
@pytest.mark.parametrize("cached", [False, True])
def test_a_step_holds_its_prompt_once(arch: str, cached: bool) -> None:
    """3584 channels of bf16 a token, and its mask, within the allocator's rounding; as many with latents that were cached."""
    short, long = (
        replace(one, datasets=tuple(
            replace(each, cache_latents_to_disk=cached, buckets=tuple(replace(b, text_tokens=tokens) for b in each.buckets[:1]))
            for each in one.datasets
        ), samples=())
        for one in [job(arch)] for tokens in (200, 500)
    )  # fmt: skip
    assert before_core(long, arch) - before_core(short, arch) == pytest.approx(300 * (7168 + 2), abs=2048)


def test_prompts_of_at_most_128_tokens_go_through_the_keys_at_once() -> None:
    """With the template's 34: partial results in each of 28 layers, or none."""
    program = load_profile("qwen-image").program("text/float8/plain/one")
    short, long = (int((program.sizes({"X": tokens, "B": 1}) == 0).sum()) for tokens in (94, 95))
    assert (short, long) == (2 * 28, 0)
