"""A part's events as the allocator takes them: keys and sizes, and the ledger at one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from estimator import operations as op
from estimator.allocator import EMPTY_CACHE, FREE
from estimator.arrays import among
from estimator.features import Ints
from estimator.program import Program
from estimator.residents import State, adds, component_of, freed_at_once, rounded


@dataclass(frozen=True, slots=True)
class PartRun:
    """`keys` and `events` for `Allocator.run`; own tensors have keys from `base` on. `taken`: key -> component and bytes of each import.

    `absent`: the program's events of imports that are not on the card, which are not among these.
    """

    keys: Ints
    events: Ints
    base: int
    taken: Mapping[int, tuple[str, int]]
    absent: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def place(self, event: int) -> int:
        """Where an event of the program is here, behind all that came before it."""
        return event - int(np.searchsorted(self.absent, event))


def events_of(program: Program, part: op.Part, sizes: Ints, base: int, state: State) -> PartRun:
    """A part's events in this state; its imports are taken off the card's books."""
    keys = program.tensor_of_event + base
    events = np.append(sizes, [FREE, EMPTY_CACHE])[program.size_of_event]
    own, freeing, left_out = len(program.names) - program.imports, program.freeing, np.zeros(0, dtype=np.int64)
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
            left_out = freeing[among(imports, absent)]
            keys, events = np.delete(keys, left_out), np.delete(events, left_out)
    added = [tensors for group, tensors, _ in program.kept if adds(part.accumulate, group)]
    if added:
        doubled = {base + k for k in np.concatenate(added).tolist() if state.holds(program.names[k] or "")}
        keys, events = freed_at_once(keys, events, doubled) if doubled else (keys, events)
    return PartRun(keys, events, base, taken, left_out)


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
