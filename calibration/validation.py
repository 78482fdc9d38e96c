"""Validation runs: the jobs of `calibration.validation_jobs`, run by the real trainer on the emulated device, kept as one row each.

    python -m calibration.validation list
    python -m calibration.validation run FOLDER [--only NAME ...] [options of calibration.trainer]   # one at a time; continues
    python -m calibration.validation collect FOLDER                                # into calibration/data/emulated_runs/

`collect` needs only what `run` left in FOLDER. NAME@MIB is the same job on a card of that capacity. A row says in which order batches came.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from calibration import (
    validation_jobs,
    validation_jobs_adapters,
    validation_jobs_edit,
    validation_jobs_flex2,
    validation_jobs_flux2,
    validation_jobs_hidream,
    validation_jobs_kinds,
    validation_jobs_ltx2,
    validation_jobs_lumina2,
    validation_jobs_matrix,
    validation_jobs_neighbours,
    validation_jobs_networks,
    validation_jobs_offload,
    validation_jobs_omnigen2,
    validation_jobs_passes,
    validation_jobs_pixels,
    validation_jobs_qwen,
    validation_jobs_sd3,
    validation_jobs_settings,
    validation_jobs_unet,
    validation_jobs_wan,
    validation_jobs_wan21,
    validation_jobs_wan_offload,
    validation_jobs_whole,
    validation_rows,
)  # fmt: skip
from calibration.clips import write_clip
from calibration.validation_settings import CAPTIONS, CARDS_MIB, IMAGES, Job
from estimator.archs import load_archs
from estimator.buckets import bucket_size

JOBS = (
    *validation_jobs.JOBS, *validation_jobs_qwen.JOBS, *validation_jobs_flux2.JOBS, *validation_jobs_wan.JOBS, *validation_jobs_wan21.JOBS,
    *validation_jobs_edit.JOBS, *validation_jobs_settings.JOBS, *validation_jobs_offload.JOBS, *validation_jobs_ltx2.JOBS,
    *validation_jobs_adapters.JOBS, *validation_jobs_flex2.JOBS, *validation_jobs_matrix.JOBS, *validation_jobs_networks.JOBS,
    *validation_jobs_passes.JOBS, *validation_jobs_pixels.JOBS, *validation_jobs_hidream.JOBS, *validation_jobs_neighbours.JOBS,
    *validation_jobs_unet.JOBS, *validation_jobs_whole.JOBS, *validation_jobs_sd3.JOBS, *validation_jobs_wan_offload.JOBS,
    *validation_jobs_omnigen2.JOBS, *validation_jobs_lumina2.JOBS, *validation_jobs_kinds.JOBS,
)  # fmt: skip
DATA, RARELY = "DATA/", 10_000  # in place of the folder of a job's images; save_every, sample_every: at the start and the end only
# Phases of the launcher (top level) by the names that estimates have; `setup` and `set_device_state` are not judged on their own
PHASES = {"load": "load", "setup": "setup", "cache_latents": "cache_latents", "cache_text": "cache_text", "prepare": "prepare",
          "sample": "sample", "step": "train", "validate": "train", "save": "save"}  # fmt: skip


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted key; None removes it."""
    *sections, last = path.split(".")
    for name in sections:
        tree = tree.setdefault(name, {})
    if value is None:
        tree.pop(last, None)
    else:
        tree[last] = value


