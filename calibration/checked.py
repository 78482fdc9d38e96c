"""What `estimate archs` says was checked: profiles/checked.json, from the committed emulated runs (the trainer's, and the harness's) and
published rows.

    python -m calibration.checked            # works all estimates out (minutes); `python -m calibration.accuracy --write` does it too

Intervals are wider for an architecture without a whole run (estimator/intervals.py): write it after each `calibration.validation collect`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from calibration import accuracy_published
from calibration.accuracy_compare import Row, compare
from calibration.accuracy_published import Judged
from calibration.accuracy_rows import read_rows
from calibration.harness.check import every as harnessed
from estimator.checked import SCHEMA, Checked

PATH = Path(__file__).resolve().parent.parent / "profiles" / "checked.json"
COMMAND = "python -m calibration.checked"
DIGITS = 5  # of a share: a thousandth of a per cent


def checked(rows: Sequence[Row], published: Iterable[Judged]) -> dict[str, Checked]:
    """By architecture, in the order of their keys. Only published rows that count as evidence are counted."""
    judged = [one.estimated.job.arch for one in published if one.wrong is not None and one.estimated is not None]
    out = {}
    for arch in sorted({row.arch for row in rows} | set(judged)):
        own = [row for row in rows if row.arch == arch]
        worst = (_worst([row.allocated_error for row in own]), _worst([row.reserved_error for row in own]))
        out[arch] = Checked(len({row.run for row in own}), len(own), sum(row.misses for row in own), *worst, judged.count(arch))
    return out


def _worst(errors: Sequence[float]) -> float | None:
    return round(max(errors, key=abs), DIGITS) if errors else None


def write(rows: Sequence[Row], published: Iterable[Judged], path: Path = PATH) -> None:
    """A line for each architecture."""
    lines = [f"  {json.dumps(arch)}: {json.dumps(asdict(one))}" for arch, one in checked(rows, published).items()]
    head = f' "schema": {SCHEMA},\n "made": {json.dumps({"command": COMMAND})},\n "archs": {{\n'
    path.write_text("{\n" + head + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")


def main() -> int:
    argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").partition("\n")[0]).parse_args()
    rows = [one for run in read_rows() if run.total_bytes is None for one in compare(run) if isinstance(one, Row)]
    write([*rows, *harnessed()], accuracy_published.evaluate())
    print(f"written: {PATH.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
