"""A step whose forward takes the negative prompts along (`train.do_cfg`): a step's core, rewritten from the one without.

The transformer gets each sample twice (`B` counts both), what is around it once (`b`): noisy latents, the guided prediction, noise and
loss. Guidance makes the difference of both halves of the prediction, its multiple, and the sum, which takes the prediction's place; in the
backward pass the gradient of the whole prediction is put together of those of its halves.
Source: ostris/ai-toolkit 27a03a91, toolkit/models/base_model.py and toolkit/stable_diffusion_model.py (predict_noise).
"""

from __future__ import annotations

import numpy as np

from estimator.errors import CannotTell, Problem
from estimator.program import ALLOCATE, Program
from estimator.rewriting import widened, written

GUIDED = "/guided"  # behind the key of a step's core
OUTSIDE = "step"  # label of what the step's own lines make, before they give it to the transformer's wrapper


def guided(core: Program) -> Program:
    """The core with `B` twice the samples and `b` their number. Raises CannotTell."""
    tensors, births = core.tensor_of_event.copy(), core.events == ALLOCATE
    made, (first, over) = np.flatnonzero(births), core.forward
    result, returned = over - 1, _last_of_loss(core, over)
    difference, multiple, total, whole = range(len(core.names), len(core.names) + 4)
    ends = np.flatnonzero((tensors == result) & ~births)
    if not len(ends):
        raise _another(core)
    tensors[int(ends[0])] = total
    behind, before = int(made[result]) + 1, int(made[returned])
    at = [behind] * 6 + [before, before + 1]
    tensors = np.insert(tensors, at, [difference, multiple, difference, total, multiple, result, whole, whole])
    births = np.insert(births, at, [True, True, False, True, False, False, True, False])
    named = {name: "*".join("b" if factor == "B" else factor for factor in name.split("*")) for name in core.features}
    features = (*core.features, *(new for name, new in named.items() if new != name))
    rows = widened(core, features, 4)
    rows[[difference, multiple, total, whole]] = rows[result]
    before_transformer = [k for k in range(first) if core.moments[core.labels[k]] == OUTSIDE]
    outside = [*before_transformer, *range(over, returned), difference, multiple, total]
    for name, new in named.items():
        if new != name:
            before_, after = features.index(name), features.index(new)
            rows[outside, after] = rows[outside, before_]
            rows[outside, before_] = 0
    return written(core, core.key + GUIDED, (tensors, births), (features, rows), (result, result, result, returned))


def _last_of_loss(core: Program, over: int) -> int:
    """The gradient of the prediction as the transformer gave it: the last one of its size that is made before the transformer's own."""
    large = core.coefficients[over - 1] > 0
    for k in range(over, len(core.names) - core.imports):
        moment = core.moments[core.labels[k]]
        if moment.startswith("transformer") and "AccumulateGrad" not in moment:
            sized = [n for n in range(over, k) if (core.coefficients[n][large] > 0).all()]
            if sized:
                return sized[-1]
    raise _another(core)


def _another(core: Program) -> CannotTell:
    return CannotTell(Problem(f"{core.key!r} has another loss than one that guidance can be laid before", None, "", "report it"))
