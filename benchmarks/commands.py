"""How long do the commands take on each example? Usage: python benchmarks/commands.py [CARD]

For every config of examples/: a cold `estimate`, `estimate --fast` and `estimate plan` on CARD (default RTX4090), and one grid of a
million cells. User and system time of the whole process, best of several, each beside `python -c pass` of the same run.
"""
# ruff: noqa: T201 - a command: printing is what it does

from __future__ import annotations

import sys

from rows import EXAMPLE, ROOT, process_seconds

from estimator.allocator_compiled import library

MILLION = ["resolution=256-2048:128", "batch=1-16", "rank=1-256", "preview=256-1984:115"]
"""15 x 16 x 256 x 16: 983,040 cells."""


def main() -> None:
    card = sys.argv[1] if len(sys.argv) > 1 else "RTX4090"
    print("the allocator's replay is", "compiled" if library() is not None else "not compiled: no C compiler at installation")
    nothing = process_seconds([sys.executable, "-c", "pass"])
    loop = process_seconds([sys.executable, "-c", "for _ in range(10_000_000): pass"]) - nothing
    print(f"python -c pass {nothing:.3f} s, ten million turns of an empty loop {loop:.3f} s; of the first, each command on {card}:")
    print(f"{'':<28}{'estimate':>18}{'--fast':>18}{'plan':>18}")
    for config in sorted((ROOT / "examples").glob("*.y*ml")):
        start = [sys.executable, "-m", "estimator"]
        commands = ([str(config), "--gpu", card], [str(config), "--gpu", card, "--fast"], ["plan", str(config), "--gpu", card])
        times = [process_seconds([*start, *command]) for command in commands]
        print(f"{config.stem:<28}" + "".join(f"{seconds:8.3f} s {seconds / nothing:5.0f} x" for seconds in times), flush=True)
    grid = process_seconds([sys.executable, "-m", "estimator", "plan", str(EXAMPLE), "--gpu", card, "--grid", *MILLION])
    print(f"a grid of 983,040 cells     {grid:8.3f} s {grid / nothing:5.0f} x")


if __name__ == "__main__":
    main()
