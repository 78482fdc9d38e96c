"""What a profile says of a model that is trained as a whole: the shapes of its parameters, in the optimizer's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import prod
from typing import Any

from calibration.extract.parts import Occurrence


def table(found: Mapping[str, Sequence[Occurrence]]) -> dict[str, Any] | None:
    """Rows (of a vector one), columns, and how many in a row are alike; None where an adapter was trained."""
    recorded = (part.run.trained for occurrences in found.values() for part in occurrences)
    shapes = next((shapes for shapes in recorded if shapes), None)
    if shapes is None:
        return None
    tables = ((1, *shape) if len(shape) < 2 else (shape[0], prod(shape[1:])) for shape in shapes)
    return {"trained": [[*one, len(list(same))] for one, same in groupby(tables)]}
