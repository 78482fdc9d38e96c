"""`estimate check CONFIG --gpu NAME`, the main command: a config's jobs on a card, or on all of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from estimator.commands import Answer, StyleOf, options, status_of

if TYPE_CHECKING:
    from estimator.estimate import Advice, Estimate
    from estimator.gpus import Gpu
    from estimator.job import Job
    from estimator.report import Style

DESCRIPTION = """\
Will this training config fit on that GPU? Reads the config before anything
runs; needs no GPU.
"""
EPILOG = """\
`estimate CONFIG --gpu NAME` is short for `estimate check CONFIG --gpu NAME`.
Other commands:
  estimate plan      what to change so that it fits, or how far it can grow
  estimate plot      a picture: memory over a setting, or phase by phase
  estimate diagnose  why a run crashed, from its log, and what to change first
  estimate calibrate measure this machine's card
  estimate watch     run a training command and compare what it takes
  estimate gpus      the cards it knows
  estimate archs     the architectures it knows

examples:
  estimate config.yaml --gpu RTX4090
  estimate config.yaml --gpu A100-40G --set train.batch_size=4
  estimate config.yaml --gpu 23.5GiB --json
  estimate config.yaml --gpu all

exit status: 0 safe, 1 not safe (borderline or out of memory), 2 bad input or
usage, 3 cannot tell (architecture or setting not modelled), 70 a bug here
"""


def parser() -> options.Parser:
    """The options of `check`, which are those of `estimate` itself."""
    made = options.Parser("estimate", DESCRIPTION, EPILOG)
    made.add_argument("config", metavar="CONFIG", help="a training config of AI Toolkit (YAML or JSON), or an explicit run file")
    made.add_argument("--gpu", required=True, metavar="NAME", help="a card (see `estimate gpus`), a size such as 23.5GiB, or all")
    options.add_job(made)
    options.add_overlay(made)
    options.add_trainer_version(made)
    either = made.add_mutually_exclusive_group()  # what is safe takes replays
    either.add_argument("--fast", action="store_true", help="peak rows only, without the allocator's replay: a lower bound")
    either.add_argument("--required", action="store_true", help="also find the smallest capacity at which the job is safe")
    made.add_argument("--ram", metavar="SIZE", help="RAM of the machine, such as 32GiB: a warning if it is too small for what waits there")
    made.add_argument("--details", action="store_true", help="all phases, with the ledger of each")
    options.add_version(made)
    options.add_output(made)
    return made


def run(arguments: list[str], style: StyleOf) -> Answer:
    """Estimate every job of the config; the status is that of the worst."""
    given = parser().parse_args(arguments)
    options.without_threads()
    from estimator.estimate import worst_verdict
    from estimator.trainers import read_jobs

    jobs = options.read_beside(given, lambda: read_jobs(given.config, tuple(given.set), given.arch))
    every_card = given.gpu.strip().lower() == "all"
    gpus = options.cards(given, jobs) if every_card else (options.one_card(given, jobs),)
    if given.trainer_version is not None:
        from dataclasses import replace

        from estimator.drift import checked_version

        jobs = tuple(replace(job, trainer_version=checked_version(given.trainer_version)) for job in jobs)
    ram_bytes = options.ram(given)
    results = [[_with_host(estimate, ram_bytes) for estimate in _estimates(job, gpus, given)] for job in jobs]
    status = status_of(worst_verdict(_best(each) if every_card else each[0].verdict for each in results))
    if given.json:
        return Answer(_json([estimate for each in results for estimate in each], status), status)
    texts = [_text(each, style(given.no_color), given.details) for each in results]
    if len(texts) > 1:
        texts = [f"Job {number} of {len(texts)}, one after the other on the same card:\n{text}" for number, text in enumerate(texts, 1)]
    return Answer("\n".join(texts), status)


def _estimates(job: Job, gpus: Sequence[Gpu], given: argparse.Namespace) -> list[Estimate]:
    """The job on each card, with what the user should know; on a single card also what to change."""
    from dataclasses import replace

    from estimator.engine import estimate_job
    from estimator.errors import CannotTell
    from estimator.intervals import residual_for

    estimates = []
    for gpu in gpus:
        try:
            estimate = estimate_job(job, gpu, fast=given.fast, required=given.required)
        except CannotTell as error:
            raise CannotTell(*error.problems, warnings=job.warnings) from error
        if len(gpus) == 1 and estimate.phases:
            estimate = replace(estimate, advice=_advice(job, gpu, estimate))
        bounds = residual_for(gpu, job if estimate.phases else None).source
        assumptions = dict.fromkeys((*estimate.assumptions, *gpu.notes, bounds))
        estimates.append(replace(estimate, assumptions=tuple(assumptions)))
    return estimates


def _with_host(estimate: Estimate, ram_bytes: int | None) -> Estimate:
    """With the RAM that the job needs, and a warning where the machine has less."""
    from dataclasses import replace

    from estimator.host import host_memory, warning

    if not estimate.phases:
        return estimate
    host = host_memory(estimate.job, ram_bytes)
    told = warning(host, ram_bytes)
    return replace(estimate, host=host, warnings=(*estimate.warnings, *([told] if told else [])))


def _advice(job: Job, gpu: Gpu, estimate: Estimate) -> tuple[Advice, ...]:
    from estimator.advice import advise
    from estimator.engine import estimate_job
    from estimator.trainers.together import modelled_job

    return advise(job, gpu, estimate, lambda changed: estimate_job(modelled_job(changed), gpu, fast=True))


def _best(estimates: Sequence[Estimate]) -> str:
    """Of one job on many cards: safe if any card is safe."""
    from estimator.estimate import SAFE, worst_verdict

    verdicts = [estimate.verdict for estimate in estimates]
    return SAFE if SAFE in verdicts else worst_verdict(verdicts)


def _json(estimates: Sequence[Estimate], status: int) -> str:
    from estimator.jsonout import dumps, estimate_document, several_document

    documents = [estimate_document(estimate) for estimate in estimates]
    return dumps(documents[0] if len(documents) == 1 else several_document(documents, status)) + "\n"


def _text(estimates: Sequence[Estimate], style: Style, details: bool) -> str:
    from estimator import report, report_lists

    return report.render(estimates[0], style, details) if len(estimates) == 1 else report_lists.render_cards(estimates, style)
