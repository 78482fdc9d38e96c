"""Estimates beside emulated runs, phase by phase. The only module here that knows the engine's interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from calibration.accuracy_rows import Peak, Run, read_job
from estimator.archs import load_archs
from estimator.batches import Batch, Step
from estimator.datasets import longer_than_before
from estimator.errors import CannotTell
from estimator.job import Dataset, Job
from estimator.kernels import by_capability
from estimator.residents import workspace_bytes_for
from estimator.timeline import simulate as engine

ALLOCATED_BAR, RESERVED_BAR = 0.01, 0.02  # DESIGN, section 6


@dataclass(frozen=True)
class Row:
    """One phase of one run: emulated and estimated bytes. `moment`: what the estimate holds the peak for."""

    run: str
    arch: str
    phase: str
    label: str
    allocated_bytes: int
    reserved_bytes: int
    estimated_allocated_bytes: int
    estimated_reserved_bytes: int
    moment: str

    @property
    def allocated_error(self) -> float:
        return self.estimated_allocated_bytes / self.allocated_bytes - 1

    @property
    def reserved_error(self) -> float:
        return self.estimated_reserved_bytes / self.reserved_bytes - 1

    @property
    def misses(self) -> bool:
        return abs(self.allocated_error) > ALLOCATED_BAR or abs(self.reserved_error) > RESERVED_BAR


@dataclass(frozen=True)
class Capacity:
    """A run on a card of a given size: the phase that ran out of memory there (None: none did), and in the estimate.

    `retries`: how often the allocator released its cached blocks to go on.
    """

    run: str
    arch: str
    total_bytes: int
    failed: str | None
    estimated_failed: str | None
    retries: int = 0
    estimated_retries: int = 0

    @property
    def misses(self) -> bool:
        return self.failed != self.estimated_failed


@dataclass(frozen=True)
class Different:
    """A run whose phases the estimate has in another order or number."""

    run: str
    arch: str
    phases: str
    estimated_phases: str


def simulate(run: Run) -> tuple[str, Any]:
    """The architecture and the engine's simulation of the run: its config, with its batches in the order in which they came."""
    job = by_capability(in_order(run, read_job(run)), run.capability)
    workspace = workspace_bytes_for(run.capability)
    return job.arch, engine(job, order=order(run, job), capacity_bytes=run.capacity_bytes, workspace_bytes=workspace)


def in_order(run: Run, job: Job) -> Job:
    """The job with each dataset's buckets and captions in the order in which they were cached: the file system's, no one's choice."""
    cached = [peak.encoded for peak in run.peaks if peak.phase == "cache_latents"]
    datasets = []
    for dataset in (replace(one, longer_captions=longer_captions(run, one)) for one in job.datasets):
        met = cached.pop(0) if cached and (dataset.cache_latents or dataset.cache_latents_to_disk) else ()
        sizes = [(bucket.width, bucket.height, bucket.frames) for bucket in dataset.buckets]
        if any(bucket.begins for bucket in dataset.buckets):  # the first frame of each clip is encoded besides
            met = tuple(size for size in met if size in sizes)
        if set(met) == set(sizes):
            pairs = sorted(zip(sizes, dataset.buckets, strict=True), key=lambda pair: met.index(pair[0]))
            datasets.append(replace(dataset, buckets=tuple(bucket for _, bucket in pairs)))
        else:  # not cached, or out of memory on the way
            datasets.append(dataset)
    return replace(job, datasets=tuple(datasets))


def longer_captions(run: Run, dataset: Dataset) -> tuple[int, ...]:
    """Tokens of each of the dataset's captions that was longer than all that were cached before it."""
    own = set(dataset.longer_captions)
    cached = [peak.texts for peak in run.peaks if own and own <= set(peak.texts) and max(own) == max(peak.texts)]
    return longer_than_before(cached[0]) if cached else dataset.longer_captions


