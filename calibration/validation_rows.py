"""The rows of whole runs that are kept, a file for each value of model.arch: calibration/data/emulated_runs/<arch>.jsonl.

Those of compiled blocks, of which the emulated device has no kernels and the estimate is approximate, are kept apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "emulated_runs"
FLAGS = {"is_v3": "sd3", "is_lumina2": "lumina2"}
COMPILED = FOLDER.with_name("compiled_runs")


def arch_key(config: dict[str, Any]) -> str:
    """`model.arch` of a process section without its variant; configs older than that key are FLUX.1's, or say another."""
    model = config["model"]
    flagged = next((key for flag, key in FLAGS.items() if model.get(flag)), "flux")
    return str(model.get("arch", flagged)).split(":")[0]


def read(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All rows, by file name and as they stand in each file."""
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]


def read_all() -> list[dict[str, Any]]:
    """Those of compiled blocks too."""
    return [*read(), *read(COMPILED)]


def write_all(rows: Iterable[dict[str, Any]]) -> None:
    """All rows, in place of all that are kept."""
    apart: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for row in rows:
        apart["config" in row and bool(row["config"]["config"]["process"][0]["model"].get("compile"))].append(row)
    write(apart[False])
    write(apart[True], COMPILED)


def write(rows: Iterable[dict[str, Any]], folder: Path = FOLDER) -> None:
    """In place of all that is there. A row on a card of a given capacity goes to the run that has its config (`job`)."""
    files: dict[str, list[str]] = {}
    keys: dict[str, str] = {}
    for row in rows:
        key = keys[row["job"]] if "job" in row else arch_key(row["config"]["config"]["process"][0])
        keys[row["name"]] = key
        files.setdefault(key, []).append(json.dumps(row, separators=(",", ":")) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.jsonl"):
        path.unlink()
    for key, lines in files.items():
        (folder / f"{key}.jsonl").write_text("".join(lines), encoding="utf-8")
