"""The harness's command.

    python -m calibration.harness record ARCH FOLDER --python CUDA_PYTHON     # its probe jobs, on the emulated device
    python -m calibration.harness extract ARCH FOLDER                         # profiles/ARCH from them
    python -m calibration.harness run RUN.yaml FOLDER --python CUDA_PYTHON    # a run file gone through, and kept as a row
    python -m calibration.harness check                                       # all rows, beside their estimates
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import yaml

from calibration.extract.programs import Refused
from calibration.harness import check, extraction, jobs
from calibration.harness.families import FAMILIES

PYTHON = os.environ.get("EMULATED_CUDA_PYTHON", "python3")
PROFILES = Path(__file__).resolve().parents[2] / "profiles"


def record(args: argparse.Namespace) -> int:
    worst = 0
    for name, job in jobs.probes(args.arch).items():
        folder = args.folder / name
        if (folder / "result.json").exists() or (args.only and name not in args.only) or job["diffusers"] != args.diffusers:
            continue
        jobs.write(job, folder)
        code = jobs.run(folder, args.python)
        print(name, (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:], flush=True)
        worst = max(worst, code)
    return worst


def extract(args: argparse.Namespace) -> int:
    folders = [args.folder / name for name in jobs.probes(args.arch)]
    recorded = [folder for folder in folders if (folder / "trace.npz").exists()]
    for folder in folders:
        if folder not in recorded:
            print(f"not recorded: {folder.name}", file=sys.stderr)
    if not recorded:
        return 1
    try:
        report = extraction.build_profile(args.arch, recorded, args.out or PROFILES / args.arch)
    except Refused as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    print("\n".join(report))
    return 0


def run(args: argparse.Namespace) -> int:
    for path in args.runs:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))["run"]
        folder = args.folder / path.stem
        jobs.write(check.spec(check.read(said)), folder)
        code = jobs.run(folder, args.python)
        if code:
            print(f"{path.stem}: see {folder / 'log.txt'}", file=sys.stderr)
            return code
        row = check.row(path.stem, said, json.loads((folder / "result.json").read_text()))
        known = [one for one in check.rows() if one["name"] != path.stem]
        check.ROWS.write_text("".join(json.dumps(one) + "\n" for one in [*known, row]), encoding="utf-8")
        print(check.table(list(check.compared(row))).text(), flush=True)
    return 0


def check_all(_: argparse.Namespace) -> int:
    found = check.every()
    if not found:
        print(f"nothing was gone through yet: {check.ROWS.name} has no rows", file=sys.stderr)
        return 1
    print(check.table(found).text())
    return int(any(row.misses for row in found))


def main() -> int:
    text = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m calibration.harness", description=__doc__, formatter_class=text)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("check").set_defaults(function=check_all)
    command = commands.add_parser("run")
    command.set_defaults(function=run)
    command.add_argument("runs", type=Path, nargs="+", help="run files")
    command.add_argument("folder", type=Path)
    command.add_argument("--python", default=PYTHON, help="python with the CUDA build of torch")
    for name, function in (("record", record), ("extract", extract)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("arch", choices=sorted(FAMILIES))
        command.add_argument("folder", type=Path)
        command.add_argument("--python", default=PYTHON, help="python with the CUDA build of torch")
        command.add_argument("--only", nargs="*", help="of record: these of its jobs")
        command.add_argument("--diffusers", default="", help="of record: the jobs of an older version, which that python must have")
        command.add_argument("--out", type=Path, help="of extract; default: profiles/ARCH")
    args = parser.parse_args()
    code: int = args.function(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
