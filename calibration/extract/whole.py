"""What a profile says of a model that is trained as a whole: the shapes of its parameters, in the optimizer's order, and those that no
gradient reaches (FLUX's embedding of the guidance where that is bypassed, Chroma's layer of modulations, which runs without autograd)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import prod
from typing import Any

from calibration.extract.parts import Occurrence, component
from estimator.optimizer_rules import GRADIENT

NUMBER = re.compile(r"(.*?\.)(\d+)(?=\.)")


def table(found: Mapping[str, Sequence[Occurrence]]) -> dict[str, Any] | None:
    """Rows (of a vector one), columns, and how many in a row are alike; None where an adapter was trained. `idle`: numbers of parameters
    without a gradient."""
    run = next((part.run for occurrences in found.values() for part in occurrences if part.run.trained), None)
    if run is None:
        return None
    tables = ((1, *shape) if len(shape) < 2 else (shape[0], prod(shape[1:])) for shape in run.trained)
    reached = {tensor.name for tensor in run.tensors if component(tensor.name) == GRADIENT}
    idle = [k for k in range(len(run.trained)) if f"{GRADIENT}:{k}" not in reached]
    named = {"names": _by_block(run.trained_names)} if run.trained_names else {}
    return {"trained": [[*one, len(list(same))] for one, same in groupby(tables)], **({"idle": idle} if idle else {}), **named}


def _by_block(names: Sequence[str]) -> list[list[Any]]:
    """Names in order, those of blocks that are alike once: what stands before the block's number, the first number and how many, and what
    stands behind each (estimator.whole_profile). Names without a number stand behind nothing, once."""
    out: list[list[Any]] = []
    for (before, number), same in groupby(names, _block_of):
        behind = [name[len(before) + len(number) :] for name in same]
        if number and out and out[-1][0] == before and out[-1][1] + out[-1][2] == int(number) and out[-1][3] == behind:
            out[-1][2] += 1
        else:
            out.append([before, int(number or 0), 1, behind])
    return out


def _block_of(name: str) -> tuple[str, str]:
    """What stands before the first number that is a part of the name, and the number."""
    found = NUMBER.match(name)
    return (found[1], found[2]) if found else ("", "")
