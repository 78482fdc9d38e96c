"""Previews of unquantised weights with an EMA, by rule: the averaged adapter is put in, then merged into the weights.

Each averaged parameter's copy comes to the card before anything is merged (toolkit/ema.py, store and copy_to; toolkit/network_mixins.py,
merge_in, 27a03a91), so that a round begins with the events of quantised weights with an EMA, and goes on with those of unquantised ones
without. It ends as without. In the nine architectures whose recordings are of one rank or have formulas of it, event for event (tests).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from estimator.program import EventProgram, Program

ENTER, LEAVE = "sample.enter", "sample.leave"
QUANTISED = "qfloat8"  # whose rounds with an EMA serve; those of all quantised weights are alike
CHECKED = frozenset({"ltx2.3"})
"""Architectures with a whole run of it; of others what was not recorded is refused as ever."""


def made_of(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The recorded parts that make one up, in their order; none where no rule does."""
    name, weights, ema, when = (*key.split("/"), "", "", "")[:4]
    if (weights, ema) != ("bf16", "ema") or data["arch"] not in CHECKED:
        return ()
    swap, merge = f"{name}/{QUANTISED}/ema/{when}", f"{name}/bf16/none/{when}"
    parts: Collection[str] = data["parts"]
    return () if swap not in parts or merge not in parts else (merge,) if name == LEAVE else (swap, merge)


def joined(first: Program, second: Program, key: str) -> Program:
    """One program behind the other. Of a second one without imports (ValueError)."""
    if second.imports:
        raise ValueError(f"{second.key} frees what others made")
    own = len(first.names) - first.imports
    features = tuple(dict.fromkeys((*first.features, *second.features)))
    coefficients = np.concatenate([
        _over(features, first)[:own], _over(features, second), _over(features, first)[own:],
    ])  # fmt: skip
    later = tuple(row + len(first.moments) for row in second.labels)
    return EventProgram(
        key, features, coefficients, (*first.labels[:own], *later, *first.labels[own:]), [*first.moments, *second.moments],
        (*first.names[:own], *second.names, *first.names[own:]), np.concatenate([first.events, second.events]), first.imports, (), {},
    ).with_rows  # fmt: skip


def _over(features: tuple[str, ...], program: Program) -> Any:
    """A program's coefficients over more features."""
    wide = np.zeros((len(program.names), len(features)), dtype=np.int64)
    wide[:, [features.index(name) for name in program.features]] = program.coefficients
    return wide
