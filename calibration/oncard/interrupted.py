"""`python -m calibration.oncard.interrupted FOLDER [--kills N] [options of estimate calibrate]`: a calibration killed again and again.

One is made without interruption, another is killed with SIGKILL at random points and started again until it is through. Every
cell must be there once, and the overlay must be the same. Meant for the emulated device, whose figures are the same each time: run it with
`calibration/emulated_cuda/run.sh -m calibration.oncard.interrupted ...`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from calibration.oncard.rows import CELL, whole_lines

EARLY = 0.2
"""Share of kills within EARLY_SECONDS of the start, when nothing is measured yet; the others come after some new rows and a while."""
EARLY_SECONDS, NEW_ROWS, LATER_SECONDS = 2.0, (0, 1, 1), 1.0
MOST_SECONDS = 300.0


def start(folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "estimator", "calibrate", "--out", str(folder / "card.overlay.json"), *options]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def rows_of(folder: Path) -> list[str]:
    """Names of the cells that are on the disk."""
    path = folder / "card.rows.jsonl"
    rows, _ = whole_lines(path.read_bytes() if path.exists() else b"")
    return [row["cell"] for row in rows if row.get("kind") == CELL]


def wait(process: subprocess.Popen[bytes], folder: Path, rows: int, chance: random.Random) -> None:
    """Until a random point of the run, or its end."""
    early, more = chance.random() < EARLY, rows + chance.choice(NEW_ROWS)
    until = time.monotonic() + MOST_SECONDS
    while not early and process.poll() is None and len(rows_of(folder)) < more and time.monotonic() < until:
        time.sleep(0.01)
    until = time.monotonic() + chance.uniform(0, EARLY_SECONDS if early else LATER_SECONDS)
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)


def killed(folder: Path, options: list[str], kills: int, chance: random.Random) -> tuple[int, int]:
    """Start and kill so many times, then let it finish. (kills that came before its end, rows that were there before the last start)."""
    done = 0
    while done < kills:
        process = start(folder, options)
        before = rows_of(folder)
        wait(process, folder, len(before), chance)
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done += 1
        after = rows_of(folder)
        if after[: len(before)] != before:
            raise SystemExit(f"rows that were there are gone: {before} became {after}")
        print(f"killed {done}: {len(after)} cells kept", flush=True)
    kept = len(rows_of(folder))
    if start(folder, options).wait() != 0:
        raise SystemExit(f"the last run failed: {folder / 'log.txt'}")
    return done, kept


def compared(whole: Path, broken: Path) -> dict[str, Any]:
    """What differs between the two: nothing, if all is well. The date of the overlay does not count."""
    documents = [json.loads((folder / "card.overlay.json").read_text()) for folder in (whole, broken)]
    for document in documents:
        document["made"].pop("date")
    names = [rows_of(folder) for folder in (whole, broken)]
    return {
        "cells": len(names[1]), "doubled": sorted({name for name in names[1] if names[1].count(name) > 1}),
        "lost": sorted(set(names[0]) - set(names[1])), "added": sorted(set(names[1]) - set(names[0])),
        "same_overlay": documents[0] == documents[1],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.oncard.interrupted", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given, options = parser.parse_known_args()
    if start(given.folder / "whole", options).wait() != 0:
        raise SystemExit(f"the run without interruption failed: {given.folder / 'whole' / 'log.txt'}")
    done, kept = killed(given.folder / "killed", options, given.kills, random.Random(given.seed))
    found = {"kills": done, "kept_before_the_last_start": kept, **compared(given.folder / "whole", given.folder / "killed")}
    print(json.dumps(found))
    return 0 if found["same_overlay"] and not (found["doubled"] or found["lost"] or found["added"]) else 1


if __name__ == "__main__":
    sys.exit(main())
