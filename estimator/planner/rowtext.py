"""A million rows of text at once: cells laid side by side as bytes, and the gaps between them left out. In half the time of strings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from estimator.features import Ints

Bytes = npt.NDArray[np.uint8]
CHUNK = 32_768  # rows at a time: their bytes stay in a processor's cache
GAP = b"\0"  # a byte that no text has
GROUP = 4  # digits that are looked up at a time


def rows_text(columns: Sequence[Sequence[str]], numbers: Ints, ends: Sequence[str], end_of: Ints) -> str:
    """A row for each combination of the columns, the last fastest: their cells, a number (nothing for one below 0) and an end."""
    tables = [_table(column) for column in columns]
    shape = tuple(len(column) for column in columns)
    last, groups = _table(ends), _digits()
    out = []
    for start in range(0, len(numbers), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(numbers)))
        places = np.unravel_index(rows, shape) if shape else ()
        parts = [table[at] for table, at in zip(tables, places, strict=True)]
        laid = np.concatenate([*parts, _written(numbers[rows], groups), last[end_of[rows]]], axis=1)
        out.append(laid.tobytes().translate(None, GAP))
    return b"".join(out).decode()


def _table(texts: Sequence[str]) -> Bytes:
    """[text, byte], shorter ones with gaps behind them."""
    made = np.array([text.encode() for text in texts])
    return made.view(np.uint8).reshape(len(texts), -1)


def _digits() -> Bytes:
    return _table([f"{n:0{GROUP}}" for n in range(10**GROUP)])


def _written(numbers: Ints, groups: Bytes) -> Bytes:
    """[number, digit], gaps for zeros that lead; all gaps for what is below 0."""
    length = max(len(str(int(numbers.max(initial=0)))), 1)
    parts, rest = [], np.maximum(numbers, 0)
    for _ in range(-(-length // GROUP)):
        rest, group = np.divmod(rest, len(groups))
        parts.append(groups[group])
    made = np.concatenate(parts[::-1], axis=1)
    for place in range(made.shape[1] - 1):  # from the right, the first digit is written whatever it is
        made[numbers < 10 ** (made.shape[1] - 1 - place), place] = ord(GAP)
    made[numbers < 0] = ord(GAP)
    return made
