"""Layer offloading: which layers wait, what programs become of it, and what of it the trainer shows."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_jobs import ROOT

from estimator import residents
from estimator.errors import CannotTell, InputError
from estimator.job import Job
from estimator.layer_calls import Call, Uses, by_columns
from estimator.offload import GROUP, MOMENT, SLOTS, STREAM, Layer, aged, choose, deviation_bytes, layers_of, second_step, spread
from estimator.offload_beside import used_beside
from estimator.offload_profile import OffloadProfile, chance_bytes, profile_of, waiting
from estimator.offload_programs import Offloaded, offloaded
from estimator.offload_rounds import beside, denoised
from estimator.program import ALLOCATE, EventProgram, Program
from estimator.programs import load_profile
from estimator.references import first_of_backward
from estimator.rows import bound
from estimator.timeline import simulate
from estimator.trainers import read_jobs

EDIT = "qwen-image-edit-2509"
BYTES = st.lists(st.integers(1, 10**9), min_size=1, max_size=60)


def plain(size: int, bias: int = 0) -> Layer:
    return Layer(0, 0, 2 if bias else 1, 0, (size, bias) if bias else (size,))


def zimage(transformer: float, text_encoder: float, **model: object) -> Job:
    (job,) = read_jobs(ROOT / "examples" / "zimage_base_ui.yaml")
    shares = {"layer_offloading_transformer_percent": transformer, "layer_offloading_text_encoder_percent": text_encoder}
    return replace(job, model=replace(job.model, layer_offloading=True, **shares, **{"weights": "bf16", "te_weights": "bf16"} | model))


# ---- which layers


@given(sizes=BYTES, low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_higher_percentage_takes_the_same_layers_and_more(sizes: list[int], low: float, high: float) -> None:
    layers = [plain(size) for size in sizes]
    low, high = sorted((low, high))
    (fewer,), (more,) = choose([(layers, low)]), choose([(layers, high)])
    assert fewer <= more


@given(count=st.integers(64, 300), percent=st.floats(0.05, 0.95))
def test_an_even_choice_takes_that_share_of_layers(count: int, percent: float) -> None:
    (taken,) = choose([([plain(100)] * count, percent)])
    assert len(taken) == pytest.approx(percent * count, abs=8)
    assert len(set(spread([plain(100)] * count))) == count


def test_all_and_none_need_no_random_number() -> None:
    """The trainer draws only between the two: what comes after gets the first draw."""
    layers = [plain(1)] * 5
    every, none, some = choose([(layers, 1.0), (layers, 0.0), (layers, 0.5)], seed=4)
    assert (len(every), len(none)) == (5, 0)
    assert [some] == choose([(layers, 0.5)], seed=4)


def test_chance_is_that_of_a_coin_for_each_layer() -> None:
    layers = [plain(3), plain(4)]
    assert deviation_bytes(layers, 0.5) == round(0.5 * 5)
    assert deviation_bytes(layers, 1.0) == 0


def test_tensors_of_layers_by_what_they_are() -> None:
    """A float8 layer passes data and scale through and keeps the rebuilt weight; the trainer's own kind keeps its codes."""
    resident = [1000, 8, 2, 6, 500, 32, 16]
    wrapped, own = layers_of([[0, 3, 0, 1], [3, 4, 2, 2]], resident)
    assert (wrapped.passing, wrapped.copied, wrapped.numbers) == ((1000, 8), ((2000,), (2,)), 2)
    assert (own.passing, own.copied, own.bounces) == ((), ((500, 32, 16), (6,)), False)


# ---- programs


def chain(count: int) -> tuple[Program, Uses]:
    """A forward of layers in a row, each tensor freed after the next is there, and nothing kept: tensors 0 (input) to `count`."""
    events = [ALLOCATE]
    for _ in range(count):
        events += [ALLOCATE, 2]  # the new one is allocated, the one before it freed
    program = Program(
        "step.core/bf16/full/one", ("1",), np.full((count + 1, 1), 100), (0,) * (count + 1), ["made"], (None,) * (count + 1),
        np.array(events), 0, (), {},
    )  # fmt: skip
    return program, by_columns(Call(n, n + 1, n + 2, n, n + 1, -1, count + 1 if n % 2 else -1) for n in range(count))


def live(program: Program) -> list[tuple[int, int]]:
    """(bytes on the default stream, bytes on the copies') after each event."""
    sizes, streams = program.sizes({}), program.streams
    totals, out = [0, 0], []
    for event, k in zip(program.events.tolist(), program.tensor_of_event.tolist(), strict=True):
        stream = 0 if streams is None else int(streams[k])
        totals[stream] += int(sizes[k]) if event == ALLOCATE else -int(sizes[k])
        out.append((totals[0], totals[1]))
    return out


