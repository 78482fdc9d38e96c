"""Programs of a profile put right without recording it again: read back, corrected one by one, and written."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from calibration.extract import build, stored
from calibration.extract.programs import Program
from estimator.archive import OF_LAYERS, described


def main(module: str, doc: str | None, corrected: Callable[[str, Program], Program]) -> int:
    """The command of a module that corrects. `corrected`: of a part's key and program, given back as it is where nothing is wrong."""
    parser = argparse.ArgumentParser(prog=f"python -m calibration.extract.{module}", description=doc)
    parser.add_argument("arch", nargs="+", help="the folder of a profile, such as zimage or zimage-turbo/lokr")
    for arch in parser.parse_args().arch:
        folder = Path(__file__).resolve().parents[2] / "profiles" / arch
        data, kept = described(folder), stored.read(folder)
        programs = {key: corrected(key, program) for key, program in kept.programs.items()}
        found = [key for key, program in programs.items() if program is not kept.programs[key]]
        beside = {name: data[name] for name in (*OF_LAYERS, "adapter") if name in data}
        build.write((data["arch"], data["relative"], data.get("shares")), programs, kept.tables, kept.made, folder, beside or None)
        print(f"{arch}: {len(found)} parts: {', '.join(found)}")
    return 0
