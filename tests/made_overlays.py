"""Overlays built by hand, and the user's folder that they are picked up from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from estimator.gpus import MIB, Gpu
from estimator.overlay import Overlay, Range
from estimator.overlay_file import MADE, write_overlay
from estimator.overlays import file_name
from estimator.residents import workspace_bytes_for


def overlay_of(gpu: Gpu, more_bytes: int = 0) -> Overlay:
    """An overlay that says of the card what the catalogue says, and `more_bytes` of context."""
    context = Range(gpu.context_low_bytes + more_bytes, gpu.context_bytes + more_bytes, gpu.context_high_bytes + more_bytes)
    made = dict.fromkeys(MADE, "x") | {"date": "2026-11-22T20:00:00Z", "driver": "580.95", "torch": "2.14.1+cu130"}
    rows: dict[str, str | int] = {"file": "rows.jsonl", "sha256": "0" * 64, "count": 9}
    same = Range(1.0, 1.0, 1.0)
    return Overlay(
        gpu.name, f"NVIDIA {gpu.name}", gpu.total_bytes, gpu.compute_capability, gpu.os, False, made, context,
        workspace_bytes_for(gpu.compute_capability), 3 * MIB, same, same, 9, None, rows,
    )  # fmt: skip


def put(overlay: Overlay, config_home: Path) -> Path:
    """Into the user's folder, as `estimate calibrate` would; returns the file."""
    path = config_home / "vram-preflight" / file_name(overlay.card)
    write_overlay(replace(overlay, path=""), str(path))
    return path
