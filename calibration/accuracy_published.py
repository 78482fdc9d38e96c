"""Estimates beside what people measured on real cards: every published row of these architectures, or why it cannot be compared.

A row of calibration/data/published.jsonl is the observation with its source, and under `compare` either a job and a card (judged by
the verdict: a report of OOM must not be safe, a fit must not be oom), or two jobs between which the row lies because it does not say
all (shown, not judged), or why neither is possible. What a job assumes beyond the row's words stands with it.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from calibration.accuracy_rows import GIB
from calibration.accuracy_tables import Table

ROWS = Path(__file__).parent / "data" / "published.jsonl"


@dataclass(frozen=True)
class Judged:
    """`said`: what was observed; `estimate`: what the estimate says; `wrong`: they contradict each other (None: not judged)."""

    name: str
    source: str
    trainer: str
    arch: str
    said: str
    estimate: str
    wrong: bool | None
    notes: tuple[str, ...]


def evaluate(path: Path = ROWS) -> list[Judged]:
    """Every published row, in the file's order."""
    return [judge(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def judge(row: dict[str, Any]) -> Judged:
    compare = row["compare"]
    if compare["kind"] == "job":
        estimate, wrong = by_verdict(row, compare)
    elif compare["kind"] == "range":
        estimate, wrong = by_range(row, compare), None
    else:
        estimate, wrong = "", None
    notes = (compare["why"],) if compare["kind"] == "none" else tuple(compare["assumed"])
    return Judged(row["id"], row["source"], row["trainer"], row["arch"], said(row), estimate, wrong, notes)


def said(row: dict[str, Any]) -> str:
    peak = row["observed"].get("peak_gib")
    card = row.get("gpu")
    if row["outcome"] == "peak":
        low_high = row.get("peak_range_gib")
        figure = f"{low_high[0]} to {low_high[1]}" if low_high else str(peak)
        return f"peak {figure} ({row['observed'].get('metric', 'unstated')}, {row['observed'].get('unit_as_stated', 'unit unstated')})"
    return f"{row['outcome']}" + (f" on {card}" if card else "")


def estimated(config: dict[str, Any], card: str) -> Any:
    from estimator.engine import estimate_job
    from estimator.gpus import find_gpu
    from estimator.trainers import read_jobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        (job,) = read_jobs(path)
    return estimate_job(job, find_gpu(card))


def by_verdict(row: dict[str, Any], compare: dict[str, Any]) -> tuple[str, bool]:
    """The verdict on the row's card; a fit called oom is wrong, and so is an OOM called safe."""
    estimate = estimated(compare["config"], compare["card"])
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
    lines = tuple((one.name, one.arch, one.said, one.estimate, marks[one.wrong]) for one in chosen)
    return Table(("row", "architecture", "published", "estimate", ""), lines, frozenset())


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
    return int(any(one.wrong for one in found))
