"""A DoRA's programs made by rule from a LoRA's, against peaks that were recorded of Z-Image with `network.type: dora`."""

from __future__ import annotations

import numpy as np
import pytest

from estimator.dora_parts import network, one_by_one
from estimator.dora_previews import adapted
from estimator.dora_profile import dora
from estimator.errors import CannotTell
from estimator.parameters import Magnified, shapes_of
from estimator.program import Program
from estimator.programs import load_profile

LARGEST = 3840 * 10240  # elements of a layer of Z-Image
FULL = 4
WORKLOAD = {"T": 1553, "E": 79, "X": 97, "N": 89, "A": 1553}
# Part, variables of a bucket, and bytes of its peak: `python -m calibration.probes zimage-dora` (qfloat8-0 at rank 8, bf16-1 at 24)
RECORDED = [
    ("step.core/qfloat8/checkpointed/one", {"T": 2009, "E": 90, "A": 2009, "B": 1, "r": 8, "X": 69}, 3_226_808_420),
    ("step.core/qfloat8/full/one", {"T": 2009, "E": 90, "A": 2009, "B": 1, "r": 8, "X": 69}, 67_503_154_136),
    ("step.core/qfloat8/checkpointed/many", {"T": 1024, "E": 64, "A": 1024, "B": 2, "r": 8, "X": 49}, 3_288_946_308),
    ("step.core/qfloat8/full/many", {"T": 1024, "E": 64, "A": 1024, "B": 2, "r": 8, "X": 49}, 68_893_320_704),
    ("step.core/bf16/checkpointed/many", {"T": 1107, "E": 68, "A": 1107, "B": 3, "r": 24, "X": 24}, 4_504_452_708),
    ("step.core/bf16/full/many", {"T": 1107, "E": 68, "A": 1107, "B": 3, "r": 24, "X": 24}, 93_070_463_484),
    ("step.core/bf16/checkpointed/one", {"T": 1024, "E": 64, "A": 1024, "B": 1, "r": 24, "X": 21}, 2_213_053_732),
    ("step.core/bf16/full/one", {"T": 1024, "E": 64, "A": 1024, "B": 1, "r": 24, "X": 21}, 43_520_893_688),
    ("preview/qfloat8/plain/encoded", {"T": 1024, "E": 64, "A": 1024, "B": 1, "r": 8, "X": 18, "N": 29}, 882_525_276),
    ("preview/bf16/plain/cached/first", {"T": 1024, "E": 64, "A": 1024, "B": 1, "r": 24, "X": 18, "N": 29}, 882_197_596),
    ("preview/bf16/cfg/cached/later", {"T": 1024, "E": 64, "A": 1024, "B": 2, "r": 24, "X": 18, "N": 14}, 1_135_040_740),
]
CLOSE = 400_000  # bytes: tensors of the trainer's own around the transformer
WAYS = ("full/one", "full/many", "checkpointed/many")
CORES = [f"step.core/{weights}/{way}" for weights in ("bf16", "qfloat8", "uint4") for way in WAYS]


def values(key: str, **more: int) -> dict[str, int]:
    return WORKLOAD | {"r": 16, "B": 3 if key.endswith("many") else 1, **more}


def peak_of_events(program: Program, given: dict[str, int]) -> int:
    """The highest running total of all events."""
    sizes = np.append(program.sizes(given), 0)
    signs = np.where(program.events == 0, 1, np.where(program.events == -1, 0, -1))
    return int(np.cumsum(sizes[program.tensor_of_event] * signs).max())


@pytest.mark.parametrize(("key", "given", "recorded"), RECORDED)
def test_peaks_are_the_recorded_ones(key: str, given: dict[str, int], recorded: int) -> None:
    program = dora("zimage").program(key)
    assert abs(peak_of_events(program, given | {"F": 1}) - recorded) < CLOSE
    assert abs(program.peak(given | {"F": 1})[0] - recorded) < CLOSE


@pytest.mark.parametrize("arch", ["zimage", "flux1-dev"])
@pytest.mark.parametrize("key", CORES)
def test_each_layer_leaves_three_gradients_as_large_as_its_parameters(arch: str, key: str) -> None:
    profile, given = dora(arch), values(key)
    core = profile.program(key)
    sizes = core.sizes(given)
    own = range(len(core.names) - core.imports)
    found = {core.names[k]: int(sizes[k]) for k in own if (core.names[k] or "").startswith("gradient:")}
    shapes = shapes_of(profile.adapter, given["r"])
    assert found == {f"gradient:{n}": FULL * rows * columns for n, (rows, columns, _) in enumerate(shapes)}


