"""A recorded program with other tensors laid in where an adapter's were: what is made and freed where, and the events written anew."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from estimator.adapter_sites import Tape, sites
from estimator.features import Ints
from estimator.program import ALLOCATE, EMPTY_CACHE, Program, peak_rows
from estimator.rewriting import widened, written

BEFORE, THERE, BEHIND = -1, 0, 1  # just before an event of the base, itself, and behind it
Place = tuple[int, int, int]  # an event of the base, BEFORE | THERE | BEHIND, and the turn among those that are laid there
CONSTANT, RANK = "1", "r"
# Of the second probe job of each kind of weights, which has cached prompts and low_vram (calibration.probes.RANKS)
RECORDED_RANK = 24


class Laid:
    """Tensors that a base has not, and where they are made and freed; those of its own that are gone, or live until elsewhere."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.gone: set[int] = set()
        self.ends: dict[int, Place] = {}
        self.names: dict[int, str | None] = {}
        self._sizes: list[Mapping[str, int]] = []
        self._like: list[int] = []
        self._events: list[tuple[Place, int, bool]] = []
        self._turn = 0

    def before(self, event: int) -> Place:
        """The next place before an event of the base."""
        self._turn += 1
        return event, BEFORE, self._turn

    def behind(self, event: int) -> Place:
        """The next place behind an event of the base."""
        self._turn += 1
        return event, BEHIND, self._turn

    def make(self, place: Place, size: Mapping[str, int], like: int) -> int:
        """A further tensor: its bytes by feature, and one of the base's that is made at the same moment. Returns its number."""
        tensor = len(self.tape.base.names) + len(self._sizes)
        self._sizes.append(size)
        self._like.append(like)
        self._events.append((place, tensor, True))
        return tensor

    def free(self, place: Place, tensor: int) -> None:
        """Of a further tensor."""
        self._events.append((place, tensor, False))

    def keep(self, tensor: int, place: Place) -> None:
        """One of the base's lives on until a place, if it does not live longer."""
        died = self.tape.died[tensor]
        if died is not None and (here := max(self.ends.get(tensor, (died, THERE, 0)), place)) != (died, THERE, 0):
            self.ends[tensor] = here

    def program(self, place_of: Callable[[int], Place], ranked: bool = True) -> Program:
        """The program. `place_of`: an event of the base -> where what comes before it is now; `ranked`: sizes may depend on the rank."""
        base = self.tape.base
        rows = list(self._events)
        for place, (code, k) in enumerate(zip(base.events.tolist(), base.tensor_of_event.tolist(), strict=True)):
            if code == EMPTY_CACHE or (k not in self.gone and (code == ALLOCATE or k not in self.ends)):
                rows.append(((place, THERE, 0), -1 if code == EMPTY_CACHE else k, code == ALLOCATE))
        rows += [(place, k, False) for k, place in self.ends.items() if k not in self.gone]
        rows.sort(key=lambda row: row[0])
        tensors, births = np.array([k for _, k, _ in rows], dtype=np.int64), np.array([born for *_, born in rows], dtype=bool)
        features, sizes = self._table(ranked)
        made = written(base, base.key, (tensors, births), (features, sizes), self._like)
        order = tensors[births].tolist()
        names = tuple(self.names.get(k, base.names[k] if k < len(base.names) else None) for k in order) + made.names[len(order) :]
        places = [place for place, *_ in rows]
        workspace = {thread: bisect_left(places, place_of(at)) for thread, at in base.workspace_at.items()}
        used = np.flatnonzero(made.coefficients.any(axis=0))
        features, coefficients = tuple(features[c] for c in used), made.coefficients[:, used]
        peaks = peak_rows(features, coefficients, made.events, made.labels, base.moments, len(order))
        return replace(made, features=features, coefficients=coefficients, names=names, peaks=peaks, workspace_at=workspace)

    def _table(self, ranked: bool) -> tuple[tuple[str, ...], Ints]:
        """Features, and the bytes of all tensors over them."""
        base, count = self.tape.base, len(self.tape.base.names)
        features = tuple(dict.fromkeys((*base.features, CONSTANT, *(name for size in self._sizes for name in size))))
        place = {name: c for c, name in enumerate(features)}
        wide = np.zeros((count + len(self._sizes), len(features)), dtype=np.int64)
        wide[:count, : len(base.features)] = base.coefficients
        for k, size in enumerate(self._sizes, count):
            for name, value in size.items():
                wide[k, place[name]] = value
        if not ranked and RANK in place:  # of no adapter: taken for proportional to the one rank that it was recorded at
            wide[:, place[CONSTANT]] += RECORDED_RANK * wide[:, place[RANK]]
            wide[:, place[RANK]] = 0
        return features, wide


def of_rank(base: Program) -> Program:
    """A preview, which was recorded at one rank: what was taken for proportional to it and is not what the first matrix makes, is of one
    size."""
    if RANK not in base.features:
        return base
    features = base.features if CONSTANT in base.features else (*base.features, CONSTANT)
    wide = widened(base, features, 0)
    rank, constant = features.index(RANK), features.index(CONSTANT)
    other = np.ones(len(wide), dtype=bool)
    other[[site.between[1] for site in sites(Tape(base))]] = False
    wide[other, constant] += RECORDED_RANK * wide[other, rank]
    wide[other, rank] = 0
    return replace(base, features=features, coefficients=wide)
