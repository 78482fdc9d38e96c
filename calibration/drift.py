"""What moved between two versions of the trainer, of torch or of diffusers: profiles of both, compared part by part.

    python -m calibration.drift record ARCH FOLDER [options of calibration.trainer]   # probe jobs, extraction, comparison
    python -m calibration.drift compare OLD NEW                                        # two folders with profile.json and programs.bin

`record` runs the probe jobs of an architecture with the trainer that --trainer names (or AITK) and the python that --python names,
extracts a profile into FOLDER/profile and compares it with the shipped one.
Exit status: 0 nothing moved by more than --tolerance, 1 something did.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from estimator.archive import described, sizes_of
from estimator.controls import CELL
from estimator.features import image_values
from estimator.paths import profiles_dir
from estimator.program import ALLOCATE, Program
from estimator.programs import Profile

SIZES = ((512, 512), (1024, 1024), (1344, 768))
TOLERANCE = 0.01
"""The bar of the accuracy check (docs/accuracy.md): less than this is within what a profile is right to anyway."""
SMALL_BYTES = 2**20
"""Parts of less than this move freely: they never decide a peak."""


@dataclass(frozen=True)
class Moved:
    """One difference. `share`: of the old figure, by which it moved; None where there is no figure to compare."""

    what: str
    share: float | None

    @property
    def weight(self) -> float:
        return float("inf") if self.share is None else abs(self.share)


def read_profile(folder: Path) -> Profile:
    """The profile in a folder. Raises OSError, ValueError."""
    data = described(folder)
    return Profile(data["arch"], data, folder)


def workloads(frames: tuple[int, ...] = (1, 9)) -> Iterator[dict[str, int]]:
    """Values of all variables, for comparing peaks: every size with every batch, rank, text length and number of frames."""
    for (width, height), batch, rank, text, count in product(SIZES, (1, 2), (16, 64), (77, 512), frames):
        values = image_values(width, height, count)
        values |= {"I": values["T"], "Ib": values["T"], "R": values["T"] * CELL**2}
        yield {**values, "B": batch, "r": rank, "X": text, "N": text, "K": max(values["F"] - 2, 1), "O": count}


def compare(old: Profile, new: Profile) -> list[Moved]:
    """Everything that differs, the largest first: parts that came and went, their peaks and number of tensors, residents."""
    moved = [Moved(f"{key}: gone", None) for key in old.data["parts"].keys() - new.data["parts"].keys()]
    moved += [Moved(f"{key}: new", None) for key in new.data["parts"].keys() - old.data["parts"].keys()]
    for key in sorted(old.data["parts"].keys() & new.data["parts"].keys()):
        moved += part_moved(key, old.recorded(key), new.recorded(key))
    moved += residents_moved(old.data["residents"], new.data["residents"])
    return sorted(moved, key=lambda one: (-one.weight, one.what))


def part_moved(key: str, old: Program, new: Program) -> Iterator[Moved]:
    """A part's peak where it moved most, and its number of tensors."""
    worst = Moved("", 0.0)
    for values in workloads():
        try:
            before, after = old.peak(values), new.peak(values)
        except KeyError:  # a feature of neither: the profiles are of other kinds
            continue
        if max(before[0], after[0]) < SMALL_BYTES:
            continue
        share = after[0] / max(before[0], 1) - 1
        if abs(share) > worst.weight:
            at = f"{values['T']} image tokens, batch {values['B']}, rank {values['r']}, {values['X']} text tokens"
            worst = Moved(f"{key}: {before[0]:,} -> {after[0]:,} bytes at {at}; {after[1]}", share)
    if worst.share:
        yield worst
    counts = [int((program.events == ALLOCATE).sum()) for program in (old, new)]
    if counts[0] != counts[1]:
        yield Moved(f"{key}: {counts[0]} -> {counts[1]} tensors", 0.0)


def residents_moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Moved]:
    """Components on the card: bytes and number of tensors."""
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            yield Moved(f"{name}: {'gone' if name in old else 'new'}", None)
            continue
        (before, tensors), (after, others) = ((sum(sizes), len(sizes)) for sizes in (sizes_of(old[name]), sizes_of(new[name])))
        if (before, tensors) != (after, others):
            yield Moved(f"{name}: {before:,} -> {after:,} bytes, {tensors} -> {others} tensors", after / max(before, 1) - 1)


def versions_moved(old: Profile, new: Profile) -> list[str]:
    """Packages whose version differs, as "torch 2.14.1 -> 2.15.0"."""
    before, after = old.data["made"]["versions"], new.data["made"]["versions"]
    names = sorted(before.keys() | after.keys())
    return [f"{name} {before.get(name, '-')} -> {after.get(name, '-')}" for name in names if before.get(name) != after.get(name)]


def report(old: Profile, new: Profile, tolerance: float) -> tuple[str, int]:
    """The comparison as text, and the exit status."""
    moved, versions = compare(old, new), versions_moved(old, new)
    lines = [f"{new.arch}: {', '.join(versions) or 'the same versions'}"]
    lines += [f"  {f'{one.share:+.2%}' if one.share is not None else '':>9}  {one.what}" for one in moved]
    beyond = [one for one in moved if one.weight > tolerance]
    lines.append(f"{len(moved)} differences, {len(beyond)} of more than {tolerance:.1%}" if moved else "nothing moved")
    return "\n".join(lines), int(bool(beyond))


def record(arch: str, folder: Path, options: list[str]) -> Path:
    """Record and extract; the folder of the new profile. Raises SystemExit where a run or the extraction fails."""
    out = folder / "profile" / arch
    commands = (
        ["calibration.probes", arch, str(folder), "--run", "--workers", "1", *options],
        ["calibration.extract", arch, str(folder), "--out", str(out)],
    )
    for command in commands:
        status = subprocess.run([sys.executable, "-m", *command]).returncode
        if status:
            raise SystemExit(status)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m calibration.drift", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["record", "compare"])
    parser.add_argument("first", metavar="ARCH|OLD")
    parser.add_argument("second", metavar="FOLDER|NEW", type=Path)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    given, options = parser.parse_known_args()
    if given.command == "record":
        old, new = profiles_dir() / given.first, record(given.first, given.second, options)
    else:
        old, new = Path(given.first), given.second
    text, status = report(read_profile(old), read_profile(new), given.tolerance)
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
