"""`estimate calibrate --trainer PATH --config CONFIG`: a few steps of the user's own config by the user's own trainer, phase by phase.

The launcher of calibration.trainer runs it, on the card that is there, with the weights that the config names or with memory that is never
filled (nothing is downloaded then, and nothing worth keeping is trained). The config is not touched: a copy runs in a folder of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from calibration.oncard import control
from calibration.oncard.rows import Rows
from calibration.trainer.__main__ import HERE
from calibration.validation import phases
from estimator.configfile import read_config
from estimator.engine import estimate_job
from estimator.errors import CannotTell, InputError, Problem
from estimator.gpus import GIB, named
from estimator.job import Place
from estimator.overlays import overlays_dir, with_overlay
from estimator.screen import Column, table
from estimator.trainers import read_jobs

RARELY = 1_000_000  # save_every, sample_every: at the start and the end only
_COLUMNS = (Column("phase", 14), *(Column(name, 9, right=True) for name in ("alloc.", "predict.", "reserv.", "predict.")))


def shortened(config: Mapping[str, Any], steps: int, folder: Path) -> dict[str, Any]:
    """A copy of the config that stops after so many steps and writes into `folder`. Raises KeyError or TypeError where it is no job."""
    made = copy.deepcopy(dict(config))
    for process in made["config"]["process"]:
        process["training_folder"] = str(folder)
        process.setdefault("train", {})["steps"] = steps
        for section, key in (("save", "save_every"), ("sample", "sample_every")):
            process[section] = {**(process.get(section) or {}), key: RARELY}
    return made


def highest(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """(phase, allocated, reserved) of phases of one name that follow on each other."""
    named_rows = groupby(rows, key=lambda row: "prepare" if row["phase"] == "setup" else str(row["phase"]))
    groups = [(name, list(group)) for name, group in named_rows]
    return [(name, max(r["allocated_peak"] for r in group), max(r["reserved_peak"] for r in group)) for name, group in groups]


def beside(measured: list[tuple[str, int, int]], expected: list[tuple[str, int, int]]) -> list[dict[str, Any]]:
    """Measured phases with what is predicted for each: in order where both have the same phases, else the highest of that name."""
    same = [name for name, *_ in measured] == [name for name, *_ in expected]
    out = []
    for number, (name, allocated, reserved) in enumerate(measured):
        known = [expected[number]] if same else [one for one in expected if one[0] == name]
        out.append({
            "phase": name, "max_allocated_bytes": allocated, "max_reserved_bytes": reserved,
            "predicted_allocated_bytes": max((one[1] for one in known), default=None),
            "predicted_reserved_bytes": max((one[2] for one in known), default=None),
        })  # fmt: skip
    return out


def record(given: argparse.Namespace) -> tuple[str, int]:
    """Run, compare, append a row. Raises InputError where trainer, config or card cannot be used."""
    trainer = Path(given.trainer)
    if not (trainer / "run.py").is_file():
        what = f"--trainer {trainer}: no checkout of AI Toolkit"
        raise InputError(Problem(what, None, "it has no run.py", "give the folder that has it"))
    worker = control.Worker(control.python_of(given.python, given.trainer))
    try:
        found = control.hello(worker)
    finally:
        worker.stop()
    card = named(found["device"], found["total_bytes"], found["os"])
    job = read_jobs(given.config)[0]
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        result = _run(given, Path(folder), worker.python)
    expected: list[tuple[str, int, int]] = []
    why = "this card is not in the catalogue" if card is None else ""
    try:
        known = estimate_job(job, with_overlay(card)).phases if card is not None else ()
        expected = highest({"phase": p.phase, "allocated_peak": p.allocated_bytes, "reserved_peak": p.reserved_bytes} for p in known)
    except CannotTell as error:
        why = error.problems[0].what
    compared = beside(highest(phases(result["phases"])), expected)
    row = {
        "kind": "run", "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "config": job.name, "arch": job.arch, "steps": given.steps,
        "weights": given.weights, "outcome": result["outcome"], "error": result["error"], "versions": result["versions"],
        "card": {name: found[name] for name in ("device", "total_bytes", "compute_capability", "emulated")}, "made": found["made"],
        "phases": compared,
    }  # fmt: skip
    rows = Rows(Path(given.out) if given.out else Path(overlays_dir(), "runs.jsonl"))
    unwritten = rows.append(row)
    rows.close()
    if unwritten:
        raise InputError(Problem("the row cannot be written", Place(str(rows.path), ""), unwritten, "name another file with --out"))
    return (json.dumps(row, indent=2) + "\n" if given.json else _text(row, why, rows.path)), 0


def _run(given: argparse.Namespace, folder: Path, python: str) -> dict[str, Any]:
    """The launcher's result. Raises InputError where the trainer could not even begin."""
    config, out = folder / "config.yaml", folder / "out"
    try:
        config.write_text(yaml.safe_dump(shortened(read_config(given.config).data, given.steps, folder / "training"), sort_keys=False))
    except (KeyError, TypeError, AttributeError):
        raise InputError(Problem("this is no job of AI Toolkit", Place(given.config, ""), "", "give a config that run.py takes")) from None
    out.mkdir()
    environment = {
        **os.environ, "AITK": str(Path(given.trainer).resolve()), "TRAINER_MODELS": given.weights,
        "TRAINER_WEIGHTS": str(folder / "weights"), "TORCH_DISABLE_NATIVE_JIT": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    if given.weights == "untouched":
        command = [python, "-m", "calibration.trainer.adapters", str(folder / "weights")]
        made = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True)
        if made.returncode:
            raise InputError(Problem("stand-in adapters cannot be made", None, made.stderr.strip()[-200:], control.INSTALL))
    print("the trainer runs; what it prints:", file=sys.stderr, flush=True)
    subprocess.run([python, str(HERE / "launch.py"), str(config), str(out)], env=environment, stdout=sys.stderr)
    if not (out / "result.json").exists():
        raise InputError(Problem("the trainer did not run", Place(given.config, ""), "see what it printed", "try it with its own run.py"))
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def _text(row: Mapping[str, Any], why: str, path: Path) -> str:
    device = " (emulated: nothing here is a measurement)" if row["card"]["emulated"] else ""
    lines = [f"{row['config']} by AI Toolkit {row['versions']['ai-toolkit']} on {row['card']['device']}{device}: {row['outcome']}"]
    lines += [f"  no prediction: {why}"] if why else []
    names = ("max_allocated_bytes", "predicted_allocated_bytes", "max_reserved_bytes", "predicted_reserved_bytes")
    cells = [(one["phase"], *("" if one[name] is None else f"{one[name] / GIB:.2f}" for name in names)) for one in row["phases"]]
    lines += ["", f"GiB at each phase's peak; {row['steps']} steps may not have met every training size", *table(_COLUMNS, cells, False)]
    return "\n".join([*lines, "", f"  added to {path}"]) + "\n"
