"""A whole model in float8: what is not quantised is trained, and layers make their weights anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_writer import FLUX_DEV, ZIMAGE, process, read, train, write

from estimator import optimizers
from estimator.adapter_sites import INNER, RECOMPUTED, Tape
from estimator.parameters import WHOLE
from estimator.planner.space import _weights
from estimator.planner.subject import read_subject
from estimator.program import ALLOCATE
from estimator.whole_profile import recorded_of
from estimator.whole_quantised import FLOAT8, KINDS, QUANTO, QuantisedWholeProfile, cores, quantised

WORKLOAD = {"T": 1024, "X": 96, "B": 1, "r": 0, "E": 64, "N": 20, "Q": 1024}
ARCHS = ("flux1-dev", "zimage")


def values(key: str) -> dict[str, int]:
    return WORKLOAD | {"B": 2 if key.endswith("many") else 1}


@pytest.mark.parametrize("arch", ARCHS)
def test_what_is_not_quantised_is_trained(arch: str) -> None:
    profile = quantised(arch, FLOAT8)
    trained = [name for k, name in enumerate(profile.names) if k not in profile.idle]
    assert trained
    assert all(name.removesuffix(".weight") not in profile.weights for name in trained)
    assert sum(profile.adapter[k] for k in range(len(profile.names)) if k not in profile.idle) < 0.01 * sum(profile.adapter)
    for key in cores(FLOAT8):
        named = {int(name.partition(":")[2]) for name in profile.program(key).names if name and name.startswith("gradient:")}
        assert named == {k for k in range(len(profile.names)) if k not in profile.idle}


def made(profile: QuantisedWholeProfile, key: str) -> tuple[int, int]:
    """How many tensors a core has that its base has not, and the most of them at once, in bytes."""
    base, program = profile.recorded(key.replace("float8", "bf16")), profile.program(key)
    more, sizes = len(program.names) - len(base.names), program.sizes(values(key))
    there = highest = 0
    weights = set(profile.weights.values())
    for code, tensor in zip(program.events.tolist(), program.tensor_of_event.tolist(), strict=True):
        size = int(sizes[tensor]) if int(sizes[tensor]) in weights else 0
        there += size if code == ALLOCATE else -size
        highest = max(highest, there)
    return more, highest


@pytest.mark.parametrize("arch", ARCHS)
def test_each_use_of_a_layer_makes_a_cast_and_a_weight(arch: str) -> None:
    """Under checkpointing a block's weights are there at once, without it all of them."""
    profile = quantised(arch, FLOAT8)
    everything, most = sum(profile.weights.values()), max(profile.weights.values())
    for key in cores(FLOAT8):
        tape = Tape(profile.recorded(key.replace("float8", "bf16")))
        again = {each.module for each in tape.made if each.run == RECOMPUTED and each.module in profile.weights}
        more, highest = made(profile, key)
        assert more == 2 * (len(profile.weights) + len(again))
        assert most < highest < 0.1 * everything if "checkpointed" in key else highest >= everything


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHS)
def test_previews_are_without_an_adapter(arch: str, kind: str) -> None:
    program = quantised(arch, kind).program(f"preview/{kind}/plain/encoded")
    assert not any(made.module.endswith(INNER) for made in Tape(program).made)
    assert not any(name and name.startswith("adapter") for name in program.names)


@pytest.mark.parametrize(("kind", "said"), [(FLOAT8, "norms, biases"), (QUANTO, "as large as unquantised ones")])
@pytest.mark.parametrize("model", [ZIMAGE, FLUX_DEV])
def test_what_becomes_of_quantised_layers_is_a_warning(model: dict[str, Any], kind: str, said: str, tmp_path: Path) -> None:
    job = read(tmp_path, train=train(optimizer="adamw8bit"), model=model | {"quantize": True, "qtype": kind}, network=...)
    assert not job.unmodelled
    assert any(said in warning for warning in job.warnings)


@pytest.mark.parametrize(
    ("qtype", "more", "settings", "key"),
    [
        ("float8", {"only_if_contains": ["norm"]}, {}, "model.only_if_contains"),
        ("float8", {}, {"ema_config": {"use_ema": True}}, "train.ema_config"),
        (QUANTO, {"only_if_contains": ["norm"]}, {}, "model.only_if_contains"), (QUANTO, {}, {"optimizer": "adamw"}, "train.optimizer"),
        ("qint8", {}, {}, "model.quantize"),
    ],
)  # fmt: skip
def test_what_was_not_recorded_is_named(qtype: str, more: dict[str, Any], settings: dict[str, Any], key: str, tmp_path: Path) -> None:
    model = ZIMAGE | {"quantize": True, "qtype": qtype} | more
    job = read(tmp_path, train=train(**{"optimizer": "adamw8bit", **settings}), model=model, network=...)
    assert any(entry.place.key.endswith(key) for entry in job.unmodelled)


def test_a_step_has_the_whole_models_activations() -> None:
    """All that a backward pass through frozen layers needs, and their weights besides, which autograd saves without checkpointing."""
    key = "step.core/float8/full/many"
    profile, whole = quantised("zimage", FLOAT8), recorded_of("zimage")
    weights, of_all = sum(profile.weights.values()), whole.program(key.replace("float8", "bf16")).peak(values(key))[0]
    assert weights < profile.program(key).peak(values(key))[0] < of_all + weights


@pytest.mark.parametrize("arch", ARCHS)
def test_in_qfloat8_everything_is_trained_and_weights_are_made_in_both_directions(arch: str) -> None:
    profile, whole = quantised(arch, QUANTO), recorded_of(arch)
    for key in cores(QUANTO):
        program, base = profile.program(key), whole.program(key.replace(QUANTO, "bf16"))
        assert {name for name in program.names if name} == {name for name in base.names if name}
        assert sum(program.stay_bytes("gradient", values(key))) == sum(profile.adapter[k] for k in range(len(profile.names)))
        assert program.peak(values(key))[0] <= base.peak(values(key))[0] + 2 * max(profile.weights.values())
        assert len(program.names) > len(base.names) + 3 * len(profile.weights)


def test_in_qfloat8_saving_holds_three_weights_in_fp32() -> None:
    profile = quantised("zimage", QUANTO)
    largest = 2 * max(profile.weights.values())
    assert 3 * largest < profile.program("save/none").peak({})[0] < 3.01 * largest
    assert not profile.program("save/none").exported


def test_an_update_in_qfloat8_makes_each_weight_for_itself() -> None:
    """State is as without; above it lie a cast and a weight of the largest layer."""
    widths = recorded_of("zimage").adapter
    for when in ("first", "later"):
        plain, remade = (optimizers.program(f"step.update/adamw8bit+{kind}/{when}", widths, WHOLE) for kind in ("bf16", QUANTO))
        assert remade.stay_bytes("optimizer", {"r": 0}) == plain.stay_bytes("optimizer", {"r": 0})
        assert remade.peak({"r": 0})[0] > plain.peak({"r": 0})[0]


def test_a_plan_does_not_quantise_what_is_trained(tmp_path: Path) -> None:
    """Fewer parameters would be trained, or none to any effect; the text encoder may be quantised."""
    path = write(tmp_path, process(train=train(optimizer="adamw8bit"), model=ZIMAGE, network=...))
    levels = list(_weights(read_subject(str(path), (), None, ())))
    assert levels
    assert not any(edit.key in ("model.quantize", "model.qtype") for level in levels for edit in level.edits)
