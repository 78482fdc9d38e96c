"""Verdicts beside what happened: runs on emulated cards of a given size, and outcomes published for real cards.

A *false safe* is a job called safe that ran out of memory, a *false alarm* one called oom that ran. Borderline is neither: it says that the
difference is within what is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from calibration.accuracy_published import Judged
from calibration.accuracy_rows import Run, read_job, read_rows
from calibration.accuracy_tables import Table
from calibration.residual_check import rate
from estimator.engine import estimate_job
from estimator.errors import CannotTell
from estimator.estimate import BORDERLINE, OOM, SAFE
from estimator.gpus import Gpu

EMULATED, PUBLISHED = "emulated cards", "published"


@dataclass(frozen=True)
class Verdict:
    """`failed`: the job ran out of memory there; `verdict`: of the estimate."""

    truth: str
    name: str
    failed: bool
    verdict: str


def emulated(runs: Sequence[Run] | None = None) -> Iterator[Verdict]:
    """Every run on an emulated card of a given size, judged as a user's config is, with that card's context known."""
    for run in read_rows() if runs is None else runs:
        if run.total_bytes is None or run.capacity_bytes is None:
            continue
        context = run.total_bytes - run.capacity_bytes
        card = Gpu(f"{run.total_bytes} bytes", run.total_bytes, "8.9", context, context, context)
        try:
            verdict = estimate_job(read_job(run), card).verdict
        except CannotTell:
            continue
        yield Verdict(EMULATED, run.name, any(peak.failed for peak in run.peaks), verdict)


def published(found: Sequence[Judged]) -> Iterator[Verdict]:
    """Published outcomes that count as evidence."""
    for one in found:
        if one.wrong is not None and one.outcome in ("fits", "oom") and one.verdict is not None:
            yield Verdict(PUBLISHED, one.name, one.outcome == "oom", one.verdict)


def table(found: Sequence[Verdict]) -> Table:
    """Counts by truth, rates with their intervals."""
    header = ("truth", "jobs", "ran out", "called safe, ran out", "ran", "called oom, ran", "called borderline")
    lines = []
    for truth in dict.fromkeys(one.truth for one in found):
        chosen = [one for one in found if one.truth == truth]
        failed, ran = [one for one in chosen if one.failed], [one for one in chosen if not one.failed]
        lines.append((
            truth, str(len(chosen)), str(len(failed)), rate(sum(one.verdict == SAFE for one in failed), len(failed)), str(len(ran)),
            rate(sum(one.verdict == OOM for one in ran), len(ran)), rate(sum(one.verdict == BORDERLINE for one in chosen), len(chosen)),
        ))  # fmt: skip
    return Table(header, tuple(lines), frozenset({1, 2, 4}))


def wrong(found: Sequence[Verdict]) -> list[str]:
    """The false safes and false alarms by name."""
    return [
        f"{one.name}: {one.verdict}, {'ran out of memory' if one.failed else 'ran'}"
        for one in found
        if one.verdict == (SAFE if one.failed else OOM)
    ]
