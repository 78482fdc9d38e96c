"""The whole transformer is trained: a config without a `network` section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_writer import FLUX_DEV, TURBO, ZIMAGE, process, read, refusal, train, write

from estimator import whole_ema
from estimator.advice import edits
from estimator.cli import main
from estimator.job import Job, Model, Network
from estimator.job_profile import profile_of
from estimator.programs import Profile, load_profile
from estimator.residents import UNIT_BYTES
from estimator.rows import bound
from estimator.timeline import simulate
from estimator.trainers import modelled
from estimator.whole_filtered import PartlyWholeProfile
from estimator.whole_profile import recorded_of

# The two layers of Stable Diffusion's embedding of the timestep are left out (DO_NOT_TRAIN_WEIGHTS of toolkit/stable_diffusion_model.py);
# tables of positions (3.5, Wan) and Chroma's places of modulations are no parameters
UNETS = ("sd15-aitk", "sdxl-aitk")
UNTRAINED_BYTES = {
    **dict.fromkeys(UNETS, 2 * (320 * 1280 + 1280 + 1280 * 1280 + 1280)), "sd35-medium-aitk": 2 * 384**2 * 1536,
    "sd35-large-aitk": 2 * 192**2 * 2432, **dict.fromkeys(("wan21-1.3b", "wan21-14b", "wan22-5b"), 2 * 4 * 1024 * 64), "chroma": 344 * 8,
}  # fmt: skip
SDXL = {"name_or_path": "stabilityai/stable-diffusion-xl-base-1.0", "arch": "sdxl"}
SD15 = {"name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5", "arch": "sd15"}
PLAIN_TURBO = {key: value for key, value in TURBO.items() if key != "assistant_lora_path"}
MODELS = {
    "flex1": {"name_or_path": "ostris/Flex.1-alpha", "arch": "flex1"}, "flux1-dev": FLUX_DEV, "zimage": ZIMAGE, "zimage-turbo": PLAIN_TURBO,
    "sdxl-aitk": SDXL, "sd15-aitk": SD15, "lumina2-aitk": {"name_or_path": "Alpha-VLLM/Lumina-Image-2.0", "arch": "lumina2"},
    "sd35-medium-aitk": {"name_or_path": "stabilityai/stable-diffusion-3.5-medium", "arch": "sd3"},
    "sd35-large-aitk": {"name_or_path": "stabilityai/stable-diffusion-3.5-large", "arch": "sd3"},
    "wan21-1.3b": {"name_or_path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "arch": "wan21"},
    "wan22-5b": {"name_or_path": "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "arch": "wan22_5b"},
    "flux1-schnell": {"name_or_path": "black-forest-labs/FLUX.1-schnell", "arch": "flux"},
    "wan21-14b": {"name_or_path": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "arch": "wan21"},
    "qwen-image": {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image"},
    "chroma": {"name_or_path": "lodestones/Chroma1-Base", "arch": "chroma"},
    "flux2-klein-4b": {"name_or_path": "x", "arch": "flux2_klein_4b"}, "flux2-klein-9b": {"name_or_path": "x", "arch": "flux2_klein_9b"},
}  # fmt: skip
# What checkpointing keeps to the end of a backward pass: Chroma's mask, places of Qwen-Image's tokens
KEPT_BYTES = dict.fromkeys(("chroma", "qwen-image"), 70 * 2**20)
WORKLOAD = {"T": 1024, "X": 96, "B": 1, "r": 0, "E": 64, "N": 20, "u": 256, "v": 64}
CORES = [f"step.core/bf16/{kept}/{many}" for kept in ("checkpointed", "full") for many in ("one", "many")]


def whole(arch: str) -> Profile:
    return profile_of(arch, Model(""), Network("whole", 0, dtype="bf16"))


def named(job: Job) -> set[str]:
    return {entry.place.key for entry in job.unmodelled}


@pytest.mark.parametrize("network", [..., None])
def test_it_is_read_without_a_network_section_or_with_an_empty_one(tmp_path: Path, network: object) -> None:
    job = read(tmp_path, train=train(optimizer="adamw8bit"), model=ZIMAGE, network=network)
    assert (job.unmodelled, job.method) == ((), "full")
    assert job.network == Network("whole", 0, dtype="bf16")


@pytest.mark.parametrize(
    ("model", "settings", "key"),
    [
        ({"name_or_path": "x", "arch": "flux2"}, {}, "network"), (TURBO, {}, "network"),
        (ZIMAGE | {"quantize": True, "qtype": "qint8"}, {}, "model.quantize"), (ZIMAGE | {"layer_offloading": True}, {}, "network"),
        (MODELS["qwen-image"] | {"only_if_contains": ["blocks.3."]}, {}, "model.only_if_contains"),
        (ZIMAGE, {"optimizer": "automagic3"}, "train.optimizer"),
        (ZIMAGE, {"do_paramiter_swapping": True}, "train.do_paramiter_swapping"),
        (ZIMAGE, {"optimizer": "adafactor", "gradient_accumulation": 2}, "train.gradient_accumulation"),
        (ZIMAGE, {"optimizer": "automagic", "gradient_accumulation": 2}, "train.gradient_accumulation"),
    ],
    ids=[
        "another architecture", "a training adapter", "quantised", "offloaded layers", "some parameters", "another optimizer",
        "a changing subset",
        "copies added up", "copies of another optimizer",
    ],
)  # fmt: skip
def test_what_has_no_model_is_named(tmp_path: Path, model: dict[str, Any], settings: dict[str, Any], key: str) -> None:
    job = read(tmp_path, train=train(**{"optimizer": "adamw", **settings}), model=model, network=...)
    assert any(place.endswith(key) for place in named(job)), named(job)


@pytest.mark.parametrize(("qtype", "why"), [("float8", "no gradient"), ("uint4", "no parameters"), ("uint7", "no parameters")])
def test_a_quantised_model_is_said_to_learn_next_to_nothing(qtype: str, why: str, tmp_path: Path) -> None:
    model = MODELS["flux2-klein-4b"] | {"quantize": True, "qtype": qtype}
    job = read(tmp_path, train=train(optimizer="adamw8bit"), model=model, network=...)
    assert any(why in entry.why for entry in job.unmodelled)


@pytest.mark.parametrize("arch", ["zimage", "qwen-image"])
def test_layers_of_the_trainers_own_kinds_stop_it_at_the_first_save(arch: str, tmp_path: Path) -> None:
    """Where diffusers writes the file; a model that was read from one file is written as such."""
    model = MODELS[arch] | {"quantize": True, "qtype": "uint4"}
    (problem, *_) = refusal(tmp_path, train=train(optimizer="adamw8bit"), model=model, network=...)
    assert "first save" in problem.what
    job = read(tmp_path, train=train(optimizer="adamw8bit"), model=model | {"name_or_path": "/nowhere/model.safetensors"}, network=...)
    assert any(place.endswith("model.quantize") for place in named(job))


def test_a_unet_that_asks_for_quantisation_is_one_that_does_not(tmp_path: Path) -> None:
    """It has none: an adapter is then beside its weights, and here there is no adapter."""
    jobs = [
        read(tmp_path, train=train(optimizer="adamw8bit", noise_scheduler="ddpm"), model=SD15 | {"quantize": asked}, network=...)
        for asked in (True, False)
    ]
    assert jobs[0].model == jobs[1].model
    assert not named(jobs[0])


def test_parameters_without_a_gradient_have_no_state_and_an_emas_copies() -> None:
    """Of Flex.1: the two layers of the embedding of the guidance, with biases."""
    profile = whole("flex1")
    assert [profile.adapter[k] // 2 for k in sorted(profile.idle)] == [256 * 3072, 3072, 3072 * 3072, 3072]
    names = {name for name in profile.program("step.update/adamw+bf16/first").names if name}
    assert not {int(name.rsplit(".", 1)[1]) for name in names if name.startswith("optimizer:")} & profile.idle
    assert profile.program("setup.ema").stay_bytes("ema", {}) == tuple(profile.adapter)


@pytest.mark.parametrize("model", [SDXL, {"name_or_path": "x", "arch": "flux2_klein_9b"}])
def test_an_ema_is_read(model: dict[str, Any], tmp_path: Path) -> None:
    settings = train(optimizer="adamw8bit", noise_scheduler="ddpm" if model is SDXL else "flowmatch", ema_config={"use_ema": True})
    assert not named(read(tmp_path, train=settings, model=model, network=...))


@pytest.mark.parametrize("key", sorted(whole_ema.PARTS))
@pytest.mark.parametrize("arch", ["flux1-dev", "flux2-klein-4b", "zimage"])
def test_an_ema_by_rule_is_the_recorded_one(arch: str, key: str) -> None:
    profile = whole(arch)
    made, recorded = whole_ema.program(key, profile.adapter), profile.recorded(key)
    assert made.events.tolist() == recorded.events.tolist()
    assert (made.names, made.imports, made.peak({})) == (recorded.names, recorded.imports, recorded.peak({}))
    assert made.sizes({}).tolist() == recorded.sizes({}).tolist()


@pytest.mark.parametrize("arch", ["flux2-klein-9b", "sdxl-aitk"])
def test_where_none_was_recorded_an_ema_is_a_copy_of_all_parameters(arch: str) -> None:
    profile = whole(arch)
    assert profile.program("setup.ema").stay_bytes("ema", {}) == tuple(profile.adapter)
    entered = profile.program("sample.enter/bf16/ema/later")
    assert entered.sums({}, 1)[0] == {"ema_copy": sum(profile.adapter)} == entered.sums({}, 1)[1]
    assert profile.program("step.ema").exported == ()


def test_control_images_are_named(tmp_path: Path) -> None:
    model = {"name_or_path": "x", "arch": "flux2_klein_4b"}
    datasets = [{"folder_path": "/nowhere", "resolution": 512, "control_path": "/nowhere/control"}]
    job = read(tmp_path, train=train(optimizer="adamw8bit"), model=model, network=..., datasets=datasets)
    assert any(place.endswith("control_path") for place in named(job))


def test_an_output_is_preserved_with_an_adapter_only(tmp_path: Path) -> None:
    (problem, *_) = refusal(tmp_path, train=train(blank_prompt_preservation=True, optimizer="adamw"), model=ZIMAGE, network=...)
    assert "network section" in problem.what


@pytest.mark.parametrize("arch", sorted(modelled.WHOLE))
def test_the_optimizer_has_every_weight_of_the_transformer_and_each_gets_a_gradient(arch: str) -> None:
    profile, untrained = whole(arch), UNTRAINED_BYTES.get(arch, 0)
    assert sum(profile.adapter) == sum(load_profile(arch).resident("transformer", "bf16")) - untrained
    for key in CORES:
        values = WORKLOAD | {"B": 3 if key.endswith("many") else 1}
        reached = sorted(size for k, size in enumerate(profile.adapter) if k not in profile.idle)
        assert sorted(profile.program(key).stay_bytes("gradient", values)) == reached


@pytest.mark.parametrize(("optimizer", "least", "most"), [("adamw", 2.0, 2.0), ("adamw8bit", 1.0, 1.04), ("adafactor", 0.0, 0.01)])
@pytest.mark.parametrize("arch", sorted(modelled.WHOLE))
def test_states_are_in_the_parameters_type_or_in_eight_bit(arch: str, optimizer: str, least: float, most: float) -> None:
    """Two of 2 bytes a weight; two of one byte with a scale of 4 for each 256, and in fp32 those of norms, which are small; one of rows and
    one of columns."""
    profile = whole(arch)
    program = profile.program(f"step.update/{optimizer}+bf16/first")
    groups = {name.split(":")[0] for name in program.names if name} - {"gradient"}
    state = sum(size for group in groups for size in program.stay_bytes(group, WORKLOAD))
    reached = sum(size for k, size in enumerate(profile.adapter) if k not in profile.idle)
    assert least <= state / reached <= most




def peak(job: Job) -> int:
    return max(phase.allocated_bytes for phase in bound(job).phases if phase.phase == "train")


@pytest.mark.parametrize("arch", sorted(modelled.WHOLE))
def test_more_of_anything_needs_no_less(arch: str, tmp_path: Path) -> None:
    model, convolutions = MODELS[arch], arch in UNETS

    def of(**settings: Any) -> int:
        scheduler = "ddpm" if convolutions else "flowmatch"
        ours = {"optimizer": "adamw8bit", "noise_scheduler": scheduler, "bypass_guidance_embedding": arch == "flex1"}
        job = read(tmp_path, train=train(**{**ours, **settings}), model=model, network=...)
        assert convolutions or not named(job)
        return peak(job)

    small = of()
    assert small <= of(batch_size=2) <= of(batch_size=4)
    assert small <= of(gradient_checkpointing=False) + KEPT_BYTES.get(arch, 0)
    assert small < of(optimizer="adamw")
    assert convolutions or of(optimizer="adafactor") < small
    assert small < of(ema_config={"use_ema": True})


def test_the_command_says_that_the_method_is_full_and_where_the_gradients_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, process(train=train(optimizer="adamw8bit"), model=ZIMAGE, network=...))
    assert main([str(path), "--gpu", "A100-80G", "--json"]) in (0, 1)
    answer = json.loads(capsys.readouterr().out)
    assert answer["method"] == "full"
    (step, *_) = [phase for phase in answer["phases"] if phase["phase"] == "train"]
    weights = sum(-(-size // UNIT_BYTES) * UNIT_BYTES for size in whole("zimage").adapter)
    assert step["components"]["gradients"] <= weights
    assert step["components"]["transformer"] + step["components"]["optimizer"] > 1.9 * weights * 0.99


def test_an_optimizer_of_less_state_is_advised_where_a_step_has_one_batch(tmp_path: Path) -> None:
    def offered(**settings: Any) -> set[tuple[str, object]]:
        job = read(tmp_path, train=train(**{"optimizer": "adamw8bit", **settings}), model=ZIMAGE, network=...)
        return {(each.key, each.after) for each in edits(job)}

    assert ("train.optimizer", "adafactor") in offered()
    assert ("train.optimizer", "adafactor") not in offered(gradient_accumulation=2)


def test_an_emas_copies_are_where_the_model_is_at_the_first_previews(tmp_path: Path) -> None:
    """With cached text that is the host. Each later time new copies come before the older go."""
    weights = sum(whole("zimage").adapter)
    held = {}
    for cached in (True, False):
        settings = train(optimizer="adafactor", ema_config={"use_ema": True}, cache_text_embeddings=cached)
        job = read(tmp_path, train=settings, model=ZIMAGE, network=..., sample={"prompts": ["a cat"], "width": 512, "height": 512})
        phases = [phase for phase in simulate(job).phases if phase.phase in ("sample", "save")]
        held[cached] = [phase.components["ema"] / weights for phase in phases]
    assert held[True][0] == pytest.approx(1, rel=0.01)
    assert held[False][0] == pytest.approx(2, rel=0.01)
    assert held[False][1:] == pytest.approx([3, 3], rel=0.01)


def test_a_rank_is_no_axis_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, process(train=train(optimizer="adamw8bit"), model=ZIMAGE, network=...))
    assert main(["plan", str(path), "--gpu", "A100-80G", "--grid", "rank=4-16:4"]) == 2
    assert "no adapter is trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "datasets", "key"),
    [
        ({"inverted_mask_prior": True}, {"mask_path": "/nowhere/masks"}, "inverted_mask_prior"), ({"do_cfg": True}, {}, "do_cfg"),
        ({"do_guidance_loss": True}, {}, "do_guidance_loss"), ({"train_text_encoder": True}, {}, "train_text_encoder"),
    ],
)  # fmt: skip
def test_further_passes_of_a_step_are_named(tmp_path: Path, settings: dict[str, Any], datasets: dict[str, Any], key: str) -> None:
    entries = [{"folder_path": "/nowhere/images", "resolution": 512, **datasets}]
    job = read(tmp_path, train=train(optimizer="adamw8bit", **settings), model=ZIMAGE, network=..., datasets=entries)
    assert any(place.endswith(key) for place in named(job))


BLOCKS = ["transformer.transformer_blocks.", "transformer.single_transformer_blocks."]


def test_of_a_part_of_the_parameters_the_others_have_no_gradients(tmp_path: Path) -> None:
    """As the trainer's example of a fine-tune of Flex.1 has it."""
    model = MODELS["flex1"] | {"only_if_contains": BLOCKS}
    settings = train(optimizer="adamw", bypass_guidance_embedding=True, ema_config={"use_ema": True})
    job = read(tmp_path, train=settings, model=model, network=...)
    assert not named(job)
    assert job.network is not None
    profile, all_of_it = profile_of("flex1", job.model, job.network), recorded_of("flex1")
    assert isinstance(profile, PartlyWholeProfile)
    assert all(any(word in profile.names[k] for word in BLOCKS) != (k in profile.left) for k in range(len(profile.names)))
    program, recorded = (one.program("step.core/bf16/checkpointed/one") for one in (profile, all_of_it))
    left = sum(profile.adapter[k] for k in profile.left - all_of_it.idle)
    assert sum(program.stay_bytes("gradient", WORKLOAD)) == sum(recorded.stay_bytes("gradient", WORKLOAD)) - left > 0
    assert program.peak(WORKLOAD)[0] < recorded.peak(WORKLOAD)[0]
    copied = sum(profile.program("setup.ema").stay_bytes("ema", {}))
    assert copied == sum(size for k, size in enumerate(profile.adapter) if k not in profile.left)


