"""What each part of a profile leaves and frees, written beside its peak rows, so that estimates by peak rows need not read its events.

`python -m calibration.extract.footprints ARCH ...` writes it into profiles made before it was kept; extraction does so itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from estimator.paths import profiles_dir
from estimator.programs import Profile


def with_footprints(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`data` with `stays` and `freed` of each part (see estimator.program.Footprint); the events are in the folder's `programs.npz`."""
    profile = Profile(data["arch"], data, folder)
    parts = {}
    for key, part in data["parts"].items():
        stays, freed = profile.program(key).rows
        parts[key] = {**part, "stays": stays, "freed": freed}
    return {**data, "parts": parts}


def main() -> int:
    from calibration.extract.build import readable

    for arch in sys.argv[1:]:
        folder = profiles_dir() / arch
        (folder / "profile.json").write_text(readable(with_footprints(json.loads((folder / "profile.json").read_text()), folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
