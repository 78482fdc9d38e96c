"""The shipped memory programs: well-formed events, and peak rows that tell the same as adding up every event."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.errors import CannotTell
from estimator.features import feature
from estimator.footprint import Footprint
from estimator.program import ALLOCATE, EMPTY_CACHE, FIRST_IMPORT, Program
from estimator.programs import Profile, load_profile
from estimator.residents import UNIT_BYTES
from estimator.rewriting import written
from estimator.unassisted import UNASSISTED
from tests.made_jobs import ARCHS, values, weights_of

archs = pytest.mark.parametrize("arch", ARCHS)
LONGEST_TO_SHORTEST = 3  # edges of an image
GAP_SHARE = 2e-5
"""Of a part's peak, by which its peak rows may lie below its events: a row that is the highest in a band too narrow for the jobs at which
rows are chosen (calibration.extract.rows)."""


def programs(arch: str) -> list[Program]:
    profile = load_profile(arch)
    return [profile.program(key) for key in profile.data["parts"] if not key.startswith("step.update/")]  # those: tests/test_optimizers.py


def highest_total(program: Program, given: dict[str, int]) -> int:
    """The plain way: every event added up, in order, whatever the size; the highest after an allocation."""
    sizes = np.append(program.sizes(given), 0)[program.tensor_of_event]
    signs = np.select([program.events == ALLOCATE, program.events == EMPTY_CACHE], [1, 0], -1)
    return int(np.cumsum(signs * sizes)[program.events == ALLOCATE].max(initial=0))


@st.composite
def workloads(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """(width, height, batch, rank, text tokens)."""
    short = draw(st.integers(16, 80))
    long = draw(st.integers(short, min(LONGEST_TO_SHORTEST * short, 16384 // short)))
    edges = draw(st.permutations([16 * short, 16 * long]))
    return edges[0], edges[1], draw(st.integers(1, 16)), draw(st.integers(1, 256)), draw(st.integers(16, 512))


def test_there_are_programs() -> None:
    assert {"flex1", "flux1-dev", "zimage", "zimage-turbo"} <= set(ARCHS)


@archs
def test_every_event_stream_is_well_formed(arch: str) -> None:
    """Tensors are freed after they were made and once; an import is freed once, and has a name."""
    for program in programs(arch):
        own = len(program.names) - program.imports
        assert int((program.events == ALLOCATE).sum()) == own, program.key
        born, live, imported = set[int](), set[int](), set[int]()
        for event, tensor in zip(program.events.tolist(), program.tensor_of_event.tolist(), strict=True):
            if event == ALLOCATE:
                assert tensor not in born, program.key
                born.add(tensor)
                live.add(tensor)
            elif event > 0:
                live.remove(tensor)  # KeyError: freed before it was made, or twice
            elif event <= FIRST_IMPORT:
                assert own <= tensor < len(program.names), program.key
                assert tensor not in imported, program.key
                imported.add(tensor)
        assert tuple(sorted(live)) == program.exported, program.key
        assert all(program.names[k] for k in range(own, len(program.names))), program.key
        assert len(imported) == program.imports, program.key


@archs
def test_every_tensor_and_peak_has_a_moment(arch: str) -> None:
    profile = load_profile(arch)
    for program in programs(arch):
        assert all(0 <= label < len(profile.archive.labels) for label in program.labels), program.key
        assert all(row.moment in profile.archive.labels for row in program.peaks), program.key


@archs
@settings(max_examples=25)
@given(workload=workloads())
def test_peak_rows_are_the_highest_running_total(arch: str, workload: tuple[int, int, int, int, int]) -> None:
    for program in programs(arch):
        given = values(arch, program.key, *workload)
        total, (rows, moment) = highest_total(program, given), program.peak(given)
        assert 0 <= total - rows <= GAP_SHARE * total, f"{program.key} at {given}: rows {rows}, events {total}"
        assert bool(moment) == bool(program.peaks)


@archs
@settings(max_examples=6)
@given(workload=workloads())
def test_sizes_are_plain_bytes(arch: str, workload: tuple[int, int, int, int, int]) -> None:
    for program in programs(arch):
        sizes = program.sizes(values(arch, program.key, *workload))
        assert len(sizes) == len(program.names)
        assert sizes.dtype == np.int64
        assert (sizes >= 0).all(), program.key


@archs
@settings(max_examples=6)
@given(workload=workloads())
def test_no_formula_goes_far_below_nothing(arch: str, workload: tuple[int, int, int, int, int]) -> None:
    """A size that would be negative is taken as 0: a formula that came out of a coincidence. None may matter beside the weights.

    Z-Image's go furthest: 42 MB in previews below 512 px, 94 MB in steps of several images (17 GiB).
    """
    weights = min(sum(load_profile(arch).resident("transformer", kind)) for kind in weights_of(arch))
    for program in programs(arch):
        if not program.key.startswith(("step.core", "preview", "text", "cache_latents")):
            continue
        given = values(arch, program.key, *workload)
        row = np.array([feature(name, given) for name in program.features], dtype=np.int64)
        lowest = int((program.coefficients @ row).min(initial=0))
        assert -lowest <= 0.015 * (program.peak(given)[0] + weights), f"{program.key} at {given}: {lowest}"


def test_what_was_never_recorded_is_named() -> None:
    with pytest.raises(CannotTell, match=r"step\.core/nf4/checkpointed/one"):
        load_profile("flux1-dev").program("step.core/nf4/checkpointed/one")
    with pytest.raises(CannotTell, match="transformer in nf4"):
        load_profile("flux1-dev").resident("transformer", "nf4")
    with pytest.raises(CannotTell, match="mochi"):
        load_profile("mochi")


# Bytes of a transformer that no kind of weights changes, where they are many: 3.5 medium's table of 384 x 384 positions is a buffer in bf16
UNCHANGED = {"sd35-medium-aitk": 384 * 384 * 1536 * 2}


@archs
def test_quantised_weights_are_smaller(arch: str) -> None:
    kinds = [kind for kind in ("bf16", "qfloat8", "float8", "uint4") if load_profile(arch).has(f"load.transformer/{kind}/plain")]
    sizes = {kind: sum(load_profile(arch).resident("transformer", kind)) for kind in kinds}
    if "bf16" not in kinds and not load_profile(arch).shares_all:
        pytest.skip("not recorded unquantised")
    known = "bf16" in kinds or load_profile(arch).shares_all
    bf16 = sum(load_profile(arch).resident("transformer", "bf16")) if known else 2 * sizes["qfloat8"]
    half = (bf16 + UNCHANGED.get(arch, 0)) / 2
    assert all(sizes[kind] == pytest.approx(half, rel=0.02) for kind in sizes if kind.endswith("float8"))  # Wan 2.2's embedders stay
    most = 0.76 if arch == "omnigen2" else 0.35  # layers of 2520 inputs are in no groups of 64: the trainer leaves them as they are
    assert "uint4" not in sizes or sizes["uint4"] < most * bf16


def test_what_neither_of_two_relatives_recorded_is_said_not_to_be() -> None:
    """Wan's two sizes are each other's relatives."""
    with pytest.raises(CannotTell, match="never recorded"):
        load_profile("wan21-1.3b").resident("text_encoder0", "no such kind")


@archs
@settings(max_examples=4)
@given(workload=workloads())
def test_a_part_without_its_events_says_the_same(arch: str, workload: tuple[int, int, int, int, int]) -> None:
    """What is kept beside the peak rows (stays, freed) is what the events come to: rounded bytes of each component."""
    profile = load_profile(arch)
    unread = Profile(profile.arch, profile.data, profile.folder)
    for program in programs(arch):
        outline, given = unread.outline(program.key), values(arch, program.key, *workload)
        assert isinstance(outline, Footprint) or program.key.startswith("setup.optimizer/"), program.key  # those are made by rule
        assert outline.peak(given) == program.peak(given), program.key
        assert outline.sums(given, UNIT_BYTES) == program.sums(given, UNIT_BYTES), program.key


def test_a_refusal_names_what_was_recorded_instead() -> None:
    with pytest.raises(CannotTell) as caught:
        load_profile("wan22-5b").program("load.text/orbit3")
    (problem,) = caught.value.problems
    assert "load.text/qfloat8" in problem.fix
    with pytest.raises(CannotTell) as caught:
        load_profile("wan22-5b").program("no.such/part")
    assert "of its kind" not in caught.value.problems[0].fix


def test_a_refusal_is_of_the_architecture_that_was_asked_for() -> None:
    """Wan 2.2's parts are its relative's: what neither has is not said of Wan 2.1."""
    with pytest.raises(CannotTell, match="no such step of wan22-14b was recorded"):
        load_profile("wan22-14b").program("step.head/encoded/encoded/one/two")


@pytest.mark.parametrize("low", ["plain", "low_vram"])
@pytest.mark.parametrize("kind", ["bf16", "qfloat8", "float8", "uint4", "uint3"])
def test_loading_without_a_training_adapter_makes_what_the_same_class_makes_without_one(kind: str, low: str) -> None:
    """Schnell's beside FLUX.1 dev's, which has an embedding of the guidance more: two linears of 256 x 3072 and 3072 x 3072. Was: with
    the adapter that nobody loads, 164 MiB, and while the transformer is loaded up to 1.3 GiB."""
    schnell, dev = load_profile("flux1-schnell"), load_profile("flux1-dev")
    weights = {"bf16": 2, "qfloat8": 1, "float8": 1, "uint4": 0.5, "uint3": 0.5}[kind] * (256 + 3072) * 3072
    for part in ("load.transformer", "load.rest"):
        key = f"{part}/{kind}/{low}"
        alone, other = schnell.program(key + UNASSISTED), dev.program(key)
        stays = [sum(program.sums({}, 1)[0].values()) for program in (alone, other)]
        more = weights if part == "load.transformer" else 0
        assert stays[1] - stays[0] == pytest.approx(more, rel=0.1, abs=2**20)
        assert alone.peak({})[0] == pytest.approx(other.peak({})[0], abs=80 * 2**20)
        assert not any(name.startswith("assistant") for name in alone.names if name)


@pytest.mark.parametrize("kind", ["qfloat8", "float8", "uint4"])
def test_no_training_adapter_comes_back_for_previews_where_there_is_none(kind: str) -> None:
    """Was: 164 MiB more in all previews but the first."""
    schnell, key = load_profile("flux1-schnell"), f"sample.enter/{kind}/none/later"
    brought = [schnell.program(one).sums({"r": 16}, 1)[0]["assistant"] for one in (key, key + UNASSISTED)]
    assert brought[0] > 150 * 2**20
    assert brought[1] == 0


def test_the_name_of_a_tensor_that_is_left_out_goes_with_it() -> None:
    """Of three tensors, of which the first two are left out, both with names; a further one comes in the middle."""
    sizes = np.array([[1], [2], [4]])
    base = Program("step.x", ("1",), sizes, (0, 0, 0), ["step"], ("a:0", "a:1", None), np.array([ALLOCATE] * 3), 0, (), {})
    events = np.array([3, 2]), np.array([True, True])
    made = written(base, "step.y", events, (("1",), np.array([[1], [2], [4], [8]])), [2])
    assert made.names == (None, None)
    assert made.sizes({}).tolist() == [8, 4]
