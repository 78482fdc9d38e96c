"""Losses weighed by their timesteps: against steps that were recorded with and without, and in every architecture's programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from estimator.errors import CannotTell
from estimator.features import Ints
from estimator.job import Train
from estimator.loss_weights import WEIGHED, weighed
from estimator.program import ALLOCATE, Program
from estimator.programs import load_profile
from estimator.rows import bound
from estimator.timeline import simulate
from tests.config_writer import process, read
from tests.made_jobs import ARCHS, job, values

# The loss of a step of FLUX.2 klein 4B, 432 x 640 pixels, batch of three, recorded on the emulated device (torch 2.14.1, the trainer at
# 27a03a91) with timestep_type sigmoid: what is made (+) and goes (-), from the end of the forward to the prediction's gradient. Left out,
# here and below, are tensors of less than a kilobyte other than the loss's multiplier.
WITHOUT = (
    "+layer +multiplier +target +prediction32 +target32 +error +scaled -error +masked -scaled -masked -target -multiplier +of_masked "
    "+of_scaled -of_masked +of_error -of_scaled +of_prediction32 -prediction32 -target32 -of_error +of_prediction -of_prediction32"
)
# The same with timestep_type weighted
WITH = (
    "+layer +multiplier +target +prediction32 +target32 +error +scaled -error +weights +product -scaled +masked -product -masked -target "
    "-multiplier +of_masked +of_product -of_masked +of_scaled -of_product -weights +of_error -of_scaled +of_prediction32 -prediction32 "
    "-target32 -of_error +of_prediction -of_prediction32"
)
RECORDED_BYTES = {"multiplier": 12, "weights": 12, "target": 829_440, "layer": 829_440, "of_prediction": 829_440}
IN_FP32 = 1_658_880  # all others
SAMPLES, TOKENS = 3, 1080


def recorded(steps_made: str) -> Program:
    """A step's core of these events."""
    made = [word[1:] for word in steps_made.split() if word[0] == "+"]
    events, born = [], 0
    for word in steps_made.split():
        born += word[0] == "+"
        events.append(ALLOCATE if word[0] == "+" else born - made.index(word[1:]))
    bytes_of = [RECORDED_BYTES.get(name, IN_FP32) for name in made]
    rows = [[size // SAMPLES, 0] if size < TOKENS else [0, size // (SAMPLES * TOKENS)] for size in bytes_of]
    labels = tuple(0 if name == "layer" else 1 for name in made)
    return Program(
        "step.core/bf16/checkpointed/many", ("B", "B*T"), np.array(rows), labels, ["transformer.final_layer", "step"],
        (None,) * len(made), np.array(events), 0, (), {},
    )  # fmt: skip


def changes(program: Program) -> list[int]:
    """Bytes made, negative where they go, in order."""
    sizes = program.sizes({"B": SAMPLES, "T": TOKENS})[program.tensor_of_event]
    return np.where(program.events == ALLOCATE, sizes, -sizes).tolist()  # type: ignore[no-any-return]


def test_a_loss_is_weighed_as_it_was_recorded() -> None:
    made = weighed(recorded(WITHOUT))
    assert changes(made) == changes(recorded(WITH))
    assert made.tensor_of_event.tolist() == recorded(WITH).tensor_of_event.tolist()


@pytest.mark.parametrize("gone", ["-error", "-target32", "-of_scaled"])
def test_another_loss_is_refused_by_its_key(gone: str) -> None:
    with pytest.raises(CannotTell, match=r"step\.core/bf16"):
        weighed(recorded(" ".join(word for word in WITHOUT.split() if word != gone)))


@pytest.mark.parametrize("arch", ARCHS)
def test_every_recorded_step_can_be_weighed(arch: str) -> None:
    """And then holds as much at its highest moment, but for the weights, and leaves the same behind."""
    profile = load_profile(arch)
    for key in (key for key in profile.data["parts"] if key.startswith("step.core")):
        plain, made = profile.program(key), profile.program(key + WEIGHED)
        assert [made.names[k] for k in made.exported] == [plain.names[k] for k in plain.exported]
        for width, height, batch, rank in ((256, 256, 2, 8), (1024, 1024, 3, 32)):
            workload = values(arch, key, width, height, batch, rank, 40)
            before, after = totals(plain, workload), totals(made, workload)
            assert before.max() <= after.max() <= before.max() + 4 * workload["B"]
            assert after[-1] == before[-1]
            assert np.maximum(0, np.diff(after)).sum() - np.maximum(0, np.diff(before)).sum() > 2 * 4 * 16 * workload["T"] * workload["B"]


def totals(program: Program, workload: dict[str, int]) -> Ints:
    """Bytes held after each event."""
    sizes = program.sizes(workload)[program.tensor_of_event]
    return np.cumsum(np.where(program.events == ALLOCATE, sizes, -sizes))


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"weights": "qint8"}, {"weights": "uint3"},
        {"weights": "bf16", "layer_offloading": True, "layer_offloading_transformer_percent": 0.5},
    ],
)  # fmt: skip
@pytest.mark.parametrize("optimizer", ["adamw8bit", "automagic3"])
def test_it_goes_with_everything(changes: dict[str, object], optimizer: str) -> None:
    plain = job("zimage")
    plain = replace(plain, model=replace(plain.model, **changes), train=Train(optimizer=optimizer))  # type: ignore[arg-type]
    weighs = replace(plain, train=replace(plain.train, weighs_timesteps=True))
    for before, after in zip(simulate(plain).phases, simulate(weighs).phases, strict=True):
        assert before.allocated_bytes <= after.allocated_bytes <= before.allocated_bytes + 4096
    assert bound(weighs).phases == bound(plain).phases


@pytest.mark.parametrize(
    ("settings", "weighs"),
    [
        ({}, False), ({"timestep_type": "weighted"}, True), ({"timestep_type": "sigmoid"}, False), ({"timestep_type": "linear"}, False),
        ({"linear_timesteps": True}, True), ({"timestep_type": "shift", "linear_timesteps2": True}, True),
        ({"linear_timesteps": False}, False),
    ],
)  # fmt: skip
def test_which_settings_weigh_the_loss(tmp_path: Path, settings: dict[str, object], weighs: bool) -> None:
    train = {**process()["train"], **settings}
    assert read(tmp_path, train=train).train.weighs_timesteps is weighs
