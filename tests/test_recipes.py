"""Kinds of weights that are made of uint4's parts and of single layers: against two layers recorded on the emulated device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from estimator import recipe_moves, recipe_profile, recipe_uses
from estimator.errors import CannotTell, InputError
from estimator.gpus import find_gpu
from estimator.job import Job
from estimator.kernels import by_capability, lacks_triton, on_card
from estimator.layer_calls import NONE, Call
from estimator.planner.space import _bits
from estimator.program import ALLOCATE, EMPTY_CACHE, Program
from estimator.programs import load_profile
from estimator.recipe_moves import Quantised
from estimator.recipe_uses import Dims
from estimator.recipes import KINDS, load_recipes
from estimator.timeline import simulate
from estimator.trainers import modelled, read_jobs
from tests.config_writer import process, write
from tests.made_jobs import job
from tests.made_steps import numbered

# Two linear layers, 3072 -> 12288 -> 3072 with bias, 1000 rows of bf16 on the emulated device (torch 2.14.1, the trainer's own kinds):
# sizes of allocations, negative for frees; a forward pass with a graph, then its backward pass, and one without a graph.
WEIGHT, CODES, ZERO, WIDE, NARROW, ROWS32, SUM32 = 75_497_472, 37_748_736, 1_179_648, 24_576_000, 6_144_000, 1024 * 3072, 1024 * 12288
UNPACKED = [CODES, WEIGHT, ZERO, -ZERO, -CODES]
WIDE_IN = [NARROW, ROWS32, 4096, 4 * SUM32, WIDE, -ROWS32, -4096, -4 * SUM32]  # int8: the input turned, its codes, scales, product
NARROW_IN = [WIDE, SUM32, 4096, 4 * ROWS32, NARROW, -SUM32, -4096, -4 * ROWS32]
SCALED = [WEIGHT, WEIGHT, -WEIGHT]
TRAINED = {
    "uint4": [*UNPACKED, WIDE, *UNPACKED, NARROW, -WIDE],
    "nvfp4": [WEIGHT, WIDE, WEIGHT, NARROW, -WIDE],
    "convrot8": [*WIDE_IN, -NARROW, *NARROW_IN, -WIDE, -WIDE],
    "convrotint4": [
        NARROW, CODES, *WIDE_IN[1:5], -CODES, *WIDE_IN[5:], -NARROW, WIDE, CODES, *NARROW_IN[1:5], -CODES, *NARROW_IN[5:], -WIDE,
        -WIDE,
    ],
}  # fmt: skip
BACKWARD = {
    "uint4": [WIDE, -WEIGHT, NARROW, -WIDE, -WEIGHT],
    "nvfp4": [WIDE, -WEIGHT, NARROW, -WIDE, -WEIGHT],
    "convrot8": [6144, *SCALED, WIDE, -6144, -WEIGHT, WIDE, -WIDE, 24_576, *SCALED, NARROW, -24_576, -WEIGHT, -WIDE, NARROW, -NARROW],
    "convrotint4": [
        CODES, WEIGHT, 6144, WEIGHT, -WEIGHT, -6144, WIDE, -CODES, -WEIGHT, WIDE, -WIDE, CODES, WEIGHT, 24_576, WEIGHT, -WEIGHT, -24_576,
        NARROW, -CODES, -WEIGHT, -WIDE, NARROW, -NARROW,
    ],
}  # fmt: skip
PLAIN = {
    "uint4": [*UNPACKED, WIDE, -WEIGHT, *UNPACKED, NARROW, -WEIGHT, -WIDE],
    "nvfp4": [WEIGHT, WIDE, -WEIGHT, WEIGHT, NARROW, -WEIGHT, -WIDE],
    "convrot8": [
        NARROW, ROWS32, 4096, -NARROW, *WIDE_IN[3:], WIDE, SUM32, 4096, -WIDE, *NARROW_IN[3:], -WIDE,
    ],
}  # fmt: skip
ROWS = {WIDE: 24_576, NARROW: 6144}  # bytes a row
LAYERS = {0: Dims(12288, 3072), 1: Dims(3072, 12288)}
TWICE = (Call(0, 0, 4, 3, 3, 10, 11), Call(1, 4, 8, 3, 7, 9, 10))
ONCE = (Call(0, 0, 4, 3, 3, NONE, NONE), Call(1, 4, 8, 3, 7, NONE, NONE))
SEVERAL = sorted(modelled.BY_RECIPE)


def made(key: str, steps: list[int]) -> Program:
    """A program of these steps."""
    sizes, events = numbered(steps)
    rows = np.array([[0, ROWS[size]] if size in ROWS else [size, 0] for size in sizes], dtype=np.int64)
    names: tuple[str | None, ...] = (None,) * len(sizes)
    return Program(key, ("1", "T"), rows, (0,) * len(sizes), ["here"], names, np.array(events), 0, (), {})


def steps_of(given: Program) -> list[int]:
    sizes = given.sizes({"T": 1000}).tolist()
    return [sizes[k] if e == ALLOCATE else -sizes[k] for e, k in zip(given.events.tolist(), given.tensor_of_event.tolist(), strict=True)]


def ordered(steps: list[int]) -> list[int]:
    """With what is freed between two allocations in order: which of them goes first decides nothing."""
    out, frees = list[int](), list[int]()
    for step in [*steps, 0]:
        if step < 0:
            frees.append(step)
            continue
        out += [*sorted(frees), step]
        frees = []
    return out[:-1]


@pytest.mark.parametrize("kind", ["nvfp4", "convrot8", "convrotint4"])
def test_layers_are_used_as_they_were_recorded(kind: str) -> None:
    base = made("step.core/uint4/full/one", [*TRAINED["uint4"], NARROW, *BACKWARD["uint4"]])
    found = recipe_uses.program(base, "step.core/x", load_recipes()[kind], LAYERS, TWICE)[0]
    assert ordered(steps_of(found)) == ordered([*TRAINED[kind], NARROW, *BACKWARD[kind]])


@pytest.mark.parametrize("kind", ["nvfp4", "convrot8"])
def test_layers_without_a_graph_are_used_as_they_were_recorded(kind: str) -> None:
    found = recipe_uses.program(made("preview/uint4/x", PLAIN["uint4"]), "preview/x", load_recipes()[kind], LAYERS, ONCE)[0]
    assert ordered(steps_of(found)) == ordered(PLAIN[kind])


def test_a_first_pass_of_a_checkpointed_block_keeps_nothing() -> None:
    """It goes the way of the second one, whose layers keep their weights."""
    first = [Call(call.layer, call.first, call.last, call.input, call.output, NONE, NONE) for call in ONCE]
    second = zip(TWICE, ((18, 19), (17, 18)), strict=True)
    again = [Call(layer, *(place + 8 for place in rest[:4]), *backward) for (layer, *rest), backward in second]
    base = made("step.core/uint4/checkpointed/one", [*PLAIN["uint4"], *TRAINED["uint4"], NARROW, *BACKWARD["uint4"]])
    found = recipe_uses.program(base, "step.core/x", load_recipes()["nvfp4"], LAYERS, [*first, *again])[0]
    assert ordered(steps_of(found)) == ordered([*PLAIN["nvfp4"], *TRAINED["nvfp4"], NARROW, *BACKWARD["nvfp4"]])


def test_a_layer_that_makes_something_else_is_not_guessed() -> None:
    strange = made("preview/uint4/x", [CODES, WEIGHT, -CODES, WIDE, -WEIGHT, -WIDE])
    with pytest.raises(CannotTell, match="other tensors"):
        recipe_uses.program(strange, "preview/x", load_recipes()["nvfp4"], LAYERS, [Call(0, 0, 3, 2, 2, NONE, NONE)])


# Bytes of the two layers' tensors in the order of `.to()`, each layer's bias before what the kind keeps
RESIDENT = {
    "uint4": [24_576, 18_874_368, 1_179_648, 589_824, 6_144, 18_874_368, 1_179_648, 589_824],
    "nvfp4": [24_576, 18_874_368, 2_359_296, 4, 6_144, 18_874_368, 2_359_296, 4],
    "convrot8": [24_576, 37_748_736, 49_152, 6_144, 37_748_736, 12_288],
    "convrotint3": [24_576, 14_155_776, 49_152, 1_179_648, 6_144, 14_155_776, 12_288, 1_179_648],
    "convrotbitnet": [24_576, 12288 * 615, 49_152, 1_179_648, 6_144, 3072 * 2458, 12_288, 1_179_648],
    "convrot4": [24_576, 18_874_368, 2_359_296, 2_359_296, 4, 6_144, 18_874_368, 2_359_296, 2_359_296, 4],
}


@pytest.mark.parametrize("kind", [kind for kind in RESIDENT if kind in KINDS])
def test_residents_are_those_recorded(kind: str) -> None:
    layers = [Quantised(1, 1, LAYERS[0]), Quantised(5, 5, LAYERS[1])]
    assert recipe_moves.residents(RESIDENT["uint4"], load_recipes()[kind], layers) == RESIDENT[kind]


@pytest.mark.parametrize("arch", ["flux1-dev", "flux2-klein-9b", "wan21-14b", "zimage-turbo"])
@pytest.mark.parametrize("kind", ["convrot8", "convrot4"])
def test_every_part_is_there_and_frees_what_it_made(arch: str, kind: str) -> None:
    profile, checked = load_profile(arch), 0
    for part in profile.data["parts"]:
        if part.split("/")[1:2] != ["uint4"]:
            continue
        found = profile.program(part.replace("/uint4", f"/{kind}", 1))
        assert (found.tensor_of_event >= -1).all(), part
        freed = found.tensor_of_event[(found.events != ALLOCATE) & (found.events != EMPTY_CACHE)].tolist()
        assert len(freed) == len(set(freed)), part
        checked += 1
    assert checked > 5


@pytest.mark.parametrize("kind", ["nvfp4", "convrot8", "convrot4"])
def test_loading_leaves_what_is_resident(kind: str) -> None:
    compared = 0
    for arch in SEVERAL:
        profile = load_profile(arch)
        loading = tuple(f"load.{name}/uint4" for name in (*(("text",) if arch in modelled.TEXT_BY_RECIPE else ()), "transformer", "rest"))
        for part in (part for part in profile.data["parts"] if part.startswith(loading) and "recovery" not in part):
            found = profile.program(part.replace("/uint4", f"/{kind}", 1))
            base = profile.program(part)
            for group in {each for each, _, _ in base.kept if each.startswith(("transformer", "text_encoder"))}:
                whole = recipe_profile.experts.RESIDENT_OF.get(group, group)
                if sum(base.stay_bytes(group, {})) == sum(profile.resident(whole, "uint4")):
                    assert sum(found.stay_bytes(group, {})) == sum(profile.resident(whole, kind)), (arch, part)
                    compared += 1
    assert compared > 5


def test_more_bits_are_more_bytes() -> None:
    sizes = [sum(load_profile("flux1-dev").resident("transformer", f"convrotint{bits}")) for bits in range(2, 8)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("gpu", "weights", "named"), [
    ("RTX4090", "nvfp4", "nvfp4"), ("A100-40G", "nvfp4", "nvfp4-eager"), ("RTX3090", "convrot4", "convrot4-eager"),
    ("RTX5090", "nvfp4", "nvfp4"), ("RTX5090", "convrot4", "convrot4-fp4"), ("H100-80G", "convrot4", "convrot4"),
    ("A100-40G", "convrot8", "convrot8"),
])  # fmt: skip
def test_a_card_without_the_kernel_has_another_recipe(gpu: str, weights: str, named: str) -> None:
    base = job("zimage")
    asked = replace(base, model=replace(base.model, weights=weights))
    assert on_card(asked, find_gpu(gpu)).model.weights == named


def test_windows_has_no_triton() -> None:
    base, card = job("zimage"), find_gpu("RTX5090")
    windows = replace(card, os="windows")
    for kind, missing in (("convrot8", True), ("convrotint4", True), ("nvfp4", False), ("convrot4", True)):
        asked = replace(base, model=replace(base.model, weights=kind))
        assert lacks_triton(asked, windows) is missing
        assert not lacks_triton(asked, card)
    assert on_card(replace(base, model=replace(base.model, weights="nvfp4")), windows).model.weights == "nvfp4-eager"


def test_a_card_that_unpacks_by_other_operations_needs_more_in_a_step() -> None:
    """fp32 copies of a layer's weight, where a kernel writes the weight at once."""
    base = job("zimage")
    asked = replace(base, model=replace(base.model, weights="nvfp4"))
    steps = [max(p.allocated_bytes for p in simulate(by_capability(asked, each)).phases if p.phase == "train") for each in ("8.9", "8.0")]
    assert steps[1] > steps[0]


