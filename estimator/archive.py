"""The arrays and texts of a profile, `programs.bin`: events, tensors and uses of layers of each part, and what they refer to.

    coefficients        [sizes, features], every different size once
    e<p>                events of part p: see estimator.programs
    dt<p>               its tensors: (row of coefficients, of labels, of names or -1), in order of allocation, imports last
    dc<p>               uses of layers, where they were recorded: see estimator.offload.Call
    labels, names       texts: the moments at which tensors are made, and the tensors' names
    layers/<component>  texts: names of the layers that offloading can take, in its order
    places/<component>/<weights>   their residents: see estimator.offload.layers_of

Rows of `dt`, `dc` and `places` are differences from the row before: a model's blocks are alike, and so differences repeat where numbers
of tensors and names count on. Every array is kept by the bytes of its numbers, all lowest ones first ([bytes, columns, rows]): the higher
ones are mostly zero. Of texts each ends with a line feed.

The file's first line is JSON, {name: [packed bytes, bytes of a number, columns]}; no bytes of a number mean texts, no columns a list. For
the same content as an earlier member's there is that one's name. The members follow in this order, packed by LZMA (a raw stream), each by
itself: an estimate reads those of a dozen parts out of a hundred.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from estimator.features import Ints

FILE = "programs.bin"
EVENTS, TENSORS, CALLS = "e", "dt", "dc"
COEFFICIENTS, LABELS, NAMES = "coefficients", "labels", "names"
LAYERS, PLACES = "layers", "places"
OF_LAYERS = (LAYERS, PLACES)
DIFFERENCES = (TENSORS, CALLS, f"{PLACES}/")
KINDS = ("<i2", "<i4", "<i8")
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "lp": 0, "pb": 0, "dict_size": 2**22}]


class Archive:
    """`programs.bin` of a folder; each member is read when it is asked for. Raises OSError or KeyError where it is not there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._tables: dict[str, list[Any]] = {}

    @cached_property
    def _content(self) -> bytes:
        return self.path.read_bytes()

    @cached_property
    def members(self) -> Mapping[str, tuple[int, int, int, int]]:
        """Of each member where it begins, its packed bytes, the bytes of a number, and columns."""
        end = self._content.index(b"\n")
        out, start = dict[str, tuple[int, int, int, int]](), end + 1
        for name, entry in json.loads(self._content[:end]).items():
            out[name] = out[entry] if isinstance(entry, str) else (start, *entry)
            start += 0 if isinstance(entry, str) else entry[0]
        return out

    @cached_property
    def coefficients(self) -> Ints:
        return self._array(COEFFICIENTS)

    @cached_property
    def labels(self) -> list[str]:
        return self.texts(LABELS)

    @cached_property
    def names(self) -> list[str]:
        return self.texts(NAMES)

    def events(self, part: int) -> Ints:
        return self._array(f"{EVENTS}{part}")

    def tensors(self, part: int) -> Ints:
        return self._array(f"{TENSORS}{part}")

    def calls(self, part: int) -> Ints | None:
        """Uses of layers; None where none were recorded."""
        name = f"{CALLS}{part}"
        return self._array(name) if name in self.members else None

    def texts(self, name: str) -> list[str]:
        return self._unpacked(name).decode().split("\n")[:-1]

    def table(self, name: str) -> list[Any]:
        """One of the tables of layers."""
        if name not in self._tables:
            self._tables[name] = self.texts(name) if name.startswith(f"{LAYERS}/") else self._array(name).tolist()
        return self._tables[name]

    def all(self) -> dict[str, Ints | list[str]]:
        """Every member by its name, differences added up: what `write` takes."""
        return {name: self._array(name) if width else self.texts(name) for name, (_, _, width, _) in self.members.items()}

    def _unpacked(self, name: str) -> bytes:
        start, length, _, _ = self.members[name]
        return lzma.decompress(self._content[start : start + length], format=lzma.FORMAT_RAW, filters=_FILTERS)

    def _array(self, name: str) -> Ints:
        _, _, width, columns = self.members[name]
        packed = np.frombuffer(self._unpacked(name), dtype=np.uint8).reshape((width, columns, -1) if columns else (width, -1))
        whole = np.ascontiguousarray(np.moveaxis(packed, 0, -1)).view(f"<i{width}")[..., 0]
        return whole.cumsum(axis=-1, dtype=np.int64).T if name.startswith(DIFFERENCES) else whole.T.astype(np.int64)


@cache
def opened(folder: Path) -> Archive:
    """The archive of a folder, the same for all who read it."""
    return Archive(folder)


class Later(Mapping[str, Any]):
    """Values by name, each read when it is asked for. `reading`: by what."""

    def __init__(self, reading: Mapping[str, Callable[[], Any]]) -> None:
        self.reading = reading

    def __getitem__(self, name: str) -> Any:
        return self.reading[name]()

    def __contains__(self, name: object) -> bool:
        return name in self.reading

    def __iter__(self) -> Iterator[str]:
        return iter(self.reading)

    def __len__(self) -> int:
        return len(self.reading)


def described(folder: Path) -> dict[str, Any]:
    """`profile.json` of a folder, where it names tables of layers with these. Raises OSError (without a profile FileNotFoundError)."""
    data: dict[str, Any] = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
    for kind in OF_LAYERS:
        if kind in data:
            data[kind] = Later({name: partial(_table, folder, f"{kind}/{name}") for name in data[kind]})
    return data


def _table(folder: Path, name: str) -> list[Any]:
    return opened(folder).table(name)


def sizes_of(runs: Sequence[Any]) -> list[int]:
    """Bytes of a component's tensors, one by one, of what a profile's JSON has: [bytes, how many in a row] or [such ones, how often]."""
    out: list[int] = []
    for what, count in runs:
        out += ([what] if isinstance(what, int) else sizes_of(what)) * count
    return out


def write(folder: Path, members: Mapping[str, Ints | Sequence[str]]) -> None:
    """Write `programs.bin`: the same members give the same bytes. Tables of layers stay in their order."""
    index: dict[str, Any] = {}
    content, known = list[bytes](), dict[tuple[int, int, bytes], str]()
    for name in sorted(members, key=lambda name: "" if "/" in name else name):
        member = _packed(name, members[name])
        if known.setdefault(member, name) != name:
            index[name] = known[member]
            continue
        content.append(lzma.compress(member[2], format=lzma.FORMAT_RAW, filters=_FILTERS))
        index[name] = [len(content[-1]), *member[:2]]
    opened.cache_clear()
    (folder / FILE).write_bytes(b"".join([json.dumps(index, separators=(",", ":")).encode(), b"\n", *content]))


def _packed(name: str, member: Ints | Sequence[str]) -> tuple[int, int, bytes]:
    """Bytes of a number, columns, and the bytes: as differences, if it is kept so, of the smallest whole numbers that hold it."""
    if not isinstance(member, np.ndarray):
        if any("\n" in text for text in member):
            raise ValueError(f"{name}: a text of several lines")
        return 0, 0, "".join(f"{text}\n" for text in member).encode()
    whole = np.asarray(member, dtype=np.int64)
    rows = np.diff(whole, axis=0, prepend=0) if name.startswith(DIFFERENCES) else whole
    small = next(small for kind in KINDS if np.array_equal(small := rows.astype(kind), rows))
    columns = np.ascontiguousarray(small.T)
    planes: npt.NDArray[np.uint8] = np.moveaxis(columns.view(np.uint8).reshape(*columns.shape, columns.itemsize), -1, 0)
    return small.itemsize, rows.shape[1] if rows.ndim > 1 else 0, planes.tobytes()