def test_words_that_have_no_model_are_named(tmp_path: Path) -> None:
    """Of another architecture, no list, and of nothing."""
    model = MODELS["lumina2-aitk"] | {"ignore_if_contains": ["norm"]}
    job = read(tmp_path, train=train(optimizer="adamw"), model=model, network=...)
    assert any(place.endswith("model.ignore_if_contains") for place in named(job))
    for words in ("norm", ["nowhere"]):
        model = MODELS["flex1"] | {"only_if_contains": words}
        job = read(tmp_path, train=train(optimizer="adamw", bypass_guidance_embedding=True), model=model, network=...)
        assert any(place.endswith("model.only_if_contains") for place in named(job))


@pytest.mark.parametrize("arch", ["chroma", "flex1", "sd35-medium-aitk"])
def test_text_encoders_that_are_unloaded_come_when_the_vae_has_gone(arch: str, tmp_path: Path) -> None:
    """The empty prompt is encoded on the host, where a fine-tune has put them before it caches latents."""
    settings = train(optimizer="adafactor", unload_text_encoder=True, bypass_guidance_embedding=True)
    datasets = [{"folder_path": "/nowhere/images", "resolution": 512, "cache_latents_to_disk": True}]
    job = read(tmp_path, train=settings, model=MODELS[arch], network=..., datasets=datasets, sample={"prompts": ["a cat"]})
    assert not named(job)
    (loop,) = [phase for phase in simulate(job).phases if (phase.phase, phase.detail) == ("prepare", "before the loop")]
    assert loop.components["text_encoder"] > 0
    assert not loop.components.get("vae")
