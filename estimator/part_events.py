"""A part's events as the allocator takes them: keys and sizes, and the ledger at one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from estimator import operations as op
from estimator.allocator import EMPTY_CACHE, FREE, NOTHING
from estimator.arrays import among
from estimator.features import Ints
from estimator.program import Program
from estimator.residents import State, adds, component_of, rounded

KEPT = 8  # workloads of a program: as many buckets as most jobs have


@dataclass(frozen=True, slots=True)
class PartRun:
    """`keys`, `events` and `streams` for `Allocator.run_streams`; own tensors have keys from `base` on. `taken`: key -> component and bytes
    of each import. Events of imports that are not on the card are NOTHING."""

    keys: Ints
    events: Ints
    base: int
    taken: Mapping[int, tuple[str, int]]
    streams: Ints | None = None

    def inserting(self, at: int | Sequence[int] | Ints, keys: int | Sequence[int] | Ints, events: int | Sequence[int] | Ints) -> PartRun:
        """With further events before these places, on the default stream."""
        streams = None if self.streams is None else np.insert(self.streams, at, 0)
        return replace(self, keys=np.insert(self.keys, at, keys), events=np.insert(self.events, at, events), streams=streams)


def requests(program: Program, values: Mapping[str, int], without: Sequence[int] = ()) -> tuple[Ints, Ints]:
    """Bytes of each tensor, and each event's as the allocator takes it. `without`: tensors that are made elsewhere, of no bytes here.

    The last answers are kept with the program, as a replay's steps ask for the same few again and again: not to be changed.
    """
    kept, asked = program.once(requests, _none_yet), (frozenset(values.items()), bool(without))
    if asked not in kept:
        if len(kept) == KEPT:
            kept.pop(next(iter(kept)))
        sizes = program.sizes(values)
        if without:
            sizes = sizes.copy()
            sizes[list(without)] = 0
        kept[asked] = sizes, np.append(sizes, [FREE, EMPTY_CACHE])[program.size_of_event]
    found: tuple[Ints, Ints] = kept[asked]
    return found


def _none_yet(_: Program) -> dict[tuple[frozenset[tuple[str, int]], bool], tuple[Ints, Ints]]:
    return {}


def events_of(program: Program, part: op.Part, events: Ints, base: int, state: State) -> PartRun:
    """A part's events in this state; its imports are taken off the card's books. `events`: see `requests`."""
    keys = program.tensor_of_event + base
    own, freeing = len(program.names) - program.imports, program.freeing
    taken: dict[int, tuple[str, int]] = {}
    real, absent = np.arange(program.imports) + base + own, list[int]()
    for k, (name, group) in enumerate(program.imported):  # whatever of this name is on the card
        held = state.named.get(group, {}).pop(name, None)
        if held is None:
            absent.append(k)
            continue
        key, size = held
        real[k] = key
        taken[key] = component_of(name, part.key), size
        state.count(taken[key][0], -size)
    if program.imports:
        imports = program.tensor_of_event[freeing] - own
        keys[freeing] = real[imports]
        if absent:
            events = events.copy()
            events[freeing[among(imports, absent)]] = NOTHING
    added = [tensors for group, tensors, _ in program.kept if adds(part.accumulate, group)]
    run = PartRun(keys, events, base, taken, program.stream_of_event)
    if added:  # gradients that are added to existing ones are freed right after they were made
        doubled = {base + k for k in np.concatenate(added).tolist() if state.holds(program.names[k] or "")}
        where = np.flatnonzero(among(keys, doubled) & (events >= 0))
        run = run.inserting(where + 1, keys[where], FREE) if len(where) else run
    return run


def ledger_at(program: Program, key: str, sizes: Ints, before: Mapping[str, int], run: PartRun, at: int) -> dict[str, int]:
    """Bytes of each component at an event: what was there `before` the part, and what it had allocated and freed by then."""
    ledger = dict(before)
    seen, kinds = run.keys[: at + 1], run.events[: at + 1]
    own = (seen >= run.base) & (seen < run.base + len(program.names))
    live = np.zeros(len(program.names), dtype=bool)
    live[seen[own & (kinds >= 0)] - run.base] = True
    live[seen[own & (kinds == FREE)] - run.base] = False
    for k in np.flatnonzero(live).tolist():
        component = component_of(program.names[k], key)
        ledger[component] = ledger.get(component, 0) + rounded(int(sizes[k]))
    for freed in seen[~own & (kinds == FREE)].tolist():
        component, size = run.taken.get(freed, (component_of(None, key), 0))  # what was laid in, and has passed: nothing
        ledger[component] = ledger.get(component, 0) - size
    return ledger
