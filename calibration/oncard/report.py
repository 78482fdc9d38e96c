"""A calibration as text: the card beside the catalogue, and each cell measured beside predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.oncard import cells
from calibration.oncard.control import Outcome
from calibration.oncard.rows import measured
from estimator.gpus import GIB, MIB, Gpu
from estimator.screen import Column, table

_COLUMNS = (
    Column("cell", 44), Column("alloc.", 7, right=True), Column("ratio", 6, right=True), Column("reserv.", 7, right=True),
    Column("ratio", 6, right=True),
)  # fmt: skip


def render(outcome: Outcome, card: Gpu | None) -> str:
    """The whole text. The outcome has an overlay."""
    overlay = outcome.overlay
    assert overlay is not None
    device = " (emulated: nothing here is a measurement)" if overlay.emulated else ""
    lines = [f"Calibrated: {overlay.device}, {overlay.total_bytes / GIB:.2f} GiB{device}", f"  overlay: {outcome.path}"]
    lines += [f"  {note}" for note in outcome.notes]
    if card is None:
        lines.append("  not in the catalogue: use it with --gpu SIZE --overlay FILE")
    named = f"; the catalogue says {card.context_bytes / MIB:.0f}" if card is not None else ""
    context = overlay.context
    lines.append(f"  context: {context.likely / MIB:.0f} MiB (from {context.low / MIB:.0f}, at most {context.high / MIB:.0f}{named})")
    lines.append(f"  cuBLAS workspace of a thread: {overlay.workspace_bytes / MIB:.3f} MiB")
    rows = measured(outcome.rows)
    limit = rows.get(cells.LIMIT)
    if limit is not None and "limit_bytes" in limit:
        spilled = "; the driver moves memory to system RAM instead of refusing" if limit["spills"] else ""
        lines.append(f"  torch could have {limit['limit_bytes'] / GIB:.2f} GiB at most{spilled}")
    if overlay.others_bytes:
        lines.append(f"  other processes held {overlay.others_bytes / MIB:.0f} MiB")
    if overlay.seen:
        lines.append(f"  jobs of {', '.join(one.arch for one in overlay.seen)}: low and high rest on these cells; of others as on any card")
    lines += ["", "GiB in each cell, and measured / predicted", *table(_COLUMNS, [_row(name, row) for name, row in rows.items()], False)]
    if outcome.left:
        lines.append(f"\nThe time was over before {len(outcome.left)} cells; the same command goes on with them.")
    return "\n".join(lines) + "\n"


def _row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["outcome"] != "ok":
        return (name[:44], str(row["outcome"]), "", "", "")
    out = [name[:44]]
    for figure in ("allocated", "reserved"):
        size, expected = row[f"max_{figure}_bytes"], row.get(f"predicted_{figure}_bytes")
        out += [f"{size / GIB:.2f}", f"{size / expected:.3f}" if expected else ""]
    return tuple(out)
