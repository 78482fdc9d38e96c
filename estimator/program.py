"""One part's memory program: events in order, sizes affine in a few features."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np

from estimator.arrays import Bools, distinct
from estimator.features import Ints, feature
from estimator.footprint import PeakRow, Rows, highest
from estimator.workloads import DOMAIN, FACTORED, points_of

ALLOCATE, EMPTY_CACHE, FIRST_IMPORT = 0, -1, -2


@dataclass(frozen=True)
class Program:
    """One part. `labels`: for each tensor the row of `moments` that says where it was made.

    `workspace_at`: {thread: event} where cuBLAS's workspace of that thread is made, if it is not there yet. `streams`: of each tensor
    (None: all on the default stream); `copies`: layers that it copies in, by ring (estimator.offload_programs).
    """

    key: str
    features: tuple[str, ...]
    coefficients: Ints
    labels: tuple[int, ...]
    moments: list[str]
    names: tuple[str | None, ...]
    events: Ints
    imports: int
    peaks: tuple[PeakRow, ...]
    workspace_at: Mapping[str, int]
    streams: Ints | None = field(default=None, kw_only=True)
    copies: Mapping[str, int] = field(default_factory=dict, kw_only=True)

    def sizes(self, values: Mapping[str, int]) -> Ints:
        """Bytes of each tensor as requested, for the variables `values` (see estimator.features). Never negative."""
        row = np.array([feature(name, values) for name in self.features], dtype=np.int64)
        sizes: Ints = np.maximum(self.coefficients @ row, 0)
        return sizes

    def once(self, what: object, read: Callable[[Program], Any]) -> Any:
        """What another module reads off this program, which it does once."""
        if what not in self._read:
            self._read[what] = read(self)
        return self._read[what]

    @cached_property
    def _read(self) -> dict[object, Any]:
        return {}

    @cached_property
    def label_rows(self) -> Ints:
        """`labels`, to take many at once."""
        return np.array(self.labels, dtype=np.int64)

    def known(self, **arrays: Ints) -> Self:
        """Itself, of which these properties (label_rows, named) are known already."""
        vars(self).update(arrays)
        return self

    @cached_property
    def named(self) -> Ints:
        """Tensors that have names."""
        return np.array([k for k, name in enumerate(self.names) if name is not None], dtype=np.int64)

    def made_in(self, start: str) -> Bools:
        """Of each tensor whether the moment at which it was made begins so."""
        begins = np.zeros(len(self.moments), dtype=np.bool_)
        begins[[row for row in self.first_at if self.moments[row].startswith(start)]] = True
        return begins[self.label_rows]

    @cached_property
    def tensor_of_event(self) -> Ints:
        """The tensor that each event allocates or frees; -1 for empty_cache."""
        events, births = self.events, self.events == ALLOCATE
        tensors: Ints = np.cumsum(births)
        tensors -= events
        tensors -= births
        others = np.flatnonzero(events < 0)  # few
        codes = events[others]
        tensors[others] = np.where(codes == EMPTY_CACHE, -1, len(self.names) - self.imports + FIRST_IMPORT - codes)
        return tensors

    @cached_property
    def size_of_event(self) -> Ints:
        """Where each event's size stands in the sizes of all tensors and, behind them, what says that a tensor is freed, or the cache."""
        place = np.where(self.events == ALLOCATE, self.tensor_of_event, len(self.names))
        return np.where(self.events == EMPTY_CACHE, len(self.names) + 1, place)

    @cached_property
    def stream_of_event(self) -> Ints | None:
        """Of what each event allocates the stream; None: all on the default one."""
        return None if self.streams is None else self.streams[self.tensor_of_event]

    @cached_property
    def freeing(self) -> Ints:
        """The events that free an import."""
        return np.flatnonzero(self.events <= FIRST_IMPORT)

    @cached_property
    def imported(self) -> tuple[tuple[str, str], ...]:
        """Each import's name and the component in it."""
        names = self.names[len(self.names) - self.imports :] if self.imports else ()
        return tuple((name, name.partition(":")[0]) for name in names if name is not None)

    @cached_property
    def constants(self) -> Ints:
        """Bytes of each tensor whose size depends on nothing; 0 of others."""
        one = self.features.index("1") if "1" in self.features else None
        if one is None:
            return np.zeros(len(self.names), dtype=np.int64)
        there = self.coefficients != 0
        count = there.view(np.uint8) @ np.ones(len(self.features), dtype=np.uint8)  # the quickest way to add up short rows
        return np.where(count == there[:, one], self.coefficients[:, one], 0)

    @cached_property
    def deaths(self) -> Ints:
        """For each tensor the allocation before which it is freed: a number beyond all of them where it stays."""
        own, births = len(self.names) - self.imports, self.events == ALLOCATE
        out = np.full(own + 1, own + 1, dtype=np.int64)
        freed = ~births & (self.tensor_of_event >= 0) & (self.tensor_of_event < own)
        out[self.tensor_of_event[freed]] = np.cumsum(births)[freed]
        return out

    @cached_property
    def first_at(self) -> Mapping[int, int]:
        """For each row of `moments` at which a tensor was made, the first one."""
        rows = self.label_rows
        first = np.full(len(self.moments), len(rows))
        np.minimum.at(first, rows, np.arange(len(rows)))
        used = np.flatnonzero(first < len(rows))
        return dict(zip(used.tolist(), first[used].tolist(), strict=True))

    @cached_property
    def _firsts(self) -> dict[re.Pattern[str], int | None]:
        return {}

    def first_in(self, moments: re.Pattern[str]) -> int | None:
        """The first tensor of those that are made where the pattern is found in the moment's name."""
        if moments not in self._firsts:
            made = (tensor for row, tensor in self.first_at.items() if moments.search(self.moments[row]))
            self._firsts[moments] = min(made, default=None)
        return self._firsts[moments]

    @cached_property
    def forward(self) -> tuple[int, int]:
        """Of a step's core: the tensors that are made first inside the transformer, and first when its forward is over.

        Of a preview: the first of its latents, and the first inside the transformer.
        """
        first = int(np.flatnonzero(self.made_in("transformer"))[0])
        if self.key.startswith("preview"):
            sized = [n for n, name in enumerate(self.features) if not {"T", "Q"}.isdisjoint(name.split("*"))]
            return next(k for k in range(first) if self.coefficients[k, sized].any()), first
        step = np.array([moment == "step" for moment in self.moments])[self.label_rows]
        return first, first + int(np.flatnonzero(step[first:])[0])

    @cached_property
    def latents(self) -> int | None:
        """Of a step's head: the latents, made right after noise of the same size, which the batch keeps. None of other parts."""
        sized = [k for k in self.exported if self.coefficients[k, [name != "1" for name in self.features]].any() and self.names[k] is None]
        alike = [k for first, k in pairwise(sized) if (self.coefficients[first] == self.coefficients[k]).all()]
        return alike[0] if alike and self.key.startswith("step.head") and not self.key.endswith("/first") else None  # pixels of a clip

    @cached_property
    def exported(self) -> tuple[int, ...]:
        """Tensors that outlive the part."""
        stays = np.ones(len(self.names) + 1, dtype=bool)  # the last is that of empty_cache's -1
        stays[self.tensor_of_event[self.events != ALLOCATE]] = False
        return tuple(np.flatnonzero(stays[: len(self.names) - self.imports]).tolist())

    @cached_property
    def kept(self) -> tuple[tuple[str, Ints, tuple[str, ...]], ...]:
        """Tensors that outlive the part, by component ("" for unnamed ones, which have no names here)."""
        return tuple(
            (component, tensors, tuple(name for k in tensors.tolist() if (name := self.names[k]) is not None))
            for component, tensors in self.flows[0].items()
        )

    @cached_property
    def flows(self) -> tuple[dict[str, Ints], dict[str, Ints]]:
        """Tensors that stay, and imports that are freed, by component ("" for unnamed ones)."""
        own = len(self.names) - self.imports
        out: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
        for side, tensors in zip(out, (self.exported, range(own, len(self.names))), strict=True):
            for k in tensors:
                side.setdefault((self.names[k] or "").partition(":")[0], []).append(k)
        stays, freed = ({component: np.array(ks) for component, ks in side.items()} for side in out)
        return stays, freed

    @cached_property
    def rows(self) -> tuple[Rows, Rows]:
        """See `Footprint`."""
        stays, freed = ({component: self.rows_of(tensors) for component, tensors in side.items()} for side in self.flows)
        return stays, freed

    def rows_of(self, tensors: Ints) -> list[tuple[int, dict[str, int]]]:
        """Some tensors as `Rows` has them, in the order in which sizes first come."""
        counts = Counter(map(tuple, self.coefficients[tensors].tolist()))
        return [(count, {f: c for f, c in zip(self.features, row, strict=True) if c}) for row, count in counts.items()]

    def stay_bytes(self, component: str, values: Mapping[str, int]) -> tuple[int, ...]:
        """Bytes of each tensor of a component that outlives the part."""
        return tuple(self.sizes(values)[self.flows[0].get(component, np.array([], dtype=np.int64))].tolist())

    def with_peaks(self, peaks: tuple[PeakRow, ...], copies: Mapping[str, int]) -> Program:
        """The same events with other peak rows: what is read off the events once is read off them for both."""
        other = replace(self, peaks=peaks, copies=copies)
        vars(other).update(tensor_of_event=self.tensor_of_event, exported=self.exported, flows=self.flows)
        return other

    def peak(self, values: Mapping[str, int]) -> tuple[int, str]:
        """See `highest`."""
        return highest(self.peaks, self.features, values)

    def sums(self, values: Mapping[str, int], unit_bytes: int) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes that stay and that are freed, by component, each tensor rounded up to the unit."""
        units = -(-self.sizes(values) // unit_bytes)
        stays, freed = ({component: int(units[tensors].sum()) * unit_bytes for component, tensors in side.items()} for side in self.flows)
        return stays, freed


class EventProgram(Program):
    """A program without peak rows: its peak is found by adding up its events."""

    def peak(self, values: Mapping[str, int]) -> tuple[int, str]:
        sizes = np.append(self.sizes(values), 0)[self.tensor_of_event]
        totals = np.cumsum(np.where(self.events == ALLOCATE, sizes, -sizes))
        if not len(totals) or totals.max() <= 0:
            return 0, ""
        at = int(totals.argmax())
        return int(totals[at]), self.moments[self.labels[int(self.tensor_of_event[at])]]

    @cached_property
    def with_rows(self) -> Program:
        """The same with peak rows, for many workloads at once."""
        own = len(self.names) - self.imports
        peaks = peak_rows(self.features, self.coefficients, self.events, self.labels, self.moments, own)
        return Program(**{each.name: getattr(self, each.name) for each in fields(self)} | {"peaks": peaks})


def left_out(program: Program, key: str, dropped: Collection[int]) -> Program:
    """A program without some of its tensors, as `key`. Only of programs without imports (ValueError)."""
    if program.imports:
        raise ValueError(f"{program.key} frees what others made")
    kept = [k for k in range(len(program.names)) if k not in dropped]
    place, born, codes = {k: n for n, k in enumerate(kept)}, 0, []
    for code, k in zip(program.events.tolist(), program.tensor_of_event.tolist(), strict=True):
        if code != EMPTY_CACHE and k not in place:
            continue
        codes.append(code if code <= ALLOCATE else born - place[k])
        born += code == ALLOCATE
    events, coefficients = np.array(codes, dtype=np.int64), program.coefficients[kept]
    labels = tuple(program.labels[k] for k in kept)
    peaks = peak_rows(program.features, coefficients, events, labels, program.moments, len(kept))
    names = tuple(program.names[k] for k in kept)
    return Program(key, program.features, coefficients, labels, program.moments, names, events, 0, peaks, {})


def peak_rows(
    features: tuple[str, ...], coefficients: Ints, events: Ints, labels: Sequence[int], moments: Sequence[str], own: int
) -> tuple[PeakRow, ...]:
    """Running totals that are the highest at some workload of DOMAIN."""
    born = np.cumsum(events == ALLOCATE)
    if not len(born) or born[-1] == 0:
        return ()
    tensors = np.where(events == ALLOCATE, born - 1, np.where(events > 0, born - events, own + FIRST_IMPORT - events))
    signs = np.where(events == ALLOCATE, 1, np.where(events == EMPTY_CACHE, 0, -1))
    totals = np.cumsum(coefficients[np.where(events == EMPTY_CACHE, 0, tensors)] * signs[:, None], axis=0)
    at = np.flatnonzero(events == ALLOCATE)
    domain = FACTORED if any("kron" in name for name in features) else DOMAIN
    best = distinct((totals[at].astype(np.float64) @ points_of(features, domain)).argmax(axis=0))
    return tuple(PeakRow(tuple(totals[at[n]].tolist()), moments[labels[int(tensors[at[n]])]]) for n in best)