def test_copies_fill_four_slots_and_meet_the_fifth() -> None:
    base, calls = chain(9)
    layers = [plain(1000 * (n + 1)) for n in range(9)]
    program = offloaded(base, calls, Offloaded(layers, layers, frozenset(range(9))))
    copies = [copied for _, copied in live(program)]
    assert max(copies) == 1000 * (9 + 8 + 7 + 6 + 5)
    assert copies[-1] == 1000 * (9 + 8 + 7 + 6)
    kept = {name for _, _, names in program.kept for name in names or (None,)}
    assert kept == {f"{GROUP}:forward{age}.0" for age in range(1, SLOTS + 1)} | {None}


def test_inputs_are_kept_for_layers_that_are_offloaded_and_have_a_backward() -> None:
    base, calls = chain(6)
    layers = [plain(512)] * 6
    programs = [offloaded(base, calls, Offloaded(layers, layers, frozenset(some))) for some in ((), (0,), (1, 3, 5))]
    kept = [max(own for own, _ in live(program)) for program in programs]
    assert kept == [200, 200, 200 + 2 * 100]  # the last layer's input is there at the end in any case


def test_a_second_step_of_denoising_meets_other_slots() -> None:
    """Three layers of which the first is the largest: in the second step it comes into the last slot, beside itself and the others."""
    base, calls = chain(3)
    base = replace(base, moments=["transformer.block|forward"])
    sizes = (9000, 1000, 2000)
    layers = [plain(size) for size in sizes]
    copies = {}
    for rounds in (1, 2):
        program, used = denoised(base, calls, rounds=rounds)
        made = offloaded(program, used, Offloaded(layers, layers, frozenset(range(3))))
        copies[rounds] = max(copied for _, copied in live(made))
        assert len(used.calls()) == 3 * rounds
        assert live(program)[-1] == live(base)[-1]
        assert max(live(program)) == max(live(base))
    assert copies == {1: sum(sizes), 2: sum(sizes) + 9000 + 1000}


def test_of_two_experts_the_second_denoises_with_its_own_layers() -> None:
    """The first has its largest layer on the host and the second the others: no copy of either is made in the other's step."""
    base, calls = chain(3)
    base = replace(base, moments=["transformer.block|forward"])
    layers = [plain(9000), plain(1000), plain(2000)]
    what = beside(Offloaded(layers, layers, frozenset({0})), frozenset({1, 2}))
    made = offloaded(*denoised(base, calls, len(layers)), what)
    copied = [int(size) for size, stream in zip(made.sizes({}), made.streams, strict=True) if size and stream == STREAM]  # type: ignore[arg-type]
    assert copied == [9000, 1000, 2000]
    assert made.copies["forward"] == 3
    assert what.layers is what.resident


def test_a_second_step_begins_behind_the_transformer_and_no_copy_ends_the_first() -> None:
    moments = ["pipeline", "transformer.block|forward", MOMENT]
    labels = [0, 0, 2, 1, 2, 1, 0, 0, 1, 0]
    assert second_step(labels, moments) == 6


def test_previews_are_denoised_twice_and_decoded_once() -> None:
    once = load_profile("zimage").program("preview/float8/plain/cached")
    job = zimage(1, 0, weights="float8")
    twice = profile_of("zimage", job.model).program(once.key)
    assert twice.copies["forward"] == 2 * len(profile_of("zimage", job.model).layers("transformer", "float8"))  # type: ignore[attr-defined]
    made = [[program.moments[program.labels[k]] for k in range(len(program.names) - program.imports)] for program in (once, twice)]
    assert sum(moment.startswith("vae") for moment in made[0]) == sum(moment.startswith("vae") for moment in made[1]) > 0


def test_without_layers_nothing_changes() -> None:
    base, calls = chain(4)
    same = offloaded(base, calls, Offloaded([plain(1)] * 4, [plain(1)] * 4, frozenset()))
    assert same.events.tolist() == base.events.tolist()
    assert same.streams is None


@given(made=st.integers(0, 9))
def test_slots_grow_older(made: int) -> None:
    assert aged({f"{GROUP}:forward1.0": 1}, {"forward": made}) == {f"{GROUP}:forward1.0": f"{GROUP}:forward{1 + made}.0"}


