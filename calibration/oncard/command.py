"""`estimate calibrate`: what its options ask for, with a progress bar on stderr. estimator/commands/calibrate.py hands over to this."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from calibration.oncard import cells, control
from calibration.oncard.families import FAMILIES
from calibration.oncard.report import render
from calibration.oncard.rows import Busy
from estimator.archs import load_archs
from estimator.errors import CannotTell, InputError, Problem
from estimator.gpus import Gpu, find_gpu, named
from estimator.overlay_file import document
from estimator.overlays import file_name, overlays_dir
from estimator.paths import installed_version

INTERRUPTED_STATUS = 130


def run(given: argparse.Namespace) -> tuple[str, int]:
    """Calibrate; what to print on stdout, and the exit status. Raises InputError and CannotTell."""
    if given.trainer is not None and given.config is not None:
        from calibration.oncard.own_run import record

        return record(given)
    archs = architectures(given.arch)
    worker = control.Worker(control.python_of(given.python, given.trainer))
    try:
        return _calibrate(given, archs, worker)
    except Busy as error:
        raise InputError(Problem(f"{error}: another calibration writes to this file", None, "", "wait for it, or stop it")) from None
    except KeyboardInterrupt:
        print("\ninterrupted: what was measured is kept; the same command goes on from there", file=sys.stderr)
        return "", INTERRUPTED_STATUS
    finally:
        worker.stop()


def architectures(asked: list[str] | None) -> tuple[str, ...]:
    """Keys to make cells of. Raises InputError for what is no architecture, CannotTell for one that no cells can be made of."""
    if not asked:
        return tuple(FAMILIES)
    known, names = load_archs().archs, tuple(dict.fromkeys(name for text in asked for name in text.split(",")))
    can = f"cells can be made of {', '.join(FAMILIES)}"
    wrong = [name for name in names if name not in known]
    if wrong:
        raise InputError(*(Problem(f"--arch {name}: no such architecture", None, "", f"{can}; see `estimate archs`") for name in wrong))
    without = [name for name in names if name not in FAMILIES]
    if without:
        raise CannotTell(*(Problem(f"--arch {name}: no cells of it can be made yet", None, can, "leave it out") for name in without))
    return names


def _calibrate(given: argparse.Namespace, archs: tuple[str, ...], worker: control.Worker) -> tuple[str, int]:
    found = control.hello(worker)
    card = _card(given.gpu, found)
    out = Path(given.out) if given.out else Path(overlays_dir(), file_name(card.name if card else found["device"]))
    notes: list[str] = []
    header = control.header_of(found, card.name if card else "", installed_version(), "estimate calibrate --arch " + ",".join(archs))
    rows, header = control.open_rows(out.with_name(out.name.removesuffix(".json").removesuffix(".overlay") + ".rows.jsonl"), header, notes)
    plan = cells.plan(archs, found["total_bytes"] - (card.context_high_bytes if card else 2**30) - (found["others_bytes"] or 0))
    with _progress() as bar:
        task = bar.add_task("", total=len(plan))

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        left = control.calibrate(worker, rows, header, plan, given.minutes, show)
    outcome = control.finish(rows, header, out, left, notes)
    return _answer(given, outcome, card)


def _progress() -> Progress:
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(BarColumn(20), MofNCompleteColumn(), *times, TextColumn("{task.description}"), console=Console(stderr=True))


def _card(text: str, found: dict[str, Any]) -> Gpu | None:
    """The catalogue's card: the one that --gpu names if it can be this one, else the one that the driver's name means."""
    if text.strip().lower() == "auto":
        return named(found["device"], found["total_bytes"], found["os"])
    card = find_gpu(text, found["os"])
    seen = named(card.name, found["total_bytes"], found["os"])
    if seen is None:
        size = f"{found['total_bytes'] / 2**30:.2f} GiB"
        raise InputError(Problem(f"--gpu {text}: the card here is {found['device']} of {size}", None, "", "leave --gpu auto"))
    return seen


def _answer(given: argparse.Namespace, outcome: control.Outcome, card: Gpu | None) -> tuple[str, int]:
    if outcome.unwritten:
        fix = "free space and run the same command again: what is in the file is kept"
        raise InputError(Problem(f"rows could not be written: {outcome.unwritten}", None, str(outcome.path.parent), fix))
    if outcome.overlay is None:
        errors = [str(row.get("error", "")) for row in outcome.rows if row.get("outcome") not in (None, "ok")]
        fix = "try --arch with one architecture, or more --minutes"
        raise InputError(Problem("no cell went through", None, errors[0] if errors else "", fix))
    if given.json:
        return json.dumps(document(outcome.overlay), indent=2) + "\n", 0
    return render(outcome, card), 0
