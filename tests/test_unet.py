"""Stable Diffusion XL and 1.5 as AI Toolkit trains them: levels of a UNet, adapters on convolutions, and what stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_writer import no_answer, process, read, refusal, train, unmodelled_keys, write
from hypothesis import given
from hypothesis import strategies as st

from estimator.cli import main
from estimator.convolved import convolved, counts_elements
from estimator.features import feature, image_values
from estimator.job import Job
from estimator.job_profile import profile_of
from estimator.levels import UNMERGED, levels
from estimator.operations import MoveIn, Part
from estimator.optimizer_rules import load_rules
from estimator.parameters import ELEMENT_BYTES, Convolved
from estimator.planner.space import NO_PREVIEWS, dimensions
from estimator.planner.subject import read_subject
from estimator.plans import before_steps, plan_of
from estimator.programs import load_profile
from estimator.timeline import simulate
from estimator.trainers import read_jobs

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
XL = {"name_or_path": "stabilityai/stable-diffusion-xl-base-1.0", "arch": "sdxl"}
SD15 = {"name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5", "arch": "sd15"}
ARCHS = {"sdxl-aitk": XL, "sd15-aitk": SD15}
of_both = pytest.mark.parametrize("arch", ARCHS)
# Elements of an adapter of rank 1, counted over the layers of diffusers' classes: inputs and outputs of linear layers and 1 x 1
# convolutions (of Transformer2DModel; with an adapter on convolutions of ResnetBlock2D, Downsample2D and Upsample2D too), and nine times
# the inputs and the outputs of the other convolutions
LINEAR_ALONE = {"sdxl-aitk": 2_659_840, "sd15-aitk": 423_936}
BESIDE_CONVOLUTIONS = {"sdxl-aitk": 2_718_400, "sd15-aitk": 506_816}
CONVOLUTIONS = {"sdxl-aitk": 355_840, "sd15-aitk": 544_000}
sides = st.integers(16, 128).map(lambda n: 16 * n)


def unet(folder: Path, model: dict[str, Any] = XL, *, settings: dict[str, Any] | None = None, **sections: Any) -> Job:
    given = {"model": model, "train": train(noise_scheduler="ddpm", **(settings or {}))}
    return read(folder, **{**given, **sections})


def lora(rank: int, conv: int | None = None) -> dict[str, Any]:
    return {"network": {"type": "lora", "linear": rank, **({} if conv is None else {"conv": conv})}}


def preview(width: int = 512, height: int = 512) -> dict[str, Any]:
    return {"sample": {"samples": [{"prompt": "a heron"}], "width": width, "height": height}}


# ---------------------------------------------------------------- levels


@pytest.mark.parametrize(
    ("size", "u", "v"), [((512, 512), 256, 64), ((1024, 1024), 1024, 256), ((784, 656), 25 * 21, 13 * 11), ((16, 16), 1, 1)]
)
def test_levels_are_rounded_up_side_by_side(size: tuple[int, int], u: int, v: int) -> None:
    assert levels(*size) == {"u": u, "v": v}


@given(sides, sides)
def test_a_level_has_at_least_a_quarter_of_the_places_above_it(width: int, height: int) -> None:
    places, below = image_values(width, height)["T"], levels(width, height)
    assert places <= 4 * below["u"] <= 4 * 4 * below["v"]
    assert below["u"] <= places
    if width % 64 == height % 64 == 0:
        assert (places, below["u"]) == (4 * below["u"], 4 * below["v"])


def test_a_rounded_level_counts_in_products() -> None:
    assert feature("B*c*u", {"B": 2, "c": 3, "u": 7}) == 42
    assert feature("u128", {"u": 129}) == 256


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("key", ["sdxl", "sd15", "sd1"])
def test_keys_of_the_trainer(key: str, tmp_path: Path) -> None:
    job = unet(tmp_path, {"name_or_path": "me/fine-tune", "arch": key})
    assert job.arch == ("sdxl-aitk" if key == "sdxl" else "sd15-aitk")
    assert job.unmodelled == ()
    assert {s.text_tokens for s in unet(tmp_path, **preview()).samples} == {77}


def test_the_older_switch_is_the_same(tmp_path: Path) -> None:
    assert unet(tmp_path, {"name_or_path": "me/fine-tune", "is_xl": True}).arch == "sdxl-aitk"


def test_without_a_key_only_what_is_called_so_is_stable_diffusion(tmp_path: Path) -> None:
    assert unet(tmp_path, {"name_or_path": "runwayml/stable-diffusion-v1-5"}).arch == "sd15-aitk"
    (problem,) = no_answer(tmp_path, model={"name_or_path": "black-forest-labs/FLUX.1-dev"})
    assert "model.arch" in problem.fix


@pytest.mark.parametrize(("conv", "rank"), [(None, None), (0, None), (8, 8)])
def test_the_rank_of_convolutions(conv: int | None, rank: int | None, tmp_path: Path) -> None:
    job = unet(tmp_path, **lora(16, conv))
    assert job.network is not None
    assert job.network.conv == rank
    assert job.network.variables == {"r": 16, **({"c": rank} if rank else {})}
    (other,) = read_jobs(write(tmp_path, process(**lora(16, conv))))
    assert other.network is not None
    assert other.network.variables == {"r": 16}  # transformers have no convolutions in their blocks


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("train.noise_scheduler", {"settings": {"noise_scheduler": "flowmatch"}}), ("sample", preview(1000, 1000)),
        ("train.optimizer", {"settings": {"optimizer": "adafactor"}}),
        ("train.dtype", {"settings": {"dtype": "fp16"}, "network": {"type": "lora", "dropout": 0.1}}),
        ("model.quantize", {"model": {**XL, "quantize": True}}),
        ("network.network_kwargs.only_if_contains", {"network": {"type": "lora", "network_kwargs": {"only_if_contains": ["attn"]}}}),
        ("network.type", {"network": {"type": "lokr"}}), ("network.dropout", {"network": {"type": "lora", "dropout": 0.1}}),
        ("model.layer_offloading", {"model": {**XL, "layer_offloading": True}}),
        ("model.refiner_name_or_path", {"model": {**XL, "refiner_name_or_path": "stabilityai/stable-diffusion-xl-refiner-1.0"}}),
    ],
)  # fmt: skip
def test_what_was_not_recorded_is_named(key: str, sections: dict[str, Any], tmp_path: Path) -> None:
    sections = dict(sections)
    settings = {"noise_scheduler": "ddpm", **sections.pop("settings", {})}
    job = read(tmp_path, **{"model": XL, "train": train(**settings), **sections})
    assert key in {found.removeprefix("config.process[0].") for found in unmodelled_keys(job)}


def test_another_vae_is_taken_for_one_of_the_same_size(tmp_path: Path) -> None:
    assert unet(tmp_path, {**XL, "vae_path": "madebyollin/sdxl-vae-fp16-fix"}).unmodelled == ()
    (key,) = unmodelled_keys(read(tmp_path, model={"name_or_path": "Tongyi-MAI/Z-Image", "arch": "zimage", "vae_path": "x"}))
    assert key.endswith("model.vae_path")


@of_both
@pytest.mark.parametrize("setting", ["cache_text_embeddings", "unload_text_encoder"])
def test_previews_stop_without_text_encoders(arch: str, setting: str, tmp_path: Path) -> None:
    (problem,) = refusal(tmp_path, model=ARCHS[arch], train=train(noise_scheduler="ddpm", **{setting: True}), **preview())
    assert "stops" in problem.why
    without = train(noise_scheduler="ddpm", disable_sampling=True, **{setting: True})
    job = read(tmp_path, model=ARCHS[arch], train=without, **preview())
    assert job.unmodelled == ()
    assert {phase.phase for phase in simulate(job).phases} >= {"load", "train", "save"}


def test_quantisation_leaves_the_weights_and_the_adapter_beside_them(tmp_path: Path) -> None:
    """As the web UI writes it for 1.5; which of merged and not was recorded, with an adapter on convolutions and without, is said."""
    job = unet(tmp_path, {**SD15, "quantize": True, "qtype": "uint4"}, **preview(), **lora(16, 8))
    assert (job.model.weights, job.model.te_weights, job.model.merges) == ("bf16", "bf16", False)
    assert job.unmodelled == ()
    assert any("does not quantise" in warning for warning in job.warnings)
    plain = unet(tmp_path, SD15, **preview())
    keys = [{one.key.split("/")[1] for one in operations(each) if one.key.startswith(("preview/", "sample."))} for each in (job, plain)]
    assert keys == [{UNMERGED}, {"bf16"}]
    for model, conv, known in ((SD15, 8, False), ({**SD15, "quantize": True}, None, False), (XL, 8, True), (XL, None, True)):
        found = unmodelled_keys(unet(tmp_path, model, **preview(), **lora(16, conv)))
        assert {key.rpartition(".")[2] for key in found} == (set() if known else {"quantize"})


def test_state_by_rows_and_columns_is_told_from_state_by_elements() -> None:
    by_elements = {name for name in load_rules() if counts_elements(name)}
    assert {"adamw8bit", "adamw", "adam8bit", "prodigy", "lion8bit"} <= by_elements
    assert not by_elements & {"adafactor", "automagic", "automagic2", "automagic3"}


# ---------------------------------------------------------------- programs


def operations(job: Job) -> list[Part]:
    plan = plan_of(job, profile_of(job.arch, job.model, job.network))
    return [one for one in before_steps(plan) if isinstance(one, Part)]


@of_both
def test_components_come_whole_and_text_encoders_first(arch: str, tmp_path: Path) -> None:
    job = unet(tmp_path, ARCHS[arch])
    plan = plan_of(job, load_profile(arch))
    keys = [one.key.split("/")[0] for one in plan.load() if isinstance(one, Part)]
    assert keys == ["load.text", "load.rest", "load.transformer"]
    assert not any(isinstance(one, MoveIn) for one in plan.load())
    assert len(plan.encoders) == (2 if arch == "sdxl-aitk" else 1)


@of_both
def test_an_adapter_has_the_trainers_elements(arch: str) -> None:
    linear, both = load_profile(arch).adapter, convolved(arch).adapter
    assert sum(linear) == ELEMENT_BYTES * LINEAR_ALONE[arch]
    assert isinstance(both, Convolved)
    of_convolutions = sum(both[k] for k in both.places)
    assert of_convolutions == ELEMENT_BYTES * CONVOLUTIONS[arch]
    assert sum(both) - of_convolutions == ELEMENT_BYTES * BESIDE_CONVOLUTIONS[arch]


@of_both
@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
def test_each_rank_scales_its_own_state(arch: str, optimizer: str, tmp_path: Path) -> None:
    def state(rank: int, conv: int | None) -> int:
        job = unet(tmp_path, ARCHS[arch], settings={"optimizer": optimizer, "disable_sampling": True}, **lora(rank, conv))
        return max(phase.components.get("optimizer", 0) for phase in simulate(job).phases)

    alone = state(32, None)
    of_eight, of_sixteen = (state(32, conv) - state(32, 4) for conv in (12, 20))  # besides what the other layers add at their rank
    assert of_sixteen == pytest.approx(2 * of_eight, rel=0.02)
    assert state(64, None) == pytest.approx(2 * alone, rel=0.02)


@of_both
def test_more_convolutions_never_need_less(arch: str, tmp_path: Path) -> None:
    def peak(conv: int | None, checkpointing: bool) -> int:
        settings = {"optimizer": "adamw8bit", "gradient_checkpointing": checkpointing, "disable_sampling": True}
        return max(phase.allocated_bytes for phase in simulate(unet(tmp_path, ARCHS[arch], settings=settings, **lora(16, conv))).phases)

    for checkpointing in (True, False):
        found = [peak(conv, checkpointing) for conv in (None, 4, 16, 64)]
        assert found == sorted(found)
        assert found[0] < found[1]


@pytest.mark.parametrize("sets", [(), ("train.disable_sampling=true",)])
def test_a_plan_without_text_encoders_makes_no_previews(sets: tuple[str, ...]) -> None:
    """The trainer stops on previews then, so that plans had never proposed it: SDXL on 8 GiB had none."""
    subject = read_subject(str(EXAMPLES / "sdxl_ui.yaml"), sets, None, ())
    (text,) = (each for each in dimensions(subject, "quality") if each.name == "text")
    edits = [{edit.key: edit.value for edit in level.edits} for level in text.levels[1:]]
    off = {} if sets else {"train.disable_sampling": True}
    assert edits == [{"train.cache_text_embeddings": True, **off}, {"train.unload_text_encoder": True, **off}]
    assert (text.levels[1].loss.trouble > NO_PREVIEWS) is not bool(sets)


def test_sdxl_has_a_plan_on_8_gib(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(EXAMPLES / "sdxl_ui.yaml"), "--gpu", "8GiB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"]
