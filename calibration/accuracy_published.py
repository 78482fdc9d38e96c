"""Estimates beside what people measured on real cards: every published row of these architectures, or why it cannot be compared.

A row of calibration/data/published.jsonl is the observation with its source, and under `compare` either a job and a card (judged by
the verdict: a report of OOM must not be safe, a fit must not be oom), a job whose figure was read off (`peak`), two jobs between which the
row lies because it does not say all (`range`: shown, not judged), or why none of these is possible. A peak that was read before training is
held against the phases that `phases` names, with their detail or without. What a job assumes beyond the row's words stands with it
(`assumed`), and where the estimate is too low by more than 3 %, why (`explained`). Where the run had another implementation of something
than what is modelled, what that is (`unlike`): such a row is shown, not judged. Rows of architectures that are not modelled are counted in
published_other.jsonl.

What a row is evidence of is decided by its `evidence`, for every row alike: `measured` (a figure that a tool read during the source's own
run), `run` (the source's own run, which fitted or failed), `stated` (the author of a whole config says what it fits on) are judged;
`relayed` (handed on from elsewhere, without a run of the source's own) is shown and not judged, since neither the settings nor the outcome
can be checked.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from calibration.accuracy_rows import GIB
from calibration.accuracy_tables import Table
from estimator.archs import load_archs
from estimator.errors import CannotTell
from estimator.estimate import UNKNOWN, Estimate
from estimator.intervals import residual_for
from estimator.residual import interval

ROWS = Path(__file__).parent / "data" / "published.jsonl"
OTHER_ROWS = Path(__file__).parent / "data" / "published_other.jsonl"
JUDGED = frozenset({"measured", "run", "stated"})
FIGURES = ("allocated", "reserved", "device")


@dataclass(frozen=True)
class Reading:
    """A figure that was read on a card, beside the estimate of the same one with its interval; bytes."""

    figure: str
    observed_bytes: int
    low_bytes: int
    likely_bytes: int
    high_bytes: int

    @property
    def error(self) -> float:
        """Of the likely figure; positive where the estimate is too high."""
        return self.likely_bytes / self.observed_bytes - 1


@dataclass(frozen=True)
class Judged:
    """`said`: what was observed; `estimate`: what the estimate says; `wrong`: they contradict each other (None: not judged).

    `outcome`: peak | fits | oom. `verdict`: the estimate's, where it was asked for. `reading`: of a peak.
    """

    name: str
    source: str
    trainer: str
    arch: str
    said: str
    estimate: str
    wrong: bool | None
    notes: tuple[str, ...]
    evidence: str = "measured"
    outcome: str = ""
    verdict: str | None = None
    reading: Reading | None = None
    estimated: Estimate | None = None


def evaluate(path: Path = ROWS) -> list[Judged]:
    """Every published row, in the file's order."""
    return [judge(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def explanations(path: Path = ROWS) -> dict[str, str]:
    """Row -> why the estimate is too low, of those that say it."""
    compared = ((row["id"], row["compare"]) for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()))
    return {name: compare["explained"] for name, compare in compared if "explained" in compare}


def judge(row: dict[str, Any]) -> Judged:
    """One row held against the estimate of its job."""
    compare = row["compare"]
    notes = (*compare.get("assumed", ()), *(compare[why] for why in ("explained", "unlike") if why in compare))
    made = Judged(row["id"], row["source"], row["trainer"], row["arch"], said(row), "", None, notes, row["evidence"], row["outcome"])
    if compare["kind"] == "none":
        return replace(made, notes=(compare["why"],))
    if compare["kind"] == "range":
        return replace(made, estimate=by_range(row, compare))
    try:
        estimate = estimated(compare["config"], compare["card"], compare.get("os", "linux"), compare.get("torch", ""))
    except CannotTell as error:
        return replace(made, notes=("not modelled yet: " + "; ".join(problem.what for problem in error.problems),))
    if estimate.verdict == UNKNOWN:
        missing = ", ".join(f"{one.place.key}: {one.value}" for one in estimate.job.unmodelled)
        return replace(made, notes=(f"not modelled yet: {missing}",))
    counts = row["evidence"] in JUDGED and "unlike" not in compare
    if "phases" in compare:
        named = set(compare["phases"])
        phases = tuple(one for one in estimate.phases if named & {one.phase, f"{one.phase} {one.detail}"})
        estimate = replace(estimate, phases=phases, peak=-1)
    if compare["kind"] == "peak":
        reading = read(estimate, compare["figure"], round(row["observed"]["peak_gib"] * GIB))
        wrong = reading.observed_bytes > reading.high_bytes
        return replace(
            made, estimate=words(reading), wrong=wrong if counts else None, verdict=estimate.verdict, reading=reading, estimated=estimate
        )
    text, wrong = by_verdict(row, compare, estimate)
    return replace(made, estimate=text, wrong=wrong if counts else None, verdict=estimate.verdict, estimated=estimate)


def read(estimate: Any, figure: str, observed_bytes: int) -> Reading:
    """The estimate of a figure of the whole run, with its interval: the largest of any phase at each end."""
    residual = residual_for(estimate.gpu, estimate.job)
    found = []
    for phase in estimate.phases:
        if figure == "device":
            found.append(phase.device)
        else:
            size = phase.allocated_bytes if figure == "allocated" else phase.reserved_bytes
            found.append(interval(size, residual.spread(figure, phase.phase)))
    ends = (max(getattr(each, end) for each in found) for end in ("low_bytes", "likely_bytes", "high_bytes"))
    return Reading(figure, observed_bytes, *ends)


def words(reading: Reading) -> str:
    low, likely, high = (value / GIB for value in (reading.low_bytes, reading.likely_bytes, reading.high_bytes))
    return f"{likely:.3f} GiB {reading.figure} ({low:.2f} to {high:.2f}): {100 * reading.error:+.2f} %"


def said(row: dict[str, Any]) -> str:
    peak = row["observed"].get("peak_gib")
    card = row.get("gpu")
    if row["outcome"] == "peak":
        low_high = row.get("peak_range_gib")
        figure = f"{low_high[0]} to {low_high[1]}" if low_high else str(peak)
        return f"peak {figure} ({row['observed'].get('metric', 'unstated')}, {row['observed'].get('unit_as_stated', 'unit unstated')})"
    return f"{row['outcome']}" + (f" on {card}" if card else "")


def estimated(config: dict[str, Any], card: str, os: str = "linux", torch: str = "") -> Any:
    """`torch`: the version, of a config that cannot say it."""
    from estimator.engine import estimate_job
    from estimator.gpus import find_gpu
    from estimator.trainers import read_jobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        (job,) = read_jobs(path)
    return estimate_job(replace(job, torch=job.torch or torch), find_gpu(card, os))


def by_verdict(row: dict[str, Any], compare: dict[str, Any], estimate: Any) -> tuple[str, bool]:
    """The verdict on the row's card; a fit called oom is wrong, and so is an OOM called safe."""
    peak = estimate.peak_phase
    text = f"{estimate.verdict} on {compare['card']}"
    if peak is not None:
        low, likely, high = (value / GIB for value in (peak.device.low_bytes, peak.device.likely_bytes, peak.device.high_bytes))
        text += f": {peak.phase}, {likely:.1f} GiB on the card ({low:.1f} to {high:.1f})"
    return text, estimate.verdict == ("oom" if row["outcome"] == "fits" else "safe")


def by_range(row: dict[str, Any], compare: dict[str, Any]) -> str:
    """Train-phase peaks of the two ends, and how far the observation is from the nearer one."""
    ends = []
    for config in compare["configs"]:
        peaks = [phase for phase in estimated(config, "1000GiB").phases if phase.phase == "train"]
        ends.append((max(phase.allocated_bytes for phase in peaks) / GIB, max(phase.reserved_bytes for phase in peaks) / GIB))
    low, high, peak = ends[0][0], ends[-1][1], row["observed"]["peak_gib"]
    nearer = min((low, high), key=lambda end: abs(end - peak))
    place = "inside" if low <= peak <= high else f"{100 * (nearer / peak - 1):+.1f} %"
    return f"{low:.1f} (allocated, smallest) to {high:.1f} GiB (reserved, largest): {place}"


def table(found: list[Judged]) -> Table:
    """The rows that could be compared."""
    chosen = [one for one in found if one.estimate]
    marks = {None: "not judged", False: "agrees", True: "WRONG"}
    lines = tuple((one.name, one.arch, one.evidence, one.said, one.estimate, marks[one.wrong]) for one in chosen)
    return Table(("row", "architecture", "evidence", "published", "estimate", ""), lines, frozenset())


def reasons(found: list[Judged]) -> Table:
    """Why the others could not, rows of one reason together."""
    grouped: dict[tuple[str, str], list[Judged]] = {}
    for one in found:
        if not one.estimate:
            grouped.setdefault((one.trainer, one.notes[0]), []).append(one)
    lines = tuple(
        (trainer, str(len(rows)), ", ".join(dict.fromkeys(row.name for row in rows)), why) for (trainer, why), rows in grouped.items()
    )
    return Table(("trainer", "rows", "which", "not comparable because"), lines, frozenset({1}))


def others() -> Table:
    """Published rows of architectures that had no model when rows were gone through, by trainer; those that have one are marked."""
    known = set(load_archs().modelled())
    found: dict[tuple[str, str], int] = {}
    for line in OTHER_ROWS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["trainer"], row["arch"]] = found.get((row["trainer"], row["arch"]), 0) + row["rows"]
    trainers = dict.fromkeys(trainer for trainer, _ in found)
    lines = [
        (
            trainer, str(sum(n for (one, _), n in found.items() if one == trainer)),
            ", ".join(arch + "*" * (arch in known) for one, arch in found if one == trainer),
        )
        for trainer in trainers
    ]
    return Table(("trainer", "rows", "architectures"), tuple(lines), frozenset({1}))


def main() -> int:
    found = evaluate()
    compared = [one for one in found if one.estimate]
    print(f"{len(found)} published rows of these architectures, {len(compared)} comparable\n")
    print(table(found).text())
    for one in compared:
        print(f"\n{one.name}: {one.source}\n  " + "\n  ".join(one.notes))
    print("\nNot comparable")
    for trainer, count, names, why in reasons(found).rows:
        print(f"- {trainer}, {count}: {why}\n    {names}")
    print("\nNot held against estimates one by one\n" + others().text())
    return int(any(one.wrong for one in found))
