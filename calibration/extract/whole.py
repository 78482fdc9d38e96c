"""What a profile says of a model that is trained as a whole: the shapes of its parameters, in the optimizer's order, and those that no
gradient reaches (FLUX's embedding of the guidance where that is bypassed, Chroma's layer of modulations, which runs without autograd)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import prod
from typing import Any

from calibration.extract.parts import Occurrence, component
from estimator.optimizer_rules import GRADIENT


def table(found: Mapping[str, Sequence[Occurrence]]) -> dict[str, Any] | None:
    """Rows (of a vector one), columns, and how many in a row are alike; None where an adapter was trained. `idle`: numbers of parameters
    without a gradient."""
    run = next((part.run for occurrences in found.values() for part in occurrences if part.run.trained), None)
    if run is None:
        return None
    tables = ((1, *shape) if len(shape) < 2 else (shape[0], prod(shape[1:])) for shape in run.trained)
    reached = {tensor.name for tensor in run.tensors if component(tensor.name) == GRADIENT}
    idle = [k for k in range(len(run.trained)) if f"{GRADIENT}:{k}" not in reached]
    return {"trained": [[*one, len(list(same))] for one, same in groupby(tables)], **({"idle": idle} if idle else {})}
