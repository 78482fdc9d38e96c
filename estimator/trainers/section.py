"""Typed access to one map of a config, collecting every problem instead of stopping at the first.

The rules for values are the trainer's: it hands most of them on as they are, so a quoted number fails where a number is needed, and any
non-empty text counts as true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from estimator.configfile import ConfigFile
from estimator.errors import CannotTell, InputError, Problem
from estimator.job import Place, Unmodelled
from estimator.remembered import once
from estimator.tree import KeyPath

T = TypeVar("T")
MAX_REPORTED = 50  # problems of one file; a page of them is enough to mend it by
MAX_KEPT = 1000  # further ones are not even counted


class Findings:
    """What reading has brought up: problems (exit 2), what cannot be told (exit 3), settings without a model, warnings."""

    def __init__(self, file: ConfigFile) -> None:
        self.file = file
        self._problems: dict[Problem, None] = {}
        self._cannot: dict[Problem, None] = {}
        self._unmodelled: dict[Place, Unmodelled] = {}
        self._warnings: dict[str, None] = {}

    @property
    def unusable(self) -> bool:
        return bool(self._problems)

    @property
    def unmodelled(self) -> tuple[Unmodelled, ...]:
        return tuple(self._unmodelled.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self._warnings)

    def place(self, path: KeyPath) -> Place:
        return self.file.place(path)

    def problem(self, path: KeyPath, what: str, why: str = "", fix: str = "") -> None:
        if len(self._problems) < MAX_KEPT:
            self._problems.setdefault(Problem(what, self.place(path), why, fix))

    def cannot_tell(self, path: KeyPath, what: str, why: str = "", fix: str = "") -> None:
        self._cannot.setdefault(Problem(what, self.place(path), why, fix))

    def not_modelled(self, path: KeyPath, value: object, why: str) -> None:
        place = self.place(path)
        self._unmodelled.setdefault(place, Unmodelled(place, value, why))

    def warn(self, path: KeyPath, text: str) -> None:
        place = self.place(path)
        line = f" (line {place.line})" if place.line is not None and path in self.file.lines else ""
        self._warnings.setdefault(f"{place.key}{line}: {text}" if place.key else text)

    def take_over(self, other: Findings) -> None:
        """Add what another reading has found that stops the whole, and what it warned of beside it."""
        self._problems |= other._problems
        self._cannot |= other._cannot
        self._warnings |= other._warnings

    def add(self, other: Findings) -> None:
        """Add all that another reading has found."""
        self.take_over(other)
        self._unmodelled = {**other._unmodelled, **self._unmodelled}

    def take_over_what_agrees(self, readings: Sequence[Findings]) -> None:
        """Add the first reading's problems and what all of them warn of: of readings of the same for one architecture and another."""
        first, *others = readings
        self._problems |= first._problems
        self._warnings |= {text: None for text in first._warnings if all(text in other._warnings for other in others)}

    def stop_if_unusable(self) -> None:
        """Raises InputError with all problems, else CannotTell with all that cannot be told, else nothing; both with all warnings."""
        if self._problems:
            raise InputError(*_shortened(list(self._problems)), warnings=self.warnings)
        if self._cannot:
            raise CannotTell(*_shortened(list(self._cannot)), warnings=self.warnings)


def _shortened(problems: list[Problem]) -> list[Problem]:
    """The first of very many, and how many there are."""
    if len(problems) <= MAX_REPORTED:
        return problems
    number = f"{len(problems) - MAX_REPORTED:,}" if len(problems) < MAX_KEPT else "very many"
    more = Problem(f"and {number} more problems", problems[-1].place, "", "mend the first ones")
    return [*problems[:MAX_REPORTED], more]


def nearest(word: str, choices: Iterable[str], likeness: float = 0.6) -> str | None:
    """The choice most like `word`, ignoring case; None if none is (as alike as `likeness`, difflib's ratio)."""
    from difflib import get_close_matches

    by_lower = {choice.lower(): choice for choice in choices}
    found = get_close_matches(str(word)[:100].lower(), by_lower, n=1, cutoff=likeness)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, choices: Iterable[str], likeness: float = 0.6) -> str:
    """`did you mean "x"?`, or the choices themselves if none is near."""
    names = list(choices)
    near = nearest(word, names, likeness)
    return f"did you mean {near!r}?" if near else f"use one of: {', '.join(names)}"


