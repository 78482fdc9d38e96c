"""The arrays of a profile, `programs.npz`: events, tensors and uses of layers of each part, and the sizes that tensors refer to.

    coefficients  [sizes, features], every different size once
    e<p>          events of part p: see estimator.programs
    dt<p>         its tensors: (row of coefficients, row of labels, row of names or -1), in order of allocation, imports last
    dc<p>         uses of layers, where they were recorded: see estimator.offload.Call

Rows of `dt` and `dc` are differences from the row before: a model's blocks are alike, and so differences repeat where numbers of tensors
and names count on. Every array is kept by the bytes of its numbers, all lowest ones first ([bytes, columns, rows]): the higher ones are
mostly zero. Packed, a profile has a third of the bytes that it has as whole numbers.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from estimator.features import Ints

EVENTS, TENSORS, CALLS = "e", "dt", "dc"
COEFFICIENTS = "coefficients"
DIFFERENCES = (TENSORS, CALLS)
KINDS = ("<i2", "<i4", "<i8")
STAMP = (1980, 1, 1, 0, 0, 0)  # of the archive's members: the same bytes whenever it is written


class Archive:
    """`programs.npz` of a folder; each array is read when it is asked for. Raises OSError or KeyError where it is not there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "programs.npz"

    @cached_property
    def _members(self) -> Any:
        return np.load(self.path)

    @cached_property
    def coefficients(self) -> Ints:
        return _whole(self._members[COEFFICIENTS])

    def events(self, part: int) -> Ints:
        return _whole(self._members[f"{EVENTS}{part}"])

    def tensors(self, part: int) -> Ints:
        return self._table(f"{TENSORS}{part}")

    def calls(self, part: int) -> Ints | None:
        """Uses of layers; None where none were recorded."""
        name = f"{CALLS}{part}"
        return self._table(name) if name in self._members else None

    def _table(self, name: str) -> Ints:
        return np.cumsum(_whole(self._members[name]), axis=0)

    def all(self) -> dict[str, Ints]:
        """Every array by its name, differences added up: what `write` takes."""
        return {name: self._table(name) if name.startswith(DIFFERENCES) else _whole(self._members[name]) for name in self._members.files}


def write(folder: Path, arrays: Mapping[str, Ints]) -> None:
    """Write `programs.npz`: the same arrays give the same bytes."""
    with zipfile.ZipFile(folder / "programs.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, _packed(name, arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", STAMP), buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def _packed(name: str, array: Ints) -> npt.NDArray[np.uint8]:
    """As differences, if it is kept so, by the bytes of the smallest whole numbers that hold it."""
    whole = np.asarray(array, dtype=np.int64)
    rows = np.diff(whole, axis=0, prepend=0) if name.startswith(DIFFERENCES) else whole
    small = next(small for kind in KINDS if np.array_equal(small := rows.astype(kind), rows))
    columns = np.ascontiguousarray(small.T)
    return np.ascontiguousarray(np.moveaxis(columns.view(np.uint8).reshape(*columns.shape, columns.itemsize), -1, 0))


def _whole(members: npt.NDArray[np.uint8]) -> Ints:
    """The whole numbers of which these are the bytes."""
    kind = f"<i{len(members)}"
    columns = np.ascontiguousarray(np.moveaxis(members, 0, -1)).view(kind)[..., 0]
    return columns.T.astype(np.int64)
