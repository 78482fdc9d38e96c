"""Programs put right without recording again: what a re-recorded one has, and nothing where it is right or of another kind."""

from __future__ import annotations

import pytest

from calibration.extract import casts, heads, loss, noisy, stored
from calibration.extract.align import Sequence
from calibration.extract.programs import Program
from calibration.extract.runs import BACKWARD
from estimator.paths import profiles_dir

CORE, HEAD, PROMPTS = "step.core/uint4/checkpointed/one", "step.head/cached/cached/one", "step.prompts/many"
LAYER, LEFT = "transformer.proj_out|backward AddmmBackward0", "transformer.blocks.0.qkv/Linear|backward torch::autograd::AccumulateGrad"
FEATURES = ("1", "T", "B*T")
NONE, SCALAR, CAST, FP32 = (0, 0, 0), (4, 0, 0), (0, 256, 0), (0, 512, 0)
AT_ONE_SIZE = (1028608, 0, 0)  # 512 bytes for each of 2009 tokens


def program(key: str, events: list[int], tensors: list[tuple[str, tuple[int, ...]]], workspace_at: int | None = None) -> Program:
    labels, rows = [label for label, _ in tensors], [row for _, row in tensors]
    nothing = [None] * len(labels)
    sequence = Sequence(list(events), [0] * len(labels), labels, list(nothing), [False] * len(labels), workspace_at)
    return Program(key, sequence, FEATURES, rows, 4)


def core_with(*gradients: tuple[str, tuple[int, ...]]) -> Program:
    """The squared error, gradients each gone when the next is there, and a layer's."""
    tensors = [("step", FP32), ("step", SCALAR), *gradients, (LAYER, CAST)]
    events = [0, 1, 2]
    for k in range(3, len(tensors)):
        events += [k, ~(k - 1)]
    return program(CORE, events, tensors)


# ---- the noisy latents' cast


@pytest.mark.parametrize(("key", "cast"), [(HEAD, CAST), (PROMPTS, (0, 0, 256))])
def test_a_head_ends_without_the_cast(key: str, cast: tuple[int, ...]) -> None:
    found = noisy.corrected(program(key, [0, 1], [("step", (7864320, 0, 0)), ("step", cast)]))
    assert (found.sequence.events, found.coefficients, found.sequence.labels) == ([0], [(7864320, 0, 0)], ["step"])
    assert noisy.corrected(found) is found


@pytest.mark.parametrize(
    "right",
    [
        program(HEAD, [0, 1, ~1], [("step", NONE), ("step", CAST)]),  # it goes within the head
        program(HEAD, [0, 1], [("step", NONE), ("step", FP32)]),  # another tensor
        program("step.head/cached/encoded/one", [0, 1], [("step", NONE), ("step", CAST)]),  # the prompts' encode comes behind it
        program("text/uint4/plain/one", [0], [("step", CAST)]),
    ],
)
def test_what_is_no_cast_stays(right: Program) -> None:
    assert noisy.corrected(right) is right


def test_a_core_begins_with_the_cast_and_lets_it_go_before_the_packed_latents() -> None:
    old = program(CORE, [0, 1, ~0, ~1, 2], [("predict_noise", CAST), ("predict_noise", SCALAR), ("step", FP32)], workspace_at=4)
    found = noisy.corrected(old)
    assert found.sequence.events == [3, 0, 1, ~3, ~0, ~1, 2]
    assert (found.sequence.labels[3], found.coefficients[3], found.sequence.workspace_at) == ("step", CAST, 6)
    assert noisy.corrected(found) is found
    early = noisy.corrected(program(CORE, [0, 1, ~0], [("predict_noise", CAST), ("predict_noise", SCALAR)], workspace_at=1))
    assert early.sequence.workspace_at == 2


def test_a_core_that_begins_with_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="does not begin with packed latents"):
        noisy.corrected(program(CORE, [0, ~0], [("predict_noise", FP32)]))


# ---- the loss's gradients