def shown(value: object) -> str:
    """A value as it appears in messages: short, and in the config's own notation for the plain ones."""
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    text = repr(value) if not isinstance(value, (dict, list)) else f"a {'map' if isinstance(value, dict) else 'list'}"
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True, slots=True)
class Section:
    """A map at `path`. The getters report what is wrong to `found` and then return the default, so that reading goes on."""

    found: Findings
    path: KeyPath
    values: Mapping[str, object]

    def at(self, key: str) -> KeyPath:
        return (*self.path, key)

    def section(self, key: str) -> Section | None:
        """The map under `key`; None where it is missing or null. Anything else is a problem."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.found.problem(
                self.at(key), f"expected a map of keys, got {shown(value)}", fix=f"write the settings of {key} below it, indented"
            )
            return None
        return Section(self.found, self.at(key), value)

    def items(self, key: str) -> list[object] | None:
        """The list under `key`; None where it is missing or null. Anything else is a problem."""
        value = self.values.get(key)
        if value is None or isinstance(value, list):
            return value
        self.found.problem(self.at(key), f"expected a list, got {shown(value)}", fix="begin each entry with a dash")
        return None

    def truth(self, key: str, default: bool) -> bool:
        """Whether a switch is on, by the trainer's (Python's) rule: null, 0 and empty are off, everything else is on."""
        if key not in self.values:
            return default
        value = self.values[key]
        if isinstance(value, str) and value.strip().lower() in ("false", "no", "off", "0", "none", "null"):
            self.found.warn(self.at(key), f"the text {value!r} counts as true in the trainer; remove the quotes to switch it off")
        if value is None and default:
            self.found.warn(self.at(key), "an empty value counts as false here, though the default is true")
        return bool(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false under `key`, and nothing else, as a run file has it."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.found.problem(self.at(key), f"expected true or false, got {shown(value)}", "", f"write {key}: true, or {key}: false")
            return default
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        """The text under `key`; missing and null give the default."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.found.problem(self.at(key), f"expected text, got {shown(value)}", fix="put it in quotes")
            return default
        return value

    def whole(self, key: str, default: int, low: int, high: int, *, floats: bool = False, needed: bool = False) -> int:
        """The whole number under `key`, from `low` to `high`; with `floats` 1024.0 too, where the trainer only computes with it.

        `needed`: the file must have it, and whoever asks has said so where it has not; the default only lets reading go on.
        """
        if key not in self.values or (needed and self.values[key] is None):
            return default
        value = whole_number(self.values[key], floats=floats)
        remedy = f"write a number from {low} to {high:,}" if needed else f"the default is {default}"
        if value is None:
            self._not_a_number(key, "a whole number", remedy)
            return default
        if not low <= value <= high:
            bounds = f"must be from {low} to {high:,}"
            self.found.problem(self.at(key), f"{shown(self.values[key])} is out of range", bounds, remedy)
            return default
        return value

    def number(self, key: str, default: float) -> float:
        """The finite number under `key`."""
        if key not in self.values:
            return default
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
            self._not_a_number(key, "a number", f"the default is {default}")
            return default
        return float(value)

    def _not_a_number(self, key: str, expected: str, remedy: str) -> None:
        value, own = self.values[key], "run" in self.found.file.data  # a run file is no trainer's
        why, fix = "", remedy
        if isinstance(value, str):
            why = "it is text" if own else "it is text, and the trainer does not turn text into numbers"
            fix = f"remove the quotes: {key}: {value.strip()}" if _looks_numeric(value) else fix
        elif isinstance(value, float) and _is_finite(value):
            why, fix = "" if own else "the trainer stops on a decimal number here", f"write it out as a whole number: {key}: {round(value)}"
        self.found.problem(self.at(key), f"expected {expected}, got {shown(value)}", why, fix)


def read_once(section: Section, what: tuple[object, ...], read: Callable[[Section], T]) -> T:
    """What `read` makes of a section, and what it brings up: once where readings are remembered and no edit has touched the section,
    whose map is the same object then. `what`: which reading it is, and all else that goes into it."""

    def whole() -> tuple[object, Findings, T]:
        own = Findings(section.found.file)
        return section.values, own, read(replace(section, found=own))  # the map is kept: its id is no other's

    _, own, result = once((id(section.values), section.path, *what), whole)
    section.found.add(own)
    return result


def whole_number(value: object, *, floats: bool) -> int | None:
    """`value` as an int if it is one (no bool), or, with `floats`, a float without a fraction; else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float):
        return int(value) if floats and value.is_integer() else None
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _looks_numeric(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
