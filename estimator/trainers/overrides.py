"""`--set path.to.key=value`: edits of the config from the command line, made on the raw values before anything is interpreted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from estimator.configfile import ConfigFile, key_name, parse
from estimator.errors import InputError, Problem
from estimator.job import Place
from estimator.trainers.section import nearest
from estimator.tree import KeyPath

MAX_OVERRIDES = 1000
LISTS = frozenset({"datasets", "process"})  # sections that are lists of maps
# What a section may contain: the known keys, or None where any key goes.
KnownKeys = Callable[[KeyPath], frozenset[str] | None]


def apply_overrides(
    file: ConfigFile, overrides: Sequence[str], root: KeyPath, absolute: Mapping[str, KeyPath], known: KnownKeys
) -> ConfigFile:
    """The config with every override applied, later ones over earlier ones.

    A path counts from `root`, or, if it begins with one of `absolute`, from where that stands. List entries are numbers from 0, `*` is all
    of them. The value is read as YAML. Raises InputError with all that is wrong: no "=", a value that is no YAML, a key that `known` does
    not have at that place (with the nearest it has), no such list entry.
    """
    if not overrides:
        return file
    if len(overrides) > MAX_OVERRIDES:
        raise InputError(Problem(f"{len(overrides):,} times --set", None, f"more than {MAX_OVERRIDES:,}", "write them into the config"))
    data: Any = file.data
    problems: list[Problem] = []
    set_paths: set[KeyPath] = set()
    for override in overrides:
        try:
            words, value = _parse(override)
            path = [*map(str, absolute.get(words[0], root)), *words]
            data, paths = _set(data, (), path, value, override, known)
            set_paths |= set(paths)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    return replace(file, data=data, overridden=file.overridden | set_paths)


def _fail(override: str, what: str, why: str = "", fix: str = "") -> InputError:
    return InputError(Problem(what, Place(f"--set {override[:80]}", ""), why, fix))


@lru_cache(maxsize=4096)  # planning and grids give the same ones hundreds of times; nothing of an answer is ever changed
def _parse(override: str) -> tuple[list[str], object]:
    path, equals, text = override.partition("=")
    words = re.sub(r"\[(\d+|\*)\]", r".\1", path.strip()).split(".")
    if not equals or not all(words):
        raise _fail(override, "not of the form key=value", "", "for instance --set train.batch_size=2")
    try:
        value, _ = parse(text, f"--set {path.strip()[:80]}")
    except InputError as error:
        raise _fail(
            override, f"the value is not valid YAML: {error.problems[0].what}", "", "put it in quotes: --set 'key=\"value\"'"
        ) from None
    return words, value


def _set(node: Any, done: KeyPath, rest: list[str], value: object, override: str, known: KnownKeys) -> tuple[Any, list[KeyPath]]:
    """`node` with `value` at `rest` below it, and the paths that were set. Maps and lists on the way are made anew and all others are
    the same ones: planning does this for hundreds of configs, and knows by them what it has read (estimator.remembered)."""
    word, *further = rest
    if isinstance(node, list):
        return _set_in_list(node, done, rest, value, override, known)
    if not isinstance(node, dict):
        raise _fail(override, f"{key_name(done)} is a single value: it has no {word!r} in it", "", f"set {key_name(done)} itself")
    names = known(done)
    if names is not None and word not in names and word not in node:
        where = f" in {key_name(done)}" if done else ""
        raise _fail(override, f"unknown key {word!r}{where}", "", _meant(word, done, names, known))
    if not further:
        return {**node, word: value}, [(*done, word)]
    if node.get(word) is None and (further[0].isdigit() or further[0] == "*"):
        raise _fail(override, f"{key_name((*done, word))} has no entries", "", f"set the whole list: {word}=[...]")
    below = {} if node.get(word) is None else node[word]
    inner, paths = _set(below, (*done, word), further, value, override, known)
    return {**node, word: inner}, paths


def _meant(word: str, done: KeyPath, names: frozenset[str], known: KnownKeys) -> str:
    """The sections that have a key of this name, else the nearest that there is here."""
    sections = [name for name in sorted(names) if word in (known((*done, name)) or ())]
    if sections:
        return f"did you mean {' or '.join(f'{name}.0.{word}' if name in LISTS else f'{name}.{word}' for name in sections)}?"
    near = nearest(word, names)
    return f"did you mean {near!r}?" if near else f"known are: {', '.join(sorted(names)[:12])} ..."


def _set_in_list(
    node: list[Any], done: KeyPath, rest: list[str], value: object, override: str, known: KnownKeys
) -> tuple[list[Any], list[KeyPath]]:
    word, *further = rest
    if word != "*" and not (word.isascii() and word.isdigit() and len(word) < 10):
        raise _fail(
            override, f"{key_name(done)} is a list", "", f"name an entry, {key_name(done)}.0.{word}, or all: {key_name(done)}.*.{word}"
        )
    indices = range(len(node)) if word == "*" else [int(word)]
    if not indices or indices[-1] >= len(node):
        raise _fail(override, f"{key_name(done)} has {len(node)} entries, numbered from 0", "", "use a number below that")
    made, paths = list(node), list[KeyPath]()
    for index in indices:
        if further:
            made[index], below = _set(node[index], (*done, index), further, value, override, known)
            paths += below
        else:
            made[index] = value
            paths.append((*done, index))
    return made, paths
