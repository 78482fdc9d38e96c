"""A vision tower's attention, window by window: programs have all calls of a layer as one tensor, and here it is as many as the windows.

Qwen2.5-VL's tower attends within windows of 112 x 112 pixels, 8 x 8 patches of 1280 channels in bf16, but for four layers that attend
across each image. How many windows there are follows from each picture's shape, their sum from its patches alone
(calibration.extract.windows). A window's result is small enough for the allocator's pool of small blocks, all of a layer's together is not.
Windows that are cut off at an edge are counted together, as whole ones.

Source: Qwen/Qwen2.5-VL-7B-Instruct, config.json, vision_config: window_size 112, patch_size 14, hidden_size 1280, fullatt_block_indexes
7, 15, 23, 31. transformers 5.5.3, models/qwen2_5_vl/modeling_qwen2_5_vl.py (Qwen2_5_VLVisionAttention.forward).
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from estimator.allocator import FREE
from estimator.arrays import among
from estimator.features import Ints
from estimator.part_events import PartRun
from estimator.program import Program
from estimator.residents import State

ATTENTION = re.compile(r"\.visual\.blocks\.(\d+)\.attn\|forward$")
TEXT = "text/"  # of the keys of encodes
ACROSS = {7, 15, 23, 31}
WINDOW_BYTES = (112 // 14) ** 2 * 1280 * 2
RESULT_BY_LSE = 40  # bytes of a head's row of the result, 80 channels, for each byte of its logsumexp, which is made next


def joined(program: Program) -> list[int]:
    """The tensors that are the results of all windows of a layer."""
    return program.once(joined, _joined)  # type: ignore[no-any-return]


def _joined(program: Program) -> list[int]:
    if not program.key.startswith(TEXT) or program.first_in(ATTENTION) is None:
        return []
    rows = {n for n, moment in enumerate(program.moments) if (found := ATTENTION.search(moment)) and int(found[1]) not in ACROSS}
    table, labels = program.coefficients, program.label_rows
    alike = np.flatnonzero(among(labels[:-1], rows) & (labels[:-1] == labels[1:]))
    ratio = (table[alike] == RESULT_BY_LSE * table[alike + 1]).all(axis=1) & table[alike].any(axis=1)
    return alike[ratio].tolist()  # type: ignore[no-any-return]


def apart(program: Program, run: PartRun, sizes: Ints, state: State) -> tuple[PartRun, list[int]]:
    """The events with each window made and freed for itself, the last by its tensor's key; and the further keys that outlive the part."""
    tensors = np.array(joined(program), dtype=np.int64)
    more = -(-sizes[tensors] // WINDOW_BYTES) - 1  # windows besides the last
    tensors, more = tensors[more > 0], more[more > 0]
    if not len(tensors):
        return run, []
    first = state.take_keys(int(more.sum())) + np.cumsum(more) - more
    at = np.flatnonzero(among(run.keys, tensors + run.base))
    which = np.searchsorted(tensors, run.keys[at] - run.base)
    freed, count = run.events[at] == FREE, more[which]
    places = np.repeat(at + freed, count)  # made before the tensor itself, freed behind it
    keys = _ranges(first[which], count)
    made = np.repeat(np.where(freed, FREE, WINDOW_BYTES), count)
    events = run.events.copy()
    events[at] -= np.where(freed, 0, WINDOW_BYTES * count)
    stays = ~among(np.arange(len(tensors)), which[freed])
    kept: list[int] = _ranges(first[stays], more[stays]).tolist()
    return replace(run, events=events).inserting(places, keys, made), kept


def _ranges(first: Ints, count: Ints) -> Ints:
    """So many numbers from each first one on."""
    ranges: Ints = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    return ranges
