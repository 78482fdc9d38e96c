"""How fast is the allocator's replay? Usage: python benchmarks/replay.py [TRACE.json.gz ...]

Replays a training step of 30,000 events (generated: a transformer of 57 blocks, checkpointed, with an adapter) and the given traces,
in unbounded memory, in hardly enough of it, and with expandable segments. Prints events per second, the time of 30,000 events, and
its ratio to `python -c pass`. Times are the best of several, in process time of this machine.
"""
# ruff: noqa: T201 - a command: printing is what it does

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from calibration.check_allocator import read_trace
from estimator.allocator import FREE, Allocator, OutOfMemory

EVENTS = 30_000
BLOCKS = 57
MIB = 2**20
REPEATS = 7

Step = tuple[list[int], list[int]]


def generated_step() -> Step:
    """Forward without saving, then per block backwards: forward again, backward. Sizes of an image transformer at 1024 pixels."""
    keys: list[int] = []
    sizes: list[int] = []

    def malloc(size: int) -> int:
        keys.append(len(keys))
        sizes.append(size)
        return keys[-1]

    def free(key: int) -> None:
        keys.append(key)
        sizes.append(FREE)

    def block(keep: bool) -> list[int]:
        kept: list[int] = []
        for operation in range(36):
            size = (27 * MIB, 81 * MIB, 9216, 512, 700_000 + 512 * operation, 3 * MIB, 108 * MIB)[operation % 7]
            temporary = malloc(size // 2)
            kept.append(malloc(size))
            free(temporary)
            if not keep and len(kept) > 4:
                free(kept.pop(0))
        return kept

    checkpoints = []
    for _ in range(BLOCKS):
        kept = block(keep=False)
        checkpoints.append(kept.pop())
        for key in kept:
            free(key)
    while checkpoints:
        saved = block(keep=True)
        for key in reversed(saved):
            gradient, temporary = malloc(27 * MIB), malloc(12_288)
            free(key)
            free(temporary)
            free(gradient)
        free(checkpoints.pop())
    while len(keys) < EVENTS:
        free(malloc(16 * MIB))
    return keys[:EVENTS], sizes[:EVENTS]


def traced(path: Path) -> Step:
    """The trace's requests and frees, from an empty allocator; what is live at its end is freed."""
    live: dict[int, int] = {}
    keys: list[int] = []
    sizes: list[int] = []
    for index, (action, address, size) in enumerate(read_trace(path)[0]):
        if action == "alloc":
            live[address] = index
            keys.append(index)
            sizes.append(size)
        elif action == "free" and address in live:
            keys.append(live.pop(address))
            sizes.append(FREE)
    return keys + list(live.values()), sizes + [FREE] * len(live)


def least_capacity(keys: list[int], sizes: list[int]) -> int:
    """About the least that the events survive in, by releasing cached blocks: 2 MiB more than something that fails."""
    unbounded = Allocator()
    unbounded.run(keys, sizes)
    fails, survives = unbounded.peak_allocated_bytes - 2 * MIB, unbounded.peak_reserved_bytes
    while survives - fails > 2 * MIB:
        middle = (fails + survives) // 2
        try:
            Allocator(middle).run(keys, sizes)
            survives = middle
        except OutOfMemory:
            fails = middle
    return survives


def best_seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


def python_seconds() -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    nothing = python_seconds()
    print(f"python -c pass: {1000 * nothing:.1f} ms")
    steps = {"generated step": generated_step(), **{Path(path).name: traced(Path(path)) for path in sys.argv[1:]}}
    for name, (keys, sizes) in steps.items():
        tight = least_capacity(keys, sizes)
        for kind, expandable, capacity in (("unbounded", False, None), ("tight", False, tight), ("expandable", True, None)):
            seconds = best_seconds(lambda: Allocator(capacity, expandable).run(keys, sizes))  # noqa: B023 - called at once
            of_a_step = seconds / len(keys) * EVENTS
            print(
                f"{name}, {kind}: {len(keys) / seconds:,.0f} events/s; {EVENTS:,} events in {1000 * of_a_step:.1f} ms, "
                f"{of_a_step / nothing:.1f} x python -c pass"
            )


if __name__ == "__main__":
    main()
