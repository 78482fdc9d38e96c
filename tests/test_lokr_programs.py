"""A LoKr's programs made by rule from a LoRA's, against those recorded of Z-Image Turbo in float8."""

from __future__ import annotations

from functools import cache

import pytest

from estimator.errors import CannotTell
from estimator.lokr_profile import lokr, one_by_one
from estimator.program import Program
from estimator.programs import Profile, load_profile

LARGE = 2048  # bytes: what is smaller is not compared
WORKLOAD = {"T": 1553, "E": 79, "X": 97, "N": 89}
FACTORS = (4, -1)
CORES = [f"step.core/float8/{rest}" for rest in ("full/one", "full/many", "checkpointed/one", "checkpointed/many")]
PREVIEWS = ["preview/float8/plain/cached", "preview/float8/plain/encoded", "preview/float8/cfg/cached", "preview/float8/cfg/encoded"]
ALIKE = ["setup.network/float8", "setup.ema", "step.ema", "sample.enter/float8/ema/first", "sample.enter/float8/ema/later"]
UNRECORDED_LIVES = {"predict_noise"}  # the prediction: recorded to the step's end where that is recorded with it
OF_THE_LOSS = {"backward"}  # its gradients, which have no formula in the LoKr's recording of batches


@cache
def recorded() -> Profile:
    return load_profile("zimage-turbo/lokr")


def lives(program: Program, values: dict[str, int]) -> list[tuple[int, int, str | None, str]]:
    """Of each tensor its bytes, the allocation before which it is freed, its name, and where it was made."""
    own = len(program.names) - program.imports
    sizes, deaths = program.sizes(values).tolist(), program.deaths.tolist()
    return [(sizes[k], deaths[k], program.names[k], program.moments[program.labels[k]]) for k in range(own)]


def differences(key: str, factor: int) -> list[tuple[int, int, str | None, str]]:
    values = WORKLOAD | {"f": factor, "B": 3 if key.endswith("many") else 1}
    made, there = lives(lokr("zimage-turbo").program(key), values), lives(recorded().program(key), values)
    assert len(made) == len(there)
    pairs = zip(made, there, strict=True)
    return [two for one, two in pairs if one[:3] != two[:3] and max(one[0], two[0]) > LARGE]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("key", [*PREVIEWS, *ALIKE])
def test_previews_and_copies_are_the_recorded_ones(key: str, factor: int) -> None:
    assert differences(key, factor) == []


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("key", CORES)
def test_every_tensor_of_a_step_is_the_recorded_one_from_its_birth_to_its_end(key: str, factor: int) -> None:
    assert {moment for *_, moment in differences(key, factor)} <= UNRECORDED_LIVES | OF_THE_LOSS


@pytest.mark.parametrize("factor", [4, 8, 32, -1])
@pytest.mark.parametrize("key", [*CORES, *PREVIEWS, *ALIKE, "save/none", "save/ema"])
def test_peaks_are_the_recorded_ones(key: str, factor: int) -> None:
    values = WORKLOAD | {"f": factor, "B": 3 if key.endswith("many") else 1}
    assert lokr("zimage-turbo").program(key).peak(values)[0] == recorded().program(key).peak(values)[0]


@pytest.mark.parametrize("arch", ["flux1-dev", "qwen-image", "wan21-1.3b", "flux2-klein-9b"])
def test_other_architectures_have_a_gradient_for_each_matrix_and_none_of_a_rank(arch: str) -> None:
    profile = lokr(arch)
    weights = "bf16" if arch.startswith("wan") else "float8"
    core = profile.program(f"step.core/{weights}/checkpointed/one")
    assert not any("r" in name.split("*") for name in core.features)
    idle = {f"gradient:{n}" for n in range(len(profile.adapter))} - {name for name in core.names if name}
    assert len(idle) == (6 if arch == "qwen-image" else 0)  # of the text in the last block, which nothing reads
    smaller, larger = (sum(core.stay_bytes("gradient", {"f": factor, "B": 1, "T": 1024, "X": 96, "E": 64})) for factor in (16, 4))
    assert smaller < larger


@pytest.mark.parametrize("factor", [4, -1])
@pytest.mark.parametrize(("key", "weights"), [("later", 4), ("first", 4), ("first/away", 2)])
def test_merging_takes_so_many_fp32_weights_of_the_largest_layer(key: str, weights: int, factor: int) -> None:
    """The weight, the product scaled, the same times the strength, and the sum; on the host the weight and the sum are not the card's."""
    part = lokr("zimage").program(f"sample.enter/bf16/none/{key}")
    assert part.peak({"f": factor})[0] == weights * 4 * 3840 * 10240
    assert part.exported == ()


def test_merging_with_ema_keeps_its_copies_of_the_matrices() -> None:
    profile = lokr("zimage")
    copies = profile.program("sample.enter/bf16/ema/later").stay_bytes("ema_copy", {"f": 8})
    assert copies == profile.program("setup.ema").stay_bytes("ema", {"f": 8})
    freed = profile.program("sample.leave/bf16/ema/later").sums({"f": 8}, 1)[1]
    assert freed.get("ema_copy", 0) in (0, sum(copies))  # where leaving frees them: with the scope elsewhere


def test_a_part_that_is_not_in_the_adapters_order_is_refused() -> None:
    profile = load_profile("zimage-turbo")
    with pytest.raises(CannotTell):
        one_by_one(profile.program("setup.network/float8"), profile.adapter[::-1])
