"""What a watched run took, phase by phase, beside its estimate: a table, and a row of JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from estimator.estimate import Estimate, PhaseEstimate
from estimator.report_words import SPAN_WIDTH, gib, span
from estimator.screen import Column, table
from estimator.watching.phases import Seen

_NAMES = {"": "before the first phase", "cache_latents": "caching latents", "cache_text": "caching text", "prepare": "preparing",
          "load": "loading", "sample": "previews", "train": "training", "save": "saving"}  # fmt: skip
_SEEN, _PREDICTED = 6, 9  # columns
_COLUMNS = (
    Column("phase", 32), Column("seen", _SEEN, right=True), Column("predicted", _PREDICTED, right=True),
    Column("low - high", SPAN_WIDTH, right=True), Column(""),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Compared:
    """A phase as seen and its prediction, the highest of the estimate's that it may be. None: the estimate has none of it."""

    seen: Seen
    expected: PhaseEstimate | None

    @property
    def verdict(self) -> str:
        """Where what was seen lies beside the predicted interval of what the card shows; "" where there is nothing to compare."""
        if self.expected is None or not self.seen.samples:
            return ""
        device = self.expected.device
        if self.seen.most_bytes > device.high_bytes:
            return "above"
        return "below" if self.seen.most_bytes < device.low_bytes else "within"


def compared(seen: Sequence[Seen], estimate: Estimate | None) -> list[Compared]:
    """Each phase that was seen with its prediction."""
    out = []
    for one in seen:
        same = [phase for phase in (estimate.phases if estimate is not None else ()) if phase.phase == one.phase]
        part = [phase for phase in same if phase.detail == one.part] if one.part else []
        out.append(Compared(one, max(part or same, key=lambda phase: phase.device.likely_bytes, default=None)))
    return out


def text(rows: Sequence[Compared], heading: str, notes: Sequence[str]) -> str:
    """The table, for the screen."""
    cells = []
    for row in rows:
        name = _NAMES.get(row.seen.phase, row.seen.phase) + (f", {row.seen.part}" if row.seen.part else "")
        device = row.expected.device if row.expected is not None else None
        seen = gib(row.seen.most_bytes, _SEEN) if row.seen.samples else "?"
        likely, ends = (gib(device.likely_bytes, _PREDICTED), span(device)) if device is not None else ("", "")
        cells.append((name[:32], seen, likely, ends, row.verdict))
    lines = [heading, *table(_COLUMNS, cells, False), *(f"  {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def phase_rows(rows: Sequence[Compared]) -> list[dict[str, Any]]:
    """The phases as a row of JSON has them; bytes are integers."""
    out = []
    for row in rows:
        device = row.expected.device if row.expected is not None else None
        out.append({
            "phase": row.seen.phase, "part": row.seen.part, "device_bytes": row.seen.most_bytes if row.seen.samples else None,
            "samples": row.seen.samples, "seconds": round(row.seen.seconds, 1),
            "predicted_device_bytes": device.likely_bytes if device else None,
            "predicted_low_bytes": device.low_bytes if device else None, "predicted_high_bytes": device.high_bytes if device else None,
            "predicted_allocated_bytes": row.expected.allocated_bytes if row.expected else None,
            "predicted_reserved_bytes": row.expected.reserved_bytes if row.expected else None,
        })  # fmt: skip
    return out
