"""Passes besides the one that is trained: their programs, where the timeline has them, and how their settings are read."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from estimator.estimate import Interval, PhaseEstimate
from estimator.guided_step import GUIDED
from estimator.job import Job, Slider, Validation
from estimator.operations import CORE, Operation, Part
from estimator.plans import plan_of, steps
from estimator.program import ALLOCATE, Program
from estimator.programs import load_profile
from estimator.report_words import row_name, what
from estimator.timeline import simulate
from tests.config_writer import process, read, refusal, train
from tests.made_jobs import dataset, job

MIB = 2**20
WORKLOAD = {"T": 1024, "X": 96, "B": 2, "b": 1, "r": 16, "E": 64, "A": 1024}
KINDS = [("zimage", "qfloat8"), ("flux1-dev", "bf16"), ("zimage-turbo", "float8")]
SETTINGS: list[dict[str, Any]] = [{"prior": True}, {"guides_loss": True}, {"guided": True}]


def with_train(arch: str, **changes: Any) -> Job:
    one = job(arch, datasets=(dataset((512, 512), tokens=40, cache_latents=True),))
    return replace(one, samples=(), train=replace(one.train, cache_text_embeddings=True, **changes))


def running(program: Program, values: dict[str, int]) -> np.ndarray:
    sizes = program.sizes(values)[program.tensor_of_event]
    return np.cumsum(np.where(program.events == ALLOCATE, sizes, -sizes))


def of_adapter(program: Program) -> int:
    return sum(program.moments[row].split("|")[0].endswith("/Linear") for row in program.labels)


# ---- programs


@pytest.mark.parametrize(("arch", "weights"), KINDS)
@pytest.mark.parametrize("many", ["one", "many"])
def test_a_forward_alone_leaves_its_prediction_and_nothing_else(arch: str, weights: str, many: str) -> None:
    profile, values = load_profile(arch), {**WORKLOAD, "B": 1 if many == "one" else 2}
    for kind in ("adapted", "bare"):
        alone = profile.program(f"forward.{kind}/{weights}/{many}")
        held = running(alone, values)
        assert len(alone.exported) == 1
        assert held[-1] == alone.sizes(values)[alone.exported[0]]
        assert 0 < held[-1] <= 4 * 64 * values["T"] * values["B"]  # a latent of 16 channels in fp32 at most
        core = profile.program(f"step.core/{weights}/checkpointed/{many}")
        assert held.max() < running(core, values).max()
        assert not any("backward" in alone.moments[row] or "recompute" in alone.moments[row] for row in alone.labels)


@pytest.mark.parametrize(("arch", "weights"), KINDS)
def test_only_one_of_them_has_the_adapter(arch: str, weights: str) -> None:
    profile = load_profile(arch)
    core = profile.program(f"step.core/{weights}/checkpointed/one")
    forward = sum(core.moments[row].endswith("/Linear|forward") for row in core.labels)
    adapted, bare = (profile.program(f"forward.{kind}/{weights}/one") for kind in ("adapted", "bare"))
    assert of_adapter(adapted) == forward > 0 == of_adapter(bare)
    assert adapted.peak(WORKLOAD)[0] >= bare.peak(WORKLOAD)[0]


@pytest.mark.parametrize(("arch", "weights"), KINDS)
@pytest.mark.parametrize("checkpointing", ["checkpointed", "full"])
def test_a_guided_step_is_one_of_twice_the_samples_but_for_its_loss(arch: str, weights: str, checkpointing: str) -> None:
    profile = load_profile(arch)
    core = profile.program(f"step.core/{weights}/{checkpointing}/many")
    made = profile.program(core.key + GUIDED)
    whole, once, guided = (running(one, WORKLOAD | {"B": b}) for one, b in ((core, 2), (core, 1), (made, 2)))
    latent = 4 * 64 * WORKLOAD["T"]
    assert once.max() < whole.max() - 4 * latent <= guided.max() <= whole.max() + 8 * latent
    assert made.stay_bytes("gradient", WORKLOAD) == core.stay_bytes("gradient", WORKLOAD)
    assert len(made.events) == len(core.events) + 8


def test_weights_of_a_loss_and_guidance_go_together() -> None:
    profile = load_profile("zimage")
    both = profile.program("step.core/qfloat8/checkpointed/many/weighed/guided")
    assert len(both.events) == len(profile.program("step.core/qfloat8/checkpointed/many/weighed").events) + 8


def test_derived_weights_have_passes_too() -> None:
    profile = load_profile("flux1-dev")
    base, derived = (profile.program(f"forward.bare/{weights}/one") for weights in ("qfloat8", "qint8"))
    assert len(derived.events) < len(base.events)  # no cast before the product with the scale
    assert derived.sizes(WORKLOAD)[list(derived.exported)] == base.sizes(WORKLOAD)[list(base.exported)]


def test_embeddings_of_a_batch_are_those_of_one_prompt_as_often() -> None:
    profile = load_profile("flux1-dev")
    alone, text = profile.program("embeddings/qfloat8"), profile.program("text/qfloat8/plain/one")
    kept = int(text.sizes(WORKLOAD)[list(text.exported)].sum())
    assert [int(alone.sizes(WORKLOAD | {"B": b}).sum()) for b in (1, 3)] == [kept, 3 * kept]


# ---- timeline


def parts_of_a_step(one: Job) -> list[str]:
    plan = plan_of(one, load_profile(one.arch), order_known=True)
    from estimator.batches import steps_of

    found: list[str] = []

    def look(operations: Any) -> None:
        for operation in operations:
            if isinstance(operation, Part):
                found.append(operation.key.split("/")[0])
                look(inner for group in operation.inside for inner in group)

    look(steps(plan, steps_of(one, plan.tokens(None))))
    return [key for key in found if key.startswith(("forward", "embeddings", CORE))]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [CORE]),
        ({"prior": True}, ["forward.bare", CORE]),
        ({"guides_loss": True}, [CORE, "forward.adapted"]),
        ({"guided": True}, [CORE]),
        ({"mean_flow": True}, [CORE, "forward.adapted"]),
        ({"slider": Slider((9, 5, 9))}, ["forward.bare", CORE, CORE]),
        ({"slider": Slider((9, 5, 9, 7)), "weighs_timesteps": True}, ["forward.bare", CORE, CORE]),
        ({"prior": True, "guides_loss": True}, ["forward.bare", CORE, "forward.adapted"]),
    ],
)  # fmt: skip
def test_which_passes_a_step_has(settings: dict[str, Any], expected: list[str]) -> None:
    assert parts_of_a_step(with_train("zimage", **settings)) == expected


def test_prompts_of_a_pass_are_joined_where_they_are_no_lists() -> None:
    assert parts_of_a_step(with_train("flux1-dev", guides_loss=True)) == [CORE, "embeddings", "forward.adapted"]


def peak_of_steps(one: Job) -> int:
    return max(peak.allocated_bytes for peak in simulate(one).phases if peak.phase == "train")


@pytest.mark.parametrize("arch", ["zimage", "flux1-dev"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_no_pass_makes_a_step_smaller(arch: str, settings: dict[str, Any]) -> None:
    plain = peak_of_steps(with_train(arch, gradient_checkpointing=False))
    assert peak_of_steps(with_train(arch, gradient_checkpointing=False, **settings)) > plain - MIB  # less is not split off a block


def test_guidance_takes_as_much_as_twice_the_batch() -> None:
    one = with_train("zimage", gradient_checkpointing=False)
    two = replace(one, datasets=(replace(one.datasets[0], batch_size=2),))
    assert peak_of_steps(with_train("zimage", gradient_checkpointing=False, guided=True)) == pytest.approx(peak_of_steps(two), rel=0.01)


def test_a_slider_adds_its_second_gradients_to_the_first_and_holds_one_pass_at_a_time() -> None:
    one = with_train("flux1-dev", gradient_checkpointing=False)
    slid = with_train("flux1-dev", gradient_checkpointing=False, slider=Slider((40, 40, 40)))
    anchored = with_train("flux1-dev", gradient_checkpointing=False, slider=Slider((40, 40, 40, 40)))
    two = replace(one, datasets=(replace(one.datasets[0], batch_size=2),))
    plain, twice, simple, double = map(peak_of_steps, (one, two, slid, anchored))
    gradients = sum(load_profile("flux1-dev").adapter) * 16
    assert plain < simple <= plain + gradients + 128 * MIB
    assert twice < double <= twice + gradients + 128 * MIB


def test_a_slider_encodes_its_prompts_before_the_loop() -> None:
    one = with_train("zimage", slider=Slider((9, 5, 7)))
    before = plan_of(one, load_profile("zimage")).prepare()
    encodes = [op.values["X"] for op in before if isinstance(op, Part) and op.key.startswith("text/")]
    assert encodes[:3] == [9, 5, 7]


def validating(levels: int, every: int = 10, size: int = 768) -> Job:
    return with_train("zimage", validation=Validation(((size, size, 40),), levels, every))


def validations(one: Job) -> list[int]:
    return [peak.allocated_bytes for peak in simulate(one).phases if peak.detail == "validation"]


def test_a_validation_grows_with_its_levels_and_its_pictures() -> None:
    by_levels = [validations(validating(levels))[0] for levels in (1, 2, 4, 8)]
    assert all(a < b for a, b in pairwise(by_levels))
    assert validations(validating(4, size=512))[0] < by_levels[2]


def test_a_validation_has_a_row_of_its_own() -> None:
    (peak,) = [peak for peak in simulate(validating(4)).phases if peak.detail == "validation"][:1]
    shown = PhaseEstimate("train", peak.variant, 1, 1, Interval(1, 1, 1), "safe", "", {}, peak.detail)
    assert row_name(shown) == "validate 768x768 batch 4"
    assert what(shown) == "validating 768x768 batch 4"


@pytest.mark.parametrize(("every", "expected"), [(0, [0]), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (10, [0])])
def test_when_a_validation_comes(every: int, expected: list[int]) -> None:
    from estimator.passes import validated

    plan = plan_of(validating(4, every), load_profile("zimage"), order_known=True)
    come: list[int] = [number for number in range(5) if list[Operation](validated(plan, number))]
    assert come == expected


# ---- reading


def picture(folder: Path, width: int = 1000, height: int = 1500) -> str:
    path = folder / "check.png"
    Image.new("RGB", (width, height)).save(path)
    return str(path)


def config(**settings: Any) -> dict[str, Any]:
    return {"train": train(validation_config=settings)}


def test_a_validation_is_read_at_its_own_size(tmp_path: Path) -> None:
    one = read(tmp_path, **config(validation_items=[{"image_path": picture(tmp_path), "prompt": "a fox"}], resolution=512))
    assert one.train.validation == Validation(((416, 608, 512),), 4, 10)
    assert not one.unmodelled


@pytest.mark.parametrize("items", [[], [{"image_path": "", "prompt": "a fox"}], None])
def test_no_pictures_no_validation(tmp_path: Path, items: Any) -> None:
    assert read(tmp_path, **config(validation_items=items)).train.validation is None


def test_a_picture_that_is_not_here_is_taken_for_the_largest(tmp_path: Path) -> None:
    one = read(tmp_path, **config(validation_items=[{"image_path": "/nowhere/\0x.png"}], validation_sigmas=[1, 0.5]))
    assert one.train.validation is not None
    assert one.train.validation.pictures[0][:2] == (512, 512)
    assert one.train.validation.levels == 2
    assert any("not found here" in warning for warning in one.warnings)


@pytest.mark.parametrize(
    "settings",
    [
        {"validation_items": "x.png"}, {"validation_items": ["x.png"]}, {"validation_items": [{"image_path": 3}]}, {"resolution": "512"},
        {"resolution": -1}, {"validate_every_n_steps": "often"}, {"validation_sigmas": 4},
        {"validation_items": [{"image_path": "x.png"}], "validation_sigmas": []},
    ],
)  # fmt: skip
def test_what_the_trainer_stops_on_is_a_problem(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert any("validation" in problem.place.key for problem in refusal(tmp_path, **config(**settings)) if problem.place is not None)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"do_cfg": True}, "guided"), ({"do_random_cfg": True}, "guided"), ({"do_guidance_loss": True}, "guides_loss"),
        ({"correct_pred_norm": True}, "prior"), ({"do_prior_divergence": True}, "prior"),
    ],
)  # fmt: skip
def test_switches_of_passes(tmp_path: Path, settings: dict[str, Any], field: str) -> None:
    one = read(tmp_path, train=train(**settings))
    assert getattr(one.train, field)
    assert not one.unmodelled


def test_masks_make_a_prior_pass_and_their_absence_none(tmp_path: Path) -> None:
    masked = [{"folder_path": "/a", "resolution": 512, "mask_path": "/m"}]
    assert read(tmp_path, train=train(inverted_mask_prior=True), datasets=masked).train.prior
    bare = read(tmp_path, train=train(inverted_mask_prior=True))
    assert not bare.train.prior
    assert any("no dataset has masks" in warning for warning in bare.warnings)


def test_regularisation_by_the_prior_is_a_datasets(tmp_path: Path) -> None:
    assert read(tmp_path, datasets=[{"folder_path": "/a", "resolution": 512, "prior_reg": True}]).train.prior


@pytest.mark.parametrize(
    "changes",
    [
        {"train": train(do_guidance_loss=True, blank_prompt_preservation=True)},
        {"train": train(do_cfg=True, optimizer="automagic3")},
        {"train": train(loss_type="mean_flow", do_guidance_loss=True)},
        {"train": train(do_cfg=True), "network": {"type": "lokr", "linear": 16}},
        {"train": train(do_cfg=True), "model": {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image", "quantize": True}},
    ],
)  # fmt: skip
def test_what_no_rule_reaches_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert any(entry.place.key.startswith("train.") for entry in read(tmp_path, **changes).unmodelled)


SLIDING = {"positive_prompt": "a smiling person", "negative_prompt": "a sad person", "target_class": "person"}


def test_a_slider_is_read(tmp_path: Path) -> None:
    one = read(tmp_path, type="concept_slider", slider=SLIDING)
    assert one.train.slider == Slider((512, 512, 512))
    assert not one.unmodelled
    assert read(tmp_path, type="concept_slider", slider={**SLIDING, "anchor_class": ""}).train.slider == Slider((512,) * 4)
    assert read(tmp_path, type="concept_slider").train.slider == Slider((512,) * 3)


def test_a_slider_section_elsewhere_is_said_to_do_nothing(tmp_path: Path) -> None:
    one = read(tmp_path, slider=SLIDING)
    assert one.train.slider is None
    assert any("no effect" in warning for warning in one.warnings)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"type": "lokr", "linear": 16}}, {"train": train(optimizer="automagic3")}, {"train": train(do_cfg=True)},
        {"model": {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image", "quantize": True}},
    ],
)  # fmt: skip
def test_sliders_that_no_rule_reaches_are_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read(tmp_path, type="concept_slider", slider=SLIDING, **changes).unmodelled


def test_mean_flow_on_what_stops_on_it(tmp_path: Path) -> None:
    assert read(tmp_path, train=train(loss_type="mean_flow")).train.mean_flow
    (problem,) = refusal(tmp_path, train=train(loss_type="mean_flow"), model={"name_or_path": "Tongyi-MAI/Z-Image", "arch": "zimage"})
    assert "mse" in problem.fix
    (problem,) = refusal(tmp_path, train=train(loss_type="mean_flow", batch_size=2))
    assert (problem.place and problem.place.key, problem.fix) == ("train.loss_type", "set batch_size: 1")


def test_mean_flow_has_no_control_images(tmp_path: Path) -> None:
    """It makes its noisy latents itself, behind the place where control images are joined to the step's: encoded, and not used."""
    kontext = {"name_or_path": "black-forest-labs/FLUX.1-Kontext-dev", "arch": "flux_kontext", "quantize": True}
    data = [{"folder_path": "/a", "control_path": "/b", "resolution": 512}]
    one = read(tmp_path, train=train(loss_type="mean_flow"), model=kontext, datasets=data)
    assert any("control images" in warning for warning in one.warnings)
    assert not one.unmodelled
    plain = read(tmp_path, train=train(), model=kontext, datasets=data)
    assert not any("noisy latents of its own" in warning for warning in plain.warnings)


