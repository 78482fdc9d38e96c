"""Plans against the trainer: the planned config on a card of that size, and the same config one step up.

    python -m calibration.confirm_plans FOLDER [--only NAME ...] [--list] [--keep] [--overlay FILE] [options of calibration.trainer]

Each case is an example, a card and an aim. The example's data is replaced by synthetic images or clips and its run made short; what
`estimate plan` answers for it is run by the real trainer on the emulated device of that card's capacity and compute capability, and must
finish; then steps up (a change of the plan taken back by a step, or the next larger batch, bucket or number of frames): where an estimate
calls it "oom" it must run out of memory, where it calls it "borderline" either may be. Some cases are of a card as it was calibrated on the
emulated device (calibration/data/overlays); `--overlay` takes another overlay for all. `--keep` keeps the rows (calibration.confirmed).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from calibration.clips import write_clip
from calibration.confirmed import OUT_OF_MEMORY, Confirmed, keep
from estimator.engine import estimate_job
from estimator.errors import CannotTell
from estimator.estimate import OOM
from estimator.gpus import MIB, Gpu, find_gpu
from estimator.overlays import file_name, with_overlay
from estimator.planner.buckets import FRAME_STEP, STEP
from estimator.planner.edits import Edit, merged
from estimator.planner.growth import grown_to
from estimator.planner.output import edited_text
from estimator.planner.plans import Plan, make_plan
from estimator.planner.subject import Subject, read_subject

ROOT = Path(__file__).resolve().parent.parent
OVERLAYS = ROOT / "calibration" / "data" / "overlays"
STEPS = 8
IMAGES = ((2048, 2048), (2304, 1536), (1536, 2304))
CLIP = (832, 480, 200)
WORDS = "a brass lantern on a wooden table beside a window at dusk"


@dataclass(frozen=True)
class Case:
    """`card`: as --gpu names it. `steps`: words that the steps up which are run begin with; empty: the first two, and for growth the first
    that is certain to fail as well. `calibrated`: with the overlay of the card in OVERLAYS.
    """

    example: str
    card: str
    steps: tuple[str, ...] = ()
    aim: str = "quality"
    calibrated: bool = False

    @property
    def name(self) -> str:
        calibrated = "-calibrated" if self.calibrated else ""
        return f"{self.example}@{self.card}" + (f"-{self.aim}" if self.aim != "quality" else "") + calibrated

    def gpu(self, overlay: str | None = None) -> Gpu:
        """The card, with `overlay` or its own where it is calibrated."""
        path = overlay or (str(OVERLAYS / file_name(self.card)) if self.calibrated else None)
        card = find_gpu(self.card)
        return card if path is None else with_overlay(card, path)


CASES = (
    Case("flux_dev_24gb", "A100-40G", ("batch",)), Case("flux_dev_24gb", "L4", ("low_vram",)), Case("zimage_turbo_ui", "L4", ("batch",)),
    Case("zimage_turbo_ui", "RTX4090", ("batch",)), Case("qwen_edit_2509_ui", "A100-40G", ("text",)),
    Case("wan21_1b_ui", "L4", ("batch",)), Case("flux_dev_24gb", "RTX4090", ("batch",), calibrated=True),
    Case("zimage_turbo_ui", "RTX4060Ti-16G", ("batch",), calibrated=True), Case("wan21_1b_ui", "16GiB"),
    Case("wan21_1b_ui", "16GiB", aim="frames"), Case("wan21_14b_24gb", "24GiB"),
)  # fmt: skip


def write_job(example: str, place: Path) -> Path:
    """The example with synthetic images and few steps, as a config of its own."""
    config = yaml.safe_load((ROOT / "examples" / f"{example}.yaml").read_text(encoding="utf-8"))
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


def steps_up(plan: Plan, case: Case) -> list[tuple[str, tuple[Edit, ...]]]:
    """What the plan says is not safe any more: each change taken back by a step; or what could grow gone one step further, and besides,
    where no step is named, the first that is certain to fail.
    """
    if plan.changes:
        found = [(f"{change.name} a step back", change.weaker) for change in plan.changes]
    else:
        found = [(f"{what} {value}", merged((*plan.edits, *grown_to(plan.subject, what, value)))) for what, value in _growths(plan, case)]
    return [step for step in found if step[0].startswith(case.steps)] if case.steps else found[:2]


def _growths(plan: Plan, case: Case) -> list[tuple[str, int]]:
    further = [(growth.what, growth.beyond) for growth in plan.growth if growth.beyond is not None]
    if case.steps or not further:
        return further
    what, beyond = further[0]
    values = range(beyond, beyond + FURTHEST * STEPS_OF[what], STEPS_OF[what])
    certain = next((value for value in values if _certain_to_fail(plan, grown_to(plan.subject, what, value))), None)
    return [(what, value) for value in dict.fromkeys((beyond, beyond if certain is None else certain))]


def _certain_to_fail(plan: Plan, edits: tuple[Edit, ...]) -> bool:
    """What is allocated alone is more than the card has."""
    job = plan.subject.read(merged((*plan.edits, *edits)))
    return job is not None and estimate_job(job, plan.gpu, fast=True).verdict == OOM


def confirm(case: Case, folder: Path, overlay: str | None, options: list[str]) -> list[Confirmed]:
    """A row for the planned config and each step up: what was estimated, and how the trainer's run ended."""
    place = (folder / case.name).resolve()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    subject, gpu = read_subject(str(write_job(case.example, place)), (), None, ()), case.gpu(overlay)
    plan = make_plan(subject, gpu, case.aim)
    if plan.after is None:
        print(f"{case.name}: no config is safe", flush=True)
        return []
    rows = []
    for what, edits in [("planned", plan.edits), *steps_up(plan, case)]:
        job = subject.read(edits)
        try:
            verdict = estimate_job(job, gpu).verdict if job is not None else "not a config"
        except CannotTell as error:
            job, verdict = None, f"cannot tell: {error}"
        done = ran(subject, edits, place, gpu, options) if job is not None else {"ran": "not run"}
        own = gpu.calibration is not None
        said = {"example": case.example, "card": case.card, "calibrated": own, "aim": case.aim, "config": what, "verdict": verdict}
        rows.append(Confirmed(**said, edits=tuple(edit.override for edit in edits), **{**NOT_RUN, **done}))
        print(json.dumps(asdict(rows[-1])), flush=True)
    return rows


