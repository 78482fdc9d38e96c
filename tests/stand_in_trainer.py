"""Stands for a trainer: prints a real AI Toolkit log as it was printed, progress bars with their carriage returns, and takes its time.

`python stand_in_trainer.py LOG [--seconds S] [--card] [--exit N] [--errors] [--alive FILE]`. `--card`: memory of the device that torch
finds, another amount in each phase (MIB below), for a while. `--errors`: every other line on stderr. `--alive`: a file that grows by a byte
with each line.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

MIB = {"Loading transformer": 4000, "Caching latents": 1000, "Generating baseline samples": 3000, "Saving at step": 500}
"""Beginnings of lines -> what is held from there on, MiB in 2 MiB segments; and in training:"""
TRAINING_MIB = 6000
HELD_SECONDS = 1.0
BAR = re.compile(rb"\d+%\|.*lr: ")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--card", action="store_true")
    parser.add_argument("--exit", type=int, default=0)
    parser.add_argument("--errors", action="store_true")
    parser.add_argument("--alive", type=Path)
    parser.add_argument("config", nargs="?")
    given = parser.parse_args()
    parts = re.split(rb"(?<=[\r\n])", given.log.read_bytes())
    held: list[object] = []
    for number, part in enumerate(parts):
        stream = sys.stderr if given.errors and number % 2 else sys.stdout
        stream.buffer.write(part)
        stream.flush()
        if given.card:
            take(part, held)
        if given.alive:
            with given.alive.open("ab") as file:
                file.write(b".")
        time.sleep(given.seconds / len(parts))
    return given.exit


def take(part: bytes, held: list[object]) -> None:
    """Hold what belongs to the phase that begins here."""
    import torch

    wanted = next((size for words, size in MIB.items() if part.startswith(words.encode())), TRAINING_MIB if BAR.search(part) else None)
    if wanted is not None and held[:1] != [wanted]:
        held.clear()
        torch.cuda.empty_cache()
        held += [wanted, torch.empty(wanted << 20, dtype=torch.uint8, device="cuda")]
        time.sleep(HELD_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
