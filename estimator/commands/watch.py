"""`estimate watch -- python run.py config.yaml`: a training run with its memory beside it, phase by phase, predicted against actual."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimator.commands import Answer, StyleOf, options

if TYPE_CHECKING:
    from estimator.crash import LoggedRun
    from estimator.estimate import Estimate
    from estimator.watching.phases import Phases
    from estimator.watching.sampling import Sampler

DESCRIPTION = """\
Run a training command unchanged, see what it takes of the card in each phase,
and compare that with the prediction when it ends. The run does not notice: its
output and exit status are passed on, and if this is killed it goes on.
"""
EPILOG = """\
examples:
  estimate watch -- python run.py config.yaml
  estimate watch --rows runs.jsonl -- python run.py config.yaml

exit status: that of the command (128 + its signal where one ended it); 2 where
it could not be started. The table goes to stderr.
"""
SEPARATOR = "--"
CONFIG_ENDINGS = (".yaml", ".yml", ".json", ".jsonc")


def parser() -> options.Parser:
    """The options of `watch`, without the command to run."""
    made = options.Parser("estimate watch", DESCRIPTION, EPILOG)
    made.add_argument("--config", metavar="CONFIG", help="the config that runs; default: the command's, or as the log shows it")
    made.add_argument("--gpu", metavar="NAME", help="the card (see `estimate gpus`); default: as the driver calls it")
    options.add_job(made, "where it runs (windows: also WSL2)")
    options.add_overlay(made)
    made.add_argument("--rows", metavar="FILE", help="append what was seen there; default: in your config folder")
    made.add_argument("--log", metavar="FILE", help="the run writes this log itself (run.py --log FILE): read it, leave its output")
    made.usage = "estimate watch [options] -- COMMAND ..."
    return made


def run(arguments: list[str], style: StyleOf) -> Answer:
    """Run the command, then tell. Raises InputError where it cannot be started."""
    at = arguments.index(SEPARATOR) if SEPARATOR in arguments else len(arguments)
    from estimator.errors import InputError, Problem

    known, loose = parser().parse_known_args(arguments[:at])
    if loose and not loose[0].startswith("-"):
        words = shlex.join(word for word in arguments[arguments.index(loose[0]) :] if word != SEPARATOR)
        what, why = f"{words[:80]}: the command to run goes after {SEPARATOR}", "what goes before it is for `estimate watch`"
        raise InputError(Problem(what, None, why, f"estimate watch {SEPARATOR} {words[:200]}"))
    given, command = parser().parse_args(arguments[:at]) if loose else known, arguments[at + 1 :]
    from estimator.watching.child import start
    from estimator.watching.phases import Phases
    from estimator.watching.sampling import Sampler
    from estimator.watching.watch import beside

    if not command:
        raise InputError(Problem("no command to run", None, "", "estimate watch -- python run.py config.yaml"))
    _check(given)
    own = Path(given.log) if given.log else None
    copy = own or Path(tempfile.gettempdir(), f"estimate-watch-{os.getpid()}.log")
    begins = own.stat().st_size if own is not None and own.exists() else 0
    sampler, phases = Sampler(), Phases()
    try:
        child = start(command, None if own else copy)
    except OSError as error:
        raise InputError(Problem(f"{command[0]}: cannot be started", None, error.strerror or str(error), "check the command")) from None
    notes = beside(child, copy, sampler, phases, begins)
    status = child.finish()
    notes += _log_kept(copy, own is None, status)
    try:
        return Answer("", status, _told(given, command, sampler, phases, status, notes))
    except Exception as error:  # the run's status counts, whatever there is to say of it
        return Answer("", status, f"estimate watch: {type(error).__name__}: {error}\n")


def _check(given: argparse.Namespace) -> None:
    """Raises InputError for a card or a config that is not there: before hours of training, not after."""
    if given.gpu is not None:
        options.one_card(given)
    if given.config is not None:
        from estimator.configfile import read_text

        read_text(given.config)


def _log_kept(copy: Path, ours: bool, status: int) -> list[str]:
    """Our copy of the output is of use after a crash only."""
    if not ours:
        return []
    if status == 0:
        copy.unlink(missing_ok=True)
        return []
    return [f"its output is kept in {copy}: estimate diagnose {copy}"] if copy.exists() else []


def _told(given: argparse.Namespace, command: list[str], sampler: Sampler, phases: Phases, status: int, notes: list[str]) -> str:
    from estimator.watching import outcome

    logged = phases.run()
    estimate, why = _estimate(given, command, sampler, logged)
    rows = outcome.compared(phases.seen(), estimate)
    if why:
        notes.append(f"no prediction: {why}")
    if not sampler.cards:
        notes.append("the driver was not found: what the run took is not known")
    elif not sampler.by_process:
        notes.append("the driver does not tell processes apart here: counted is what was in use beyond what was before")
    notes.append(_kept(given, sampler, logged, estimate, rows, status))
    heading = f"\n{logged.name or 'the run'} on {_card_name(given, sampler)}: GiB on the card, by phase"
    return outcome.text(rows, heading, notes)


def _card_name(given: argparse.Namespace, sampler: Sampler) -> str:
    """As the driver calls it; where there is none, as the user named it."""
    if sampler.card is not None:
        return sampler.card.name
    return options.one_card(given).name if given.gpu is not None else "an unknown card"


def _estimate(given: argparse.Namespace, command: list[str], sampler: Sampler, logged: LoggedRun) -> tuple[Estimate | None, str]:
    """The prediction, or why there is none."""
    from estimator.diagnosis.compare import config_of, job_of
    from estimator.engine import estimate_job
    from estimator.errors import CannotTell, InputError
    from estimator.gpus import named
    from estimator.overlays import with_overlay

    card, seen = None, sampler.card
    windows = logged.windows or sys.platform == "win32"
    given = argparse.Namespace(**{**vars(given), "os": given.os or (options.WINDOWS if windows else options.LINUX)})
    path = given.config or next((one for one in command[1:] if one.endswith(CONFIG_ENDINGS) and os.path.isfile(one)), None)
    try:
        if given.gpu is not None:
            card = options.one_card(given)
        elif seen is not None and (memory := seen.memory()) is not None:
            found = named(seen.name, memory.total_bytes, given.os)
            card = found if found is None or given.no_overlay else with_overlay(found, given.overlay)
        if card is None:
            return None, "the card is not in the catalogue: name one with --gpu"
        config = config_of(logged, path, tuple(given.set), given.arch)
        job = job_of(logged, config)
        if job is None:
            return None, config.why_not
        estimate = estimate_job(job, card)
    except (CannotTell, InputError) as error:
        return None, error.problems[0].what
    return (estimate, "") if estimate.phases else (None, "a setting is not modelled: " + job.unmodelled[0].place.key)


def _kept(
    given: argparse.Namespace, sampler: Sampler, logged: LoggedRun, estimate: Estimate | None, rows: list[Any], status: int
) -> str:  # fmt: skip
    """Append the row; where it went, or why not. Without a driver nothing was measured: a row is then made only where one is asked for."""
    if not sampler.cards and given.rows is None:
        return "no row was kept (--rows FILE keeps one all the same)"
    import json
    from datetime import UTC, datetime

    from estimator import nvml
    from estimator.overlays import overlays_dir
    from estimator.watching.outcome import phase_rows

    path, card = given.rows or os.path.join(overlays_dir(), "watched.jsonl"), sampler.card
    failure = logged.failures[-1].what if logged.failures else None
    row = {
        "kind": "watch", "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "config": logged.name or None,
        "arch": estimate.job.arch if estimate is not None else None, "trainer": "ai-toolkit" if logged.seen_trainer else None,
        "card": card.name if card is not None else None, "driver": nvml.driver_version() or None,
        "source": "process" if sampler.by_process else "card", "overlay": bool(estimate and estimate.gpu.calibration),
        "exit_status": status, "steps": logged.step, "failure": failure, "phases": phase_rows(rows),
    }  # fmt: skip
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"the row could not be written to {path}: {error.strerror or error}"
    return f"added to {path}"