def test_peak_rows_bound_the_events_of_real_programs() -> None:
    profile = profile_of("zimage", zimage(0.5, 0.5).model)
    for key in ("step.core/bf16/checkpointed/one", "step.core/bf16/full/many", "preview/bf16/cfg/encoded/later", "text/bf16/plain/one"):
        program = profile.program(key)
        for tokens in (1024, 4096):
            values = {"T": tokens, "E": 128, "X": 100, "N": 20, "B": 2, "r": 16}
            exact = EventProgram.peak(program, values)[0]  # type: ignore[arg-type]
            assert exact * 0.98 <= program.peak(values)[0] <= exact


# ---- jobs


def peaks(job: Job) -> list[int]:
    return [peak.allocated_bytes for peak in simulate(job).phases]


def test_more_percent_needs_less_in_every_phase_of_training() -> None:
    train = [[p.allocated_bytes for p in simulate(zimage(share, 0)).phases if p.phase == "train"] for share in (0.1, 0.4, 0.7, 1.0)]
    assert all(more > less for before, after in pairwise(train) for more, less in zip(before, after, strict=True))


@pytest.mark.parametrize("weights", ["bf16", "float8", "uint4", "uint3"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_ledgers_sum_and_rows_lie_below(weights: str, share: float) -> None:
    job = zimage(share, share, weights=weights, te_weights=weights)
    simulation, rows = simulate(job), bound(job)
    assert all(sum(p.components.values()) == p.allocated_bytes for p in simulation.phases)
    assert all(p.allocated_bytes <= p.reserved_bytes for p in simulation.phases)
    replayed = {(p.phase, p.detail, p.variant): p.allocated_bytes for p in simulation.phases}
    for peak in rows.phases:
        assert peak.allocated_bytes <= 1.001 * replayed[peak.phase, peak.detail, peak.variant]


def test_a_known_seed_leaves_nothing_to_chance() -> None:
    job = zimage(0.5, 0.5)
    assert chance_bytes(job) > 100 * 2**20
    assert chance_bytes(replace(job, model=replace(job.model, offload_seed=1))) == 0
    assert chance_bytes(zimage(1, 1)) == 0


def test_what_waits_and_what_stays_is_all_there_is() -> None:
    job = zimage(0.3, 1)
    profile = waiting(profile_of(job.arch, job.model))
    assert isinstance(profile, OffloadProfile)
    for component in ("transformer", "text_encoder0"):
        assert profile.waiting_bytes(component) + sum(profile.resident(component, "bf16")) == sum(profile.base.resident(component, "bf16"))


def test_copies_are_on_a_stream_of_their_own() -> None:
    program = profile_of("zimage", zimage(1, 1).model).program("step.core/bf16/checkpointed/one")
    assert program.streams is not None
    assert program.copies["backward"] < program.copies["forward"]  # a recomputed forward copies once more
    assert set(np.unique(program.streams).tolist()) == {0, STREAM}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_seeded_choice_is_within_chance_of_the_even_one(seed: int) -> None:
    """Five standard deviations: 1 of 1,700,000 draws lies outside."""
    job = zimage(0.5, 0)
    even, drawn = (waiting(profile_of("zimage", replace(job.model, offload_seed=s))) for s in (None, seed))
    assert even is not None
    assert drawn is not None
    assert abs(even.waiting_bytes("transformer") - drawn.waiting_bytes("transformer")) < 5 * even.deviation_bytes


def test_a_norm_takes_its_layer_back_to_the_card() -> None:
    """Its weights stay, and are not copied; the rebuilt weight of a float8 layer is made all the same."""
    places, resident = [[0, 1, 0, 0], [1, 1, 1, 0], [2, 2, 2, 1]], [100, 200, 300, 4]
    plain, normed, wrapped = layers_of(places, resident, ("proj", "norm_out.linear", "blocks.0.norm1.linear"))
    assert (plain.copied, normed.copied, wrapped.copied) == (((100,), ()), ((), ()), ((600,), ()))
    assert (normed.passing, wrapped.passing) == ((), ())
    base, calls = chain(3)
    layers = [plain, normed, plain]
    program = offloaded(base, calls, Offloaded(layers, layers, frozenset(range(3))))
    assert max(copied for _, copied in live(program)) == 200


def qwen(transformer: float, text_encoder: float) -> Job:
    (job,) = read_jobs(ROOT / "examples" / "qwen_image_ui.yaml")
    shares = {"layer_offloading_transformer_percent": transformer, "layer_offloading_text_encoder_percent": text_encoder}
    return replace(job, model=replace(job.model, layer_offloading=True, weights="float8", te_weights="float8", **shares))


def test_qwen_images_last_norm_keeps_its_layer() -> None:
    """18 MiB and its scales, which a whole run has on the card with all layers offloaded."""
    profile = profile_of("qwen-image", qwen(1, 1).model)
    assert isinstance(profile, OffloadProfile)
    left = set(profile.resident("transformer", "float8")) - {min(profile.base.resident("transformer", "float8"))}
    assert 3072 * 6144 in left
    assert 3072 * 3072 not in left


def test_what_only_one_component_needs_is_asked_of_that_one() -> None:
    """Qwen-Image-Edit's text encoder has a vision tower, of which nothing is known in uint4: Qwen-Image's layers are not taken for it."""
    model = replace(qwen(1, 0).model, te_weights="uint4")
    assert profile_of(EDIT, model).resident("transformer", "float8") == profile_of("qwen-image", model).resident("transformer", "float8")
    with pytest.raises(CannotTell, match="never recorded"):
        profile_of(EDIT, replace(model, layer_offloading_text_encoder_percent=1.0)).resident("text_encoder0", "uint4")


def test_a_text_without_pictures_uses_the_same_layers_with_a_vision_tower_beside_them() -> None:
    """The first Qwen-Image-Edit's negative prompt: Qwen-Image's program, whose layers have other numbers there."""
    key, model = "text/float8/plain/one", qwen(0, 1).model
    plain, edit = (profile_of(arch, model).program(key) for arch in ("qwen-image", "qwen-image-edit"))
    assert edit.events.tolist() == plain.events.tolist()
    assert (edit.coefficients == plain.coefficients).all()


def test_layers_of_the_vision_tower_are_copied_in_too() -> None:
    profile = profile_of(EDIT, qwen(0, 1).model)
    program = profile.program("text/float8/plain/one/1 images")
    assert isinstance(profile, OffloadProfile)
    tower = sum("visual" in name for name in profile.base.data["layers"]["text_encoder0"])
    language = profile_of("qwen-image", qwen(0, 1).model).program("text/float8/plain/one")
    assert program.copies["forward"] == tower + language.copies["forward"]


def slots(job: Job) -> int:
    """Bytes in the slots when the first round of previews begins."""
    begins = next(peak for peak in simulate(job).phases if peak.phase == "sample" and peak.detail == "baseline")
    return begins.components.get(residents.SLOTS, 0)


@pytest.mark.parametrize("weights", ["bf16", "float8"])
def test_an_encoder_that_moves_to_the_host_leaves_what_its_layers_copied_in(weights: str) -> None:
    """unload_text_encoder moves it (and a head that is stuck stays); with cached text it is destroyed, and its slots are emptied."""
    job = zimage(0, 1, weights=weights, te_weights=weights)
    moved = replace(job, train=replace(job.train, unload_text_encoder=True))
    cached = replace(job, datasets=tuple(replace(each, cache_text_embeddings=True) for each in job.datasets))
    assert slots(cached) == 0
    assert slots(moved) > 100 * 2**20


# ---- a training adapter on offloaded layers (Z-Image Turbo)


def turbo(transformer: float, **model: object) -> Job:
    (job,) = read_jobs(ROOT / "examples" / "zimage_turbo_ui.yaml")
    shares = {"layer_offloading_transformer_percent": transformer, "layer_offloading_text_encoder_percent": 0.0}
    return replace(job, model=replace(job.model, layer_offloading=True, weights="float8", te_weights="float8", **shares, **model))


def adapter_bytes(job: Job) -> dict[str, int]:
    """What of the training adapter is on the card at the peaks of some phases."""
    named = {"before": ("prepare", "before the loop"), "previews": ("sample", "baseline"), "steps": ("train", "")}
    found = {name: [peak for peak in simulate(job).phases if (peak.phase, peak.detail) == which] for name, which in named.items()}
    return {name: max(peak.components.get("training_adapter", 0) for peak in peaks) for name, peaks in found.items()}


def test_a_training_adapter_waits_with_its_layers_until_the_first_previews() -> None:
    none, half, every = (adapter_bytes(turbo(share)) for share in (0, 0.5, 1))
    assert none["before"] > 100 * 2**20
    assert 0.3 * none["before"] < half["before"] < 0.7 * none["before"]
    assert every["before"] == 0
    assert none["previews"] == half["previews"] == every["previews"] > 0
    assert none["steps"] == half["steps"] == every["steps"] == 0


def test_using_what_is_beside_a_layer_empties_slots_and_fills_none() -> None:
    base, calls = chain(6)
    base = replace(base, moments=["block|forward", "block/Linear|forward"], labels=(0, 1, 1, 1, 0, 0, 0))
    layers = [plain(1000)] * 6
    used, what = used_beside(base, calls, Offloaded(layers, layers, frozenset(range(6))))
    without, program = offloaded(base, calls, Offloaded(layers, layers, frozenset(range(6)))), offloaded(base, used, what)
    assert program.copies["forward"] == without.copies["forward"] + 3
    assert sum(copied for _, copied in live(program)) < sum(copied for _, copied in live(without))
    assert max(copied for _, copied in live(program)) <= max(copied for _, copied in live(without))


# ---- FLUX.2 dev


def flux2_dev(*sets: str) -> Job:
    (job,) = read_jobs(ROOT / "examples" / "flux2_dev_ui.yaml", ("model.layer_offloading=true", *sets))
    return job


def test_flux2_dev_makes_no_previews_where_its_text_encoders_first_layer_waits_on_the_host() -> None:
    """The trainer stopped there on the emulated device: latents on the host, weights on the card."""
    with pytest.raises(InputError, match="cannot make previews with its text encoder's layers offloaded"):
        flux2_dev()
    assert "stop" not in str(flux2_dev("train.disable_sampling=true").warnings)
    assert "stop" not in str(flux2_dev("model.layer_offloading_text_encoder_percent=0").warnings)
    assert "may stop at the first preview" in str(flux2_dev("model.layer_offloading_text_encoder_percent=0.5").warnings)


def test_klein_makes_previews_with_its_text_encoder_offloaded() -> None:
    (job,) = read_jobs(ROOT / "examples" / "flux2_klein_4b_ui.yaml", ("model.layer_offloading=true",))
    assert not job.unmodelled


@pytest.mark.parametrize("name", ["zimage_turbo_ui", "zimage_base_ui", "flux2_klein_4b_ui", "qwen_image_ui", "qwen_edit_2509_ui"])
def test_accumulated_batches_find_the_slots_of_the_batch_before(name: str) -> None:
    """Gradients alone are added to what is there; what a batch leaves in slots is its own (the replay stopped on it)."""
    sets = ("model.layer_offloading=true", "model.layer_offloading_text_encoder_percent=0", "train.cache_text_embeddings=true")
    alone, twice = (read_jobs(ROOT / "examples" / f"{name}.yaml", (*sets, f"train.gradient_accumulation={n}"))[0] for n in (1, 3))
    steps = [max(p.allocated_bytes for p in simulate(job).phases if p.phase == "train") for job in (alone, twice)]
    assert steps[0] <= steps[1] < 1.25 * steps[0]  # the gradients of the batches before are there from the start


# ---- control images' tokens, and what is never differentiated


def qwen_core(key: str) -> Program:
    """Of a profile whose layers all wait on the host."""
    (job,) = read_jobs(ROOT / "examples" / "qwen_edit_2511_ui.yaml")
    model = replace(job.model, layer_offloading=True, layer_offloading_transformer_percent=1.0, layer_offloading_text_encoder_percent=1.0)
    return profile_of("qwen-image-edit-2511", replace(model, weights="float8", te_weights="float8")).program(key)


def test_the_first_pass_of_a_checkpointed_block_keeps_no_layers_input() -> None:
    """Was: those of the text in the last block, whose node is never run, to the end of the forward pass (59 MB of a step of 672 x 384)."""
    core = qwen_core("step.core/float8/checkpointed/one")
    block = [k for k, row in enumerate(core.labels) if re.match(r"transformer\.transformer_blocks\.59\S*\|forward", core.moments[row])]
    late = [k for k in block if core.deaths[k] > block[-1] + 10 and core.coefficients[k, core.features.index("X")]]
    assert late == [block[-1]]  # what the block gives


def test_the_gradient_of_all_images_comes_before_the_copies_that_the_first_layer_waits_for() -> None:
    """Was: the copy of its weights taken for the gradient that is cut, and the two of them alive in one another's place."""
    core = qwen_core("step.core/float8/checkpointed/one/edited")
    assert core.streams is not None
    product = first_of_backward(core)
    copies = [k for k in range(product - 8, product) if core.streams[k] != 0]
    whole = copies[0] - 1
    size = {name: int(count) for name, count in zip(core.features, core.coefficients[whole], strict=True) if count}
    assert size == {"T": 128}
    assert core.deaths[whole] == product + 1
    assert all(not core.coefficients[k, core.features.index("T")] for k in copies)
