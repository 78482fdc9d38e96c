"""How fast are peak rows, and a cold `estimate`? Usage: python benchmarks/rows.py [CONFIG]

One million workloads of FLUX.1-dev's training step (quantised base weights, checkpointed; batch, image tokens and rank vary)
through its peak rows with numpy alone; a cold `estimate` of CONFIG (default: the 24 GB example), with and without the replay;
30,000 events of replay. Each beside `python -c pass`, and beside `import torch` where an interpreter with torch is at hand
(this one, or TORCH_PYTHON's). Best of several. Processes: user and system time, their children's included.
"""
# ruff: noqa: T201 - a command: printing is what it does

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from replay import EVENTS, best_seconds, generated_step

from estimator.allocator import Allocator
from estimator.features import Ints
from estimator.grid import grid
from estimator.program import Program
from estimator.programs import load_profile

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = 1_000_000
REPEATS = 5
SEED = 20
EXAMPLE = ROOT / "examples" / "flux_dev_24gb.yaml"
STEP = "step.core/qfloat8/checkpointed/"


def workloads(count: int) -> dict[str, Ints]:
    """Random batch (1 to 8), width and height (multiples of 32 from 256 to 2048), rank (4 to 128); T5's 512 text tokens."""
    random = np.random.default_rng(SEED)
    width, height = (32 * random.integers(8, 65, count) for _ in range(2))
    return {
        "B": random.integers(1, 9, count), "T": width * height // 256, "E": (width + height) // 16,
        "r": 4 * random.integers(1, 33, count), "X": np.full(count, 512),
    }  # fmt: skip


def evaluate(one: Program, many: Program, values: dict[str, Ints]) -> Ints:
    """Bytes of each workload; batch 1 has a program of its own."""
    out = np.empty(len(values["B"]), dtype=np.int64)
    for program, chosen in ((one, values["B"] == 1), (many, values["B"] > 1)):
        out[chosen], _ = grid(program, {name: v[chosen] for name, v in values.items()})
    return out


def process_seconds(command: list[str]) -> float:
    """Process time of a command, best of several: with compiled modules, as an installation has them, from the second one on.

    An estimate's exit status 1 (does not fit) is an answer.
    """
    times, environment = [], {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode > 1:
            raise RuntimeError(f"{command}: {done.stderr.strip()[-300:]}")
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(times)


def torch_python() -> str | None:
    for python in (sys.executable, os.environ.get("TORCH_PYTHON")):
        if python and subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode == 0:
            return python
    return None


def main() -> None:
    config = sys.argv[1] if len(sys.argv) > 1 else str(EXAMPLE)
    nothing = process_seconds([sys.executable, "-c", "pass"])
    print(f"python -c pass                  {nothing:8.3f} s")
    python = torch_python()
    torch = process_seconds([python, "-c", "import torch"]) if python else None
    print(f"import torch                    {torch:8.3f} s" if torch else "import torch: no torch here (TORCH_PYTHON names an interpreter)")

    def say(what: str, seconds: float) -> None:
        beside = f"  {seconds / torch:7.2f} x import torch" if torch else ""
        print(f"{what:<32}{seconds:8.3f} s  {seconds / nothing:7.1f} x python -c pass{beside}")

    profile = load_profile("flux1-dev")
    one, many = profile.program(STEP + "one"), profile.program(STEP + "many")
    values = workloads(CONFIGS)
    say(f"{CONFIGS:,} configs, peak rows", best_seconds(lambda: evaluate(one, many, values)))
    estimate = [sys.executable, "-m", "estimator", config, "--gpu", "A100-40G"]
    say("estimate, cold", process_seconds(estimate))
    say("estimate --fast, cold", process_seconds([*estimate, "--fast"]))
    keys, sizes = generated_step()
    say(f"replay of {EVENTS:,} events", best_seconds(lambda: Allocator().run(keys, sizes)))
    peaks = evaluate(one, many, values)
    low, middle, high = (np.quantile(peaks, q) / 2**30 for q in (0, 0.5, 1))
    print(f"of the {CONFIGS:,}: {low:.2f} to {high:.2f} GiB, median {middle:.2f}; weights not counted")


if __name__ == "__main__":
    main()