def order(run: Run, job: Job) -> list[Step]:
    """The training steps as they came, each with the batches that were accumulated in it."""
    known = {(bucket.width, bucket.height, bucket.frames): (bucket, dataset) for dataset in job.datasets for bucket in dataset.buckets}
    steps = []
    for peak in run.peaks:
        if peak.phase == "train" and peak.buckets:  # none: a validation between steps
            batches = []
            for number, (width, height, size, tokens, frames) in enumerate(peak.buckets):
                bucket, dataset = known[width, height, frames]
                for control, mask in peak.given[number : number + 1]:
                    bucket = replace(bucket, controls=bucket.controls if control else (), masked=mask)
                bucket = replace(bucket, uneven=bucket.uneven and peak.uneven[number])
                padded = dataset.text_tokens if not bucket.text_tokens else None  # every text of one length, whatever it says
                # with unload_text_encoder the step trains on the empty prompt, whatever the caption
                batches.append(Batch(bucket, size, padded or tokens or load_archs().archs[job.arch].text_tokens("")))
            steps.append(tuple(batches))
    return steps


def compare(run: Run) -> list[Row | Different]:
    """Every phase of a run that had room to spare."""
    try:
        arch, simulation = simulate(run)
    except CannotTell as error:
        return [Different(run.name, "", "", f"cannot tell: {error}")]
    emulated, estimated = grouped(run.peaks), grouped(simulation.phases)
    names, estimated_names = [name for name, _ in emulated], [name for name, _ in estimated]
    if names != estimated_names:
        return [Different(run.name, arch, " ".join(names), " ".join(estimated_names))]
    rows: list[Row | Different] = []
    for (name, peaks), (_, found) in zip(emulated, estimated, strict=True):
        if len(peaks) == len(found):
            rows += [row(run.name, arch, [peak], [one]) for peak, one in zip(peaks, found, strict=True)]
        elif name == "train":
            return [Different(run.name, arch, f"{len(peaks)} steps", f"{len(found)} steps")]
        else:
            rows.append(row(run.name, arch, peaks, found))
    return rows


def grouped(phases: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """Phases of one name that follow on each other, as one group."""
    return [(name, list(group)) for name, group in groupby(phases, key=phase_name)]


def phase_name(phase: Any) -> str:
    """What the launcher calls `setup` (all to its place, adapter, EMA) belongs to `prepare` in an estimate."""
    return "prepare" if phase.phase == "setup" else str(phase.phase)


def row(run: str, arch: str, peaks: list[Peak], found: list[Any]) -> Row:
    """The larger of each figure where one side has more parts than the other."""
    worst = max(found, key=lambda one: one.allocated_bytes)
    return Row(
        run, arch, phase_name(peaks[0]), peaks[0].label,
        max(peak.allocated_bytes for peak in peaks), max(peak.reserved_bytes for peak in peaks), worst.allocated_bytes,
        max(one.reserved_bytes for one in found), worst.moment,
    )  # fmt: skip


def compare_capacity(run: Run) -> Capacity:
    """Which phase fails on the run's card; both counted from the first failure (the trainer skips up to three failed steps)."""
    assert run.total_bytes is not None
    try:
        arch, simulation = simulate(run)
    except CannotTell:
        return Capacity(run.name, "", run.total_bytes, "", "cannot tell")
    failed = next((index for index, peak in enumerate(run.peaks) if peak.failed), None)
    return Capacity(
        run.name, arch, run.total_bytes,
        None if failed is None else place(run.peaks, failed),
        None if simulation.failed is None else place(simulation.phases, simulation.failed), run.retries, simulation.retries,
    )  # fmt: skip


def place(phases: Sequence[Any], index: int) -> str:
    """A phase's name, and which one of its name it is: "sample 2" is the one after training."""
    groups = [phase_name(group[0]) for _, group in grouped(phases[: index + 1])]
    name = phase_name(phases[index])
    return f"{name} {groups.count(name)}" if name in ("sample", "cache_latents", "cache_text") else name
