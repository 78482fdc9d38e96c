"""`python -m calibration.extract ARCH PROBES`: the profile of an architecture from its recorded probe jobs (see calibration.probes)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from calibration import probes
from calibration.architectures import ARCHITECTURES
from calibration.extract import stored
from calibration.extract.build import build
from calibration.extract.programs import Refused
from estimator.convolved import CONVOLVED
from estimator.parameters import LOKR


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.extract", description=__doc__)
    parser.add_argument("arch", choices=sorted(ARCHITECTURES))
    parser.add_argument("probes", type=Path, help="the folder that calibration.probes recorded into")
    parser.add_argument("--add", action="store_true", help="keep the parts that the profile has, and add those that it has not")
    parser.add_argument("--out", type=Path, help="default: profiles/ARCH; of another adapter below its RELATIVE: lokr, convolved")
    args = parser.parse_args()
    recorded = [run for run in probes.folders(args.arch, args.probes) if (run / "trace.npz").exists()]
    if not recorded:
        parser.error(f"no recorded probe jobs of {args.arch} in {args.probes}")
    family = ARCHITECTURES[args.arch]
    beside = [each for each, met in ((family.beside, True), (LOKR, family.factors), (CONVOLVED, family.conv)) if each and met]
    place = Path(str(family.relative), *beside) if beside else Path(args.arch)
    out = args.out or Path(__file__).resolve().parents[2] / "profiles" / place
    try:
        report = build(args.arch, recorded, out, f"python -m calibration.extract {args.arch}", stored.read(out) if args.add else None)
    except Refused as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    print("\n".join(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
