"""The two files of a profile as they are written: `profile.json`, for people and diffs too, and `programs.bin` (estimator.archive)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from calibration.extract.footprints import with_footprints
from estimator import archive

LINES = ("parts", "residents")  # a line of JSON for each of theirs


def write(folder: Path, profile: Mapping[str, Any], members: Mapping[str, np.ndarray | Sequence[str]]) -> None:
    """`profile`: what the JSON says, and the tables of layers, of which that has the names. `members`: all else of the archive."""
    tables = {f"{kind}/{name}": (kind, table) for kind in archive.OF_LAYERS for name, table in profile.get(kind, {}).items()}
    arrays = {name: table if kind == archive.LAYERS else np.array(table, dtype=np.int64) for name, (kind, table) in tables.items()}
    archive.write(folder, {**members, **arrays})
    named = {kind: list(profile[kind]) for kind in archive.OF_LAYERS if kind in profile}
    (folder / "profile.json").write_text(readable(with_footprints({**profile, **named}, folder)))


def readable(profile: Mapping[str, Any]) -> str:
    """JSON with a line for each part, component and so on: small, and readable in a diff."""
    lines = []
    for key, value in profile.items():
        if key in LINES:
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def folded(sizes: Sequence[int]) -> list[Any]:
    """Bytes of a component's tensors as `estimator.archive.sizes_of` reads them: [bytes, how many in a row], and where a model's blocks
    repeat, [those of one block, how many blocks]."""
    return _folded([[size, len(list(alike))] for size, alike in groupby(sizes)])


def _folded(runs: list[Any]) -> list[Any]:
    places = defaultdict(list)
    for k, run in enumerate(runs):
        places[tuple(run)].append(k)
    out, at = [], 0
    while at < len(runs):
        lengths = [k - at for k in places[tuple(runs[at])] if at < k <= (at + len(runs)) // 2]
        saved, length = max(((length * (_times(runs, at, length) - 1), -length) for length in lengths), default=(0, -1))
        if saved:
            out.append([_folded(runs[at : at - length]), _times(runs, at, -length)])
            at += saved - length
        else:
            out.append(runs[at])
            at += 1
    return out


def _times(runs: list[Any], at: int, length: int) -> int:
    """How often what is so long, from a place on, follows itself there."""
    block, times = runs[at : at + length], 1
    while runs[at + times * length : at + (times + 1) * length] == block:
        times += 1
    return times
