"""`python -m calibration.extract.calls ARCH PROBES`: where layers are used, added to a profile that was made of recordings without it.

Each part of the profile takes the calls of a recording that has the very same events, or else of the one that lies on the part with the
fewest tensors missing, as extraction lays recordings on each other. Parts that none fits are left as they are, and named.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration import probes
from calibration.architectures import ARCHITECTURES
from calibration.extract import build, stored, tables, written
from calibration.extract.align import LayerCall, Misaligned, Sequence, canonical, overlay
from calibration.extract.programs import Program
from calibration.extract.runs import read
from calibration.extract.windows import joined, renumbered
from estimator import archive

USING = ("step.core/", "preview/", "text/")


def add(arch: str, folders: list[Path], out: Path) -> tuple[list[str], list[str]]:
    """Parts that have calls now, and parts of the recorded kinds of weights that have none."""
    profile: dict[str, Any] = archive.described(out)
    arrays = archive.opened(out).all()
    parts, kept = profile["parts"], stored.read(out).programs
    nearest: dict[str, tuple[int, list[LayerCall]]] = {}  # of a part: (tensors missing, calls)
    offload: dict[str, Any] = {kind: dict(profile.get(kind, {})) for kind in archive.OF_LAYERS}
    weights: set[str] = set()
    family = ARCHITECTURES[arch]
    for folder in folders:
        run = read(folder)
        if not run.layers:
            continue
        for name, table in (("layers", tables.layers(run)), ("places", tables.places(run))):
            offload[name].update(build.own_of(family, table))
        for part in build.occurrences(run, family.layout, bool(family.texts)):
            if not part.key.startswith(USING) or part.key not in parts:
                continue
            weights.add(part.key.split("/")[1])
            number = parts[part.key]["number"]
            sequence = joined(canonical(part))
            program = Program(part.key, sequence, (), [], 1)
            order = build.order_of(program)
            codes = build.coded(program, order)
            if f"{archive.CALLS}{number}" not in arrays and np.array_equal(codes, arrays[f"{archive.EVENTS}{number}"]):
                arrays[f"{archive.CALLS}{number}"] = build.calls_of(program, order)
            elif f"{archive.CALLS}{number}" not in arrays and (found := laid(kept[part.key], sequence, part.values)) is not None:
                nearest[part.key] = min(nearest.get(part.key, found), found, key=lambda one: one[0])
    for key, (_, calls) in nearest.items():
        if f"{archive.CALLS}{parts[key]['number']}" not in arrays:
            kept[key].sequence.calls = calls
            arrays[f"{archive.CALLS}{parts[key]['number']}"] = build.calls_of(kept[key], build.order_of(kept[key]))
    profile.update(offload if offload["layers"] else {})
    written.write(out, profile, arrays)
    mine = [key for key in parts if key.startswith(USING) and key.split("/")[1] in weights]
    found = [key for key in mine if f"{archive.CALLS}{parts[key]['number']}" in arrays]
    return found, [key for key in mine if key not in found]


def laid(program: Program, recorded: Sequence, values: dict[str, int]) -> tuple[int, list[LayerCall]] | None:
    """(Tensors missing, the recording's calls by the program's tensors); None where it does not fit, or a layer's output is missing."""
    reference = replace(program.sequence, sizes=program.sizes(values).tolist())
    try:
        match = overlay(reference, recorded)
    except Misaligned:
        return None
    number = {m: k for k, m in enumerate(match) if m is not None}
    calls = renumbered(recorded, number, number)
    if calls is None or any(call.output is None for call in calls):
        return None
    return len(match) + len(recorded.sizes) - 2 * len(number), calls


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.extract.calls", description=__doc__)
    parser.add_argument("arch", choices=sorted(ARCHITECTURES))
    parser.add_argument("probes", type=Path, help="the folder that calibration.probes recorded into")
    args = parser.parse_args()
    recorded = [run for run in probes.folders(args.arch, args.probes) if (run / "trace.npz").exists()]
    found, without = add(args.arch, recorded, Path(__file__).resolve().parents[2] / "profiles" / args.arch)
    print("\n".join([f"{len(found)} parts with calls", *(f"none: {key}" for key in without)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
