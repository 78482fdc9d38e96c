"""Peak rows of a program with offloaded layers, without making it: for peaks of many percentages at once (planning, `--fast`).

Of the base's allocations those are looked at that come near the highest somewhere, with no layer offloaded or with all: the running total
there, with inputs that are kept longer, rebuilt weights that are not there, and what lies in the slots. Copies at their own moment are not
looked at: a lower bound of the program's peak, as all peak rows are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from estimator.arrays import Bools, among, distinct
from estimator.features import Ints
from estimator.footprint import PeakRow
from estimator.layer_calls import NONE, STAYS, Uses
from estimator.offload import BACKWARD, CODES_TO_WEIGHT, FORWARD, SLOTS, WRAPPED
from estimator.offload_programs import Offloaded
from estimator.program import ALLOCATE, EMPTY_CACHE, Program
from estimator.workloads import points_of

NEAR = 24  # of the highest allocations at each workload
STRETCH = 64  # allocations that are looked at as one, to find those
WORKLOADS = {"B": (1, 4), "T": (256, 1024, 4096, 9216), "X": (64, 512), "r": (8, 64)}


class Outline:
    """What is the same for every choice of layers: the base's candidates, and each call's effect on them."""

    def __init__(self, base: Program, uses: Uses, what: Offloaded) -> None:
        self.base, self.uses = base, uses
        self.deaths = base.deaths
        self.dropped, self.of_layer = self._rebuilt(what)
        self.points = points_of(base.features, WORKLOADS)
        tops = _tops(base)
        totals = _totals(base, tops)
        near: set[int] = set()
        for each in (totals, totals + self._longer(_bouncing(what)[self.uses.layer], tops)):
            values = self.points.T @ each
            near |= {place for row in values for place in _highest(row).tolist()}
        places = np.array(sorted(near), dtype=np.int64)
        self.at, self.totals = tops[places], totals[:, places].T

    def _longer(self, which: Bools, tops: Ints) -> npt.NDArray[np.float64]:
        """[feature, top]: what inputs add there that are kept longer for all these calls."""
        rows, (tensor, start, end) = self.base.coefficients, self._kept(which)
        added = np.zeros((len(self.base.features), len(tops)))
        for feature in np.flatnonzero(rows[tensor].any(axis=0)).tolist():
            added[feature] = self._between(start, end, rows[tensor, feature])[tops]
        return added

    def _between(self, starts: Ints, ends: Ints, sizes: Ints) -> npt.NDArray[np.float64]:
        """Of each allocation the bytes of what lies between its start and its end then."""
        count = len(self.deaths) + 1
        return np.cumsum(np.bincount(starts, sizes, count) - np.bincount(ends, sizes, count))

    def _rebuilt(self, what: Offloaded) -> tuple[Ints, Ints]:
        """Tensors of weights that float8 layers rebuild, and the layer of each."""
        constant, uses = self.base.constants, self.uses
        weights = np.array([CODES_TO_WEIGHT * layer.sizes[0] if layer.what == WRAPPED else NONE for layer in what.resident], dtype=np.int64)
        calls = np.flatnonzero(weights[uses.layer] != NONE)
        lengths = uses.last[calls] - uses.first[calls]
        whose = np.repeat(calls, lengths)
        tensors = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + uses.first[whose]
        found = (constant[tensors] == weights[uses.layer[whose]]) & (tensors != uses.output[whose])
        return tensors[found], uses.layer[whose[found]]

    def _kept(self, which: Bools) -> tuple[Ints, Ints, Ints]:
        """Inputs of these calls that are kept longer: tensor, the allocation before which the base frees it, the one until which it is
        kept."""
        uses, stays = self.uses, len(self.deaths)
        kept = which & (uses.input != NONE) & (uses.until != NONE)
        until = np.zeros(stays, dtype=np.int64)
        np.maximum.at(until, uses.input[kept], np.where(uses.until[kept] == STAYS, stays, uses.until[kept]))
        tensors = np.flatnonzero(until > self.deaths)
        return tensors, self.deaths[tensors], until[tensors]

    def program(self, what: Offloaded) -> Program:
        """The base with the peak rows of this choice; events are not changed."""
        base, at = self.base, self.at
        taken = np.array(sorted(what.taken), dtype=np.int64)
        used, bounces = among(self.uses.layer, taken), _bouncing(what)[self.uses.layer]
        totals, one = self.totals + self._longer(used & bounces, at).T, base.features.index("1")
        other = any(layer.what != WRAPPED for layer in what.layers[:1]) or what.layers is not what.resident
        gone = self.dropped if other else self.dropped[among(self.of_layer, taken)]
        totals[:, one] -= self._between(gone, self.deaths[gone], base.constants[gone])[at]
        totals[:, one] += self._slots(what, used, bounces)
        keep = ~among(at, gone)
        totals, at = totals[keep], at[keep]
        best = distinct((totals @ self.points).argmax(axis=0)) if len(at) else []
        rows = tuple(PeakRow(tuple(map(int, totals[n])), base.moments[base.labels[int(at[n])]]) for n in best)
        return base.with_peaks(rows, dict.fromkeys((FORWARD, BACKWARD), int(np.count_nonzero(used))))

    def _slots(self, what: Offloaded, used: Bools, bounces: Bools) -> Ints:
        """Bytes in the slots at each candidate: the last copies of each ring."""
        uses, copied = self.uses, [layer.copied for layer in what.layers]
        weights, biases = (np.array([sum(sizes) for sizes in side], dtype=np.int64)[uses.layer] for side in zip(*copied, strict=True))
        again = used & bounces & (uses.until != NONE) & (uses.backward != NONE)
        return self._last(uses.first[used], (weights + biases)[used]) + self._last(uses.backward[again], weights[again])

    def _last(self, places: Ints, sizes: Ints) -> Ints:
        """Of what is copied at these places the bytes of the last ones at each candidate."""
        order = np.lexsort((sizes, places))
        sums = np.append(0, np.cumsum(sizes[order]))
        made = np.searchsorted(places[order], self.at, side="right")
        last: Ints = sums[made] - sums[np.maximum(made - SLOTS, 0)]
        return last


def _bouncing(what: Offloaded) -> Bools:
    """Of each layer whether its weights are copied again for its backward pass."""
    return np.array([layer.bounces for layer in what.layers], dtype=np.bool_)


def _tops(base: Program) -> Ints:
    """Allocations behind which something is freed, or nothing follows: any other is below the next one."""
    births = base.events == ALLOCATE
    tops: Ints = np.flatnonzero(~np.append(births[1:], False)[births])
    return tops


def _totals(base: Program, tops: Ints) -> npt.NDArray[np.float64]:
    """[feature, top]: what is there when it has been made. One feature after the other: what is in the processor's cache is added up
    several times as fast."""
    births, tensors = base.events == ALLOCATE, base.tensor_of_event
    own = len(base.names) - base.imports
    freed = tensors[~births & (base.events != EMPTY_CACHE)]
    gone = np.cumsum(~births & (base.events != EMPTY_CACHE))[births][tops]  # how many are freed before each
    totals = np.empty((len(base.features), len(tops)))  # whole numbers below 2**53
    for row, sizes in zip(totals, np.ascontiguousarray(base.coefficients.T), strict=True):
        row[:] = np.cumsum(sizes[:own])[tops] - np.append(0, np.cumsum(sizes[freed]))[gone]
    return totals


def _highest(row: npt.NDArray[np.float64]) -> Ints:
    """Places of the NEAR highest, of which none is below the NEAR-th of what the stretches have as their highest: few are sorted."""
    stretches = row[: len(row) // STRETCH * STRETCH].reshape(-1, STRETCH).max(axis=1)
    if len(stretches) < NEAR:
        return np.argpartition(row, -min(NEAR, len(row)))[-NEAR:]
    found = np.flatnonzero(row >= np.partition(stretches, -NEAR)[-NEAR])
    highest: Ints = found[np.argpartition(row[found], -NEAR)[-NEAR:]]
    return highest
