"""A diagnosis as one JSON document, schema 1 (docs/cli.md). Bytes are integers; null is "the log does not say"."""

from __future__ import annotations

from typing import Any

from estimator.crash import Diagnosis, Failure, OomText, Slowdown
from estimator.estimate import Estimate
from estimator.jsonout import SCHEMA, advice_document, gpu_document, phase_document


def diagnosis_document(found: Diagnosis, exit_status: int) -> dict[str, Any]:
    """The diagnosis of one log."""
    run, prediction, outcome = found.run, found.prediction, found.outcome
    slow = run.slowdown
    return {
        "schema": SCHEMA,
        "job": run.name or None,
        "jobs": found.jobs,
        "exit_status": exit_status,
        "kind": found.kind or None,
        "timing": found.timing or None,
        "because": found.because or None,
        "headline": found.headline,
        "reasons": list(found.reasons),
        "phase": found.failure.phase or None if found.failure else run.phase or None,
        "part": found.failure.part or None if found.failure else run.part or None,
        "step": found.failure.step if found.failure else run.step,
        "steps_planned": run.steps_planned,
        "finished": run.finished,
        "skipped_batches": run.skips,
        "failure": None if found.failure is None else _failure(found.failure),
        "failures": [_failure(each) for each in run.failures],
        "others_bytes": found.others_bytes,
        "slowdown": None if slow is None else _slowdown(slow),
        "prediction": None if prediction is None else {
            "config": prediction.source, "gpu": gpu_document(prediction.estimate.gpu), **_estimate(prediction.estimate),
            "phase": None if prediction.phase is None else phase_document(prediction.phase)},
        "actions": list(found.actions),
        "changes": [{**advice_document(each.advice), "needs_bytes": each.needs_bytes} for each in found.remedies],
        "general": list(found.general),
        "outcome": None if outcome is None else _estimate(outcome),
        "notes": list(found.notes),
    }  # fmt: skip


def _slowdown(slow: Slowdown) -> dict[str, Any]:
    before, after = round(slow.before_seconds, 3), round(slow.after_seconds, 3)
    return {"step": slow.step, "before_seconds": before, "after_seconds": after, "line": slow.line}


def _failure(failure: Failure) -> dict[str, Any]:
    numbers = failure.numbers
    return {"what": failure.what, "line": failure.line, "text": failure.text, "phase": failure.phase or None, "part": failure.part or None,
            "step": failure.step, "numbers": None if numbers is None else _numbers(numbers)}  # fmt: skip


def _numbers(numbers: OomText) -> dict[str, Any]:
    sizes = {name: getattr(numbers, name) for name in OomText.__slots__ if name != "others"}
    return {**sizes, "others": [{"pid": pid, "bytes": size} for pid, size in numbers.others]}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    peak = estimate.peak_phase
    return {"verdict": estimate.verdict, "peak": None if peak is None else phase_document(peak)}
