"""Position frequencies that a transformer keeps: of every new size of image for good, and two tables from its first forward on.

QwenEmbedRope (diffusers, transformer_qwenimage.py) keeps both with lru_cache: `_get_device_freqs` the tables of 4096 positions, 64 complex
numbers each, and `_compute_video_freqs` the 64 complex numbers of each token of a picture. Programs hold them where the size was new in the
recording, and free them with the part; here they are made where they are first needed in this job, and stay. With each new size go three
tensors for a moment: the frequencies of its rows, those of its columns, and of both joined, of which what is kept is a copy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from estimator import operations as op
from estimator.allocator import FREE
from estimator.archs import load_archs
from estimator.frequencies import EMBEDDER
from estimator.part_events import PartRun
from estimator.program import Program
from estimator.residents import State

GROUP = "positions"
TRANSFORMER = re.compile("transformer")
TABLES, TABLE_BYTES = 2, 4096 * 64 * 8
TOKEN_BYTES = 64 * 8
EDGE_BYTES = 28 * 8  # of a row or a column of tokens
FORWARD = (op.PREVIEW, op.CORE)  # parts that the transformer runs in


def needed(arch: str, part: op.Part) -> Mapping[str, int]:
    """What a part's forward keeps on the card, by name; nothing where it keeps nothing."""
    if not load_archs().archs[arch].keeps_positions or part.key.split("/")[0] not in FORWARD:
        return {}
    values, tables = part.values, {f"{GROUP}:table{n}": TABLE_BYTES for n in range(TABLES)}
    images = [(values[name], values[f"E{name[1:]}"]) for name in values if name == "T" or name.startswith("T_")]
    return tables | {f"{GROUP}:{n} {tokens} {edge}": TOKEN_BYTES * tokens for n, (tokens, edge) in enumerate(images[1:] or images)}


def laid(program: Program, run: PartRun, wanted: Mapping[str, int], state: State) -> tuple[PartRun, list[tuple[int, int]]]:
    """The events with what is not there yet made at the positions' place, and of each tensor that stays its event and its bytes."""
    new = {name: size for name, size in wanted.items() if not state.holds(name)}
    at = _place(program, run) if new else None  # to look for the place takes a millisecond, and few parts make any
    if at is None:
        return run, []
    keys, events, kept = list[int](), list[int](), list[tuple[int, int]]()
    for name, size in new.items():
        _, _, edge = name.rpartition(" ")
        passing = [int(edge) * EDGE_BYTES // 2] * 2 + [size] if edge.isdigit() else []
        first = state.take_keys(len(passing) + 1)
        made = range(first, first + len(passing))
        kept.append((at + len(keys) + len(passing), size))
        keys += [*made, made.stop, *made]
        events += [*passing, size, *[FREE] * len(passing)]
        state.named.setdefault(GROUP, {})[name] = made.stop, size
        state.count(GROUP, size)
    return run.inserting([at] * len(keys), keys, events), kept


def _place(program: Program, run: PartRun) -> int | None:
    """The event before which they are made: that of the first tensor of positions, else of the transformer."""
    for moments in (EMBEDDER, TRANSFORMER):
        first = program.first_in(moments)
        if first is not None:
            return int(np.flatnonzero(run.keys == run.base + first)[0])
    return None
