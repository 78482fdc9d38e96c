"""Layer offloading of LTX-2, 2.3 and 2.5: layers are taken once they are quantised, and some tensors of none stay on the host."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from made_jobs import ROOT

from estimator.batches import Batch
from estimator.job import Job
from estimator.layer_calls import NONE, STAYS, Call, Uses, by_columns
from estimator.offload import OWN, SLOTS, Layer, layers_of
from estimator.offload_left import RUNS, left
from estimator.offload_profile import OffloadProfile, profile_of
from estimator.offload_programs import Offloaded, offloaded
from estimator.operations import MoveIn, MoveOut
from estimator.plans import PLANS
from estimator.program import ALLOCATE, Program
from estimator.programs import load_profile
from estimator.timeline import simulate
from estimator.trainers import modelled, read_jobs

EXAMPLES = {"ltx2": "ltx2_ui", "ltx2.3": "ltx23_ui", "ltx2.5": "ltx25_ui"}
BLOCKS, TABLES_BYTES, VISION_BYTES = 48, 2 * 4096 * 2 + 2 * 2048 * 2, 1152 * 3840 * 2
LEFT_BYTES = {
    "ltx2": {"transformer": 0, "text_encoder0": VISION_BYTES},
    "ltx2.3": {"transformer": BLOCKS * TABLES_BYTES, "text_encoder0": VISION_BYTES},
    "ltx2.5": {"transformer": BLOCKS * TABLES_BYTES, "text_encoder0": 0},
}  # fmt: skip


def job_of(arch: str, transformer: float, text_encoder: float, *sets: str) -> Job:
    shares = (f"model.layer_offloading_transformer_percent={transformer}", f"model.layer_offloading_text_encoder_percent={text_encoder}")
    (job,) = read_jobs(ROOT / "examples" / f"{EXAMPLES[arch]}.yaml", ("model.layer_offloading=true", *shares, *sets))
    return job


def seen(job: Job) -> OffloadProfile:
    profile = profile_of(job.arch, job.model)
    assert isinstance(profile, OffloadProfile)
    return profile


@pytest.mark.parametrize("kind", ["qfloat8", "float8", "uint4", "bf16"])
@pytest.mark.parametrize("arch", ["ltx2", "ltx2.3"])
def test_the_reader_takes_it_in_every_kind_that_was_run(arch: str, kind: str) -> None:
    sets = ("model.quantize=false", "model.quantize_te=false") if kind == "bf16" else (f"model.qtype={kind}", f"model.qtype_te={kind}")
    job = job_of(arch, 1, 1, *sets)
    assert bool(job.unmodelled) == (kind in modelled.WEIGHTS - modelled.OFFLOADED_ALONE.get(arch, modelled.WEIGHTS) - {"qfloat8"})
    assert job.model.weights == ("float8" if kind == "qfloat8" else kind)


@pytest.mark.parametrize("arch", sorted(EXAMPLES))
def test_what_waits_what_is_left_and_what_stays_is_all_there_is(arch: str) -> None:
    job = job_of(arch, 1, 1)
    profile = seen(job)
    for component, weights in (("transformer", job.model.weights), ("text_encoder0", job.model.te_weights)):
        every, stays = (sum(each.resident(component, weights)) for each in (profile.base, profile))
        assert every - stays - profile.waiting_bytes(component) == LEFT_BYTES[arch][component]
        assert 0 < stays < every / 5


def test_nothing_is_left_where_no_layer_is_taken() -> None:
    profile = seen(job_of("ltx2.3", 0, 0))
    for component in ("transformer", "text_encoder0"):
        assert profile.resident(component, "float8") == profile.base.resident(component, "float8")


@pytest.mark.parametrize("arch", sorted(EXAMPLES))
def test_embeddings_of_the_timestep_are_norms_to_the_manager(arch: str) -> None:
    job = job_of(arch, 1, 1)
    profile = seen(job)
    names, layers = profile.base.data["layers"]["transformer"], profile.layers("transformer", job.model.weights)
    carried = {name.split(".")[0] for name, layer in zip(names, layers, strict=True) if layer.carried}
    assert carried == {name.split(".")[0] for name in names if "embed" in name or "adaln" in name or "cross_attn_" in name.split(".")[0]}
    assert len(carried) in (6, 8)


def test_a_tensor_of_several_parts_has_one_number() -> None:
    """Places count parts, names of tensors count tensors: the tables of a later block have the number that loading gives them."""
    sizes, which = RUNS["ltx2.3"]["transformer"]
    layers = [Layer(0, 0, 1, 1, (100, 4))]
    found = left("ltx2.3", "transformer", [100, 4, 7, *sizes, 7, *sizes], layers)
    assert [layer.place for layer in found] == [5, 6, 12, 13]
    assert [layer.number for layer in found] == [4, 5, 11, 12]
    assert [layer.sizes for layer in found] == [(sizes[n],) for n in which] * 2
    assert left("zimage", "transformer", [100, *sizes], layers) == ()


@pytest.mark.parametrize("arch", sorted(EXAMPLES))
@pytest.mark.parametrize("core", ["step.core", "step.core.sound"])
def test_steps_on_sound_copy_layers_in_too(arch: str, core: str) -> None:
    job = job_of(arch, 1, 0)
    program = seen(job).program(f"{core}/{job.model.weights}/checkpointed/one")
    assert program.copies["forward"] > 2 * BLOCKS * 28  # the second forward of each block
    assert program.streams is not None


@pytest.mark.parametrize("arch", sorted(EXAMPLES))
def test_loading_brings_only_what_stays(arch: str) -> None:
    """The encoder's embedding and norms; quantising the transformer block by block is on the card whatever is taken then."""
    loads = {peak.detail: peak for share in (1,) for peak in simulate(job_of(arch, share, share)).phases if peak.phase == "load"}
    assert loads["the rest"].components["text_encoder"] == pytest.approx(1930 * 2**20, rel=0.02)
    whole = next(peak for peak in simulate(job_of(arch, 0, 0)).phases if peak.phase == "load" and peak.detail == "the rest")
    assert whole.components["text_encoder"] > 5 * loads["the rest"].components["text_encoder"]


