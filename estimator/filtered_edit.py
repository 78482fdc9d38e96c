"""A recorded program edited: tensors that are gone, lives that end elsewhere, and the events written anew."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from estimator.adapter_sites import Returned, Site, Tape, never
from estimator.features import Ints
from estimator.program import ALLOCATE, EMPTY_CACHE, FIRST_IMPORT, Program, peak_rows

AFTER = 1  # behind an event of the base: where frees come that the base has not there
OF_LAYERS = ("adapter", "gradient", "ema", "ema_copy")  # components with two tensors for each layer


@dataclass
class Edit:
    """What becomes of a tape: tensors that are gone, and other ends of lives: (place, 0 or AFTER)."""

    tape: Tape
    gone: set[int] = field(default_factory=set)
    ends: dict[int, tuple[int, int]] = field(default_factory=dict)

    def end_of(self, k: int) -> tuple[int, int] | None:
        died = self.tape.died[k]
        return self.ends.get(k, None if died is None else (died, 0))

    def without_adapter(self, site: Site) -> None:
        """The layer's own result is what the sum was."""
        self.gone |= {*site.between, site.total}
        end = self.end_of(site.total)
        if end is not None:
            self.ends[site.result] = end

    def without_gradients(self, back: Returned) -> None:
        """The layer's own gradient of its input is what the adapter's was."""
        self.gone |= set(back.tensors)
        if back.passed is None or self.tape.at_once(back.passed):
            return
        if back.own is None or not self.tape.at_once(back.own):
            raise never(back.layer)
        end = self.end_of(back.passed)
        if end is not None:
            self.ends[back.own] = end

    def program(self, names: Sequence[str | None]) -> Program:
        """The edited program. `names`: of all tensors, imports too; imports without a name are gone."""
        base, tape = self.tape.base, self.tape
        moved = set(self.ends)
        rows: list[tuple[int, int, int, int]] = []  # place, AFTER, order, tensor (EMPTY_CACHE: none)
        for place, (code, k) in enumerate(zip(base.events.tolist(), base.tensor_of_event.tolist(), strict=True)):
            if code == EMPTY_CACHE:
                rows.append((place, 0, 0, EMPTY_CACHE))
            elif k >= tape.own:
                if names[k] is not None:
                    rows.append((place, 0, 0, k))
            elif k not in self.gone and (code == ALLOCATE or k not in moved):
                rows.append((place, 0, code == ALLOCATE, k))
        rows += [(place, after, 0, k) for k, (place, after) in self.ends.items() if k not in self.gone]
        rows.sort(key=lambda row: (row[0], row[1]))
        return _coded(base, rows, names)


def _coded(base: Program, rows: list[tuple[int, int, int, int]], names: Sequence[str | None]) -> Program:
    own = len(base.names) - base.imports
    imports = [k for k in range(own, len(base.names)) if names[k] is not None]
    number = {k: n for n, k in enumerate(imports)}
    place_of: dict[int, int] = {}
    events = []
    for _, _, born, k in rows:
        if k == EMPTY_CACHE:
            events.append(EMPTY_CACHE)
        elif k >= own:
            events.append(FIRST_IMPORT - number[k])
        elif born:
            place_of[k] = len(place_of)
            events.append(ALLOCATE)
        else:
            events.append(len(place_of) - place_of[k])
    order = [*place_of, *imports]
    coefficients = base.coefficients[order] if order else base.coefficients[:0]
    labels = tuple(base.labels[k] for k in order)
    coded: Ints = np.array(events, dtype=np.int64)
    peaks = peak_rows(base.features, coefficients, coded, labels, base.moments, len(place_of))
    left = tuple(names[k] for k in order)
    places = [place for place, *_ in rows]
    workspace = {thread: bisect_left(places, place) for thread, place in base.workspace_at.items()}
    return Program(base.key, base.features, coefficients, labels, base.moments, left, coded, len(imports), peaks, workspace)


def renamed(names: Sequence[str | None], kept: Iterable[int]) -> list[str | None]:
    """Names of tensors with the kept layers' numbers in place of all layers'; None for what belongs to others."""
    number = {n: i for i, n in enumerate(sorted(kept))}
    out: list[str | None] = []
    for name in names:
        component, _, place = (name or "").partition(":")
        if component not in OF_LAYERS:
            out.append(name)
            continue
        layer, which = divmod(int(place), 2)
        out.append(f"{component}:{2 * number[layer] + which}" if layer in number else None)
    return out
