"""Training configs in, Jobs out: one module per trainer's dialect, and the entry that tells them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from estimator.configfile import ConfigFile, read_config
from estimator.errors import InputError, Problem
from estimator.job import Job, Place

MOST_VERSION = 40
"""Characters of a version that are kept."""


def read_jobs(path: str | Path, overrides: Sequence[str] = (), arch_override: str | None = None) -> tuple[Job, ...]:
    """The jobs of the config at `path`, one per training process, with `--set` overrides and `--arch` applied.

    The dialect is told by the top-level key: `run` is an explicit run file, `job` or `config` a job file of AI Toolkit.
    Raises InputError with everything wrong with the input at once, or CannotTell naming an architecture or process that is not modelled.
    Settings that are not modelled are no exception: they are in each Job's `unmodelled`.
    """
    return read_jobs_of(read_config(path), overrides, arch_override)


def named_version(data: Mapping[str, object]) -> str | None:
    """The trainer's version where a job file names it: meta.software, as the trainer writes it into what it saves (toolkit/metadata.py)."""
    meta = data.get("meta")
    software = meta.get("software") if isinstance(meta, dict) else None
    if not isinstance(software, dict) or software.get("name") != "ai-toolkit":
        return None
    version = software.get("version")
    return version[:MOST_VERSION] if isinstance(version, str) and version else None


def is_run_file(file: ConfigFile) -> bool:
    """Whether it is an explicit run file, not a job file of AI Toolkit. Raises InputError for what is neither, or both."""
    is_run, is_job = "run" in file.data, bool(file.data.keys() & {"job", "config"})
    if is_run and is_job:
        what = "both `run` and `job` or `config` at the top"
        raise InputError(Problem(what, file.place(("run",)), "a file is either a run file or a job file", "split it in two"))
    if is_run or is_job:
        return is_run
    from estimator.trainers.aitoolkit import looks_like_a_process

    seen = ", ".join(sorted(file.data)[:8])[:200] or "no keys at all"
    fix = "AI Toolkit's begins with `job: extension` and `config:`, an explicit run file with `run:`"
    if looks_like_a_process(file.data):
        fix = "this belongs into a list below `process:` below `config:`, with `job: extension` above and `name:` beside"
    raise InputError(Problem("not a config of a known kind", Place(file.name, ""), f"at the top it has {seen}", fix))


def read_jobs_of(file: ConfigFile, overrides: Sequence[str] = (), arch_override: str | None = None) -> tuple[Job, ...]:
    """As `read_jobs`, of a config that is read already."""
    if is_run_file(file):
        from estimator.trainers.explicit import read_explicit

        return read_explicit(file, overrides, arch_override)
    from estimator.trainers.aitoolkit import read_aitoolkit

    jobs, version = read_aitoolkit(file, overrides, arch_override), named_version(file.data)
    return jobs if version is None else tuple(replace(job, trainer_version=version) for job in jobs)
