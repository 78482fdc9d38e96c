"""`estimate diagnose LOG`: why a run crashed, and what to change first."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from estimator.commands import CANNOT_TELL_STATUS, NOT_SAFE_STATUS, SAFE_STATUS, Answer, StyleOf, options

if TYPE_CHECKING:
    from estimator.crash import Diagnosis
    from estimator.gpus import Gpu

DESCRIPTION = """\
Why did this run crash, and what to change first? Reads the trainer's log. The
config is taken from the log, where AI Toolkit prints it, or from --config.
"""
EPILOG = """\
kinds: A while loading or before training, B in the first training steps,
C while previewing, D only sometimes, E the environment and not the config

exit status: 0 no memory failure in the log, 1 a memory failure, 2 bad input or
usage, 3 cannot tell (the log ends without an error, or another kind of error)
"""


def parser() -> options.Parser:
    """The options of `diagnose`."""
    made = options.Parser("estimate diagnose", DESCRIPTION, EPILOG)
    made.add_argument("log", metavar="LOG", help="the trainer's log, whole or its end; any size")
    made.add_argument("--config", metavar="CONFIG", help="the config that ran; default: as the log shows it")
    made.add_argument("--gpu", metavar="NAME", help="the card it ran on (see `estimate gpus`); default: as the log's messages say")
    options.add_job(made, "where it ran (windows: also WSL2); default: as the paths in the log say")
    options.add_overlay(made)
    made.add_argument("--record", metavar="FILE", help="append what was seen as a measurement row; for logs of real cards")
    options.add_output(made)
    return made


def run(arguments: list[str], style: StyleOf) -> Answer:
    """Read the log, compare it with the prediction for its config, say what it was and what to change."""
    given = parser().parse_args(arguments)
    from estimator.diagnosis.diagnose import Question, diagnose
    from estimator.diagnosis.lines import open_log
    from estimator.diagnosis.story import read_story
    from estimator.engine import estimate_job

    runs = read_story(open_log(given.log))
    question = Question(given.config, given.gpu, tuple(given.set), given.arch, given.os)
    found = diagnose(runs, question, lambda job, gpu, fast: estimate_job(job, _calibrated(gpu, given), fast=fast))
    if given.record is not None:
        found = _recorded(found, given.record, given.gpu)
    status = _status(found)
    if given.json:
        from estimator.jsondiagnosis import diagnosis_document
        from estimator.jsonout import dumps

        return Answer(dumps(diagnosis_document(found, status)) + "\n", status)
    from estimator.report_diagnosis import render_diagnosis

    return Answer(render_diagnosis(found, style(given.no_color)), status)


def _calibrated(gpu: Gpu, given: argparse.Namespace) -> Gpu:
    """The card as its overlay has it; one that is known by its capacity alone has none."""
    from estimator.overlays import with_overlay

    return gpu if given.no_overlay else with_overlay(gpu, given.overlay)


def _status(found: Diagnosis) -> int:
    if found.failure is not None:
        return NOT_SAFE_STATUS
    return SAFE_STATUS if (found.run.finished or found.run.stopped) and not found.run.failures else CANNOT_TELL_STATUS


def _recorded(found: Diagnosis, path: str, gpu: str | None) -> Diagnosis:
    """The measurement appended, and said so."""
    from dataclasses import replace

    from estimator.diagnosis import record

    job = found.prediction.estimate.job if found.prediction is not None else None
    row = record.row(found, job, gpu)
    if row is None:
        said = "nothing was recorded: the log shows neither a failure on the card nor a finished run"
    else:
        said = f"recorded as {row['id']} in {path}" if record.append(row, path) else f"{row['id']} is in {path} already"
    return replace(found, notes=(*found.notes, said))
