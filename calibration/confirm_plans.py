"""Plans against the trainer: the planned config on a card of that size, and the same config one step up.

    python -m calibration.confirm_plans FOLDER [--only NAME ...] [--list] [options of calibration.trainer]

Each case is an example, a card's size and an aim. The example's data is replaced by synthetic images or clips and its run made short; what
`estimate plan` answers for it is run by the real trainer on the emulated device of that capacity, and must finish; then steps
up (a change of the plan taken back, or the next larger batch or number of frames): where an estimate calls it "oom" it must run out of
memory, where it calls it "borderline" either may be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from calibration.clips import write_clip
from estimator.engine import estimate_job
from estimator.errors import CannotTell
from estimator.estimate import OOM, SAFE
from estimator.gpus import find_gpu
from estimator.planner.buckets import FRAME_STEP, STEP
from estimator.planner.edits import Edit, merged
from estimator.planner.growth import grown_to
from estimator.planner.output import edited_text
from estimator.planner.plans import Plan, make_plan
from estimator.planner.subject import Subject, read_subject

ROOT = Path(__file__).resolve().parent.parent
STEPS = 8
IMAGES = ((2048, 2048), (2304, 1536), (1536, 2304))
CLIP = (832, 480, 200)
WORDS = "a brass lantern on a wooden table beside a window at dusk"


@dataclass(frozen=True)
class Case:
    """`steps_up`: so many of the steps up are run."""

    example: str
    gib: int
    steps_up: int = 2
    aim: str = "quality"

    @property
    def name(self) -> str:
        return f"{self.example}@{self.gib}" + (f"-{self.aim}" if self.aim != "quality" else "")


CASES = (
    Case("flux_dev_24gb", 16), Case("flux_dev_24gb", 24), Case("zimage_turbo_ui", 12), Case("zimage_turbo_ui", 16),
    Case("wan21_1b_ui", 16), Case("wan21_1b_ui", 16, aim="frames"), Case("wan21_14b_24gb", 24),
    Case("qwen_edit_2509_ui", 32), Case("qwen_edit_2509_ui", 48),
)  # fmt: skip


def write_job(case: Case, place: Path) -> Path:
    """The example with synthetic images and few steps, as a config of its own."""
    config = yaml.safe_load((ROOT / "examples" / f"{case.example}.yaml").read_text(encoding="utf-8"))
    for process in config["config"]["process"]:
        process["training_folder"] = str(place / "out")
        process["train"]["steps"] = STEPS
        process.setdefault("sample", {})["sample_every"] = STEPS
        process["sample"]["sample_steps"] = 1
        process.setdefault("save", {})["save_every"] = STEPS
        for number, entry in enumerate(process["datasets"]):
            for key in [key for key in entry if key == "folder_path" or key.startswith("control_path")]:
                made = write_clips if int(entry.get("num_frames") or 1) > 1 else write_images
                entry[key] = str(made(place / f"data{number}-{key}"))
        for sample in process["sample"].get("samples", []):
            for key in [key for key in sample if key.startswith("ctrl_img")]:
                sample[key] = str(write_images(place / "data-ctrl") / "image0.png")
    path = place / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def write_images(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(IMAGES):
        Image.new("RGB", size).save(folder / f"image{number}.png")
        (folder / f"image{number}.txt").write_text(WORDS, encoding="utf-8")
    return folder


def write_clips(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(IMAGES)):
        write_clip(folder / f"clip{number}.avi", *CLIP)
        (folder / f"clip{number}.txt").write_text(WORDS, encoding="utf-8")
    return folder


STEPS_OF = {"batch": 1, "frames": FRAME_STEP, "resolution": STEP}
FURTHEST = 400


def steps_up(plan: Plan) -> list[tuple[str, tuple[Edit, ...]]]:
    """What the plan says is not safe any more: each change taken back alone; or of its growth the next, and the first that is certain
    to fail.
    """
    further = [growth for growth in plan.growth if growth.beyond is not None]
    if not further:
        return [
            (f"without {change.name}", merged(edit for other in plan.changes if other is not change for edit in other.edits))
            for change in plan.changes
        ]
    what, beyond = further[0].what, further[0].beyond
    assert beyond is not None
    values = range(beyond, beyond + FURTHEST * STEPS_OF[what], STEPS_OF[what])
    certain = next((value for value in values if _certain_to_fail(plan, grown_to(plan.subject, what, value))), None)
    chosen = dict.fromkeys([beyond] if certain is None else [beyond, certain])
    return [(f"{what} {value}", merged((*plan.edits, *grown_to(plan.subject, what, value)))) for value in chosen]


def _certain_to_fail(plan: Plan, edits: tuple[Edit, ...]) -> bool:
    """What is allocated alone is more than the card has."""
    job = plan.subject.read(merged((*plan.edits, *edits)))
    return job is not None and estimate_job(job, plan.gpu, fast=True).verdict == OOM


def confirm(case: Case, folder: Path, options: list[str]) -> list[dict[str, Any]]:
    """A row for the planned config and each step up: what was estimated, and how the trainer's run ended."""
    place = (folder / case.name).resolve()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    subject = read_subject(str(write_job(case, place)), (), None, ())
    plan = make_plan(subject, find_gpu(f"{case.gib}GiB"), case.aim)
    if plan.after is None:
        return [{"case": case.name, "config": "planned", "verdict": "none is safe", "ran": "not run"}]
    rows = []
    for what, edits in [("planned", plan.edits), *steps_up(plan)[: case.steps_up]]:
        said = {"case": case.name, "config": what, "edits": [edit.override for edit in edits]}
        rows.append({**said, **tried(subject, edits, case, place, options)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def tried(subject: Subject, edits: tuple[Edit, ...], case: Case, place: Path, options: list[str]) -> dict[str, Any]:
    job = subject.read(edits)
    if job is None:  # the trainer would stop on it
        return {"verdict": "not a config", "ran": "not run"}
    try:
        verdict = estimate_job(job, find_gpu(f"{case.gib}GiB")).verdict
    except CannotTell as error:
        return {"verdict": f"cannot tell: {error}", "ran": "not run"}
    shutil.rmtree(place / "out", ignore_errors=True)
    config, out = place / "tried.yaml", place / "run"
    config.write_text(edited_text(subject, edits)[1], encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    for cache in place.glob("data*/_*"):  # cached latents and embeddings of the run before
        shutil.rmtree(cache)
    command = [sys.executable, "-m", "calibration.trainer", str(config), str(out), "--capacity-mib", str(case.gib * 1024), *options]
    subprocess.run(command, capture_output=True, text=True)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return {"verdict": verdict, "ran": "out of memory" if result["num_ooms"] else result["outcome"], "ooms": result["num_ooms"]}


def holds(row: dict[str, Any]) -> bool:
    """Safe must have run without running out of memory, oom must have run out of it."""
    expected = {SAFE: ("ok",), OOM: ("out of memory",)}.get(row["verdict"])
    return expected is None or row["ran"] in expected


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.confirm_plans", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="cases whose name contains one of these words")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    args, options = parser.parse_known_args()
    cases = [case for case in CASES if not args.only or any(word in case.name for word in args.only)]
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    rows = [row for case in cases for row in confirm(case, args.folder, options)]
    wrong = [row for row in rows if not holds(row)]
    print(f"{len(rows) - len(wrong)} of {len(rows)} as estimated")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
