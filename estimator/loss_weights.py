"""The loss of a training step weighed by its timestep (`train.timestep_type: weighted`): a step's core, rewritten from the one without.

The trainer takes the squared error of each element in fp32 and multiplies it by a scale, by the mask, and in between, if timesteps are
weighted, by a weight for each sample. So there is one more tensor as large as the squared error before the mask's, in the backward pass
one more gradient of that size behind the mask's, and the weights, four bytes a sample, stay from the one to the other. Nothing larger is
alive at a time than without: peak rows and what outlives the part stay as they are, but for the weights.

Source: ostris/ai-toolkit 27a03a91, extensions_built_in/sd_trainer/SDTrainer.py (calculate_loss), and steps of FLUX.2 klein 4B recorded on
the emulated device with and without (tests/test_loss_weights.py). Left out is how a timestep's place among a thousand is found: a kilobyte
a sample, gone at once. Where a model masks the loss before it is weighed (Wan 2.2 5B's scale_loss, of clips with do_i2v) the weights come
one tensor too early: as many of the same size at a time.
"""

from __future__ import annotations

import numpy as np

from estimator.errors import CannotTell, Problem
from estimator.program import ALLOCATE, Program
from estimator.rewriting import widened, written
from estimator.workloads import DOMAIN, points_of

WEIGHED = "/weighed"  # behind the key of a step's core
PER_SAMPLE, WEIGHT_BYTES = "B", 4  # a weight of each sample: fp32, as the loss is


def weighed(core: Program) -> Program:
    """The core with its loss weighed. Raises CannotTell where its loss is not the trainer's common one."""
    tensors, births = core.tensor_of_event.copy(), core.events == ALLOCATE
    scaled, gradient, exact = _loss(core)
    before, (weights, product, passed) = gradient - 1, range(len(core.names), len(core.names) + 3)
    tensors[_freed(core, scaled)], tensors[_freed(core, before)] = product, passed
    made = np.flatnonzero(births)
    # weights and weighed loss come when the scaled loss is there; the gradient that the mask passes on is passed on before the scale's
    places = [*[_freed(core, scaled - 1) + 1] * 3, *[int(made[gradient])] * 3]
    tensors = np.insert(tensors, places, [weights, product, scaled, passed, before, weights])
    births = np.insert(births, places, [True, True, False, True, False, False])
    features = core.features if PER_SAMPLE in core.features else (*core.features, PER_SAMPLE)
    wide = widened(core, features, 3)
    wide[-3, features.index(PER_SAMPLE)], wide[-2:] = WEIGHT_BYTES, wide[exact]
    return written(core, core.key + WEIGHED, (tensors, births), (features, wide), (scaled, scaled, gradient))


def _loss(core: Program) -> tuple[int, int, int]:
    """Tensors: the scaled squared error, the gradient that the scale's backward makes of that made just before it, and one of their size.

    The first tensor after the forward that is made from an equally large one, which then goes, is the scaled error. The squared error's
    gradient is the last one made before the target goes, which is made just before the squared error.
    """
    points = points_of(core.features, DOMAIN)
    births = core.events == ALLOCATE
    made = np.flatnonzero(births)
    for event in range(int(made[core.forward[1]]), len(core.events) - 2):
        error, scaled, gone = core.tensor_of_event[event : event + 3].tolist()
        passed_on = births[event : event + 3].tolist() == [True, True, False] and gone == error
        if not passed_on:
            continue
        sizes = {k: core.coefficients[k] @ points for k in (error, scaled)}
        exact = error if np.ptp(sizes[error]) > 0 else scaled  # the other may be one without a formula
        if np.ptp(sizes[exact]) > 0 and (sizes[error] == sizes[scaled]).any():
            last = int(np.count_nonzero(births[: _freed(core, error - 1)])) - 1
            if made[last - 1] < _freed(core, last - 2) < made[last]:
                return scaled, last - 1, exact
            break
    raise _another_loss(core)


def _freed(core: Program, tensor: int) -> int:
    """The event that frees it. Raises CannotTell where none does."""
    found = np.flatnonzero((core.tensor_of_event == tensor) & (core.events != ALLOCATE))
    if not len(found):
        raise _another_loss(core)
    return int(found[0])


def _another_loss(core: Program) -> CannotTell:
    return CannotTell(Problem(f"{core.key!r} has another loss than one that timesteps can weigh", None, "", "report it"))
