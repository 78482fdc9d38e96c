"""A plan's edits as text: the edited config, its unified diff, and the file it may be written to."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

from estimator.configfile import parse, read_text, substitute_environment
from estimator.errors import InputError, Problem
from estimator.job import Place
from estimator.planner.edits import Edit, merged
from estimator.planner.subject import Subject
from estimator.planner.textedit import edited


def edited_text(subject: Subject, edits: Sequence[Edit]) -> tuple[str, str]:
    """(the user's text, the text with `--set` and the edits made). Raises InputError where the text cannot be edited in place."""
    name = subject.file.name
    text = read_text(name)

    def substituted(changed: str) -> str:
        return substitute_environment(changed, os.environ, name)

    return text, edited(text, subject.file, merged((*_sets(subject), *edits)), substituted)


def _sets(subject: Subject) -> list[Edit]:
    """What `--set` asks for, as edits, with `*` written out."""
    made: list[Edit] = []
    for override in subject.sets:
        key, _, text = override.partition("=")
        value, _ = parse(text, "--set")
        plain = tuple(value) if isinstance(value, list) else value
        made += [Edit(path, plain) for path in subject.paths(key)]
    return made


def unified_diff(before: str, after: str, name: str) -> str:
    """What changes, as `diff -u` shows it; empty where nothing does."""
    lines = difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), name, f"{name} (planned)", n=2)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def check_target(source: str, target: str, in_place: bool) -> None:
    """Raises InputError before any work is done where `target` could not be written, or is the input itself without --in-place."""
    folder = os.path.dirname(target) or "."
    place = Place("--write", "")
    if not os.path.isdir(folder):
        raise InputError(Problem(f"{folder}: no such folder", place, "", "make it first, or write somewhere else"))
    if os.path.isdir(target):
        raise InputError(Problem(f"{target}: this is a folder", place, "", "give a file's name, such as planned.yaml"))
    endings = (".json", ".jsonc") if source.endswith((".json", ".jsonc")) else (".yaml", ".yml")
    if not target.endswith(endings):
        raise InputError(Problem(f"{target}: must end in {' or '.join(endings)}", place, "the trainer goes by the ending", "rename it"))
    same = os.path.exists(target) and os.path.samefile(source, target)
    if same and not in_place:
        raise InputError(Problem(f"{target} is the config itself", place, "it is never written over by accident", "add --in-place"))


def write_text(text: str, target: str) -> None:
    """Write the edited config; the whole file or, where that fails, nothing of it. Raises InputError."""
    beside = f"{target}.part"
    try:
        with open(beside, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(beside, target)
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(Problem(f"{target}: cannot be written", Place("--write", ""), why, "check the path and its permissions")) from None
