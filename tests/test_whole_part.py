"""Some of the transformer's parameters are trained: what frozen ones leave of a step. And the embedding of the guidance, trained or not."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from config_writer import ZIMAGE, read, train

from estimator.adapter_sites import BACKWARD, Tape
from estimator.errors import CannotTell
from estimator.job import Network
from estimator.program import ALLOCATE, Program
from estimator.trainers import modelled
from estimator.whole_filtered import PartlyWholeProfile, partly
from estimator.whole_guidance import GUIDANCE, parameters
from estimator.whole_profile import WholeProfile, recorded_of, whole

WORKLOAD = {"T": 1024, "X": 96, "B": 1, "r": 0, "E": 64, "N": 20}
CORES = [f"step.core/bf16/{kept}/{many}" for kept in ("checkpointed", "full") for many in ("one", "many")]
# Words that are left out, and words that are kept
FILTERS = {
    "blocks": ((), ("transformer_blocks.", "layers.")), "no norms": (("norm",), ()),
    "no feed forward": ((".ff", "feed_forward", "proj_mlp"), ()),
    "late blocks": ((), ("single_transformer_blocks.", "layers.2")), "attention": ((), ("attn", "attention.")),
    "what modulates": ((), ("norm1.linear", "norm.linear", "adaLN")),
    "one layer": ((), ("transformer_blocks.4.attn.to_q", "layers.4.attention.to_q")),
}  # fmt: skip
FLEX, FLUX = "flex1", "flux1-dev"


def values(key: str) -> dict[str, int]:
    return WORKLOAD | {"B": 2 if key.endswith("many") else 1}


@cache
def part(arch: str, words: str) -> PartlyWholeProfile:
    return partly(arch, *FILTERS[words])


def gradients(program: Program) -> list[int]:
    return sorted(int(name.partition(":")[2]) for name in program.names if name is not None and name.startswith("gradient:"))


def lives(program: Program) -> None:
    """Nothing is freed twice, or before it is made."""
    there: set[int] = set()
    for code, tensor in zip(program.events.tolist(), program.tensor_of_event.tolist(), strict=True):
        if code == ALLOCATE:
            there.add(tensor)
        else:
            there.remove(tensor)


def kept_by_the_forward_pass(program: Program, key: str) -> int:
    """Bytes that are there when the backward pass begins."""
    tape = Tape(program)
    first = next(k for k, made in enumerate(tape.made) if made.run == BACKWARD)
    sizes, place = program.sizes(values(key)), tape.born[first]
    return sum(int(sizes[k]) for k in range(first) if (tape.died[k] or len(program.events)) > place)


@pytest.mark.parametrize("words", FILTERS)
@pytest.mark.parametrize("arch", sorted(modelled.WHOLE_FILTERED))
def test_all_that_is_trained_has_a_gradient_and_nothing_else(arch: str, words: str) -> None:
    profile = part(arch, words)
    reached = [k for k in range(len(profile.adapter)) if k not in profile.idle]
    assert reached
    for key in CORES:
        program = profile.program(key)
        lives(program)
        assert gradients(program) == reached
        assert program.peak(values(key))[0] <= recorded_of(arch).program(key).peak(values(key))[0]


@pytest.mark.parametrize("key", CORES)
@pytest.mark.parametrize("arch", [FLEX, "zimage"])
def test_with_nothing_frozen_a_step_is_as_recorded(arch: str, key: str) -> None:
    profile = partly(arch, ("no parameter is called this",), ())
    made, recorded = profile.program(key), recorded_of(arch).program(key)
    assert not profile.left
    assert np.array_equal(made.events, recorded.events)
    assert np.array_equal(made.sizes(values(key)), recorded.sizes(values(key)))


@pytest.mark.parametrize("arch", [FLEX, FLUX, "zimage"])
def test_frozen_layers_do_not_save_what_goes_into_them(arch: str) -> None:
    """Without checkpointing a fine-tune of one kind of layers keeps less of the forward pass than one of everything, by more than what
    modulates, which is small."""
    key = "step.core/bf16/full/many"
    everything = kept_by_the_forward_pass(recorded_of(arch).program(key), key)
    for words in ("attention", "no feed forward", "what modulates"):
        assert 0 < kept_by_the_forward_pass(part(arch, words).program(key), key) < 0.95 * everything


@pytest.mark.parametrize("arch", [FLEX, FLUX, "zimage"])
def test_blocks_in_front_of_the_first_trained_one_have_no_backward_pass(arch: str) -> None:
    for key in CORES:
        tape = Tape(part(arch, "late blocks").program(key))
        blocks = {made.block for made in tape.made if made.run == BACKWARD and made.block is not None}
        assert {name for name, _ in blocks} == {"layers" if arch == "zimage" else "single_transformer_blocks"}
        assert min(number for _, number in blocks) == (2 if arch == "zimage" else 0)


def test_nothing_to_train_has_no_model() -> None:
    with pytest.raises(CannotTell):
        partly("zimage", ("transformer.",), ())


def test_words_are_read(tmp_path: Path) -> None:
    model = ZIMAGE | {"ignore_if_contains": ["feed_forward"], "only_if_contains": ["layers."]}
    job = read(tmp_path, train=train(optimizer="adamw8bit"), model=model, network=...)
    assert not job.unmodelled
    assert job.network == Network("whole", 0, ("feed_forward",), ("layers.",), dtype="bf16")


@pytest.mark.parametrize("arch", [FLEX, FLUX])
def test_the_embedding_of_the_guidance_is_trained_or_bypassed(arch: str) -> None:
    """Each was recorded one way. The other way has its gradients more, or none of them, at the same place."""
    guidance = parameters(recorded_of(arch).names)
    profiles = [whole(arch, bypassed) for bypassed in (False, True)]
    trained, bypassed = profiles
    assert isinstance(trained, WholeProfile)
    assert isinstance(bypassed, WholeProfile)
    assert (trained.idle, bypassed.idle) == (frozenset(), guidance)
    more = sum(trained.adapter[k] for k in guidance)
    for key in CORES:
        programs = [profile.program(key) for profile in profiles]
        for program in programs:
            lives(program)
        assert set(gradients(programs[0])) - set(gradients(programs[1])) == guidance
        order = [[name for name in program.names if name is not None and int(name[9:]) not in guidance] for program in programs]
        assert order[0] == order[1]
        held = [sum(program.stay_bytes("gradient", values(key))) for program in programs]
        assert held[0] - held[1] == more
        assert not any(GUIDANCE in moment for moment in (programs[1].moments[label] for label in programs[1].labels))


def test_flex_guided_ends_its_backward_pass_as_flux_does() -> None:
    """The embeddings of time, guidance and text are the same class."""
    tails = []
    for arch in (FLEX, FLUX):
        program = whole(arch, bypassed=False).program("step.core/bf16/full/one")
        tails.append([(name, size) for name, size in zip(program.names, program.sizes(WORKLOAD).tolist(), strict=True)][-22:])
    assert tails[0] == tails[1]


@pytest.mark.parametrize("bypassed", [True, False])
def test_whether_it_is_bypassed_is_read(bypassed: bool, tmp_path: Path) -> None:
    model = {"name_or_path": "ostris/Flex.1-alpha", "arch": "flex1"}
    job = read(tmp_path, train=train(optimizer="adamw8bit", bypass_guidance_embedding=bypassed), model=model, network=...)
    assert not job.unmodelled
    assert job.network is not None
    assert job.network.bypassed == bypassed
