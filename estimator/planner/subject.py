"""The config that is planned for: what an edit makes of it, read by the trainer's own reader; and which keys must stay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from estimator.archs import Arch, load_archs
from estimator.configfile import ConfigFile, read_config
from estimator.drift import checked_version
from estimator.errors import CannotTell, InputError, Problem
from estimator.job import Job, Place, Unmodelled
from estimator.planner.edits import Edit
from estimator.remembered import remembered
from estimator.residents import Simulation
from estimator.rows import Rows
from estimator.trainers import is_run_file, named_version
from estimator.trainers.aitoolkit import PROCESS, overridden, prepared, read_prepared
from estimator.trainers.section import nearest

_ENTRY, _WAY = re.compile(r"\[(\d+|\*)\]"), re.compile(r"^(?:config\.)?process\.(?:0|\*)\.")


@dataclass(slots=True)
class Subject:
    """A config with one training process. `process`: its raw values, `--set` applied; `ready`: the config with them and its name put in;
    `job`: what they mean. `trainer_version`: as the command or the config names it.

    `keep`: patterns of keys that no edit may touch. Dataset folders are scanned once for all edits.
    """

    file: ConfigFile
    sets: tuple[str, ...]
    arch_override: str | None
    keep: tuple[str, ...]
    process: dict[str, Any]
    ready: ConfigFile
    job: Job
    trainer_version: str | None = None
    bounds: dict[tuple[tuple[Edit, ...], int], Simulation | None] = field(default_factory=dict)  # peak rows, for the cards of one kind
    starts: dict[tuple[tuple[Edit, ...], int], Rows | None] = field(default_factory=dict)  # what is before the first previews, likewise
    needed: dict[tuple[str, tuple[Edit, ...], int], int] = field(default_factory=dict)  # bytes with which that goes through
    _scans: dict[Any, Any] = field(default_factory=dict)
    _read: dict[tuple[Edit, ...], Job | None] = field(default_factory=dict)

    @property
    def arch(self) -> Arch:
        return load_archs().archs[self.job.arch]

    def section(self, name: str) -> dict[str, Any]:
        """A section's raw values; empty where it is missing."""
        values = self.process.get(name)
        return values if isinstance(values, dict) else {}

    def entries(self) -> list[dict[str, Any]]:
        """The raw entries of `datasets`."""
        return [entry for entry in self.process.get("datasets") or [] if isinstance(entry, dict)]

    def value(self, key: str) -> object:
        """The raw value at a key; None where it is not in the config."""
        return _value(self.process, key)

    def paths(self, pattern: str) -> list[str]:
        """The keys that a path with `*` for list entries stands for, from the process."""
        words = in_process(pattern).split(".")
        found = [""]
        for word in words:
            ways = []
            for path in found:
                node = self.value(path) if path else self.process
                choices = [str(n) for n in range(len(node))] if word == "*" and isinstance(node, list) else [word]
                ways += [f"{path}.{choice}" if path else choice for choice in choices]
            found = ways
        return found

    def kept(self, key: str) -> bool:
        """Whether the user has pinned the key."""
        return any(covers(pattern, key) for pattern in self.keep)

    def allowed(self, edits: Iterable[Edit]) -> tuple[Edit, ...]:
        """Those edits that touch no pinned key."""
        return tuple(edit for edit in edits if not self.kept(edit.key))

    def edited(self, edits: Sequence[Edit]) -> Subject:
        """The subject as it is with the edits made, for further ones. The edits must be readable."""
        overrides = tuple(edit.override for edit in edits)
        sets, version, job = (*self.sets, *overrides), self.trainer_version, self.read(edits)
        assert job is not None
        process, ready = _process_of(overridden(self.file, sets)), overridden(self.ready, overrides)
        return Subject(self.file, sets, self.arch_override, self.keep, process, ready, job, version, _scans=self._scans)

    def read(self, edits: Sequence[Edit]) -> Job | None:
        """The job of the edited config; None where the trainer would refuse it, or something in it is not modelled."""
        key = tuple(edits)
        if key not in self._read:
            overrides = tuple(edit.override for edit in edits)
            try:
                with remembered(self._scans):
                    (job,) = read_prepared(overridden(self.ready, overrides), self.arch_override)
                self._read[key] = None if job.unmodelled else _for_version(job, self.trainer_version)
            except (InputError, CannotTell):
                self._read[key] = None
        return self._read[key]


