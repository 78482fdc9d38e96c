"""What is known of a space of edits: which phases fail where, so that one try speaks for all that such a phase cannot tell apart."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from estimator.job import Train
from estimator.planner.edits import Dimension, Edit
from estimator.planner.sight import AFTER_TEXT, CACHES_TEXT, CHECKPOINTS, ENDS, lowering, seen

Places = tuple[int, ...]
"""A level for each dimension, or for the first ones."""


@dataclass(slots=True)
class _View:
    """A phase of jobs that cache their text, or do not. `sights`: for each dimension and level a number, equal where it sees the same."""

    sights: tuple[tuple[int, ...], ...]
    fails: dict[Places, bool] = field(default_factory=dict)

    def key(self, places: Places) -> Places:
        return tuple(map(tuple.__getitem__, self.sights, places))


@dataclass(slots=True)
class _Grave:
    """Ways that fail whatever is chosen in other dimensions than `decided`; all of these lie before `known`."""

    view: _View
    decided: tuple[int, ...]
    known: int
    dead: set[Places] = field(default_factory=set)

    def key(self, places: Places) -> Places:
        return tuple(self.view.sights[d][places[d]] for d in self.decided)


class _Switch:
    """A key that is true or false in the config (`given`), and what edits make of it. `known`: so many dimensions decide it."""

    def __init__(self, key: str, space: Sequence[Dimension], base: Sequence[Edit], given: bool) -> None:
        self.given = next((edit.value is True for edit in reversed(base) if edit.key == key), given)
        self.levels = [tuple(_value(key, level.edits) for level in each.levels) for each in space]
        self.known = 1 + max((d for d, each in enumerate(self.levels) if any(value is not None for value in each)), default=-1)

    def at(self, places: Places) -> bool:
        found = [each[n] for each, n in zip(self.levels, places, strict=False)]
        return next((value for value in found if value is not None), self.given)


def _value(key: str, edits: Iterable[Edit]) -> bool | None:
    return next((edit.value is True for edit in edits if edit.key == key), None)


class Known:
    """Of a space in the order in which it is decided; `base`: edits made whatever is chosen; `train`: the config's own section."""

    def __init__(self, space: Sequence[Dimension], base: Sequence[Edit], train: Train) -> None:
        self.space = space
        self._cached = _Switch(CACHES_TEXT, space, base, train.cache_text_embeddings)
        self._checkpointed = _Switch(CHECKPOINTS, space, base, train.gradient_checkpointing)
        self._views: dict[tuple[str, bool], _View] = {}
        self._graves: dict[Any, _Grave] = {}

    def fails(self, phase: str, places: Places) -> bool | None:
        """Whether a phase fails at these places (one for each dimension); None where that is not known."""
        view = self._view(phase, places)
        return view.fails.get(view.key(places))

    def note(self, places: Places, phases: Iterable[str], failing: Collection[str]) -> None:
        """Of these phases, those fail at these places."""
        for phase in phases:
            view = self._view(phase, places)
            view.fails[view.key(places)] = phase in failing

    def ends(self, phase: str, places: Places, at: int) -> list[Mapping[int, int]]:
        """Where a phase could be less than at these places, of which those from `at` on are not decided: other ends, by dimension."""
        view = self._view(phase, places)
        open_ends = [d for d in self._open(phase, view, at) if self.space[d].name in ENDS.get(phase, ())]
        sides = itertools.product(*((0, len(self.space[d].levels) - 1) for d in open_ends))
        return [dict(zip(open_ends, side, strict=True)) for side in sides]

    def bury(self, phase: str, places: Places, at: int) -> None:
        """The phase fails with these places up to `at` wherever it is least in the other dimensions."""
        view = self._view(phase, places)
        lower, ends = lowering(phase, self._checkpointed.at(places)), ENDS.get(phase, frozenset())
        spared = {d for d in self._open(phase, view, at) if self.space[d].name in lower | ends}
        spared |= {d for d, each in enumerate(self.space) if each.name in lower and places[d] == len(each.levels) - 1}
        self._dig(phase, view, places, spared)

    def corners(self, phase: str, places: Places, names: Collection[str]) -> list[Places]:
        """The other ends of the named dimensions, as far as the phase sees a difference from these places (one for each dimension)."""
        view = self._view(phase, places)
        sides = ({places[d], 0, len(each.levels) - 1} if each.name in names else {places[d]} for d, each in enumerate(self.space))
        found = {view.key(corner): corner for corner in itertools.product(*map(sorted, sides))}
        return [corner for key, corner in found.items() if key != view.key(places)]

    def bury_between(self, phase: str, places: Places, names: Collection[str]) -> None:
        """The phase fails at these places (one for each dimension) whatever is chosen in the named dimensions."""
        self._dig(phase, self._view(phase, places), places, {d for d, each in enumerate(self.space) if each.name in names})

    def _dig(self, phase: str, view: _View, places: Places, spared: Collection[int]) -> None:
        decided = tuple(d for d, each in enumerate(view.sights) if d not in spared and len(set(each)) > 1)
        name = (phase, self._cached.at(places), decided)
        if name not in self._graves:
            known = max(1 + max(decided, default=-1), self._cached.known if phase in AFTER_TEXT else 0)
            self._graves[name] = _Grave(view, decided, known)
        grave = self._graves[name]
        grave.dead.add(grave.key(places))

    def dead(self, places: Places) -> bool:
        """Whether all that begins with these places fails."""
        at = len(places)
        for (phase, away, _), grave in self._graves.items():
            if grave.known <= at and grave.key(places) in grave.dead and (phase not in AFTER_TEXT or away == self._cached.at(places)):
                return True
        return False

    def _open(self, phase: str, view: _View, at: int) -> list[int]:
        """Dimensions that are not decided and matter to the phase."""
        return [d for d in range(at, len(self.space)) if len(set(view.sights[d])) > 1]

    def _view(self, phase: str, places: Places) -> _View:
        away = phase in AFTER_TEXT and self._cached.at(places)
        if (phase, away) not in self._views:
            known: dict[tuple[Edit, ...], int] = {}
            every = ([seen(level.edits, phase, away) for level in each.levels] for each in self.space)
            self._views[phase, away] = _View(tuple(tuple(known.setdefault(edits, len(known)) for edits in each) for each in every))
        return self._views[phase, away]
