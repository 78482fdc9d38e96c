"""Plans that the real trainer was made to run on the emulated device, as data: what was estimated, and how the run ended.

calibration/data/confirmed_plans.jsonl, a line for each config; made by `python -m calibration.confirm_plans FOLDER --keep`, shown in
docs/plans.md (calibration.plan_table).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from estimator.estimate import OOM, SAFE

PATH = Path(__file__).parent / "data" / "confirmed_plans.jsonl"
OUT_OF_MEMORY, FINISHED = "out of memory", "ok"


@dataclass(frozen=True)
class Confirmed:
    """A config beside its run. `config`: "planned", or the step up. `verdict`: what the estimate said of it on the card, `calibrated` with
    the overlay. `ran`: "ok", OUT_OF_MEMORY (torch.OutOfMemoryError was raised), or how else it ended; `failed_in`: the phase in which.
    `capacity_mib`, `compute_capability`: of the emulated device. `commit`: of the estimate.
    """

    example: str
    card: str
    calibrated: bool
    aim: str
    config: str
    edits: tuple[str, ...]
    verdict: str
    ran: str
    failed_in: str
    capacity_mib: int
    compute_capability: str
    versions: Mapping[str, str]
    commit: str

    @property
    def key(self) -> tuple[str, str, bool, str, str]:
        """What it is a row of: only one is kept of each."""
        return self.example, self.card, self.calibrated, self.aim, self.config

    @property
    def case(self) -> tuple[str, str, bool, str]:
        """The plan that it belongs to."""
        return self.key[:4]

    @property
    def holds(self) -> bool:
        """Safe must have run without running out of memory, oom must have run out of it."""
        expected = {SAFE: FINISHED, OOM: OUT_OF_MEMORY}.get(self.verdict)
        return expected is None or self.ran == expected


def read(path: Path = PATH) -> tuple[Confirmed, ...]:
    """The kept rows."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return tuple(Confirmed(**{**row, "edits": tuple(row["edits"])}) for row in map(json.loads, lines))


def keep(rows: Iterable[Confirmed], path: Path = PATH) -> None:
    """Write the rows of these plans in place of what was kept of them, beside those of other plans."""
    new = list(rows)
    cases = {row.case for row in new}
    kept = [row for row in read(path) if row.case not in cases] + new
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in sorted(kept, key=lambda row: row.case)), encoding="utf-8")
