"""Programs with further tensors laid in: their events written anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from estimator.arrays import Bools
from estimator.features import Ints
from estimator.program import ALLOCATE, EMPTY_CACHE, FIRST_IMPORT, Program

GONE = -1  # in place of the number of a tensor that is left out

def written(base: Program, key: str, events: tuple[Ints, Bools], rows: tuple[Sequence[str], Ints], like: Sequence[int] | Ints) -> Program:
    """The base's program as `key`, with more tensors, which are numbered behind its names. What outlives the part stays as it is.

    `events`: the tensor of each event (-1: empty_cache), and whether it is made there. `rows`: features, the base's before others, and the
    bytes of all tensors over them. `like`: of each further tensor one of the base's that was made at the same moment.
    """
    tensors, births = events
    features, coefficients = rows
    count, own = len(base.names), len(base.names) - base.imports
    order = np.append(tensors[births], np.arange(own, count))
    number = np.full(count + len(like), GONE, dtype=np.int64)
    number[order] = np.arange(len(order))
    codes = np.where(births, ALLOCATE, np.cumsum(births) - number[tensors])
    imported = (tensors >= own) & (tensors < count)
    codes = np.where(imported, FIRST_IMPORT - (tensors - own), np.where(tensors < 0, EMPTY_CACHE, codes))
    old = np.append(np.arange(count), np.array(like, dtype=np.int64))[order]
    names = np.full(len(order), None, dtype=object)
    named = base.named[number[base.named] != GONE]
    names[number[named]] = [base.names[k] for k in named.tolist()]
    more, labels = [0] * (len(features) - len(base.features)), base.label_rows[old]
    made = replace(
        base, key=key, features=tuple(features), coefficients=coefficients.take(order, axis=0), labels=tuple(labels.tolist()),
        names=tuple(names.tolist()), events=codes,
        peaks=tuple(replace(row, coefficients=(*row.coefficients, *more)) for row in base.peaks),
        streams=None if base.streams is None else base.streams[old],
    )  # fmt: skip
    return made.known(label_rows=labels, named=np.sort(number[named]))


def widened(base: Program, features: Sequence[str], further: int) -> Ints:
    """Bytes of the base's tensors over its features and others behind them, and empty rows for so many further tensors."""
    wide = np.zeros((len(base.names) + further, len(features)), dtype=np.int64)
    wide[: len(base.names), : len(base.features)] = base.coefficients
    return wide
