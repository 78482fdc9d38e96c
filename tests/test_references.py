"""FLUX.2's control images in a step's core: whose tokens each tensor counts, what is joined, and what is cut out again."""

from __future__ import annotations

import numpy as np
import pytest

from estimator.features import Ints
from estimator.loss_weights import WEIGHED
from estimator.program import ALLOCATE, Program
from estimator.programs import load_profile
from estimator.references import CROPPED, LATENT_BYTES, PIXEL_BYTES, REFERENCED
from tests.made_jobs import values

FLUX2 = ("flux2-dev", "flux2-klein-4b", "flux2-klein-9b")
CORES = [f"step.core/bf16/{checkpointing}/{many}" for checkpointing in ("checkpointed", "full") for many in ("one", "many")]
MORE = 4096  # tokens of a control image


def sizes(program: Program, key: str, arch: str, more: int) -> Ints:
    given = values(arch, key, 768, 512, 2, 16, 40)
    return program.sizes({**given, "T": given["T"] + more, "Q": given["T"]})


def totals(program: Program, of_tensors: Ints) -> Ints:
    changes = of_tensors[program.tensor_of_event]
    return np.cumsum(np.where(program.events == ALLOCATE, changes, -changes))


@pytest.mark.parametrize("key", CORES)
@pytest.mark.parametrize("arch", FLUX2)
def test_loss_and_noise_are_the_pictures_alone(arch: str, key: str) -> None:
    program = load_profile(arch).program(key + REFERENCED)
    grown = sizes(program, key, arch, MORE) > sizes(program, key, arch, 0)
    by = {program.moments[row] for k, row in enumerate(program.labels) if grown[k]}
    assert not by & {"step", "predict_noise", "condition"}
    assert any(moment.startswith("transformer.single_blocks") for moment in by)


@pytest.mark.parametrize("key", CORES)
@pytest.mark.parametrize("arch", FLUX2)
def test_without_control_images_it_holds_the_joined_latents_more(arch: str, key: str) -> None:
    """During the forward; afterwards nothing, and nothing is left."""
    profile = load_profile(arch)
    plain, made = profile.program(key), profile.program(key + REFERENCED)
    before, after = totals(plain, sizes(plain, key, arch, 0)), totals(made, sizes(made, key, arch, 0))
    given = values(arch, key, 768, 512, 2, 16, 40)
    joined = (LATENT_BYTES + 32) * given["T"] * given["B"]
    assert after[-1] == before[-1]
    assert before.max() <= after.max() <= before.max() + joined
    assert [made.names[k] for k in made.exported] == [plain.names[k] for k in plain.exported]


@pytest.mark.parametrize("arch", FLUX2)
def test_a_weighed_loss_goes_with_it(arch: str) -> None:
    key = CORES[0]
    program = load_profile(arch).program(key + REFERENCED + WEIGHED)
    alone = load_profile(arch).program(key + REFERENCED)
    assert len(program.events) == len(alone.events) + 6
    grown = sizes(program, key, arch, MORE) > sizes(program, key, arch, 0)
    assert grown.sum() == (sizes(alone, key, arch, MORE) > sizes(alone, key, arch, 0)).sum()


@pytest.mark.parametrize("arch", FLUX2)
def test_a_cropped_picture_is_copied_for_its_first_convolution(arch: str) -> None:
    whole, part = load_profile(arch).program("control.encode"), load_profile(arch).program(CROPPED)
    given = values(arch, "cache_latents.item", 768, 512, 1, 16, 40)
    before, after = totals(whole, whole.sizes(given)), totals(part, part.sizes(given))
    assert after[0] == PIXEL_BYTES * given["T"]
    assert after[1] == after[0] + before[0]
    assert after[2:].tolist() == before.tolist()
