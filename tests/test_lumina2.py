"""Lumina-Image 2.0 by AI Toolkit's own key: words of padded prompts, captions of a batch that differ in length, sides of previews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_writer import read, refusal, train, unmodelled_keys
from PIL import Image

from calibration import probes
from calibration.architectures.lumina2 import LOAD, template_tokens
from estimator.advice import edits
from estimator.asked import ASKED, BITS, GEMMA2_2B, PROGRAMS
from estimator.job import Job
from estimator.operations import Begin, MoveIn, Operation, Part
from estimator.parameters import ELEMENT_BYTES
from estimator.plans import before_previews, plan_of
from estimator.program import Program
from estimator.programs import load_profile
from estimator.timeline import simulate
from estimator.tokens import lumina2_tokens

ARCH = "lumina2-aitk"
MODEL = {"name_or_path": "Alpha-VLLM/Lumina-Image-2.0", "arch": "lumina2", "quantize_te": True}
SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on textual prompts"
    " or user prompts."
)
# Inputs and outputs of the linear layers of a block, by the width D of its stream: queries and what comes out 2 D each, keys and values
# D and a third of it, three layers of the feed-forward 5 D; the modulation, which blocks of the text have not, 1024 and 4 D
D = 2304
BLOCK, MODULATION = 2 * 2 * D + 2 * (D + D // 3) + 3 * 5 * D, 1024 + 4 * D
ELEMENTS = (26 + 2) * (BLOCK + MODULATION) + 2 * BLOCK


def lumina2(folder: Path, **sections: Any) -> Job:
    return read(folder, **{"model": MODEL, **sections})


def preview(width: int, height: int, guidance: float = 4) -> dict[str, Any]:
    return {"sample": {"samples": [{"prompt": "a heron"}], "width": width, "height": height, "guidance_scale": guidance}}


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("key", [{"arch": "lumina2"}, {"is_lumina2": True}])
def test_its_key_and_its_older_flag_are_the_same(key: dict[str, Any], tmp_path: Path) -> None:
    job = lumina2(tmp_path, model={"name_or_path": MODEL["name_or_path"], "quantize_te": True, **key})
    assert (job.arch, job.unmodelled, job.model.weights, job.model.te_weights) == (ARCH, (), "bf16", "qfloat8")


def test_the_text_encoder_has_the_transformers_type_and_a_switch_of_its_own(tmp_path: Path) -> None:
    job = lumina2(tmp_path, model={**MODEL, "quantize": True, "qtype": "qfloat8", "qtype_te": "uint4"})
    assert (job.model.weights, job.model.te_weights) == ("qfloat8", "qfloat8")
    assert lumina2(tmp_path, model={**MODEL, "quantize": True, "quantize_te": False}).model.te_weights == "bf16"


def test_a_prompt_is_behind_the_systems_and_cut_at_256_tokens() -> None:
    assert lumina2_tokens("") == 31
    assert lumina2_tokens("a red fox") == 34
    assert template_tokens(f"{SYSTEM} <Prompt Start> a red fox") == (31, 0, "a red fox")
    assert lumina2_tokens("fox " * 500) == 256
    assert template_tokens("a red fox") == (0, 0, "a red fox")


def test_sides_of_previews_that_its_pipeline_does_not_round_are_a_problem(tmp_path: Path) -> None:
    (problem,) = refusal(tmp_path, model=MODEL, **preview(1000, 1024))
    assert "1000x1024" in problem.what
    assert problem.fix.startswith("992x1024")


def test_with_cached_text_the_trainer_stops_at_a_preview(tmp_path: Path) -> None:
    """Run: AttributeError, 'FakeTextEncoder' object has no attribute 'text_model' (save_device_state). Unloaded it goes on."""
    (problem,) = refusal(tmp_path, model=MODEL, train=train(cache_text_embeddings=True), **preview(512, 512))
    assert problem.place is not None
    assert problem.place.key == "train.cache_text_embeddings"
    assert "text_model" not in problem.why
    for settings in ({"cache_text_embeddings": True, "disable_sampling": True}, {"unload_text_encoder": True}):
        assert not unmodelled_keys(lumina2(tmp_path, train=train(**settings), **preview(512, 512)))


def test_advice_does_not_lead_into_what_the_trainer_stops_on(tmp_path: Path) -> None:
    def proposed(**settings: Any) -> set[str]:
        return {edit.key for edit in edits(lumina2(tmp_path, train=train(**settings), **preview(512, 512)))}

    assert "train.cache_text_embeddings" not in proposed()
    assert "train.unload_text_encoder" in proposed()
    assert "train.cache_text_embeddings" in proposed(disable_sampling=True)


@pytest.mark.parametrize(
    ("captions", "batch", "settings", "uneven"),
    [
        (("a fox", "a fox"), 2, {}, False), (("a fox", "a heron in the reeds"), 2, {}, True),
        (("a fox", "a heron in the reeds"), 1, {}, False), (("a fox", "a heron in the reeds"), 2, {"unload_text_encoder": True}, False),
        (("a fox", "a heron in the reeds"), 2, {"cache_text_embeddings": True, "disable_sampling": True}, True),
    ],
)  # fmt: skip
def test_captions_of_a_batch_that_differ_in_length(
    captions: tuple[str, str], batch: int, settings: dict[str, Any], uneven: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, text in zip(("one", "two"), captions, strict=True):
        Image.new("RGB", (512, 512)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(text)
    entry = {"folder_path": str(folder), "resolution": 512, "caption_ext": "txt"}
    job = lumina2(tmp_path, datasets=[entry], train=train(batch_size=batch, **settings))
    (bucket,) = job.datasets[0].buckets
    assert bucket.uneven is uneven
    plan = plan_of(job, load_profile(ARCH))
    assert plan.core(bucket) == ("step.core.uneven" if uneven else "step.core")
    dropping = lumina2(tmp_path, datasets=[{**entry, "caption_dropout_rate": 0.05}], train=train(batch_size=batch, **settings))
    assert dropping.datasets[0].buckets[0].uneven is (batch > 1 and "unload_text_encoder" not in settings)


@pytest.mark.parametrize(("batch", "settings", "uneven"), [(1, {}, False), (2, {}, True), (2, {"unload_text_encoder": True}, False)])
def test_captions_that_are_not_here_are_taken_to_differ(batch: int, settings: dict[str, Any], uneven: bool, tmp_path: Path) -> None:
    (dataset,) = lumina2(tmp_path, train=train(batch_size=batch, **settings)).datasets
    assert {bucket.uneven for bucket in dataset.buckets} == {uneven}


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("network.dropout", {"network": {"type": "lora", "dropout": 0.1}}),
        ("network.network_kwargs.only_if_contains", {"network": {"type": "lora", "network_kwargs": {"only_if_contains": ["attn"]}}}),
        ("model.assistant_lora_path", {"model": {**MODEL, "assistant_lora_path": "x"}}),
        ("model.te_name_or_path", {"model": {**MODEL, "te_name_or_path": "x"}}),
    ],
)  # fmt: skip
def test_what_is_not_modelled_is_named(key: str, sections: dict[str, Any], tmp_path: Path) -> None:
    job = read(tmp_path, **{"model": MODEL, **sections})
    assert key in {found.removeprefix("config.process[0].") for found in unmodelled_keys(job)}


# ---------------------------------------------------------------- probes


def test_a_bucket_may_name_the_words_of_each_item(tmp_path: Path) -> None:
    one, several = probes.write_images(tmp_path, ((64, 48, 2, 7), (64, 32, 2, (3, 5))))
    assert [len(path.read_text().split()) for path in sorted(Path(one["folder_path"]).glob("*.txt"))] == [7]
    folder = Path(several["folder_path"])
    assert [len(path.read_text().split()) for path in sorted(folder.glob("*.txt"))] == [3, 5]
    assert len(list(folder.glob("*.png"))) == several["batch_size"] == 2


def test_text_is_cached_in_a_job_without_previews_and_unloaded_in_one_with_them(tmp_path: Path) -> None:
    settings = {}
    for index in (0, 1, probes.CAPTIONED):
        train = probes.config(ARCH, "qfloat8", index, tmp_path / str(index))["config"]["process"][0]["train"]
        settings[index] = tuple(train[key] for key in ("cache_text_embeddings", "unload_text_encoder", "disable_sampling"))
    assert settings == {0: (False, False, False), 1: (False, True, False), probes.CAPTIONED: (True, False, True)}


# ---------------------------------------------------------------- programs


def test_an_adapter_has_the_elements_of_the_blocks() -> None:
    assert sum(load_profile(ARCH).adapter) == ELEMENT_BYTES * ELEMENTS


def test_all_stages_of_loading_were_recorded(tmp_path: Path) -> None:
    plan = plan_of(lumina2(tmp_path), load_profile(ARCH))
    assert {one.key.split("/")[0] for one in plan.load() if isinstance(one, Part)} == set(LOAD)
    assert len(plan.encoders) == 1


@pytest.mark.parametrize("qtype", ["float8", "uint4", "uint6"])
@pytest.mark.parametrize("transformer", [False, True])
def test_each_kind_has_all_parts_of_its_timeline(qtype: str, transformer: bool, tmp_path: Path) -> None:
    """Of float8 and uint4 loading was recorded, all else is by rule; the text encoder is quantised beside a transformer in bf16 as well."""
    job = lumina2(tmp_path, model={**MODEL, "quantize": transformer, "qtype": qtype, "low_vram": True}, **preview(512, 512))
    assert (job.unmodelled, job.model.te_weights) == ((), qtype)
    assert {"load", "sample", "train", "save"} <= {one.phase for one in simulate(job).phases}


def test_layer_offloading_is_not_attached_and_leaves_uint4_as_it_is(tmp_path: Path) -> None:
    """ModelConfig makes float8 of qfloat8 alone, and the class has no manager: uint4 needs the same with layer offloading."""
    def peaks(**settings: Any) -> list[tuple[int, int]]:
        job = lumina2(tmp_path, model={**MODEL, "quantize": True, "qtype": "uint4", **settings}, train=train(disable_sampling=True))
        return [(one.allocated_bytes, one.reserved_bytes) for one in simulate(job).phases]

    assert peaks() == peaks(layer_offloading=True, layer_offloading_transformer_percent=0.5, low_vram=True)


@pytest.mark.parametrize(("qtype", "more"), [("uint4", "float8"), ("float8", "bf16")])
def test_fewer_bits_need_less_while_steps_are_made(qtype: str, more: str, tmp_path: Path) -> None:
    def training(kind: str) -> int:
        weights = {"quantize": kind != "bf16", "quantize_te": False} | ({} if kind == "bf16" else {"qtype": kind})
        found = simulate(lumina2(tmp_path, model={**MODEL, **weights}, train=train(disable_sampling=True))).phases
        return max(one.allocated_bytes for one in found if one.phase == "train")

    assert training(qtype) < training(more) - 2**29


@pytest.mark.parametrize("checkpointing", ["checkpointed", "full"])
def test_captions_that_differ_are_attended_to_by_another_kernel(checkpointing: str) -> None:
    """Memory-efficient attention, which has a mask, rounds the rows of what it keeps up to 32, where FlashAttention does to 128."""
    profile = load_profile(ARCH)
    even, uneven = (used(profile.program(f"{kind}/qfloat8/{checkpointing}/many")) for kind in ("step.core", "step.core.uneven"))
    assert "B*S128" in even - {"B*S32"}
    assert "B*S32" in uneven - even


def used(program: Program) -> set[str]:
    columns = program.coefficients.any(axis=0)
    return {name for name, column in zip(program.features, columns, strict=True) if column}


def test_text_that_is_cached_or_unloaded_is_off_the_card(tmp_path: Path) -> None:
    def training(**settings: Any) -> int:
        found = simulate(lumina2(tmp_path, train=train(**settings, disable_sampling=True))).phases
        return max(one.allocated_bytes for one in found if one.phase == "train")

    resident = training()
    for setting in ("cache_text_embeddings", "unload_text_encoder"):
        assert resident - training(**{setting: True}) > 2 * 2**30  # Gemma-2 2B in 8 bit


# ---------------------------------------------------------------- the weight that presets of devices ask for


def asked(operations: list[Operation]) -> list[int]:
    return [at for at, one in enumerate(operations) if isinstance(one, Part) and one.key.startswith(ASKED)]


@pytest.mark.parametrize("kind", BITS)
def test_a_weight_that_is_asked_for_is_made_in_fp32_and_let_go(kind: str) -> None:
    """bf16 and fp32 beside one another are its peak, whatever the bits: 122 MiB of cache_text in `lumina2-uint4-offload-nothing-b2`."""
    part = PROGRAMS[f"{ASKED}/{kind}"]
    alive: list[int] = []
    totals, born = [0], 0
    for event in part.events.tolist():
        if event:
            alive.remove(born - event)
        else:
            alive.append(born)
            born += 1
        totals.append(sum(part.sizes({}).tolist()[k] for k in alive))
    assert (alive, born) == ([], len(part.names))
    assert max(totals) == part.peak({})[0] == 6 * GEMMA2_2B


@pytest.mark.parametrize(
    ("model", "settings", "times"),
    [
        ({"qtype": "uint4"}, {}, 2), ({"qtype": "uint3"}, {}, 2), ({"qtype": "float8"}, {}, 0), ({"qtype": "qfloat8"}, {}, 0),
        ({"qtype": "uint4", "quantize_te": False}, {}, 0), ({"qtype": "uint4"}, {"unload_text_encoder": True}, 0),
    ],
)  # fmt: skip
def test_a_round_of_previews_asks_twice_for_it_before_anything_moves(
    model: dict[str, Any], settings: dict[str, Any], times: int, tmp_path: Path
) -> None:
    job = lumina2(tmp_path, model={**MODEL, "quantize": True, **model}, train=train(**settings), **preview(512, 512))
    operations = list(plan_of(job, load_profile(ARCH)).sampling("first"))
    found = asked(operations)
    assert len(found) == times
    assert all(at < operations.index(MoveIn("vae")) for at in found)


def test_caching_asks_for_it_once_in_each_phase(tmp_path: Path) -> None:
    settings = train(cache_text_embeddings=True, disable_sampling=True)
    data = [{"folder_path": str(tmp_path), "resolution": [512, 768], "cache_latents_to_disk": True}]
    job = lumina2(tmp_path, model={**MODEL, "quantize": True, "qtype": "uint4"}, train=settings, datasets=data)
    operations = list(before_previews(plan_of(job, load_profile(ARCH))))
    before = [operations[at - 1] for at in asked(operations)]
    assert [one.phase for one in before if isinstance(one, Begin)] == ["cache_latents", "cache_text", "cache_latents"]
    assert len(before) == 3


# ---------------------------------------------------------------- refiners, which are not made again


def ways(program: Program, block: str) -> dict[str, int]:
    """Of the first pass of a block: its inputs of attention and of the feed-forward, and what is within that -> how many of its tensors are
    born after them before they go."""
    own = f"transformer.{block}"
    inside = [
        (number, moment.replace(own, "block")) for number, moment in enumerate(map(program.moments.__getitem__, program.labels))
        if moment.startswith((f"{own}.", f"{own}|")) and moment.endswith("|forward")
    ]  # fmt: skip
    places = {number: place for place, (number, _) in enumerate(inside)}
    names = [name for _, name in inside]
    out = {}
    for what, behind in (("block.norm1|forward", "block.attn"), ("block.feed_forward|forward", "block.feed_forward.linear_2")):
        first = next(at for at, name in enumerate(names) if name.startswith(behind))
        at = max(place for place in range(first) if names[place] == what)
        last = int(program.deaths[inside[at][0]]) - 1
        out[what] = places.get(last, len(inside)) - at
    return out


@pytest.mark.parametrize("kind", ["bf16", "float8", "uint4"])
@pytest.mark.parametrize("how", ["checkpointed/one", "full/many"])
def test_what_refiners_multiply_lives_as_in_blocks_that_save_nothing(kind: str, how: str) -> None:
    """As in a uint4 step that was recorded beside: it goes with the function that has it, not with its last use (17 tensors for 120)."""
    made = load_profile(ARCH).program(f"step.core/{kind}/{how}")
    like = ways(made, "layers.0")
    assert [ways(made, f"noise_refiner.{number}") for number in (0, 1)] == [like, like]
    assert ways(made, "context_refiner.0")["block.feed_forward|forward"] == like["block.feed_forward|forward"] > 3
