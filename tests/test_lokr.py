"""Z-Image Turbo with a LoKr: the adapter's parts by rule, all else its architecture's."""

from __future__ import annotations

import pytest

from estimator.job import Model, Network
from estimator.job_profile import profile_of
from estimator.kronecker import matrices
from estimator.programs import Profile, load_profile

TURBO = Model("Tongyi-MAI/Z-Image-Turbo", weights="float8", te_weights="float8")
WORKLOAD = {"T": 1024, "X": 96, "B": 1, "E": 64, "N": 20}
FACTORS = (-1, 4, 8, 16, 32)
EMA = ("setup.ema", "sample.enter/float8/ema/first")


def lokr() -> Profile:
    return profile_of("zimage-turbo", TURBO, Network("lokr", rank=9_999_999_999, factor=-1))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("key", ["setup.network/float8", *EMA])
def test_its_tensors_are_the_matrices_of_each_layer(key: str, factor: int) -> None:
    """In order, of every adapted layer the small matrix and the large one, in fp32; also where only one factor was recorded (EMA)."""
    features = [width // 4 for width in load_profile("zimage-turbo").adapter]
    layers = zip(features[::2], features[1::2], strict=True)
    expected = [4 * rows * columns for layer in layers for rows, columns in matrices(*layer, factor)]
    component = {"setup.network": "adapter", "setup.ema": "ema"}.get(key.split("/")[0], "ema_copy")
    assert list(lokr().program(key).stay_bytes(component, {"f": factor})) == expected


@pytest.mark.parametrize("factor", FACTORS)
def test_its_optimizer_keeps_two_states_of_each_matrix(factor: int) -> None:
    profile, values = lokr(), {"f": factor}
    held = sum(profile.program("setup.network/float8").stay_bytes("adapter", values))
    kept = sum(profile.program("step.update/adamw/first").stay_bytes("optimizer", values))
    assert 2 * held <= kept <= 2 * held + 4 * len(profile.adapter)  # and the number of the step, of each


@pytest.mark.parametrize("rest", ["checkpointed/one", "full/one", "checkpointed/many", "full/many"])
def test_a_larger_factor_needs_no_more_and_activations_stay(rest: str) -> None:
    core = lokr().program(f"step.core/float8/{rest}")
    values = WORKLOAD | ({"B": 3} if rest.endswith("many") else {})
    peaks = [core.peak(values | {"f": factor})[0] for factor in (4, 8, 16, 32)]
    assert peaks == sorted(peaks, reverse=True)
    gradients = [sum(core.stay_bytes("gradient", values | {"f": factor})) for factor in (4, 32)]
    assert gradients[0] > 50 * gradients[1]


def test_what_is_not_the_adapters_is_the_architectures_own() -> None:
    own, whole = lokr(), load_profile("zimage-turbo")
    for key in ("text/float8/plain/one", "load.transformer/float8/plain", "step.end"):
        assert own.program(key) is whole.program(key)
    assert own.resident("transformer", "float8") == whole.resident("transformer", "float8")