@pytest.mark.parametrize("arch", ["zimage", "flux1-dev"])
@pytest.mark.parametrize("key", CORES)
def test_it_never_takes_less_than_a_lora_and_nothing_is_freed_twice(arch: str, key: str) -> None:
    core, given = dora(arch).program(key), values(key)
    assert peak_of_events(core, given) > peak_of_events(load_profile(arch).program(key), given)
    freed = core.tensor_of_event[core.events > 0]
    assert len(freed) == len(set(freed.tolist()))
    assert peak_of_events(core, values(key, r=64)) >= peak_of_events(core, given)


def test_without_checkpointing_each_layer_keeps_its_weight() -> None:
    """Of all 240 layers, but those whose input needs no gradient, four bytes for each element."""
    widths = load_profile("zimage").adapter
    elements = sum(a * b for a, b in zip(widths[::2], widths[1::2], strict=True)) // FULL**2
    keys = [f"step.core/bf16/{rest}/one" for rest in ("full", "checkpointed")]
    full, checkpointed = (peak_of_events(dora("zimage").program(key), values(key)) for key in keys)
    lora_full, lora_checkpointed = (peak_of_events(load_profile("zimage").program(key), values(key)) for key in keys)
    assert full - lora_full - (checkpointed - lora_checkpointed) > 0.95 * FULL * elements


def test_parameters_are_magnitudes_and_both_matrices() -> None:
    assert shapes_of(Magnified((4 * 3, 4 * 5)), 2) == [(1, 5, False), (5, 2, True), (2, 3, False)]


@pytest.mark.parametrize("weights", ["bf16", "qfloat8"])
def test_making_it_unpacks_a_layer_at_a_time(weights: str) -> None:
    profile = dora("zimage")
    part = profile.program(f"setup.network/{weights}")
    made = part.stay_bytes("adapter", {"r": 8})
    assert sorted(made) == sorted(FULL * a * b for a, b, _ in shapes_of(profile.adapter, 8))
    assert (part.peak({"r": 1})[0] == 2 * 2 * LARGEST) == (weights == "qfloat8")
    assert part.peak({"r": 8})[0] >= sum(made)


@pytest.mark.parametrize(
    ("key", "component"), [("setup.ema", "ema"), ("sample.enter/bf16/ema/later", "ema_copy"), ("save/ema", "ema_copy")]
)
def test_copies_are_of_all_parameters(key: str, component: str) -> None:
    profile = dora("flux1-dev")
    part = profile.program(key)
    assert list(part.stay_bytes(component, {"r": 8})) == [FULL * a * b for a, b, _ in shapes_of(profile.adapter, 8)]


@pytest.mark.parametrize("key", ["sample.enter/bf16/none/later", "sample.leave/bf16/none/first"])
def test_it_is_never_merged(key: str) -> None:
    assert len(dora("zimage").program(key).events) == 0
    assert len(load_profile("zimage").program(key).events) > 0


@pytest.mark.parametrize("key", ["step.core/bf16/full/many", "step.core/qfloat8/checkpointed/one"])
@pytest.mark.parametrize(("arch", "only"), [("zimage", "attention."), ("flux1-dev", "single_transformer_blocks.7.proj_out")])
def test_on_some_layers_it_has_their_parameters(arch: str, only: str, key: str) -> None:
    profile = dora(arch, (), (only,))
    assert len(profile.adapter) < len(dora(arch).adapter)
    core = profile.program(key)
    assert {name for name in core.names if name and name.startswith("gradient:")} == {f"gradient:{n}" for n in range(len(profile.adapter))}
    assert peak_of_events(core, values(key)) < peak_of_events(dora(arch).program(key), values(key))


def test_parts_in_another_order_are_refused() -> None:
    profile = load_profile("zimage")
    with pytest.raises(CannotTell):
        one_by_one(profile.program("setup.ema"), profile.adapter[::-1])
    with pytest.raises(CannotTell):
        network(profile.program("setup.ema"), profile.adapter, "bf16")
    with pytest.raises(CannotTell):
        adapted(profile.program("preview/bf16/plain/cached/first"), {"transformer.layers.99.attention.to_q": 0}, profile.adapter[:2])
