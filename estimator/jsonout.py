"""An estimate, or an error, as one JSON document: schema 1, the contract that scripts rely on (docs/cli.md).

Bytes are integers. Fields may be added within a schema; none is renamed or dropped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from estimator.checked import ArchRow, TrainerRow
from estimator.errors import Problem
from estimator.estimate import Advice, Estimate, Host, Interval, PhaseEstimate, Variant, worst_verdict
from estimator.gpus import Calibration, Gpu
from estimator.report_words import headline

SCHEMA = 1


def dumps(document: dict[str, Any]) -> str:
    """The document as text: ASCII only, so that no console's encoding can break it."""
    return json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False)


def estimate_document(estimate: Estimate) -> dict[str, Any]:
    """One job on one card."""
    job, phase = estimate.job, headline(estimate)
    return {
        "schema": SCHEMA,
        "config": job.name,
        "trainer": job.trainer,
        "arch": job.arch,
        "trainer_arch": job.trainer_arch,
        "method": job.method,
        "gpu": gpu_document(estimate.gpu),
        "verdict": estimate.verdict,
        "peak": None if phase is None else phase_document(phase),
        "required_bytes": estimate.required_bytes,
        "phases": [{**phase_document(each), "components": dict(each.components)} for each in estimate.phases],
        "advice": [advice_document(each) for each in estimate.advice],
        "warnings": list(estimate.warnings),
        "assumptions": list(estimate.assumptions),
        "not_modelled": [
            {"file": each.place.file, "key": each.place.key, "line": each.place.line, "value": _plain(each.value), "why": each.why}
            for each in job.unmodelled
        ],
        "retries": estimate.retries,
        "spilled_bytes": estimate.spilled_bytes,
        "lower_bound": estimate.lower_bound,
        "host": None if estimate.host is None else host_document(estimate.host),
    }


def host_document(host: Host) -> dict[str, Any]:
    """RAM of the machine: at least so much, at its highest moment."""
    return {
        "bytes": host.total_bytes, "moment": host.moment, "components": dict(host.components), "ram_bytes": host.ram_bytes,
        "enough": host.enough,
    }  # fmt: skip


def several_document(documents: Sequence[dict[str, Any]], exit_status: int) -> dict[str, Any]:
    """Several jobs, or one on several cards: the worst verdict and the documents of all."""
    return {
        "schema": SCHEMA,
        "verdict": worst_verdict(document["verdict"] for document in documents),
        "exit_status": exit_status,
        "estimates": list(documents),
    }


def error_document(kind: str, exit_status: int, problems: Sequence[Problem], warnings: Sequence[str] = ()) -> dict[str, Any]:
    """What could not be estimated and why. `kind`: input | cannot_tell | internal. `warnings`: what else was noticed in the config."""
    return {
        "schema": SCHEMA,
        "verdict": "unknown",
        "error": {"kind": kind, "exit_status": exit_status, "problems": [_problem(problem) for problem in problems]},
        "warnings": list(warnings),
    }


def gpus_document(gpus: Sequence[Gpu]) -> dict[str, Any]:
    """The catalogue of cards."""
    return {"schema": SCHEMA, "gpus": [gpu_document(gpu) for gpu in gpus]}


def archs_document(archs: Sequence[ArchRow], trained: Sequence[TrainerRow]) -> dict[str, Any]:
    """The architectures, and every value of the trainer's model.arch; those with `modelled` false cannot be estimated yet."""
    return {
        "schema": SCHEMA,
        "archs": [
            {
                "key": row.key, "name": row.name, "modelled": row.modelled, "trainer_archs": list(row.trained_as),
                "checked_runs": row.checked.runs, "checked_phases": row.checked.phases, "outside": row.checked.outside,
                "worst_allocated": row.checked.worst_allocated, "worst_reserved": row.checked.worst_reserved,
                "published_rows": row.checked.published,
            }
            for row in archs
        ],
        "trainer_archs": [
            {"key": row.key, "name": row.name, "modelled": bool(row.archs), "archs": list(row.archs), "nearest": row.nearest}
            for row in trained
        ],
    }  # fmt: skip


def gpu_document(gpu: Gpu) -> dict[str, Any]:
    """A card."""
    return {
        "name": gpu.name,
        "title": gpu.title,
        "os": gpu.os,
        "total_bytes": gpu.total_bytes,
        "usable_bytes": gpu.usable_bytes,
        "context_bytes": gpu.context_bytes,
        "context_low_bytes": gpu.context_low_bytes,
        "context_high_bytes": gpu.context_high_bytes,
        "desktop_bytes": gpu.desktop_bytes,
        "desktop_low_bytes": gpu.desktop_low_bytes,
        "desktop_high_bytes": gpu.desktop_high_bytes,
        "compute_capability": gpu.compute_capability,
        "aliases": list(gpu.aliases),
        "source": gpu.source,
        "overlay": _overlay(gpu.calibration),
    }


def _overlay(used: Calibration | None) -> dict[str, Any] | None:
    """The calibration overlay that the card's figures come from."""
    if used is None:
        return None
    return {
        "path": used.path, "date": used.date, "driver": used.driver, "torch": used.torch, "emulated": used.emulated, "cells": used.cells,
    }  # fmt: skip


def phase_document(phase: PhaseEstimate) -> dict[str, Any]:
    """A phase, without its ledger."""
    return {
        "phase": phase.phase,
        "variant": _variant(phase.variant),
        "detail": phase.detail,
        "allocated_bytes": phase.allocated_bytes,
        "reserved_bytes": phase.reserved_bytes,
        **_device(phase.device),
        "verdict": phase.verdict,
        "moment": phase.moment,
    }


def _device(device: Interval) -> dict[str, int]:
    return {"device_bytes": device.likely_bytes, "device_low_bytes": device.low_bytes, "device_high_bytes": device.high_bytes}


def _variant(variant: Variant) -> dict[str, int | None]:
    return {"width": variant.width, "height": variant.height, "frames": variant.frames, "batch": variant.batch}


def advice_document(advice: Advice) -> dict[str, Any]:
    """A change of the config."""
    return {
        "key": advice.key,
        "from": _plain(advice.before),
        "to": _plain(advice.after),
        "saves_bytes": advice.saves_bytes,
        "why": advice.why,
        "verdict": advice.verdict,
    }


def _problem(problem: Problem) -> dict[str, Any]:
    place = problem.place
    return {
        "what": problem.what,
        "file": place.file if place else None,
        "key": place.key if place else None,
        "line": place.line if place else None,
        "why": problem.why,
        "fix": problem.fix,
    }


def _plain(value: object) -> Any:
    """A value of a config as JSON has it; anything else as its text (a date, infinity, an object)."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return str(value)
