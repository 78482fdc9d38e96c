"""`estimate plan CONFIG --gpu NAME`: the edit of the least loss that is safe, how far a config can go, and tables of many settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from estimator.commands import NOT_SAFE_STATUS, SAFE_STATUS, Answer, StyleOf, options

if TYPE_CHECKING:
    from estimator.gpus import Gpu
    from estimator.planner.subject import Subject

DESCRIPTION = """\
What to change so that a training config is safe on a GPU, at the least loss;
or how far a config that is safe can grow. Writes nothing unless told to.
"""
EPILOG = """\
aims:
  quality     keep buckets, frames and rank; give up speed and previews first
  speed       the fastest config that is safe
  batch, resolution, frames
              as much of it as is safe, for what costs time at most

examples:
  estimate plan config.yaml --gpu RTX3060
  estimate plan config.yaml --gpu RTX4090 --aim batch --keep sample
  estimate plan config.yaml --gpu A100-40G --write planned.yaml
  estimate plan config.yaml --gpu 24GB,48GB,80GB
  estimate plan config.yaml --gpu RTX4090 --steps
  estimate plan config.yaml --gpu RTX4090 --grid resolution=512,768 batch=1-8

exit status: 0 a safe config was found, 1 none is safe, 2 bad input or usage,
3 cannot tell (architecture or setting not modelled), 70 a bug here
"""


def parser() -> options.Parser:
    """The options of `plan`."""
    made = options.Parser("estimate plan", DESCRIPTION, EPILOG)
    made.add_argument("config", metavar="CONFIG", help="a training config of AI Toolkit (YAML or JSON)")
    made.add_argument("--gpu", required=True, metavar="NAME", help="a card, a size such as 23.5GiB, several with commas between, or all")
    made.add_argument("--aim", default="quality", metavar="AIM", help="quality (default), speed, batch, resolution or frames")
    made.add_argument("--keep", action="append", default=[], metavar="KEY", help="do not touch this key; * and ? stand for anything")
    made.add_argument("--steps", action="store_true", help="walk by hand instead: what to lower, and then to raise, in which order")
    table = "a table of many settings instead: resolution=512,768 batch=1-8"
    made.add_argument("--grid", nargs="+", action="extend", metavar="AXIS=VALUES", help=table)
    made.add_argument("--confirm", action="store_true", help="with --grid: replay the cells that peak rows do not rule out")
    made.add_argument("-o", "--out", metavar="FILE", help="with --grid: write the table there (.csv, .parquet); default: to the screen")
    made.add_argument("--write", metavar="FILE", help="write the edited config there")
    made.add_argument("--in-place", action="store_true", help="write over the config itself")
    options.add_job(made)
    options.add_trainer_version(made)
    options.add_overlay(made)
    options.add_output(made)
    return made


def run(arguments: list[str], style: StyleOf) -> Answer:
    """Plan the config for a card, or for several."""
    given = parser().parse_args(arguments)
    options.without_threads()
    from estimator.planner.output import check_target
    from estimator.planner.space import dimensions
    from estimator.planner.subject import check_keep, in_process, read_subject

    _check_usage(given)
    target = given.write if given.write is not None else given.config if given.in_place else None
    subject = options.read_beside(given, lambda: read_subject(given.config, tuple(given.set), given.arch, (), given.trainer_version))
    gpus = options.cards(given, [subject.job])
    if target is not None:
        check_target(given.config, target, given.in_place)
    if given.keep:
        editable = {edit.key for each in dimensions(subject, given.aim) for level in each.levels for edit in level.edits}
        subject.keep = tuple(map(in_process, given.keep))
        check_keep(subject, editable)
    if given.grid is not None:
        return _grid(given, subject, gpus[0])
    if given.steps:
        return _steps(given, subject, gpus[0], target, style)
    return _one(given, subject, gpus[0], target, style) if len(gpus) == 1 else _several(given, subject, gpus, style)


SURELY = 0.7  # "fast" is like "frames", and means "speed"


def _check_usage(given: argparse.Namespace) -> None:
    """Raises InputError for an unknown aim and for options that exclude each other."""
    from estimator.errors import InputError, Problem
    from estimator.planner.space import AIMS
    from estimator.trainers.section import did_you_mean

    problems = []
    if given.aim not in AIMS:
        problems.append(Problem(f"--aim {given.aim[:80]}: no such aim", None, "", did_you_mean(given.aim, AIMS, SURELY)))
    alone = (("--write", given.write), ("--in-place", given.in_place), ("--steps", given.steps), ("--grid", given.grid))
    for name, wanted in alone:
        if wanted not in (None, False) and options.is_several(given.gpu):
            problems.append(Problem(f"{name} takes one card", None, "several cards have a plan each", "name the card to plan for"))
    if given.write is not None and given.in_place:
        problems.append(Problem("--write and --in-place exclude each other", None, "the edited config goes into one file", "leave one out"))
    if given.grid is None and (given.confirm or given.out is not None):
        option = "--confirm" if given.confirm else "--out"
        problems.append(Problem(f"{option} belongs to --grid", None, "", "leave it out, or add --grid"))
    aimed = f"--aim {given.aim[:80]}", given.aim != "quality"
    others = [name for name, wanted in (*alone[:-1], ("--json", given.json), ("--keep", given.keep), aimed) if wanted]
    if given.grid is not None and others:
        problems.append(Problem(f"--grid and {others[0]} exclude each other", None, "a grid is a table of CSV", "leave one of the two out"))
    if given.steps and given.aim != "quality":
        problems.append(Problem("--steps has an order of its own", None, f"no use for --aim {given.aim[:80]}", "leave one of the two out"))
    if problems:
        raise InputError(*problems)


def _one(given: argparse.Namespace, subject: Subject, gpu: Gpu, target: str | None, style: StyleOf) -> Answer:
    from estimator.planner.output import edited_text, unified_diff, write_text
    from estimator.planner.plans import make_plan

    plan = make_plan(subject, gpu, given.aim)
    status, diff, written = NOT_SAFE_STATUS, "", None
    if plan.after is not None:
        status = SAFE_STATUS
        before, after = edited_text(subject, plan.edits)
        diff = unified_diff(before, after, given.config)
        if target is not None:
            write_text(after, target)
            written = target
    if given.json:
        from estimator.jsonout import dumps
        from estimator.jsonplan import plan_document

        return Answer(dumps(plan_document(plan, diff, written)) + "\n", status)
    from estimator.report_plan import render_plan

    return Answer(render_plan(plan, diff, written, style(given.no_color)), status)


def _steps(given: argparse.Namespace, subject: Subject, gpu: Gpu, target: str | None, style: StyleOf) -> Answer:
    from estimator.estimate import SAFE
    from estimator.planner.output import edited_text, unified_diff, write_text
    from estimator.planner.steps import walk

    done = walk(subject, gpu)
    before, after = edited_text(subject, done.edits)
    safe, written = done.end.verdict == SAFE, None
    if target is not None and safe:
        write_text(after, target)
        written = target
    diff, status = unified_diff(before, after, given.config), SAFE_STATUS if safe else NOT_SAFE_STATUS
    if given.json:
        from estimator.jsonout import dumps
        from estimator.jsonplan import walk_document

        return Answer(dumps(walk_document(done, diff, written)) + "\n", status)
    from estimator.report_walk import render_walk

    return Answer(render_walk(done, diff, written, style(given.no_color)), status)


def _grid(given: argparse.Namespace, subject: Subject, gpu: Gpu) -> Answer:
    from estimator.planner.axes import read_axes
    from estimator.planner.judge import Judge
    from estimator.planner.sweep import sweep
    from estimator.planner.tables import check_table, confirmed, csv_text, safe_or_unconfirmed, write_table

    check_table(given.out)
    made = sweep(subject, gpu, read_axes(given.grid))
    if given.confirm:
        made = confirmed(made, Judge(subject, gpu))
    if given.out is None:
        return Answer(csv_text(made), SAFE_STATUS)
    write_table(made, given.out)
    word = "safe" if given.confirm else "not ruled out by peak rows (safe only after a replay: --confirm, or check)"
    return Answer(f"cells in {given.out}: {made.verdict.size:,}; of them {word}: {safe_or_unconfirmed(made):,}\n", SAFE_STATUS)


def _several(given: argparse.Namespace, subject: Subject, gpus: Sequence[Gpu], style: StyleOf) -> Answer:
    from estimator.planner.plans import make_plan

    plans = [make_plan(subject, gpu, given.aim, look_further=False) for gpu in gpus]
    status = SAFE_STATUS if any(plan.after is not None for plan in plans) else NOT_SAFE_STATUS
    if given.json:
        from estimator.jsonout import dumps
        from estimator.jsonplan import plans_document

        return Answer(dumps(plans_document(plans, status)) + "\n", status)
    from estimator.report_plan import render_cards

    return Answer(render_cards(plans, style(given.no_color)), status)
