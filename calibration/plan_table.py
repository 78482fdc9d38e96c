"""The plan of every example on five cards, held against `check`: is it safe, and is the next step up not?

    python -m calibration.plan_table [--only NAME ...] [--cards NAME ...] [--write]

Each plan's text is written to a file, read again and estimated anew: it must be safe. Then each change is taken back by a step, or what
could still grow goes one step further: none of these may be safe. `--write` keeps the table in docs/plans.md. Exit status 1 where
anything does not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from calibration.confirmed import FINISHED, OUT_OF_MEMORY, Confirmed, read
from estimator.engine import estimate_job
from estimator.errors import CannotTell
from estimator.estimate import OOM, SAFE
from estimator.gpus import GIB, Gpu, find_gpu
from estimator.planner.edits import Edit, merged
from estimator.planner.growth import grown_to
from estimator.planner.output import edited_text
from estimator.planner.plans import Plan, make_plan
from estimator.planner.space import dimensions
from estimator.planner.subject import Subject, read_subject
from estimator.trainers import read_jobs

ROOT = Path(__file__).resolve().parent.parent
CARDS = ("RTX3060", "RTX4090", "RTX5090", "L40S", "A100-80G")
NOT_TOLD = "cannot be told"
PAGE = """\
# Plans of the examples

Made by `python -m calibration.plan_table --write`; nothing here was run on a card. For each example and card: what `estimate plan`
answers, what `check` says of the file that it writes (with the likely peak on the card), and of the next steps up: a change taken
back by a step, or what could grow gone one step further. None of them may be safe; `borderline` is where neither a run nor its failure is
certain. What the real trainer does with some of them is below.

| example | card | plan | check of it | next steps up |
|---|---|---|---|---|
"""

CONFIRMED = """
## Run by the trainer

The examples on synthetic images and clips of a few sizes, planned for a card and run by the real trainer on the emulated device of that
card's capacity and compute capability (`python -m calibration.confirm_plans`; emulated, not measured): what is planned must run, what is
called oom must raise torch.OutOfMemoryError. "calibrated": with the overlay that `estimate calibrate` made on the emulated device of that
card.

| example | card | config | estimated | the trainer's run |
|---|---|---|---|---|
"""


def confirmed_table(rows: Iterable[Confirmed]) -> str:
    """The kept runs as a table."""
    return CONFIRMED + "".join(f"| {' | '.join(_told(row))} |\n" for row in rows)


def _told(row: Confirmed) -> tuple[str, ...]:
    card = f"{row.card}, {row.capacity_mib / 1024:.2f} GiB" + (", calibrated" if row.calibrated else "")
    edits = ", ".join(f"`{edit}`" for edit in row.edits) or "as it is"
    ended = {FINISHED: "runs", OUT_OF_MEMORY: f"out of memory ({row.failed_in})"}.get(row.ran, row.ran)
    return row.example, card, edits if row.config == "planned" else f"{row.config}: {edits}", row.verdict, ended


@dataclass(frozen=True)
class Row:
    """`plan`: its edits in words; `wrong`: what does not hold, empty where all does."""

    example: str
    card: str
    plan: str
    check: str
    steps: str
    wrong: str = ""

    @property
    def line(self) -> str:
        return "| " + " | ".join((self.example, self.card, self.plan, self.check, self.steps)) + " |"


def row(example: Path, gpu: Gpu) -> Row:
    """One plan and what `check` says of it and of the steps up."""
    subject = read_subject(str(example), (), None, ())
    plan = make_plan(subject, gpu, "quality")
    if plan.after is None:
        return _none(example.stem, plan)
    verdict, peak = _written(plan)
    steps = [(what, _verdict(subject, edits, gpu)) for what, edits in steps_up(plan)]
    wrong = [f"the plan is {verdict}"] if verdict != SAFE else []
    wrong += [f"{what} is safe" for what, said in steps if said == SAFE]
    shown = "; ".join(f"{what}: {said}" for what, said in steps) or "nothing larger is looked at"
    return Row(example.stem, gpu.name, _words(plan.edits), f"{verdict}, {peak / GIB:.1f} GiB", shown, "; ".join(wrong))


def _none(name: str, plan: Plan) -> Row:
    """No config is safe: with all that can be changed at its strongest it may not be either."""
    card = plan.smallest_card
    where = f"the smallest card with one: {card.name}" if card is not None else "on no larger card either"
    strongest = merged(edit for each in dimensions(plan.subject, plan.aim) for edit in each.levels[-1].edits)
    tried = {plan.before.verdict, _verdict(plan.subject, strongest, plan.gpu)}
    return Row(name, plan.gpu.name, "none is safe", f"as it is: {plan.before.verdict}", where, "one is safe" if SAFE in tried else "")


def _written(plan: Plan) -> tuple[str, int]:
    """(verdict, likely bytes on the card) of the planned file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "planned.yaml"
        path.write_text(edited_text(plan.subject, plan.edits)[1], encoding="utf-8", newline="")
        (job,) = read_jobs(str(path))
    estimate = estimate_job(job, plan.gpu)
    return estimate.verdict, max(phase.device.likely_bytes for phase in estimate.phases)


def steps_up(plan: Plan) -> list[tuple[str, tuple[Edit, ...]]]:
    """Each change taken back by a step; or, of a config that needs none, each growth one step beyond what is safe."""
    if plan.changes:
        return [(f"{change.name} a step back", change.weaker) for change in plan.changes]
    beyond = [(each.what, each.beyond) for each in plan.growth if each.beyond is not None]
    return [(f"{what} {value}", merged((*plan.edits, *grown_to(plan.subject, what, value)))) for what, value in beyond]


def _verdict(subject: Subject, edits: tuple[Edit, ...], gpu: Gpu) -> str:
    job = subject.read(edits)
    try:
        if job is None:
            return NOT_TOLD
        quick = estimate_job(job, gpu, fast=True)
        return OOM if quick.verdict == OOM else estimate_job(job, gpu).verdict
    except CannotTell:
        return NOT_TOLD


def _words(edits: tuple[Edit, ...]) -> str:
    return ", ".join(f"`{edit.override}`" for edit in edits) or "as it is"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.plan_table", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="examples whose name contains one of these words")
    parser.add_argument("--cards", nargs="+", default=CARDS, help=f"default: {' '.join(CARDS)}")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/plans.md")
    given = parser.parse_args(arguments)
    every = sorted((ROOT / "examples").glob("*.yaml"))
    examples = [path for path in every if not given.only or any(word in path.stem for word in given.only)]
    rows = []
    for example in examples:
        for card in given.cards:
            rows.append(row(example, find_gpu(card)))
            print(rows[-1].line + (f" WRONG: {rows[-1].wrong}" if rows[-1].wrong else ""), flush=True)
    if given.write:
        text = PAGE + "".join(f"{each.line}\n" for each in rows) + confirmed_table(read())
        (ROOT / "docs" / "plans.md").write_text(text, encoding="utf-8")
    wrong = [each for each in rows if each.wrong]
    print(f"{len(rows) - len(wrong)} of {len(rows)} hold")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