@pytest.mark.parametrize("arch", sorted(EXAMPLES))
def test_more_percent_needs_less_in_steps(arch: str) -> None:
    steps = [max(p.allocated_bytes for p in simulate(job_of(arch, share, 1)).phases if p.phase == "train") for share in (0, 0.5, 1)]
    assert all(more > less for more, less in pairwise(steps))


def test_half_of_them_drawn_by_a_seed_is_another_half() -> None:
    job = job_of("ltx2.3", 0.5, 0.5)
    one, other = (seen(replace(job, model=replace(job.model, offload_seed=seed))).taken["transformer"] for seed in (1, 2))
    assert one != other
    assert 0.4 < len(one & other) / len(one) < 0.6


# ---- where the trainer takes the text encoder to be


def text_moves(arch: str, text_encoder: float) -> list[str]:
    """What becomes of the text encoder from caching latents to the end of a first step."""
    job = job_of(arch, 1, text_encoder, "datasets.0.cache_latents_to_disk=true")
    plan = PLANS["ltx2"](job, ("text_encoder0",))
    batch = Batch(job.datasets[0].buckets[0], 1, 20)
    parts = (*plan.caching(), *plan.sampling("later"), *plan.step((batch,), first=False))
    return [type(one).__name__ for one in parts if isinstance(one, (MoveIn, MoveOut)) and one.component == "text_encoder0"]


