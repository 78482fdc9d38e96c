"""Heads of steps whose prompts are there already: put together by rule, beside those that were recorded."""

from __future__ import annotations

import numpy as np
import pytest

from estimator import heads
from estimator.features import feature
from estimator.program import ALLOCATE, Program
from estimator.programs import Profile, load_profile

FLUX_EMBEDDING = 512 * 4096 * 2  # bytes of a sample's T5 embedding, bf16
VALUES = {"T": 1024, "B": 3, "X": 512, "r": 16, "E": 4096}


def made(profile: Profile, key: str) -> Program:
    """By rule, whether or not it was recorded."""
    return heads.with_prompts(key, profile.program)


def tail(program: Program, behind: Program) -> list[tuple[int, int]]:
    """What the program does behind the other's events: (bytes, 0) is made, (0, so many tensors ago) goes."""
    sizes = program.sizes({name: VALUES[name] for feature_name in program.features for name in feature_name.split("*") if name in VALUES})
    last = zip(program.events[len(behind.events) :].tolist(), program.tensor_of_event[len(behind.events) :].tolist(), strict=True)
    return [(int(sizes[tensor]), 0) if event == ALLOCATE else (0, event) for event, tensor in last]


@pytest.mark.parametrize("arch", ["flux2-dev", "flux2-klein-4b", "flux2-klein-9b"])
@pytest.mark.parametrize("many", ["one", "many"])
def test_heads_with_encoded_latents_come_out_as_they_were_recorded(arch: str, many: str) -> None:
    profile = load_profile(arch)
    recorded, encoded = profile.program(f"step.head/encoded/unloaded/{many}"), profile.program(f"step.head/encoded/encoded/{many}")
    ours = made(profile, f"step.head/encoded/unloaded/{many}")
    assert ours.events[len(encoded.events) :].tolist() == recorded.events[len(encoded.events) :].tolist()
    assert tail(ours, encoded)[:4] == tail(recorded, encoded)
    assert len(ours.events) == len(recorded.events)


@pytest.mark.parametrize(("many", "samples"), [("one", 1), ("many", 3)])
def test_the_empty_prompt_is_there_once_more_than_the_samples_have_it(many: str, samples: int) -> None:
    profile = load_profile("flux1-dev")
    base = profile.program(f"step.head/cached/encoded/{many}")
    unloaded, cached = (tail(profile.program(f"step.head/cached/{text}/{many}"), base) for text in ("unloaded", "cached"))
    assert cached == [(samples * FLUX_EMBEDDING, 0), (samples * 1536, 0)]
    clones = [(FLUX_EMBEDDING, 0), (1536, 0)]
    assert unloaded == [*clones, *clones, (0, 4), (0, 3), *cached]


@pytest.mark.parametrize("text", ["cached", "unloaded"])
def test_encoded_latents_come_before_the_copies_of_prompts(text: str) -> None:
    profile = load_profile("flux1-dev")
    encoded, ours = profile.program("step.head/encoded/encoded/many"), profile.program(f"step.head/encoded/{text}/many")
    assert ours.events[: len(encoded.events)].tolist() == encoded.events.tolist()
    of_cached = tail(profile.program(f"step.head/cached/{text}/many"), profile.program("step.head/cached/encoded/many"))
    assert tail(ours, encoded) == of_cached
    assert ours.latents == encoded.latents
    assert len(ours.labels) == len(ours.names) == len(ours.coefficients)


@pytest.mark.parametrize("key", ["step.head/encoded/cached/one", "step.head/cached/unloaded/many", "step.head/encoded/unloaded/many"])
@pytest.mark.parametrize("arch", ["flux1-dev", "flux1-kontext", "chroma", "flex1"])
def test_peak_rows_are_those_of_the_events(arch: str, key: str) -> None:
    program = load_profile(arch).program(key)
    row = np.array([feature(name, VALUES) for name in program.features])
    births = program.events == ALLOCATE
    signed = np.where(births, 1, -1) * (program.coefficients @ row)[program.tensor_of_event]
    highest = max(int(np.array(peak.coefficients) @ row) for peak in program.peaks)
    assert highest == pytest.approx(int(np.cumsum(signed).max()), rel=1e-4)


@pytest.mark.parametrize("arch", ["flux1-kontext", "flex2", "chroma"])
def test_what_was_recorded_unloaded_stays_as_it_is(arch: str) -> None:
    profile = load_profile(arch)
    recorded, ours = (profile.program(f"step.head/cached/{text}/many") for text in ("cached", "unloaded"))
    assert ours.events.tolist() == recorded.events.tolist()
    assert (ours.coefficients == recorded.coefficients).all()


def test_only_these_heads_are_made_by_rule() -> None:
    assert not heads.named("step.head/cached/cached/one")
    assert not heads.named("step.head/encoded/cached/one/first")
    assert heads.named("step.head/encoded/cached/one")
    own = load_profile("wan22-5b").program("step.head/encoded/cached/one")  # recorded: clips are encoded in parts
    assert own.key == "step.head/encoded/cached/one"
    assert own.events.tolist() == load_profile("wan22-5b").recorded("step.head/encoded/cached/one").events.tolist()