@pytest.mark.parametrize(
    ("name", "arch"), [("lodestones/Chroma1-Base", "chroma"), ("black-forest-labs/FLUX.2-klein-base-4B", "flux2_klein_4b")]
)
def test_a_validation_on_what_stops_on_it(tmp_path: Path, name: str, arch: str) -> None:
    settings = config(validation_items=[{"image_path": picture(tmp_path)}])
    (problem,) = refusal(tmp_path, **settings, model={"name_or_path": name, "arch": arch})
    assert problem.fix == "remove validation_config"


@pytest.mark.parametrize("written", ["plain", "file"])
def test_the_longest_negative_prompt_counts(tmp_path: Path, written: str) -> None:
    prompt = "blurry, low quality"
    if written == "file":
        (tmp_path / "negative.txt").write_text("bad\nblurry, low quality\n\n", encoding="utf-8")
        prompt = str(tmp_path / "negative.txt")
    one = read(tmp_path, train=train(do_cfg=True, negative_prompt=prompt, max_negative_prompts=2))
    assert one.train.negative_prompt == "blurry, low quality, blurry, low quality"


def test_a_process_without_settings_of_passes_has_none(tmp_path: Path) -> None:
    one = read(tmp_path, **{key: value for key, value in process().items() if key == "train"}).train
    assert not (one.prior)
    assert not (one.guides_loss)
    assert not (one.guided)
    assert not (one.validation)