def test_gradients_at_one_size_get_the_error_s_formula() -> None:
    half = (AT_ONE_SIZE[0] // 2, 0, 0)
    found = loss.corrected(core_with((BACKWARD, SCALAR), (BACKWARD, AT_ONE_SIZE), (BACKWARD, AT_ONE_SIZE), (BACKWARD, half)))
    assert found.coefficients == [FP32, SCALAR, SCALAR, FP32, FP32, (0, 256, 0), CAST]
    assert loss.corrected(found) is found


def test_labels_of_the_pass_before_are_the_phase_s() -> None:
    found = loss.corrected(core_with((BACKWARD, SCALAR), (LEFT, SCALAR), (LEFT, FP32)))
    assert found.sequence.labels == ["step", "step", *3 * [BACKWARD], LAYER]
    assert found.coefficients == core_with((BACKWARD, SCALAR), (LEFT, SCALAR), (LEFT, FP32)).coefficients


def test_behind_the_first_layer_nothing_is_the_loss_s() -> None:
    old = core_with((BACKWARD, SCALAR), (LAYER, CAST), (LEFT, FP32), (BACKWARD, AT_ONE_SIZE))
    assert loss.corrected(old) is old


def test_a_sample_s_own_gradient_stays() -> None:
    """Neither the error's nor half of it; and one alone is not the error's either, whatever its size."""
    own = (AT_ONE_SIZE[0] // 8, 0, 0)
    found = loss.corrected(core_with((BACKWARD, AT_ONE_SIZE), (BACKWARD, AT_ONE_SIZE), (BACKWARD, own)))
    assert found.coefficients[2:5] == [FP32, FP32, own]
    alone = core_with((BACKWARD, SCALAR), (BACKWARD, AT_ONE_SIZE))
    assert loss.corrected(alone) is alone


def test_gradients_that_are_none_of_an_error_stay() -> None:
    wrong = (AT_ONE_SIZE[0] + 4, 0, 0)
    other = core_with((BACKWARD, wrong), (BACKWARD, wrong))
    assert loss.corrected(other) is other


@pytest.mark.parametrize("arch", ["flux2-klein-4b", "flux2-klein-9b", "chroma", "flux1-kontext"])
def test_profiles_have_it_right(arch: str) -> None:
    programs = stored.read(profiles_dir() / arch).programs
    assert [key for key, one in programs.items() if loss.corrected(one) is not one] == []
    if arch.startswith("flux2"):
        assert [key for key, one in programs.items() if noisy.corrected(one) is not one] == []


# ---- noise of each sample by itself


def head_of(*groups: tuple[dict[str, int], dict[str, int], dict[str, int]]) -> Program:
    """A batch's head that draws noise for each sample: (scales, temporaries, noise) of each, and all of it joined."""
    rows = [row for small, large, noise in groups for row in (small, small, large, large, noise)]
    features = ("1", "T", "B*T", "B>2")
    table = [tuple(row.get(name, 0) for name in features) for row in [*rows, {"B*T": 3072}]]
    nothing = [None] * len(table)
    sequence = Sequence(list(range(len(table))), [0] * len(table), ["step"] * len(table), list(nothing), [False] * len(table))
    return Program("step.head/cached/cached/many", sequence, features, table, 4)


def test_a_batch_has_the_noise_of_whole_samples() -> None:
    """Was: temporaries of the first sample, and the noise of the third, of a batch of two."""
    two, third, noise, once = {"1": 4}, {"B>2": 4}, {"T": 3072}, {"B>2": 1474560}
    crosswise = head_of((two, noise, once), (third, once, noise), (two, noise, noise))
    assert heads.corrected(HEAD, crosswise) is crosswise  # of a single picture nothing is drawn apart
    found = heads.corrected("step.head/cached/cached/many", crosswise)
    assert found.features == ("1", "T", "B*T", "B>2", "B>2*T")
    table = [{name: value for name, value in zip(found.features, row, strict=True) if value} for row in found.coefficients]
    assert table == [two, two, noise, noise, noise] * 2 + [third, third, *[{"B>2*T": 3072}] * 3] + [{"B*T": 3072}]
    assert found.sequence.events == crosswise.sequence.events
    assert heads.corrected("step.head/cached/cached/many", found) is found


# ---- weights that a forward casts for good


def test_a_part_does_not_cast_what_the_first_of_all_has_cast() -> None:
    cast = casts.MOMENT
    made = program(CORE, [0, 1, ~3, 2, ~0], [("step", FP32), (cast, SCALAR), (cast, CAST), (cast, NONE)], workspace_at=4)
    made.sequence.names[1] = made.sequence.names[3] = "transformer:641"
    made.sequence.imported[3] = True
    found = casts.corrected(made)
    assert (found.sequence.events, found.coefficients, found.sequence.names) == ([0, 1, ~0], [FP32, CAST], [None, None])
    assert found.sequence.workspace_at == 2
    assert casts.corrected(found) is found
