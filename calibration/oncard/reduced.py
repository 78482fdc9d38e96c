"""What an architecture's memory programs say of a cell: the recorded step with fewer blocks, replayed on the allocator as it stood.

A program's moments name the module that made each tensor, so the events of blocks that a cell has not are left out. What is left is the
step of a shallower model: blocks of one list are alike, and what one hands on to the next is the tensor it makes itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.oncard.families import FAMILIES
from estimator.allocator import FREE, Allocator
from estimator.allocator_state import FREE_BLOCK, LIVE_BLOCK, ties_by_address
from estimator.features import feature, image_values
from estimator.program import ALLOCATE, Program
from estimator.programs import load_profile
from estimator.residents import rounded

if TYPE_CHECKING:
    from calibration.oncard.cells import Cell

KEYS_FROM = 1 << 50  # keys of a program's tensors: above every address, which are the keys of what is there already
FIRST_SEGMENT = 2 * 2**20  # an address in bytes; not 0, the null pointer
SHARED_BLOCKS = 2
"""Weights beside the blocks (embedders, output), counted as so many blocks where a cell's weights are guessed."""


@cache
def _kept(arch: str, key: str, depth: tuple[int, ...]) -> tuple[Program, np.ndarray]:
    """The program, and which of its events are a cell's with so many blocks; of a preview only the decoder's.

    Raises CannotTell if it was never recorded.
    """
    profile, family = load_profile(arch), FAMILIES[arch]
    program = profile.program(next((each for each in sorted(profile.data["parts"]) if each.startswith(key)), key))
    patterns = [(re.compile(rf"transformer\.{block}\.(\d+)\b"), most) for block, most in zip(family.blocks, depth, strict=False)]

    def there(moment: str) -> bool:
        if key.startswith("preview"):
            return moment.startswith("vae")
        found = ((pattern.match(moment), most) for pattern, most in patterns)
        return all(match is None or int(match[1]) < most for match, most in found)

    answers = {label: there(program.moments[label]) for label in set(program.labels)}
    tensors = np.array([answers[label] for label in program.labels] + [False])
    return program, tensors[program.tensor_of_event]


def _values(cell: Cell) -> dict[str, int]:
    return {**image_values(cell.width, cell.height), "r": cell.rank, "B": cell.batch, "X": cell.text, "N": cell.text}


@cache
def contributions(cell: Cell) -> dict[str, int]:
    """Bytes of the cell's peak by feature, batch or no batch the same. They sum to the peak over what was there, without rounding."""
    program, keep = _kept(cell.arch, cell.key, cell.depth)
    values, tensors = _values(cell), program.tensor_of_event
    sizes = np.append(program.sizes(values), 0)[tensors]
    running = np.cumsum(np.where(keep, np.where(program.events == ALLOCATE, sizes, -sizes), 0))
    upto = int(running.argmax()) + 1
    signs = np.where(keep, np.where(program.events == ALLOCATE, 1, -1), 0)[:upto]
    coefficients = signs @ program.coefficients[tensors[:upto]]
    out: dict[str, int] = {}
    for name, coefficient in zip(program.features, coefficients.tolist(), strict=True):
        if coefficient:
            plain = "*".join(factor for factor in name.split("*") if factor != "B") or "1"
            out[plain] = out.get(plain, 0) + coefficient * feature(name, values)
    return out


@cache
def weights_bytes(arch: str, depth: tuple[int, ...]) -> int:
    """A guess at the weights of so many blocks, for planning: the whole model's, in proportion."""
    whole = sum(load_profile(arch).resident("transformer", "bf16"))
    return round(whole * min(1.0, (sum(depth) + SHARED_BLOCKS) / (sum(FAMILIES[arch].depth) + SHARED_BLOCKS)))


def predicted(cell: Cell, start: Sequence[Mapping[str, Any]], expandable: bool = False, torch: str = "") -> tuple[int, int]:
    """(max allocated, max reserved) in bytes of the cell, replayed from the allocator's state at its start (torch's memory snapshot).

    `torch`: the version; "": one like the recorded.
    """
    program, keep = _kept(cell.arch, cell.key, cell.depth)
    allocator = seeded(start, expandable, torch)
    sizes = program.sizes(_values(cell)).tolist()
    keys, events = [], []
    for event, tensor, here in zip(program.events.tolist(), program.tensor_of_event.tolist(), keep.tolist(), strict=True):
        if here:
            keys.append(KEYS_FROM + tensor)
            events.append(sizes[tensor] if event == ALLOCATE else FREE)
    allocator.run(keys, events)
    return allocator.peak_allocated_bytes, allocator.peak_reserved_bytes


def seeded(start: Sequence[Mapping[str, Any]], expandable: bool, torch: str = "") -> Allocator:
    """The allocator as it stood; with expandable segments, whose places are not kept, with the same live blocks."""
    allocator = Allocator(expandable_segments=True) if expandable else Allocator(downwards=ties_by_address(torch))
    live = [block for segment in start for block in segment["blocks"] if block[3] == LIVE_BLOCK]
    if expandable:
        allocator.run([address for address, *_ in live], [size for _, size, *_ in live])
    else:
        allocator.seed(start if ties_by_address(torch) else by_age(start))
    allocator.reset_peaks()
    return allocator


def by_age(segments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Segments laid upwards by age. A snapshot does not tell it; drivers lay each below the last (estimator.allocator)."""
    out, at = [], FIRST_SEGMENT
    for segment in sorted(segments, key=lambda one: int(one["address"]), reverse=True):
        up = at - int(segment["address"])
        out.append({**segment, "address": at, "blocks": [[address + up, *rest] for address, *rest in segment["blocks"]]})
        at += int(segment["total_size"])
    return out


def segments_of(snapshot: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """torch.cuda.memory_snapshot() in the form that the replay starts from. Free blocks beside each other are one."""
    out = []
    for segment in snapshot:
        blocks: list[list[Any]] = []
        address = segment["address"]
        for block in segment["blocks"]:
            live = block["state"] != FREE_BLOCK
            if blocks and not live and blocks[-1][3] == FREE_BLOCK:
                blocks[-1][1] += block["size"]
            else:
                blocks.append([address, block["size"], block["size"] if live else 0, LIVE_BLOCK if live else FREE_BLOCK])
            address += block["size"]
        kind = segment["segment_type"]
        out.append({"address": segment["address"], "total_size": segment["total_size"], "type": kind, "blocks": blocks})
    return out


@cache
def whole_bytes(cell: Cell) -> int:
    """What the step allocates at full depth by its peak rows, weights included: to carry a shallow cell's difference over."""
    profile, values = load_profile(cell.arch), _values(cell)
    weights = sum(map(rounded, profile.resident("transformer", "bf16"))) + cell.rank * sum(profile.adapter)
    return weights + profile.program(cell.key).peak(values)[0]


def whole_activations_bytes(cell: Cell) -> int:
    """The part of it that the step itself allocates."""
    return load_profile(cell.arch).program(cell.key).peak(_values(cell))[0]
