"""The accuracy check: estimates beside what was emulated, and beside what was published.

    python -m calibration.accuracy --against emulated [--only WORD ...] [--write docs/accuracy.md]
    python -m calibration.accuracy --against published

`emulated`: whole runs of the real trainer on the emulated device, none of which was used for extraction
(calibration/data/emulated_runs/, made by calibration.validation). Every phase must be within 1 % allocated and 2 % reserved, and
on a card of a given capacity the same phase must fail, or none. `published`: rows of real cards (calibration/data/published.jsonl).
The page needs scipy and matplotlib. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from calibration import accuracy_published
from calibration.accuracy_compare import Capacity, Different, Row, compare, compare_capacity
from calibration.accuracy_rows import Run, read_rows
from calibration.accuracy_tables import capacity_table, different_table, misses, phase_table, summary_table
from estimator.checked import load_checked


def evaluate(runs: tuple[Run, ...]) -> tuple[list[Row], list[Different], list[Capacity]]:
    """All comparisons of these runs."""
    rows: list[Row] = []
    different: list[Different] = []
    capacities: list[Capacity] = []
    for run in runs:
        if run.total_bytes is not None:
            capacities.append(compare_capacity(run))
            continue
        for one in compare(run):
            rows.append(one) if isinstance(one, Row) else different.append(one)
    return rows, different, capacities


def report(rows: list[Row], different: list[Different], capacities: list[Capacity]) -> str:
    """The whole check as text: each run, the summary, what is outside the bars."""
    parts = [f"{name} ({chosen[0].arch})\n{phase_table(chosen).text()}" for name, chosen in by_run(rows).items()]
    if capacities:
        parts.append("Cards: the phase that runs out of memory\n" + capacity_table(capacities).text())
    if rows:
        parts.append("Summary: size of the error in %, allocated and reserved\n" + summary_table(rows).text())
        missed = misses(rows)
        parts.append(f"Outside the bars: {len(missed.rows)} of {len(rows)} phases" + ("\n" + missed.text() if missed.rows else ""))
    if different:
        parts.append("Other phases than the run\n" + different_table(different).text())
    return "\n\n".join(parts)


def by_run(rows: list[Row]) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row.run == name] for name in dict.fromkeys(row.run for row in rows)}


def emulated(args: argparse.Namespace) -> int:
    runs = tuple(run for run in read_rows() if not args.only or any(word in run.name for word in args.only))
    rows, different, capacities = evaluate(runs)
    if args.write is not None:
        from calibration import accuracy_matrix, accuracy_page, accuracy_verdicts, checked  # the first two need scipy and matplotlib
        from calibration.harness import check

        checked.write([*rows, *check.every()], accuracy_published.evaluate())
        load_checked.cache_clear()  # intervals are narrower where something was checked: those of the page are of what it says itself
        found = accuracy_published.evaluate()
        verdicts = [*accuracy_verdicts.emulated(), *accuracy_verdicts.published(found)]
        covered = accuracy_matrix.table(accuracy_matrix.counts(runs))
        args.write.write_text(accuracy_page.page(rows, different, capacities, found, verdicts, covered), encoding="utf-8")
        accuracy_page.draw(args.write.parent / "img" / "accuracy.png")
        print(f"written: {args.write}, {checked.PATH.name}")
    else:
        print(report(rows, different, capacities))
    return int(any(row.misses for row in rows) or bool(different) or any(one.misses for one in capacities))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m calibration.accuracy", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--against", choices=["emulated", "published"], default="emulated")
    parser.add_argument("--only", nargs="+", default=[], help="runs whose name contains one of these words")
    parser.add_argument("--write", type=Path, help="write the page of both checks instead of printing (docs/accuracy.md)")
    args = parser.parse_args()
    if args.write is not None and args.only:
        parser.error("--write is of all runs: leave --only out")
    return emulated(args) if args.against == "emulated" else accuracy_published.main()


if __name__ == "__main__":
    sys.exit(main())
