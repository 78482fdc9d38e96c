"""A plan as a JSON document: schema 1, as `estimator.jsonout` has it for estimates (docs/cli.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from estimator.estimate import SAFE
from estimator.jsonout import SCHEMA, estimate_document, gpu_document
from estimator.planner.costs import headroom_bytes
from estimator.planner.growth import Growth
from estimator.planner.plans import Change, Plan
from estimator.planner.steps import Line, Walk


def plan_document(plan: Plan, diff: str | None, written: str | None = None) -> dict[str, Any]:
    """One config on one card. `verdict`: of what is planned; of the config as it is where nothing safe was found."""
    return {
        "schema": SCHEMA,
        "config": plan.subject.job.name,
        "arch": plan.subject.job.arch,
        "aim": plan.aim,
        "keep": list(plan.subject.keep),
        "gpu": gpu_document(plan.gpu),
        "verdict": SAFE if plan.after is not None else plan.before.verdict,
        "edits": [{"key": edit.key, "from": plan.subject.value(edit.key), "to": edit.value} for edit in plan.edits],
        "changes": [_change(change) for change in plan.changes],
        "time_ratio": plan.ratio,
        "growth": [growth_document(each) for each in plan.growth],
        "before": estimate_document(plan.before),
        "after": None if plan.after is None else estimate_document(plan.after),
        "smallest_gpu": None if plan.smallest_card is None else plan.smallest_card.name,
        "diff": diff,
        "written": written,
        "tried": {"by_rows": plan.by_rows, "by_replay": plan.replayed},
    }


def plans_document(plans: Sequence[Plan], exit_status: int) -> dict[str, Any]:
    """One config on several cards, smallest first."""
    verdict = SAFE if any(plan.after is not None for plan in plans) else plans[-1].before.verdict
    return {"schema": SCHEMA, "verdict": verdict, "exit_status": exit_status, "plans": [plan_document(plan, None) for plan in plans]}


def walk_document(walk: Walk, diff: str, written: str | None) -> dict[str, Any]:
    """The ways down and up; `headroom_bytes` of each line in the likely case, negative where memory lacks."""
    return {
        "schema": SCHEMA,
        "config": walk.subject.job.name,
        "arch": walk.subject.job.arch,
        "gpu": gpu_document(walk.gpu),
        "verdict": walk.end.verdict,
        "start": {"verdict": walk.start.verdict, "headroom_bytes": headroom_bytes(walk.start)},
        "down": [_line(line) for line in walk.down],
        "idle": list(walk.idle),
        "up": [_line(line) for line in walk.up],
        "diff": diff,
        "written": written,
    }


def _line(line: Line) -> dict[str, Any]:
    return {
        "step": line.title,
        "edits": [{"key": e.key, "from": before, "to": e.value} for e, before in zip(line.edits, line.before, strict=True)],
        "why": line.why,
        "verdict": line.estimate.verdict,
        "headroom_bytes": headroom_bytes(line.estimate),
        "lower_bound": line.estimate.lower_bound,
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "edits": [{"key": e.key, "from": before, "to": e.value} for e, before in zip(change.edits, change.before, strict=True)],
        "why": change.why,
        "time_ratio": change.ratio,
        "step_weaker": {"verdict": change.without or None, "phases": list(change.fails)},
    }


def growth_document(growth: Growth) -> dict[str, Any]:
    """`beyond` is the next value, which is not safe; null at the end of what is looked at. `refused`: it cannot be estimated."""
    return {"what": growth.what, "now": growth.now, "most": growth.most, "beyond": growth.beyond, "refused": growth.refused}