def read(tmp_path: Path, *overrides: str) -> Job:
    path = write(tmp_path, process(model={"name_or_path": "Tongyi-MAI/Z-Image", "arch": "zimage", "quantize": True}))
    (made,) = read_jobs(path, overrides)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_may_name_each(tmp_path: Path, kind: str) -> None:
    found = read(tmp_path, f"model.qtype={kind}", "model.quantize_te=true", f"model.qtype_te={kind}")
    assert (found.model.weights, found.model.te_weights) == (kind, kind)
    assert not found.unmodelled


@pytest.mark.parametrize("beside", [
    "network.type=dora", "train.do_prior_divergence=true",
    "network.network_kwargs.ignore_if_contains=[attention]", "train.dtype=fp16", "model.compile=true",
])  # fmt: skip
def test_what_no_run_had_beside_it_is_named(tmp_path: Path, beside: str) -> None:
    assert not read(tmp_path, "model.qtype=convrot8").unmodelled
    found = read(tmp_path, "model.qtype=convrot8", *(("model.block_compile=true",) if "compile" in beside else ()), beside)
    assert found.unmodelled


def test_layers_that_wait_on_the_host_are_the_transformers_alone(tmp_path: Path) -> None:
    offloaded = "model.qtype=convrot8", "model.layer_offloading=true", "model.quantize_te=true"
    assert not read(tmp_path, *offloaded, "model.qtype_te=qfloat8").unmodelled
    found = read(tmp_path, *offloaded, "model.qtype_te=convrot8")
    assert [each.place.key.rpartition(".")[2] for each in found.unmodelled] == ["qtype_te"]
    assert not read(tmp_path, *offloaded, "model.qtype_te=convrot8", "model.layer_offloading_text_encoder_percent=0").unmodelled


def test_qint4_is_an_error_of_the_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="qint4 stops the trainer"):
        read(tmp_path, "model.qtype=qint4")


def test_uint8_quantises_nothing_and_says_so(tmp_path: Path) -> None:
    assert any("leaves every layer unquantised" in each.why for each in read(tmp_path, "model.qtype=uint8").unmodelled)


def test_bits_of_a_kind_decide_what_a_plan_may_choose() -> None:
    found = {kind: _bits(kind) for kind in ("nvfp4", "convrot8", "convrotint3", "convrotbitnet", "convrot4", "bf16", "qfloat8_e4m3fn")}
    assert found == {"nvfp4": 4, "convrot8": 8, "convrotint3": 3, "convrotbitnet": 2, "convrot4": 4, "bf16": 16, "qfloat8_e4m3fn": 8}
