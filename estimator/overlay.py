"""A calibration overlay: what `estimate calibrate` measured on one card, in place of the catalogue's figures for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from estimator.gpus import MIB, Calibration, Gpu
from estimator.residual import Residual, Seen

OTHERS_WORTH_A_WORD_BYTES = 64 * MIB
"""Less than this held by other processes during calibration is an idle display server: not worth a line."""


@dataclass(frozen=True, slots=True)
class Range:
    """Low, likely and high of a quantity measured in several cells: bytes, or a ratio of measured to predicted."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True)
class Overlay:
    """One card as measured. All sizes in bytes.

    `card`: its name in the catalogue ("" if it has none); `device`: as the driver calls it. `context`: what lies outside torch's
    allocator in a process that trains. `workspace_bytes`: torch's cuBLAS workspace of one thread. `others_bytes`: held by other
    processes meanwhile (None: not known). `allocated`, `reserved`: measured / predicted over the `cells`. `residual`: how far the card is
    from the replay, made of these (None: the shipped one holds). `rows`: the file that the figures were made of, its digest and number.
    `seen`: the architectures with step cells, by which `intervals` narrows the residual for their jobs. `emulated`: made on the emulated
    device: good for trying things out, no measurement. `path`: where it was read ("" : not from a file).
    """

    card: str
    device: str
    total_bytes: int
    compute_capability: str
    os: str
    emulated: bool
    made: Mapping[str, str]
    context: Range
    workspace_bytes: int
    others_bytes: int | None
    allocated: Range
    reserved: Range
    cells: int
    residual: Residual | None
    rows: Mapping[str, str | int]
    path: str = ""
    seen: tuple[Seen, ...] = ()


def applied(gpu: Gpu, overlay: Overlay) -> Gpu:
    """The card with the overlay's capacity, context and workspace. What other processes hold stays the catalogue's."""
    device = " (emulated: no measurement)" if overlay.emulated else ""
    made = f"{overlay.made['date'][:10]}{device}, driver {overlay.made['driver']}, torch {overlay.made['torch']}"
    notes = [
        f"calibration overlay {overlay.path}, {made}: context {overlay.context.likely / MIB:.0f} MiB "
        f"(the catalogue says {gpu.context_bytes / MIB:.0f}), {overlay.cells} cells"
    ]
    if overlay.others_bytes is not None and overlay.others_bytes >= OTHERS_WORTH_A_WORD_BYTES:
        notes.append(
            f"while it was calibrated other processes held {overlay.others_bytes / MIB:.0f} MiB of the card: not counted here beyond the "
            f"{gpu.desktop_bytes / MIB:.0f} MiB assumed"
        )
    return replace(
        gpu,
        total_bytes=overlay.total_bytes,
        compute_capability=overlay.compute_capability,
        context_low_bytes=round(overlay.context.low),
        context_bytes=round(overlay.context.likely),
        context_high_bytes=round(overlay.context.high),
        workspace_bytes=overlay.workspace_bytes,
        source=f"calibrated on {overlay.device}",
        notes=(*gpu.notes, *notes),
        residual=overlay.residual,
        calibration=Calibration(
            overlay.path, overlay.made["date"], overlay.made["driver"], overlay.made["torch"], overlay.emulated, overlay.cells,
            overlay.made.get("diffusers", ""),
        ),
        seen=overlay.seen,
    )
