"""Cores that were recorded at one rank: how what the adapter makes goes with it, from the same core in a kind of weights recorded at two.

    python -m calibration.extract.ranks wan21-14b wan21-i2v-14b

One rank says what is as large as the adapter, and not what has the rank beside the tokens: what each of its first matrices makes was held
at that rank whatever the rank is (48 ranks more, clips of 33 frames in batches of two: 12 MiB a block of Wan 2.1 I2V). The adapter's own
tensors are alike in all kinds of weights, moment by moment, so that the other's bytes serve; they must be the same at the recorded rank.
Parts that were made of such a core by rule (calibration.extract.requantised) are made again.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from calibration.extract.programs import Program

CORE, OTHER, ADAPTER = "step.core/", "qfloat8", "/Linear|"
"""Beginning of a core's key; the kind that was recorded at two ranks; in the moments of tensors that the adapter makes."""
RANK = "r"


def corrected(program: Program, other: Program, rank: int) -> Program:
    """The core with the other's bytes for what the adapter makes; as it is where they are not alike at the recorded rank."""
    ours, theirs = _made(program), _made(other)
    features = (*program.features, *(name for name in other.features if RANK in name.split("*") and name not in program.features))
    rows = [dict(zip(program.features, row, strict=True)) for row in program.coefficients]
    for label, tensors in ours.items():
        if len(tensors) != len(theirs.get(label, ())):
            continue
        for k, n in zip(tensors, theirs[label], strict=True):
            right = dict(zip(other.features, other.coefficients[n], strict=True))
            if _at(right, rank) == _at(rows[k], rank) and set(right) - {name for name, size in right.items() if not size} <= set(features):
                rows[k] = right
    coefficients = [tuple(row.get(name, 0) for name in features) for row in rows]
    return replace(program, features=features, coefficients=coefficients)


def _made(program: Program) -> dict[str, list[int]]:
    """Tensors of the adapter by their moments, in order."""
    out = defaultdict[str, list[int]](list)
    for k, (label, imported) in enumerate(zip(program.sequence.labels, program.sequence.imported, strict=True)):
        if ADAPTER in label and not imported:
            out[label].append(k)
    return out


def _at(row: Mapping[str, int], rank: int) -> dict[str, int]:
    """Bytes over the features without the rank, at one."""
    out = defaultdict[str, int](int)
    for name, size in row.items():
        rest = name.split("*")
        times = rank if RANK in rest else 1
        out["*".join(one for one in rest if one != RANK) or "1"] += times * size
    return {name: size for name, size in out.items() if size}


def mended(programs: dict[str, Program], probes: Sequence[Mapping[str, object]], keys: Iterable[str]) -> list[str]:
    """Cores among `keys` whose kind of weights was recorded at one rank, put right in place. Returns their keys."""
    ranks = defaultdict[str, set[int]](set)
    for probe in probes:
        if "rank" in probe and not str(probe["name"]).endswith(("-3", "-6")):  # loading alone
            ranks[str(probe["weights"])].add(int(str(probe["rank"])))
    out = []
    for key in sorted(keys):
        program = programs[key]
        kind = key.split("/")[1] if key.startswith(CORE) else ""
        other = programs.get(key.replace(f"/{kind}/", f"/{OTHER}/", 1)) if kind else None
        if other is None or program.made_of or len(ranks[kind]) != 1 or len(ranks[OTHER]) < 2:
            continue
        programs[key] = corrected(program, other, *ranks[kind])
        out.append(key)
    return out


def main() -> int:
    from calibration.architectures import ARCHITECTURES
    from calibration.extract import build, requantised, stored
    from estimator.paths import profiles_dir

    for arch in sys.argv[1:]:
        out = profiles_dir() / arch
        kept, family = stored.read(out), ARCHITECTURES[arch]
        programs = {key: program for key, program in kept.programs.items() if not program.made_of}
        report = mended(programs, kept.made["probes"], programs)
        report += requantised.add(family.quantised, programs, kept.tables, kept.offload)
        offload = kept.offload if kept.offload["layers"] else None
        build.write((arch, family.relative, family.shares), dict(sorted(programs.items())), kept.tables, kept.made, out, offload)
        print("\n".join(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
