"""Layer offloading of Wan: what the trainer stops on, and two experts of which each has layers of its own on the host."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from config_writer import read, refusal

from estimator import rebuilt_profile
from estimator.errors import CannotTell
from estimator.experts import EXPERTS, LOW
from estimator.host import host_memory
from estimator.job import Bucket, Job
from estimator.job_profile import profile_of
from estimator.layer_calls import of_rows
from estimator.offload import second_step, table_of
from estimator.offload_profile import OffloadProfile
from estimator.operations import EmptyCache, MoveIn, MoveOut, Part
from estimator.plans import after_steps, before_steps, plan_of
from estimator.program import ALLOCATE
from estimator.programs import load_profile
from estimator.rows import bound
from estimator.timeline import simulate
from estimator.trainers.together import modelled_job
from tests.made_jobs import job

OFFLOADED, BF16 = {"layer_offloading": True}, {"dtype": "bf16"}
T2V = {"name_or_path": "ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16", "arch": "wan22_14b:t2v"}
STOPPED = {
    "wan21-14b": {"name_or_path": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "arch": "wan21"},
    "wan21-i2v-14b": {"name_or_path": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "arch": "wan21_i2v"},
    "wan22-5b": {"name_or_path": "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "arch": "wan22_5b"},
}  # fmt: skip
ALL = (*STOPPED, "wan22-14b", "wan22-i2v-14b")


def offloaded(arch: str, share: float, text: float = 0.0, seed: int | None = None, **model: Any) -> Job:
    one = job(arch)
    data = replace(one.datasets[0], buckets=(Bucket(320, 256, frames=9, count=1),))
    samples = tuple(replace(sample, width=320, height=256, frames=5) for sample in one.samples[:1])
    shares = {"layer_offloading_transformer_percent": share, "layer_offloading_text_encoder_percent": text}
    kinds = {"weights": "bf16", "te_weights": "bf16", "low_vram": False, "layer_offloading": True, "offload_seed": seed}
    return replace(one, model=replace(one.model, **shares, **{**kinds, **model}), datasets=(data,), samples=samples)  # type: ignore[arg-type]


def profile(one: Job) -> OffloadProfile:
    made = profile_of(one.arch, one.model)
    assert isinstance(made, OffloadProfile)
    return made


# ---------------------------------------------------------------- the reader


@pytest.mark.parametrize("name", STOPPED)
@pytest.mark.parametrize("model", [{"quantize": True}, {"quantize": True, "qtype": "uint4"}, {"low_vram": True}])
def test_wan_21s_class_stops_on_layers_of_a_quantised_transformer_or_with_low_vram(
    tmp_path: Path, name: str, model: dict[str, Any]
) -> None:
    """Wan 2.2 5B is of that class too."""
    (problem,) = refusal(tmp_path, model=STOPPED[name] | OFFLOADED | model)
    assert "layer_offloading_transformer_percent: 0" in problem.fix


@pytest.mark.parametrize("name", STOPPED)
@pytest.mark.parametrize("model", [{"qtype": "float8", "low_vram": True}, {"qtype": "uint4"}])
def test_the_text_encoders_layers_alone_stop_nothing_and_are_named(tmp_path: Path, name: str, model: dict[str, Any]) -> None:
    """No whole run has them beside a quantised transformer."""
    train = BF16 | ({"disable_sampling": True} if name == "wan21-i2v-14b" else {})
    alone = {"quantize": True, "quantize_te": True, "layer_offloading_transformer_percent": 0}
    made = read(tmp_path, model=STOPPED[name] | OFFLOADED | alone | model, train=train)
    assert [entry.place.key.split(".")[-1] for entry in made.unmodelled] == ["layer_offloading"]


@pytest.mark.parametrize("name", STOPPED)
def test_unquantised_and_with_room_it_is_modelled(tmp_path: Path, name: str) -> None:
    train = BF16 | ({"disable_sampling": True} if name == "wan21-i2v-14b" else {})
    assert not read(tmp_path, model=STOPPED[name] | OFFLOADED, train=train).unmodelled


@pytest.mark.parametrize("low_vram", [True, False])
@pytest.mark.parametrize(
    ("qtype", "weights"), [(None, "bf16"), ("qfloat8", "float8"), ("float8", "float8"), ("uint4", "uint4"), ("uint3", "uint3")]
)
def test_wan_22_14b_is_offloaded_in_every_kind_of_weights(tmp_path: Path, qtype: str | None, weights: str, low_vram: bool) -> None:
    quantised = {} if qtype is None else {"quantize": True, "quantize_te": True, "qtype": qtype}
    made = read(tmp_path, model=T2V | OFFLOADED | quantised | {"low_vram": low_vram}, train=BF16)
    assert (made.model.weights, made.model.te_weights) == (weights, weights)
    assert not made.unmodelled


def test_a_recovery_adapter_beside_offloaded_layers_was_not_recorded(tmp_path: Path) -> None:
    recovered = {"quantize": True, "qtype": "uint4|ostris/accuracy_recovery_adapters/wan22_14b_t2i_torchao_uint4.safetensors"}
    assert read(tmp_path, model=T2V | OFFLOADED | recovered, train=BF16).unmodelled


def test_no_job_has_a_model_that_the_trainer_would_stop_on() -> None:
    for name in STOPPED:
        for stopped in ({"low_vram": True}, {"weights": "float8", "te_weights": "float8"}):
            with pytest.raises(CannotTell, match="layer offloading"):
                modelled_job(offloaded(name, 1.0, **stopped))
        assert modelled_job(offloaded(name, 0.0, 1.0, low_vram=True))
    assert modelled_job(offloaded("wan22-14b", 1.0, low_vram=True, weights="uint4", te_weights="uint4"))


# ---------------------------------------------------------------- where layers are used


@pytest.mark.parametrize("arch", ALL)
@pytest.mark.parametrize("kind", ["bf16", "float8", "uint4"])
def test_each_layer_is_used_where_the_recording_names_it(arch: str, kind: str) -> None:
    base = load_profile(arch)
    cores = [f"step.core/{kind}/{way}/{many}" for way in ("full", "checkpointed") for many in ("one", "many")]
    text = [f"text/{kind}/{way}" for way in ("plain/one", "plain/many", "graph/one")]
    for component, keys in (("transformer", [*cores, f"preview/{'float8' if kind == 'bf16' else kind}/cfg"]), ("text_encoder0", text)):
        for key in keys:
            program, holder = base.program(key), base.holder(key)
            names = table_of(holder, "layers")
            calls = rebuilt_profile.calls(holder, key, component, names)
            assert calls is not None
            uses = of_rows(calls).calls()
            assert {use.layer for use in uses} == set(range(len(names[component])))
            assert all(names[component][use.layer] in program.moments[program.labels[use.output]] for use in uses)


# ---------------------------------------------------------------- two experts


def test_each_expert_has_a_choice_of_its_own_and_their_parts_follow_it() -> None:
    chosen = profile(offloaded("wan22-14b", 0.5, 0.5, seed=7))
    assert list(chosen.shares) == [*EXPERTS, "text_encoder0"]
    first, second = (chosen.taken[name] for name in EXPERTS)
    assert first != second
    key = "step.core/bf16/checkpointed/one"
    high, low = chosen.program(key), chosen.program(key + LOW)
    assert [made.copies["forward"] for made in (high, low)] == [2 * len(first) - _unused(first), 2 * len(second) - _unused(second)]
    swapped = replace(chosen, model=chosen.model, _figures={})
    vars(swapped)["taken"] = chosen.taken | {EXPERTS[0]: second}
    assert (swapped.program(key).events == low.events).all()
    even = profile(offloaded("wan22-14b", 0.5))
    assert even.taken[EXPERTS[0]] == even.taken[EXPERTS[1]]


def _unused(taken: frozenset[int]) -> int:
    """Of the layers taken those outside the blocks, which checkpointing does not run again."""
    names = table_of(load_profile("wan22-14b"), "layers")["transformer"]
    return sum(not names[n].startswith("blocks.") for n in taken)


def test_the_second_experts_core_names_its_own_part_of_the_adapter() -> None:
    chosen = profile(offloaded("wan22-14b", 0.5, seed=3))
    own, recorded = (each.program("step.core/bf16/full/one" + LOW).names for each in (chosen, load_profile("wan22-14b")))
    assert [name for name in own if name and name.startswith("gradient")] == [n for n in recorded if n and n.startswith("gradient")]


@pytest.mark.parametrize("weights", ["bf16", "float8", "uint4"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_after_loading_what_is_left_of_both_experts_is_on_the_card(weights: str, share: float) -> None:
    chosen = profile(offloaded("wan22-14b", share, seed=11, weights=weights, te_weights=weights))
    program = chosen.program(f"load.transformer/{weights}/plain")
    left = sum(sum(chosen.resident(name, weights)) for name in EXPERTS)
    stays = sum(program.stay_bytes("transformer", {}))
    assert stays == pytest.approx(left, rel=1e-4)
    assert left < sum(sum(load_profile("wan22-14b").resident(name, weights)) for name in EXPERTS) * (1.1 - share)


@pytest.mark.parametrize("low_vram", [True, False])
def test_between_two_steps_of_a_preview_the_experts_change_places(low_vram: bool) -> None:
    one = offloaded("wan22-14b", 0.5, seed=5, low_vram=low_vram)
    chosen = profile(one)
    plan = plan_of(one, chosen, order_known=True)
    parts = [o for o in (*before_steps(plan), *after_steps(plan)) if isinstance(o, Part) and o.key.startswith("preview/")]
    assert parts
    swap = (MoveOut(EXPERTS[0]), MoveIn(EXPERTS[1])) if low_vram else ()
    assert all(part.between == swap for part in parts)
    program = chosen.program(parts[0].key)
    second = second_step(program.labels, program.moments)
    born = int((program.events == ALLOCATE).sum())
    assert born // 3 < second < born
    made = sum(label == len(program.moments) - 1 for label in program.labels[:second])
    assert made > 0  # the first expert's copies are all before


def test_without_its_layers_no_preview_is_cut() -> None:
    one = offloaded("wan22-14b", 0.0, 1.0, low_vram=True)
    plan = plan_of(one, profile(one), order_known=True)
    assert not any(isinstance(o, Part) and o.between for o in before_steps(plan))
    assert simulate(one).failed is None


@pytest.mark.parametrize("arch", ["wan22-14b", "wan22-i2v-14b", "wan21-14b", "wan22-5b"])
def test_the_more_layers_wait_on_the_host_the_less_a_step_needs(arch: str) -> None:
    needs = [[p.allocated_bytes for p in simulate(offloaded(arch, share, share)).phases if p.phase == "train"] for share in (0.0, 0.5, 1.0)]
    assert all(more > less for before, after in pairwise(needs) for more, less in zip(before, after, strict=True))


@pytest.mark.parametrize("arch", ALL)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_peak_rows_bound_the_replay(arch: str, share: float) -> None:
    one = offloaded(arch, share, share, seed=3)
    rows, replayed = bound(one).phases, simulate(one).phases
    assert len(rows) == len(replayed)
    assert all(row.allocated_bytes <= peak.allocated_bytes * 1.001 for row, peak in zip(rows, replayed, strict=True))


def test_an_adapter_of_weights_that_all_wait_is_made_without_rebuilding_them_on_the_card() -> None:
    def reads(share: float, low_vram: bool) -> bool:
        one = offloaded("wan22-14b", share, weights="uint4", te_weights="uint4", low_vram=low_vram)
        return any(isinstance(o, Part) and o.key.startswith("setup.read") for o in before_steps(plan_of(one, profile(one))))

    assert [reads(0.5, False), reads(1.0, False), reads(0.5, True)] == [True, False, False]


def test_both_experts_wait_in_ram() -> None:
    def held(share: float, low_vram: bool) -> int:
        memory = host_memory(offloaded("wan22-14b", share, low_vram=low_vram))
        assert memory is not None
        return memory.components["transformer"]

    one = sum(load_profile("wan22-14b").resident("transformer", "bf16"))
    assert held(1.0, True) == 2 * one
    assert one < held(0.5, False) < held(1.0, False) < 2 * one


# ---------------------------------------------------------------- what else their runs found


def test_a_text_encoders_layer_that_waits_is_not_rebuilt_on_the_card_when_its_type_is_asked_for() -> None:
    """T5's feed-forward asks its last layer's weight for its type, twice: 240 MiB each time where the layer is on the card."""
    kinds = {"weights": "uint4", "te_weights": "uint4"}
    key, large = "text/uint4/graph/one", 160 * 2**20
    asked = {}
    for share in (0.0, 0.5, 1.0):
        program = profile(offloaded("wan22-14b", 0.5, share, seed=7, **kinds)).program(key)
        wide = {k for k in range(len(program.names) - program.imports) if program.constants[k] >= large}
        asked[share] = sum(program.moments[program.labels[k]].endswith("DenseReluDense|forward") for k in wide)
    blocks = 24
    assert asked[0.0] == 2 * blocks > asked[0.5] > asked[1.0] == 0


@pytest.mark.parametrize("kind", ["qfloat8", "float8", "uint4"])
@pytest.mark.parametrize("guidance", ["cfg", "plain"])
def test_the_mask_of_a_preview_is_as_large_as_its_latents(kind: str, guidance: str) -> None:
    """It was 1,548,288 bytes whatever the preview: a segment of 170 MiB in the first previews of a whole run."""
    program = load_profile("wan21-14b").program(f"preview/{kind}/{guidance}")
    rows = [{f: int(c) for f, c in zip(program.features, row, strict=True) if c} for row in program.coefficients[:6]]
    assert rows[4] == rows[5] == {"T": 256}


@pytest.mark.parametrize("arch", ["wan21-14b", "wan21-i2v-14b", "wan21-1.3b", "wan22-5b"])
def test_emas_copy_comes_before_an_adapter_is_merged_with_a_flush_between(arch: str) -> None:
    """Behind merging nothing is flushed: the VAE and the transformer come to the card at once."""
    one = offloaded(arch, 0.0)
    one = replace(one, model=replace(one.model, layer_offloading=False), train=replace(one.train, ema=True))
    done = [*before_steps(plan := plan_of(one, load_profile(arch), order_known=True)), *after_steps(plan)]
    at = [n for n, o in enumerate(done) if isinstance(o, Part) and o.key.startswith("sample.enter/")]
    entered = [f"sample.enter/{kind}/{when}" for when in ("first", "later") for kind in ("qfloat8/ema", "bf16/none")]
    assert [done[n].key for n in at] == entered  # type: ignore[union-attr]
    assert all(done[n + 1] == EmptyCache() for n in at[::2])
    assert all(done[n + 1] == MoveIn("vae") for n in at[1::2])
    assert simulate(one).failed is None
