"""Dropout in a LoRA's layers: a mask and what is left for each, laid into recorded steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_writer import FLUX_DEV, read, train

from estimator.dropout_profile import with_dropout
from estimator.errors import InputError
from estimator.job import Network
from estimator.programs import load_profile
from tests.test_filtered import gradients, totals

WORKLOAD = {"T": 1024, "X": 96, "B": 1, "r": 16, "E": 64, "N": 20}
ROWS = 1024 + 512  # of FLUX.1's joint sequence


@pytest.mark.parametrize(("arch", "key"), [("flux1-dev", "step.core/qfloat8/full/one"), ("zimage", "step.core/bf16/checkpointed/many")])
def test_it_frees_what_it_makes_and_every_gradient_is_there(arch: str, key: str) -> None:
    values = WORKLOAD | {"B": 2 if key.endswith("many") else 1}
    base, made = load_profile(arch).program(key), with_dropout(arch, (), ()).program(key)
    assert totals(made, values)[-1] == totals(base, values)[-1]
    assert gradients(made) == gradients(base)


def test_without_checkpointing_each_layer_keeps_a_byte_of_each_element_between_its_matrices() -> None:
    """What is left takes the place of what went in, so that only the masks are more (FLUX.1: 494 layers; single blocks go over both)."""
    key = "step.core/qfloat8/full/one"
    base, made = load_profile("flux1-dev").program(key), with_dropout("flux1-dev", (), ()).program(key)
    more = made.peak(WORKLOAD | {"X": 512})[0] - base.peak(WORKLOAD | {"X": 512})[0]
    single, joint = 38 * 5 * 16 * ROWS, 19 * (6 * 1024 + 6 * 512) * 16  # q, k, v and both of the feed-forward; those of either stream
    assert 0.95 * (single + joint) <= more <= 1.1 * (single + joint)


def test_a_higher_rank_has_larger_masks_and_previews_have_none() -> None:
    profile, base = with_dropout("zimage", (), ()), load_profile("zimage")
    key = "step.core/float8/full/one"
    more = [profile.program(key).peak(WORKLOAD | {"r": r})[0] - base.program(key).peak(WORKLOAD | {"r": r})[0] for r in (8, 32)]
    assert 0 < 3.5 * more[0] < more[1]
    preview = "preview/float8/plain/cached"
    assert profile.program(preview) is base.program(preview)


def test_on_some_layers_only_those_have_masks() -> None:
    key, words = "step.core/float8/full/one", ("layers.12.attention.to_q",)
    profile = with_dropout("zimage", (), words)
    assert len(profile.program(key).names) == len(profile.base.program(key).names) + 3  # mask, what is left, its gradient passed on


def test_it_is_read_and_does_nothing_for_a_lokr(tmp_path: Path) -> None:
    job = read(tmp_path, train=train(), model=FLUX_DEV, network={"linear": 16, "dropout": 0.1})
    assert (job.unmodelled, job.network) == ((), Network(rank=16, dropout=True))
    off = read(tmp_path, train=train(), model=FLUX_DEV, network={"linear": 16, "dropout": 0})
    assert (off.unmodelled, off.network) == ((), Network(rank=16))
    factored = read(tmp_path, train=train(), model=FLUX_DEV, network={"type": "lokr", "dropout": 0.1})
    assert factored.network is not None
    assert not factored.network.dropout
    assert any("a LoKr has no dropout" in warning for warning in factored.warnings)


@pytest.mark.parametrize(
    ("network", "what"),
    [
        ({"dropout": "0.1"}, "a dropout of '0.1'"), ({"dropout": 1.5}, "a dropout of 1.5"), ({"dropout": -0.1}, "a dropout of -0.1"),
        ({"network_kwargs": {"dropout": 0.1}}, "network_kwargs: dropout"),
        ({"network_kwargs": {"module_dropout": 0.1}}, "network_kwargs: module_dropout"),
    ],
)  # fmt: skip
def test_what_stops_the_trainer_is_an_error(tmp_path: Path, network: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        read(tmp_path, train=train(), model=FLUX_DEV, network={"linear": 16, **network})


@pytest.mark.parametrize(
    ("model", "settings", "key"),
    [
        ({"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image", "quantize": True}, {}, "network.dropout"),
        (FLUX_DEV, {"blank_prompt_preservation": True}, "train.blank_prompt_preservation"),
    ],
    ids=["another architecture", "preserved outputs"],
)  # fmt: skip
def test_where_it_is_not_modelled_it_is_named(tmp_path: Path, model: dict[str, Any], settings: dict[str, Any], key: str) -> None:
    job = read(tmp_path, train=train(**settings), model=model, network={"linear": 16, "dropout": 0.1})
    assert any(entry.place.key.endswith(key) for entry in job.unmodelled)
