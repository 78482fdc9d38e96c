"""What the shipped examples come to, phase by phase: kept in tests/data/golden (examples.json; run files: runs.json), so that no change
goes unseen.

`python -m tests.golden` shows what differs now; `--write` takes the present figures over.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from estimator.engine import estimate_job
from estimator.gpus import find_gpu
from estimator.trainers import read_jobs
from tests.made_jobs import ARCHS

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "tests" / "data" / "golden" / "examples.json"
RUNS = PATH.with_name("runs.json")
CARDS = ("RTX4090", "A100-40G")


def present() -> dict[str, Any]:
    """Example -> card -> verdict and [phase, variant, allocated, reserved, verdict] of each phase, of the code as it is."""
    return figures_of(sorted((ROOT / "examples").glob("*.yaml")), ARCHS)


def runs_present() -> dict[str, Any]:
    """The same of the run files of architectures that AI Toolkit does not have."""
    return figures_of(sorted((ROOT / "examples" / "runs").glob("*.yaml")))


def figures_of(paths: Sequence[Path], archs: Sequence[str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in paths:
        (job,) = read_jobs(path)
        if archs is not None and job.arch not in archs:
            continue
        found[path.stem] = {}
        for card in CARDS:
            estimate = estimate_job(job, find_gpu(card))
            phases = [
                [f"{p.phase} {p.detail}".strip(), f"{p.variant.width}x{p.variant.height}", p.allocated_bytes, p.reserved_bytes, p.verdict]
                for p in estimate.phases
            ]
            found[path.stem][card] = {"verdict": estimate.verdict, "phases": phases}
    return found


def written(figures: dict[str, Any]) -> str:
    """JSON with a line for each phase."""
    text = json.dumps(figures, indent=1)
    for row in (phase for cards in figures.values() for card in cards.values() for phase in card["phases"]):
        text = text.replace(json.dumps(row, indent=1).replace("\n", "\n    "), json.dumps(row))
    return text + "\n"


def main() -> int:
    figures, runs = present(), runs_present()
    if "--write" in sys.argv[1:]:
        PATH.parent.mkdir(parents=True, exist_ok=True)
        PATH.write_text(written(figures), encoding="utf-8")
        RUNS.write_text(written(runs), encoding="utf-8")
        return 0
    kept = json.loads(PATH.read_text(encoding="utf-8")) | json.loads(RUNS.read_text(encoding="utf-8"))
    figures |= runs
    differ = 0
    for name, cards in figures.items():
        for card, now in cards.items():
            before = kept.get(name, {}).get(card, {"verdict": None, "phases": []})
            for row in now["phases"]:
                if row not in before["phases"]:
                    differ += 1
                    was = next((old[2:] for old in before["phases"] if old[:2] == row[:2]), "not there")
                    sys.stdout.write(f"{name} {card} {row[0]} {row[1]}: {row[2:]}, was {was}\n")
    return 1 if differ or figures != kept else 0


if __name__ == "__main__":
    sys.exit(main())
