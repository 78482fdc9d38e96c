"""The prediction for the config that crashed: that config (a file, or what the trainer printed into the log), that card, that phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from estimator.configfile import ConfigFile, read_config
from estimator.crash import Failure, LoggedRun, Prediction
from estimator.errors import CannotTell, InputError
from estimator.estimate import Estimate, PhaseEstimate
from estimator.gpus import MIB, Gpu, find_gpu
from estimator.job import Bucket, Job
from estimator.trainers import read_jobs, read_jobs_of

LOG_CONFIG = "the log"
"""Stands for the file where the config was printed by the trainer."""
SAME_CARD = 0.03
"""Capacities that differ by less are the same card: torch's figure depends on driver and system by up to 2.5 %."""


@dataclass(frozen=True, slots=True)
class Config:
    """The jobs of the config that ran, or why there are none. `source`: "FILE" or LOG_CONFIG."""

    jobs: tuple[Job, ...]
    source: str
    why_not: str = ""


def config_of(run: LoggedRun, path: str | None, overrides: Sequence[str], arch: str | None) -> Config:
    """The config: `path` if given, else what the log printed. Raises InputError for a file that cannot be used, never for the log's."""
    try:
        if path is not None:
            return Config(read_jobs(path, tuple(overrides), arch), path)
        if not run.processes:
            return Config((), "", "the log does not show the config: give it with --config")
        data = {"job": "extension", "config": {"name": run.name or "job", "process": list(run.processes)}}
        return Config(read_jobs_of(ConfigFile(LOG_CONFIG, data, {}), tuple(overrides), arch), LOG_CONFIG)
    except CannotTell as error:
        return Config((), path or LOG_CONFIG, "; ".join(problem.what for problem in error.problems[:3]))
    except InputError as error:
        if path is not None:
            raise
        return Config((), LOG_CONFIG, f"the config in the log cannot be read ({error.problems[0].what}): give it with --config")


def job_of(run: LoggedRun, config: Config) -> Job | None:
    """The job of this run, with the training sizes that the log lists where the dataset is not at hand."""
    job = next((each for each in config.jobs if each.name == run.name), config.jobs[0] if config.jobs else None)
    if job is None or len(run.buckets) != len(job.datasets) or any(each.scanned or each.is_reg for each in job.datasets):
        return job
    if not all(run.buckets):
        return job
    datasets = []
    for each, own in zip(job.datasets, run.buckets, strict=True):  # a log does not list control images
        first = each.buckets[0] if each.buckets else Bucket(0, 0)
        like = (replace(one, controls=first.controls, masked=first.masked) for one in sorted(own))
        datasets.append(replace(each, buckets=tuple(like), scanned=True))
    return replace(job, datasets=tuple(datasets))


def total_bytes(run: LoggedRun) -> int | None:
    """The card's capacity as the log says: exact from torch's warnings, else rounded from its messages."""
    totals = [f.numbers.total_bytes for f in run.failures if f.numbers is not None and f.numbers.total_bytes]
    return next((each for each in totals if each % 2**10 == 0), totals[0] if totals else None)


@dataclass(frozen=True, slots=True)
class Cards:
    """The card that the user names and the one it ran on, as the log's messages say or, where they do not, the one named."""

    named: Gpu | None
    ran_on: Gpu | None
    another: bool = False


def cards_of(run: LoggedRun, name: str | None, os: str) -> Cards:
    """The cards. Raises InputError for a name that is not known."""
    named = find_gpu(name, os) if name is not None else None
    total = total_bytes(run)
    if total is None or (named is not None and abs(named.total_bytes - total) <= SAME_CARD * named.total_bytes):
        return Cards(named, named)
    try:
        ran_on = find_gpu(f"{total / MIB:.0f}MiB", os)
    except InputError:  # a number that is no card's
        return Cards(named, named)
    return Cards(named, ran_on, named is not None)


def predict(job: Job, gpu: Gpu, failure: Failure | None, source: str, estimate_job: Callable[[Job, Gpu], Estimate]) -> Prediction | str:
    """The estimate of the job on the card and the phase that matches the failure; a text where it cannot be told."""
    try:
        estimate = estimate_job(job, gpu)
    except CannotTell as error:
        return "; ".join(problem.what for problem in error.problems[:3])
    if not estimate.phases:
        return "not modelled: " + ", ".join(each.place.key for each in job.unmodelled[:5])
    return Prediction(estimate, None if failure is None else matching(estimate, failure), source)


def candidates(estimate: Estimate, failure: Failure) -> list[PhaseEstimate]:
    """The estimate's phases that the failure may have happened in."""
    same = [phase for phase in estimate.phases if phase.phase == failure.phase]
    part = [phase for phase in same if phase.detail == failure.part] if failure.part else []
    return part or same


def matching(estimate: Estimate, failure: Failure) -> PhaseEstimate | None:
    """Of these the highest: what was on its way there when it failed."""
    return max(candidates(estimate, failure), key=lambda phase: phase.allocated_bytes, default=None)


def raw_process(path: str) -> dict[str, object] | None:
    """The first process section of a config file as it stands; None where it has none."""
    config = read_config(path).data.get("config")
    processes = config.get("process") if isinstance(config, dict) else None
    return processes[0] if isinstance(processes, list) and processes and isinstance(processes[0], dict) else None


def differing_keys(run: LoggedRun, process: dict[str, object] | None) -> list[str]:
    """Keys that decide memory and differ between the config given and the one in the log, as "train.batch_size: 4 in the log, 1 given"."""
    if not run.processes or process is None:
        return []
    logged, out = run.processes[0], []
    for section in ("train", "model", "network", "sample", "datasets"):
        for key, (ours, theirs) in _differences(logged.get(section), process.get(section), section):
            out.append(f"{key}: {_short(ours)} in the log, {_short(theirs)} given")
    return out


def _differences(one: object, other: object, path: str) -> list[tuple[str, tuple[object, object]]]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(str(key) for key in {*one, *other} if key not in ("folder_path", "prompts", "samples", "steps"))
        return [each for key in keys for each in _differences(one.get(key), other.get(key), f"{path}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [each for i, (a, b) in enumerate(zip(one, other, strict=True)) for each in _differences(a, b, f"{path}.{i}")]
    return [] if one == other else [(path, (one, other))]


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