NOT_RUN: dict[str, Any] = {"failed_in": "", "capacity_mib": 0, "compute_capability": "", "versions": {}, "commit": ""}


def ran(subject: Subject, edits: tuple[Edit, ...], place: Path, gpu: Gpu, options: list[str]) -> dict[str, Any]:
    """How the trainer's run of the edited config ended."""
    shutil.rmtree(place / "out", ignore_errors=True)
    config, out, mib = place / "tried.yaml", place / "run", gpu.total_bytes // MIB
    config.write_text(edited_text(subject, edits)[1], encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    for cache in place.glob("data*/_*"):  # cached latents and embeddings of the run before
        shutil.rmtree(cache)
    device = ["--capacity-mib", str(mib), "--cc", gpu.compute_capability]
    command = [sys.executable, "-m", "calibration.trainer", str(config), str(out), *device, *options]
    subprocess.run(command, capture_output=True, text=True)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return {
        "ran": OUT_OF_MEMORY if result["num_ooms"] else result["outcome"],
        "failed_in": next(iter(result["oom_phases"]), ""),
        "capacity_mib": mib,
        "compute_capability": gpu.compute_capability,
        "versions": result["versions"],
        "commit": commit(),
    }


def commit() -> str:
    """The commit that the rows are made with."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.confirm_plans", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="cases whose name contains one of these words")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--keep", action="store_true", help="keep the rows, in place of earlier ones of the same configs")
    parser.add_argument("--overlay", help="a calibration overlay of the cases' card")
    args, options = parser.parse_known_args()
    cases = [case for case in CASES if not args.only or any(word in case.name for word in args.only)]
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    rows: list[Confirmed] = []
    for case in cases:
        rows += confirm(case, args.folder, args.overlay, options)
        if args.keep:
            keep(rows)
    wrong = [row for row in rows if not row.holds]
    print(f"{len(rows) - len(wrong)} of {len(rows)} as estimated")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
