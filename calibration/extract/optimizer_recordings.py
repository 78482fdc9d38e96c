"""Recorded steps of an optimizer, read back: tensors numbered, events placed by stretch, iteration and operation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from calibration.extract.align import WORKSPACE_BYTES
from estimator.optimizer_rules import Shape


@dataclass
class Zone:
    """Events at one place of one iteration: ("a", tensor number) or ("f", tensor number)."""

    key: tuple[int, str]
    iteration: int
    events: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Stage:
    """One step (or the constructor) of one recorded list."""

    zones: list[Zone]
    gradients: dict[int, int]


@dataclass
class Recording:
    shapes: list[Shape]
    sizes: dict[int, int]
    stages: dict[str, Stage]


def read(run: dict[str, Any]) -> Recording:
    """Number the tensors and place the events. Parameters, cuBLAS workspaces and the making of gradients are left out."""
    live: dict[int, int] = {}
    sequence: list[tuple[str, int] | None] = []
    sizes: dict[int, int] = {}
    parameters, addresses = set(run["parameters"]), {}
    for number, (action, address, size) in enumerate(run["events"]):
        if action == "a":
            live[address], sizes[number] = number, size
            addresses[number] = address
            sequence.append(("a", number))
        else:
            known = live.pop(address, None)
            sequence.append(None if known is None else ("f", known))
    own = {n for n, address in addresses.items() if address in parameters and n in live.values()}
    skipped = own | {n for n, size in sizes.items() if size == WORKSPACE_BYTES and n in live.values()}
    stages = {}
    for name, rows in run["stages"].items():
        zones, gradients = _zones(rows, sequence, run["start"], skipped), {}
        wanted = run["gradients"].get(name)
        if wanted:
            gradients = _gradients(rows, sequence, addresses, wanted, run["start"])
        stages[name] = Stage(zones, gradients)
    return Recording([tuple(s) for s in run["shapes"]], sizes, stages)  # type: ignore[misc]


def _gradients(rows: list[Any], sequence: list[Any], addresses: dict[int, int], wanted: list[int], start: int) -> dict[int, int]:
    """Tensor -> parameter: the last tensors at the gradients' addresses, made before the step or inside it (stretch -1)."""
    out: dict[int, int] = {}
    places = {address: k for k, address in enumerate(wanted)}
    inside = [n for a, b in pairwise(rows) if a[0] == -1 for n in range(a[5] - start, b[5] - start)]
    before = range(rows[0][5] - start - 1, -1, -1)
    for place in [*inside, *before]:
        event = sequence[place]
        if event and event[0] == "a" and addresses[event[1]] in places and places[addresses[event[1]]] not in out.values():
            out[event[1]] = places[addresses[event[1]]]
            if len(out) == len(wanted):
                break
    if inside:  # a fused optimizer's: an address serves many gradients, in order
        made = [sequence[n][1] for n in inside if sequence[n] and sequence[n][0] == "a"]
        out = {tensor: k for k, tensor in enumerate(made)}
    return out


def _zones(rows: list[Any], sequence: list[Any], start: int, skipped: set[int]) -> list[Zone]:
    zones: list[Zone] = []
    counts: Counter[str] = Counter()
    place: tuple[int, int] | None = None
    current = ""
    for row, following in pairwise(rows):
        stretch, iteration, _, zone, name, at = row
        if stretch == -1:
            continue
        if (stretch, iteration) != place:
            place, counts, current = (stretch, iteration), Counter(), "begin"
        if zone == "in":
            current = f"{name.removeprefix('aten.').removesuffix('.default')}#{counts[name]}"
            counts[name] += 1
        key = current if zone == "in" else current + ", after"
        events = [sequence[n] for n in range(at - start, following[5] - start)]
        events = [e for e in events if e is not None and e[1] not in skipped]
        if zones and zones[-1].key == (stretch, key) and zones[-1].iteration == iteration:
            zones[-1].events += events
        else:
            zones.append(Zone((stretch, key), iteration, events))
    return zones


def by_slot(tensors: Iterable[tuple[str, int, int]]) -> dict[str, dict[int, int]]:
    """Slot, parameter and bytes of tensors, as a table."""
    out: dict[str, dict[int, int]] = defaultdict(dict)
    for slot, k, size in tensors:
        out[slot][k] = size
    return out


def replaced(gone: Mapping[str, Mapping[int, int]], anew: Mapping[str, Mapping[int, int]], known: Mapping[str, str]) -> dict[str, str]:
    """Slots of the first step -> those that later steps put in their place, where the second step does something else besides (automagic
    brings its state to another type), so that places do not match: they have the same sizes. `gone`: what the second step lets go, `anew`:
    what each later one makes and the next lets go; bytes by slot and parameter."""
    out = dict[str, str]()
    waiting = {slot: sizes for slot, sizes in anew.items() if slot not in {*known.values(), *gone}}
    for slot, sizes in gone.items():
        alike = [other for other, others in waiting.items() if others == sizes]
        if slot not in known and slot not in anew and len(alike) == 1:
            out[slot] = alike[0]
    return out


def bursts(events: list[Any]) -> list[list[Any]]:
    """Allocations one by one; frees in a row together, whatever their order. Parameters of slots made once do not count."""
    out: list[list[Any]] = []
    for kind, slot, k, size in events:
        if kind == "f" and out and out[-1][0][0] == "f":
            out[-1] = sorted([*out[-1], (kind, slot, k, size)])
        else:
            out.append([(kind, slot, k, size)])
    return out


def merged(known: list[Any], new: list[Any]) -> list[Any]:
    """Both sequences in one: what is new comes after what it follows."""
    if not known:
        return list(new)
    out, at = list(known), 0
    for item in new:
        if item in out:
            at = out.index(item) + 1
        else:
            out.insert(at, item)
            at += 1
    return out
