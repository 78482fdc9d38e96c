"""Steps that preserve outputs: three passes made of a recorded one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from estimator.features import feature, with_preserved
from estimator.operations import Part
from estimator.plans import plan_of
from estimator.program import ALLOCATE, Program
from estimator.programs import load_profile
from tests.made_jobs import job

WORKLOAD = {"T": 1024, "X": 96, "W": 96, "B": 1, "r": 16, "E": 64}
KEYS = [
    ("zimage", "qfloat8/checkpointed/one"), ("zimage", "float8/checkpointed/one/weighed"), ("zimage", "bf16/full/many"),
    ("flux1-dev", "bf16/checkpointed/one"),
]  # fmt: skip


def running(program: Program, values: dict[str, int]) -> np.ndarray:
    sizes = program.sizes(values)[program.tensor_of_event]
    return np.cumsum(np.where(program.events == ALLOCATE, sizes, -sizes))


@pytest.mark.parametrize(("arch", "rest"), KEYS)
def test_two_graphs_are_alive_before_the_one_backward_pass(arch: str, rest: str) -> None:
    """What is held where the first backward pass begins is twice what one step holds there, and the latent to be matched."""
    profile = load_profile(arch)
    base, made = profile.program(f"step.core/{rest}"), profile.program(f"step.core.preserving/{rest}")
    turns = [next(i for i in events_of(one) if late(one, i)) for one in (base, made)]
    held, both = (int(running(one, WORKLOAD)[turn - 1]) for one, turn in zip((base, made), turns, strict=True))
    latent = 2 * 64 * WORKLOAD["T"]
    assert 2 * held < both <= 2 * held + 2 * latent


@pytest.mark.parametrize(("arch", "rest"), KEYS)
def test_each_gradient_is_made_twice_and_kept_once(arch: str, rest: str) -> None:
    profile = load_profile(arch)
    base, made = profile.program(f"step.core/{rest}"), profile.program(f"step.core.preserving/{rest}")
    assert made.stay_bytes("gradient", WORKLOAD) == base.stay_bytes("gradient", WORKLOAD)
    assert int(running(made, WORKLOAD)[-1]) <= 2 * int(running(base, WORKLOAD)[-1])
    first, second = (sum("backward MmBackward0" in one.moments[row] for row in one.labels) for one in (base, made))
    assert second == 2 * first


def test_the_first_pass_has_no_adapter_and_keeps_one_latent() -> None:
    profile = load_profile("zimage")
    base, made = (profile.program(f"step.core{kind}/qfloat8/full/one") for kind in ("", ".preserving"))
    adapted = [made.moments[row].split("|")[0].endswith("/Linear") for row in made.labels]
    own = [base.moments[row].split("|")[0].endswith("/Linear") for row in base.labels]
    assert sum(adapted) == 2 * sum(own)
    assert adapted.index(True) > 2000  # a whole forward pass without one comes before


def test_longer_preserved_prompts_take_more_and_leave_the_trained_ones_as_they_are() -> None:
    made = load_profile("zimage").program("step.core.preserving/qfloat8/checkpointed/one")
    peaks = [made.peak(WORKLOAD | {"W": words})[0] for words in (32, 96, 300, 512)]
    assert all(one < other for one, other in pairwise(peaks))


def test_features_of_the_preserved_prompts() -> None:
    values = {"T": 1000, "X": 20, "W": 300, "B": 2, "r": 8}
    for name in ("X", "X32", "r*S128", "B*r*Z", "reduce3840_Z", "T", "r*T", "1"):
        assert feature(with_preserved(name), values) == feature(name, values | {"X": 300})


def events_of(program: Program) -> range:
    return range(len(program.events))


def late(program: Program, event: int) -> bool:
    """A tensor of a backward pass, or recomputed for one, is made there."""
    moment = program.moments[program.labels[int(program.tensor_of_event[event])]]
    return bool(program.events[event] == ALLOCATE) and ("backward" in moment or "|recompute" in moment)


@pytest.mark.parametrize(
    ("train", "encodes"),
    [
        ({}, ["plain"]),
        ({"preserves": "", "gradient_checkpointing": True}, ["plain", "graph", "plain"]),
        ({"preserves": "", "gradient_checkpointing": False}, ["plain", "plain"]),
        ({"preserves": "person", "preserves_captions": True}, ["plain"]),
        ({"preserves": "", "cache_text_embeddings": True}, ["plain", "plain"]),
        ({"preserves": "person", "preserves_captions": True, "unload_text_encoder": True}, ["plain", "plain", "plain"]),
    ],
)  # fmt: skip
def test_a_blank_prompt_is_encoded_before_the_loop_with_autograd_on(train: dict[str, Any], encodes: list[str]) -> None:
    """SDTrainer.hook_before_train_loop: of all its encodes this one alone is not under torch.no_grad; what was cached needs none."""
    one = job("zimage")
    one = replace(one, samples=(), train=replace(one.train, **{"gradient_checkpointing": True, **train}))
    plan = plan_of(one, load_profile("zimage"))
    assert [op.key.split("/")[2] for op in plan.prepare() if isinstance(op, Part) and op.key.startswith("text/")] == encodes
