"""What the shipped examples come to, phase by phase: kept in tests/data/golden/examples.json, so that no change goes unseen.

`python -m tests.golden` shows what differs now; `--write` takes the present figures over.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from estimator.engine import estimate_job
from estimator.gpus import find_gpu
from estimator.trainers import read_jobs
from tests.made_jobs import ARCHS

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "tests" / "data" / "golden" / "examples.json"
CARDS = ("RTX4090", "A100-40G")


def present() -> dict[str, Any]:
    """Example -> card -> verdict and [phase, variant, allocated, reserved, verdict] of each phase, of the code as it is."""
    found: dict[str, Any] = {}
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        (job,) = read_jobs(path)
        if job.arch not in ARCHS:
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
    figures = present()
    if "--write" in sys.argv[1:]:
        PATH.parent.mkdir(parents=True, exist_ok=True)
        PATH.write_text(written(figures), encoding="utf-8")
        return 0
    kept = json.loads(PATH.read_text(encoding="utf-8"))
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
