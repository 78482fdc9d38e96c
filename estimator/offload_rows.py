"""Peak rows of a program with offloaded layers, without making it: for peaks of many percentages at once (planning, `--fast`).

Of the base's allocations those are looked at that come near the highest somewhere, with no layer offloaded or with all: the running total
there, with inputs that are kept longer, rebuilt weights that are not there, and what lies in the slots. Copies at their own moment are not
looked at: a lower bound of the program's peak, as all peak rows are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from estimator.arrays import among, distinct
from estimator.features import Ints
from estimator.offload import BACKWARD, CODES_TO_WEIGHT, FORWARD, SLOTS, WRAPPED
from estimator.offload_programs import NONE, STAYS, Call, Offloaded
from estimator.program import ALLOCATE, EMPTY_CACHE, PeakRow, Program, points_of

NEAR = 24  # of the highest allocations at each workload
STRETCH = 64  # allocations that are looked at as one, to find those
WORKLOADS = {"B": (1, 4), "T": (256, 1024, 4096, 9216), "X": (64, 512), "r": (8, 64)}


class Outline:
    """What is the same for every choice of layers: the base's candidates, and each call's effect on them."""

    def __init__(self, base: Program, calls: Sequence[Call], what: Offloaded) -> None:
        self.base, self.calls = base, calls
        own = len(base.names) - base.imports
        events, tensors = base.events, base.tensor_of_event
        births = np.flatnonzero(events == ALLOCATE)
        signs = np.where(events == ALLOCATE, 1, np.where(events == EMPTY_CACHE, 0, -1))
        one = np.vstack([base.coefficients, np.zeros((1, len(base.features)), dtype=np.int64)])
        totals = np.cumsum(one[tensors] * signs[:, None], axis=0)[births]
        self.deaths = base.deaths
        self.dropped, self.of_layer = self._rebuilt(what)
        self.points = points_of(base.features, WORKLOADS)
        longer = np.zeros((own + 2, len(base.features)), dtype=np.int64)
        tensor, start, end = self._kept([c for c in calls if what.layers[c.layer].bounces])
        np.add.at(longer, start, base.coefficients[tensor])
        np.add.at(longer, end, -base.coefficients[tensor])
        near: set[int] = set()
        for each in (totals, totals + np.cumsum(longer, axis=0)[:own]):
            values = self.points.T @ each.T.astype(np.float64)  # each workload's in a row: found five times as fast
            near |= {place for row in values for place in _highest(row).tolist()}
        self.at = np.array(sorted(near), dtype=np.int64)
        self.totals = totals[self.at]

    def _rebuilt(self, what: Offloaded) -> tuple[Ints, Ints]:
        """Tensors of weights that float8 layers rebuild, and the layer of each."""
        constant = self.base.constants.tolist()
        found, layers = [], []
        for call in self.calls:
            layer = what.resident[call.layer]
            if layer.what == WRAPPED:
                weight = CODES_TO_WEIGHT * layer.sizes[0]
                mine = [k for k in range(call.first, call.last) if k != call.output and constant[k] == weight]
                found += mine
                layers += [call.layer] * len(mine)
        return np.array(found, dtype=np.int64), np.array(layers, dtype=np.int64)

    def _kept(self, calls: Sequence[Call]) -> tuple[Ints, Ints, Ints]:
        """Inputs that are kept longer: tensor, the allocation before which the base frees it, the one until which it is kept."""
        own, until = len(self.deaths) - 1, dict[int, int]()
        for call in calls:
            if call.input != NONE and call.until != NONE:
                until[call.input] = max(until.get(call.input, 0), own + 1 if call.until == STAYS else call.until)
        rows = [(k, int(self.deaths[k]), end) for k, end in until.items() if end > self.deaths[k]]
        tensor, start, end = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        return tensor, start, end

    def program(self, what: Offloaded) -> Program:
        """The base with the peak rows of this choice; events are not changed."""
        base, at = self.base, self.at
        taken = np.array(sorted(what.taken), dtype=np.int64)
        used = [c for c in self.calls if c.layer in what.taken]
        tensor, start, end = self._kept([c for c in used if what.layers[c.layer].bounces])
        there = (at[:, None] >= start) & (at[:, None] < end)
        totals = self.totals + there.astype(np.int64) @ base.coefficients[tensor]
        other = any(layer.what != WRAPPED for layer in what.layers[:1]) or what.layers is not what.resident
        gone = self.dropped if other else self.dropped[among(self.of_layer, taken)]
        lives = (at[:, None] >= gone) & (at[:, None] < self.deaths[gone])
        totals = totals - lives.astype(np.int64) @ base.coefficients[gone]
        totals[:, base.features.index("1")] += self._slots(what, used)
        keep = ~among(at, gone)
        values = totals[keep].astype(np.float64) @ self.points
        moments, labels, best = base.moments, base.labels, distinct(values.argmax(axis=0)) if keep.any() else []
        rows = tuple(PeakRow(tuple(totals[keep][n].tolist()), moments[labels[int(at[keep][n])]]) for n in best)
        copies = {FORWARD: len(used), BACKWARD: len(used)}
        return base.with_peaks(rows, copies)

    def _slots(self, what: Offloaded, used: Sequence[Call]) -> Ints:
        """Bytes in the slots at each candidate: the last copies of each ring."""
        out = np.zeros(len(self.at), dtype=np.int64)
        for ring in (FORWARD, BACKWARD):
            rows = []
            for call in used:
                weight, bias = what.layers[call.layer].copied
                place = call.first if ring == FORWARD else call.backward
                if ring == FORWARD or (what.layers[call.layer].bounces and call.until != NONE and place != NONE):
                    rows.append((place, sum(weight) + (sum(bias) if ring == FORWARD else 0)))
            if rows:
                rows.sort()
                places, sizes = np.array(rows, dtype=np.int64).T
                sums = np.append(0, np.cumsum(sizes))
                made = np.searchsorted(places, self.at, side="right")
                out += sums[made] - sums[np.maximum(made - SLOTS, 0)]
        return out


def _highest(row: npt.NDArray[np.float64]) -> Ints:
    """Places of the NEAR highest, of which none is below the NEAR-th of what the stretches have as their highest: few are sorted."""
    stretches = row[: len(row) // STRETCH * STRETCH].reshape(-1, STRETCH).max(axis=1)
    if len(stretches) < NEAR:
        return np.argpartition(row, -min(NEAR, len(row)))[-NEAR:]
    found = np.flatnonzero(row >= np.partition(stretches, -NEAR)[-NEAR])
    highest: Ints = found[np.argpartition(row[found], -NEAR)[-NEAR:]]
    return highest
