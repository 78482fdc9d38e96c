"""What estimates by peak rows need to know of each part, so that they need not read its events: peak rows, and what stays or is freed.

`python -m calibration.extract.footprints ARCH ...` writes it anew into existing profiles; extraction does so itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from calibration.extract.rows import peak_rows
from estimator.paths import profiles_dir
from estimator.program import Program
from estimator.programs import Profile

WRITTEN = ("peaks", "stays", "freed")


def with_footprints(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`data` with `peaks`, `stays` and `freed` of each part (see estimator.program.Footprint), from the events in `programs.bin`."""
    recorded = {key: {name: value for name, value in part.items() if name not in WRITTEN} for key, part in data["parts"].items()}
    profile = Profile(data["arch"], {**data, "parts": {key: {**part, "peaks": []} for key, part in recorded.items()}}, folder)
    return {**data, "parts": {key: {**part, **_footprint(profile.recorded(key))} for key, part in recorded.items()}}


def _footprint(program: Program) -> dict[str, Any]:
    stays, freed = program.rows
    rows = [({name: size for name, size in zip(program.features, row, strict=True) if size}, moment) for row, moment in peak_rows(program)]
    return {"peaks": [{"bytes": row, "moment": moment} for row, moment in rows], "stays": stays, "freed": freed}


def main() -> int:
    from calibration.extract.written import readable

    for arch in sys.argv[1:]:
        folder = profiles_dir() / arch
        (folder / "profile.json").write_text(readable(with_footprints(json.loads((folder / "profile.json").read_text()), folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