def covers(pattern: str, key: str) -> bool:
    """Whether a pattern names the key or what contains it: `datasets.*.resolution`, `sample` and `train.b*` are patterns."""
    parts, words = pattern.split("."), key.split(".")
    return len(parts) <= len(words) and all(fnmatchcase(word, part) for part, word in zip(parts, words, strict=False))


def _for_version(job: Job, version: str | None) -> Job:
    return job if version is None else replace(job, trainer_version=version)


def read_subject(
    path: str, sets: tuple[str, ...], arch_override: str | None, keep: tuple[str, ...], trainer_version: str | None = None
) -> Subject:
    """The config at `path`. Raises InputError as read_jobs does, and for what cannot be planned; CannotTell with what is not modelled."""
    file = read_config(path)
    if is_run_file(file):
        what, why = "an explicit run file is for check and diagnose alone", "plan and plot edit configs of AI Toolkit"
        raise InputError(Problem(what, Place(file.name, "run"), why, "check it with --set for what-ifs"))
    scans: dict[Any, Any] = {}
    ready = prepared(file, sets)
    with remembered(scans):
        jobs = read_prepared(ready, arch_override)
    if len(jobs) > 1:
        what = f"{len(jobs)} training processes in one config"
        fix = "put each process into a config of its own"
        raise InputError(Problem(what, Place(file.name, "config.process"), "plan edits one at a time", fix))
    (job,) = jobs
    process = _process_of(overridden(file, sets))
    if job.unmodelled:
        raise CannotTell(*(_cannot_plan(each, process) for each in job.unmodelled))
    version = named_version(file.data) if trainer_version is None else checked_version(trainer_version)
    return Subject(file, sets, arch_override, keep, process, ready, _for_version(job, version), version, _scans=scans)


def _process_of(file: ConfigFile) -> dict[str, Any]:
    """The raw values of a config's first process."""
    values: Any = file.data
    for part in (*PROCESS, 0):
        values = values[part]
    return values  # type: ignore[no-any-return]


def _cannot_plan(setting: Unmodelled, process: object) -> Problem:
    """What is not in the config cannot be taken out of it: why its default has no model says what to set."""
    fix = "" if _value(process, setting.place.key) is None else "change it or remove it, to plan without"
    return Problem(f"not modelled: {setting.why}", setting.place, "no plan can rest on it", fix)


def _value(process: object, key: str) -> object:
    node: Any = process
    for word in key.split("."):
        if isinstance(node, list) and word.isdigit() and int(word) < len(node):
            node = node[int(word)]
        elif isinstance(node, dict):
            node = node.get(word)
        else:
            return None
    return node


def in_process(key: str) -> str:
    """A key as --set names it, without the way to the process, of which a plan has one, and with list entries by dots:
    `config.process[0].datasets[1].resolution` is `datasets.1.resolution`."""
    return _WAY.sub("", _ENTRY.sub(r".\1", key.strip()))


def check_keep(subject: Subject, editable: Iterable[str]) -> None:
    """Raises InputError for every pattern of --keep that names neither a key of the config nor one that could be edited."""
    keys = sorted({*_keys(subject.process, ""), *editable})
    problems = []
    for pattern in subject.keep:
        if not pattern or not any(covers(pattern, key) for key in keys):
            near = nearest(pattern, keys)
            fix = f"did you mean {near}?" if near else "name a key as --set does, for instance train.batch_size or datasets.*.resolution"
            why = "neither a key of the config nor one that could be edited"
            problems.append(Problem(f"--keep {pattern[:80]} matches nothing", None, why, fix))
    if problems:
        raise InputError(*problems)


def _keys(value: object, at: str) -> Iterable[str]:
    """The paths of everything in a raw value."""
    pairs: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    for key, inner in pairs:
        path = f"{at}.{key}" if at else str(key)
        yield path
        yield from _keys(inner, path)