def process(job: Job) -> dict[str, Any]:
    """The job's process section, with folders as placeholders: DATA/<images> for a dataset, OUT for the training folder."""
    config = copy.deepcopy(job.base)
    config["training_folder"] = "OUT"
    entry = config["datasets"][0]
    for path, value in job.settings.items():
        if path.startswith("datasets."):
            put(entry, path.removeprefix("datasets."), value)
        else:
            put(config, path, value)
    config["datasets"] = [{"folder_path": DATA + images, "resolution": sizes, **entry, **own} for images, sizes, own in job.data]
    sample = config["sample"]
    sample.pop("prompts", None)
    if any(one.keys() != {"prompt"} for one in job.samples) or job.base["type"] == "diffusion_trainer":
        sample["samples"] = [dict(one) for one in job.samples]
    else:
        sample["prompts"] = [one["prompt"] for one in job.samples]
    sample.update(sample_every=RARELY, sample_steps=2)
    config["save"]["save_every"] = RARELY
    config["train"]["steps"] = max(2, -(-2 * batches(job, config) // config["train"].get("gradient_accumulation", 1)))
    return config


def batches(job: Job, config: dict[str, Any]) -> int:
    """Batches of one epoch: every bucket of every resolution gives at least one (the trainer pads it up to the batch size)."""
    size, total = config["train"]["batch_size"], 0
    divisor = load_archs().archs[load_archs().trainer[validation_rows.arch_key(config)].archs[0]].bucket_divisor
    for images, resolutions, _ in job.data:
        for resolution in resolutions:
            sizes = [(*bucket_size(width, height, resolution, divisor), *frames) for width, height, _caption, *frames in IMAGES[images]]
            total += sum(-(-sizes.count(one) // size) for one in set(sizes))
    return total


def whole(job: Job) -> dict[str, Any]:
    """The job as a config file holds it."""
    return {"job": "extension", "config": {"name": job.name, "process": [process(job)]}, "meta": {"name": "[name]", "version": "1.0"}}


def filled(config: dict[str, Any], data: Path, out: Path) -> dict[str, Any]:
    """The config with real folders in place of the placeholders."""

    def put_folders(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put_folders(one) for key, one in value.items()}
        if isinstance(value, list):
            return [put_folders(one) for one in value]
        is_folder = isinstance(value, str) and value.startswith(DATA)
        return str(data / value.removeprefix(DATA).replace(" ", "_")) if is_folder else value

    config = put_folders(config)
    for one in config["config"]["process"]:
        one["training_folder"] = str(out)
    return config


def folders(job: Job) -> list[str]:
    """Names of all folders of images that the job reads, its control images' too."""
    found: dict[str, None] = {}

    def look(value: Any) -> None:
        if isinstance(value, str) and value.startswith(DATA):
            found[value.removeprefix(DATA).split("/")[0]] = None
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            look(one)

    look(process(job))
    return list(found)


def write_images(name: str, folder: Path) -> None:
    place = folder / name.replace(" ", "_")
    place.mkdir(parents=True, exist_ok=True)
    for index, (width, height, caption, *clip) in enumerate(IMAGES[name]):
        if clip:
            write_clip(place / f"image{index}.avi", width, height, clip[0], sound=clip[1:] == [1])
        else:
            Image.new("RGBA" if ".inpaint." in name else "RGB", (width, height)).save(place / f"image{index}.png")
        (place / f"image{index}.txt").write_text(CAPTIONS[caption])


def write_made(folder: Path, kinds: list[str]) -> None:
    """Control images that the trainer makes itself, and finds there when it has made them before (its models for that are not run)."""
    for picture in sorted(folder.glob("*.png")) if kinds else ():
        with Image.open(picture) as image:
            size = image.size
        for kind in kinds:
            (folder / "_controls").mkdir(exist_ok=True)
            Image.new("RGBA" if kind == "inpaint" else "RGB", size).save(folder / "_controls" / f"{picture.stem}.{kind}.png")


def all_runs() -> dict[str, tuple[Job, int | None]]:
    """Every run by name: the jobs on a card with room to spare, then those that are tried on cards of 12 to 32 GB."""
    runs: dict[str, tuple[Job, int | None]] = {job.name: (job, None) for job in JOBS}
    return runs | {f"{job.name}@{mib}": (job, mib) for mib in reversed(CARDS_MIB) for job in JOBS if job.cards}


def run(name: str, folder: Path, options: list[str]) -> None:
    """Make one run, and leave nothing of it but its config, log and result."""
    job, capacity_mib = all_runs()[name]
    place = (folder / name).resolve()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for images in folders(job):
        write_images(images, place / "data")
    for entry in process(job)["datasets"]:
        write_made(place / "data" / entry["folder_path"].removeprefix(DATA).replace(" ", "_"), entry.get("controls", []))
    (place / "config.yaml").write_text(yaml.safe_dump(filled(whole(job), place / "data", place / "out"), sort_keys=False))
    capacity = [] if capacity_mib is None else ["--capacity-mib", str(capacity_mib)]
    capacity += [] if job.capability is None else ["--cc", job.capability]
    command = [sys.executable, "-m", "calibration.trainer", str(place / "config.yaml"), str(place), *capacity, *options]
    seed = {} if job.seed is None else {"SEED": str(job.seed)}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **seed})
    print(name, (done.stdout + done.stderr).strip()[-200:], flush=True)
    for left in ("data", "out"):
        shutil.rmtree(place / left, ignore_errors=True)


def row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run. Bytes are integers; `capacity_bytes` is the card's total, of which the context takes its part. Captions are
    kept by their names in CAPTIONS.

    A run on a card of a given capacity names the run that has its config and images.
    """
    job, capacity_mib = all_runs()[name]
    images = {DATA + name: [list(image) for image in IMAGES[name]] for name in folders(job)}
    what = {"config": whole(job), "images": images} if capacity_mib is None else {"job": job.name}
    what |= {} if job.seed is None else {"seed": job.seed}
    return {
        "name": name, **what, "capacity_bytes": None if capacity_mib is None else result["total_bytes"],
        "context_bytes": result["context_bytes_assumed"], "compute_capability": result["compute_capability"],
        "cudnn_workspace": result["cudnn_workspace"], "versions": result["versions"], "outcome": result["outcome"],
        "ooms": result["num_ooms"], "retries": result["num_alloc_retries"], "phases": phases(result["phases"]),
    }  # fmt: skip


def phases(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The top-level phases in order, each with what it was made for; `outcome` where one did not end well."""
    kept, inner = [], []
    for one in rows:
        if one["parent"] != "run":
            inner.append(one)
            continue
        if one["phase"] in PHASES:
            kept.append({
                "phase": PHASES[one["phase"]], **variant(one, inner), "allocated_peak": one["allocated_peak"],
                "reserved_peak": one["reserved_peak"], **({} if one["outcome"] == "ok" else {"outcome": one["outcome"]}),
            })  # fmt: skip
        inner = []
    return kept


def variant(one: dict[str, Any], inner: list[dict[str, Any]]) -> dict[str, Any]:
    """What a phase was made for: resolution, images encoded, buckets (with each item's text tokens), previews, tokens of texts encoded."""
    tokens = [frame["tokens"] for frame in inner if frame["phase"] == "encode_prompt" and "tokens" in frame]
    if one["phase"] == "step":
        keys = ("width", "height", "batch")
        buckets = [{key: bucket[key] for key in keys} | {"cached": bucket["latents"] is not None} for bucket in one["buckets"]]
        for kept, bucket in zip(buckets, one["buckets"], strict=True):
            if bucket["frames"] > 1:
                kept["frames"] = bucket["frames"]
        for bucket, given in zip(buckets, (frame for frame in inner if "masked" in frame), strict=False):  # Flex.2: what chance gave it
            bucket.update(control=given["controlled"], mask=given["masked"])
        for index, bucket in enumerate(buckets):
            text = one["buckets"][index].get("text")
            bucket["text_tokens"] = text if text is not None else (tokens[index] if index < len(tokens) else None)
        return {"step": one["step"], "buckets": buckets}
    if one["phase"] == "sample":
        samples = [[s["width"], s["height"], s["cfg"], *_more(s["frames"])] for s in one["samples"]]
        return {"step": one["step"], "samples": samples, "text_tokens": tokens}
    if one["phase"] == "cache_latents":
        shapes = [frame["shape"] for frame in inner if frame["phase"] == "vae_encode"]
        return {"resolution": one["resolution"], "encoded": [[w, h, *(_more(*shape) if shape else [])] for _, _, *shape, h, w in shapes]}
    if one["phase"] == "validate":
        return {"validation": True}
    if one["phase"] == "cache_text":
        return {"resolution": one["resolution"], "text_tokens": tokens}
    return {"text_tokens": tokens} if tokens else {}


def _more(frames: int) -> list[int]:
    """The number of frames, where it is one of a clip."""
    return [frames] if frames > 1 else []


def collect(folder: Path, kept: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all runs; of those that are not in `folder` the `kept` ones (by name)."""
    rows = []
    for name in all_runs():
        if (path := folder / name / "result.json").exists():
            rows.append(row(name, json.loads(path.read_text())))
        elif name in kept:
            rows.append(kept[name])
        else:
            print(f"missing: {name}", file=sys.stderr)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser("python -m calibration.validation", None, __doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=["list", "run", "collect"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("validation"))
    parser.add_argument("--only", nargs="+", default=[], help="names of runs")
    args, options = parser.parse_known_args()
    if unknown := set(args.only) - set(all_runs()):
        parser.error(f"no such run: {', '.join(sorted(unknown))}")
    if args.command == "list":
        print("\n".join(all_runs()))
    elif args.command == "run":
        for name in args.only or [name for name in all_runs() if not (args.folder / name / "result.json").exists()]:
            run(name, args.folder, options)
    else:
        validation_rows.write_all(rows := collect(args.folder, {one["name"]: one for one in validation_rows.read_all()}))
        print(f"{len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