@pytest.mark.parametrize("arch", ["ltx2", "ltx2.3"])
def test_an_encoder_whose_first_parameter_waits_is_restored_to_the_host(arch: str) -> None:
    """A whole run had 1.9 GiB less on the card behind caching latents, and between the previews and the next step."""
    assert text_moves(arch, 1) == ["MoveOut", "MoveIn", "MoveOut", "MoveIn"]
    assert text_moves(arch, 0) == ["MoveOut", "MoveIn", "MoveIn", "MoveIn"]


def test_gemma_4s_first_parameter_is_its_embedding() -> None:
    assert text_moves("ltx2.5", 1) == text_moves("ltx2.5", 0) == ["MoveOut", "MoveIn", "MoveIn", "MoveIn"]


# ---- codes that the backward pass needs (ConvRot)


def chain(until: int) -> tuple[Program, Uses]:
    """Nine layers in a row, each product freed with the next one's, on codes that each layer's backward needs until then."""
    program = Program(
        "step.core/convrot8/full/one", ("1",), np.full((20, 1), 100), (0,) * 20, ["made"], (None,) * 20,
        np.array([ALLOCATE, *[ALLOCATE, 2] * 19]), 0, (), {},
    )  # fmt: skip
    return program, by_columns(Call(n, n + 1, n + 2, n, n + 1, -1, until) for n in range(9))


def codes(until: int, saves: bool) -> list[int]:
    """Bytes on the copies' stream after each event."""
    base, calls = chain(until)
    layers = [Layer(0, 0, 1, OWN, (1000,), saves=saves)] * 9
    program = offloaded(base, calls, Offloaded(layers, layers, frozenset(range(9))))
    sizes, out, total = program.sizes({}), [], 0
    for event, k in zip(program.events.tolist(), program.tensor_of_event.tolist(), strict=True):
        on_copies = program.streams is not None and bool(program.streams[k]) and k < len(program.names) - program.imports
        total += on_copies * int(sizes[k]) * (1 if event == ALLOCATE else -1)
        out.append(total)
    return out


def test_codes_stay_until_the_backward_is_over_and_the_slot_is_written_anew() -> None:
    assert max(codes(15, saves=False)) == (SLOTS + 1) * 1000
    assert max(codes(15, saves=True)) == 9000
    assert codes(15, saves=True)[-1] == codes(15, saves=False)[-1] == SLOTS * 1000
    assert codes(STAYS, saves=True)[-1] == 9000  # a text's graph: until it is dropped
    assert max(codes(NONE, saves=True)) == (SLOTS + 1) * 1000  # a forward that nobody goes back through


def test_of_all_kinds_convrots_alone_does_so() -> None:
    places, resident = [[0, 2, 0, 2]], [1000, 8]
    assert [layers_of(places, resident, weights=kind)[0].saves for kind in ("uint4", "convrot8", "")] == [False, True, False]
    profile = seen(job_of("ltx2.5", 1, 1))
    assert {layer.saves for layer in profile.layers("transformer", "convrot8") if layer.what == OWN} == {True}


@pytest.mark.parametrize("arch", sorted(EXAMPLES))
def test_connectors_run_once_before_slots_are_filled(arch: str) -> None:
    """In a whole run the first preview with cached text had 81 MiB less at its peak, which is theirs, than with what the layers left."""
    job = job_of(arch, 1, 0)
    key = f"preview/{job.model.weights}/cfg"
    values = {"T": 64, "A": 64, "F": 1, "O": 2, "M": 9, "B": 1, "X": 24, "r": 16, "N": 20, "E": 16}
    once, twice = load_profile(arch).program(key), seen(job).program(key)
    sizes = []
    for program in (once, twice):
        found = program.sizes(values)[: len(program.names) - program.imports]
        labels = [program.moments[label].startswith("connectors") for label in program.labels[: len(found)]]
        passing = found[np.array(labels) & (program.deaths[: len(found)] < len(found))]
        sizes.append(sorted(size for size in passing.tolist() if size > 2**24))
    assert len(sizes[0]) <= len(sizes[1]) < 1.5 * len(sizes[0])
