"""Probe jobs: the trainer configs whose recordings the memory programs of an architecture are extracted from.

Two runs for each kind of base weights, at two ranks. They differ in everything that composes (caching, text encoder,
low_vram, EMA), so that both sides of each are recorded; the optimizer goes with the weights, so that each optimizer is seen
at both ranks. Sizes are odd on purpose: no two features of a bucket may be proportional.

`python -m calibration.probes ARCH FOLDER` writes them all; `--run` records them (see calibration.trainer for the rest).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from calibration.architectures import ARCHITECTURES
from calibration.architectures.base import OPTIMIZER_WITH, OPTIMIZER_WITH_OTHERS, Architecture, Texts, kind_of
from calibration.clips import write_clip
from estimator.archs import load_archs
from estimator.levels import UNMERGED
from estimator.whole_profile import WHOLE

# Indices of probe jobs: with the text encoder unloaded, loaded with low_vram, with text cached, with no latents cached, loaded without
# low_vram (of an Architecture: unloaded, loaded or quantised, captioned, uncached, quantised)
UNLOADED, LOADED, CAPTIONED, UNCACHED, READ = 2, 3, 4, 5, 6
# bitsandbytes keeps tensors of fewer than 4096 elements in fp32: with it, ranks at which no tensor of an adapter is so small
PREPARED = "prepared"  # a mark in the folder of a run that stops when all is prepared
RANKS = {"adamw8bit": (16, 24), "adamw": (8, 24), "adafactor": (8, 24), "prodigy": (8, 24)}


def words(count: int) -> str:
    return " ".join(["fox"] * count)


def write_images(
    folder: Path, buckets: tuple[tuple[int, ...], ...], controlled: bool = False, begins: bool = False
) -> list[dict[str, Any]]:
    """One folder with one image (or clip) for each bucket; the resolution is large enough that its own size is the bucket.

    `controlled`: a control image of the same size beside it. `begins`: as of an Architecture. Of a caption for each item: as many images.
    """
    entries: list[dict[str, Any]] = []
    for width, height, batch, caption, *video in buckets:
        frames, marked = video[:1], bool(video[1:] and video[1])
        sound = marked and not begins
        place = folder / f"{width}x{height}b{batch}"
        place.mkdir(parents=True, exist_ok=True)
        for number, count in enumerate(caption) if isinstance(caption, tuple) else (("", caption),):
            if frames and frames[0] > 1:
                write_clip(place / "image.avi", width, height, frames[0], sound=sound)
            else:
                Image.new("RGB", (width, height)).save(place / f"image{number}.png")
            (place / f"image{number}.txt").write_text(words(count))
        entries.append({"folder_path": str(place), "caption_ext": "txt", "resolution": 2048, "batch_size": batch})
        if frames:
            entries[-1].update({"num_frames": frames[0]} | ({"do_audio": True} if sound else {"do_i2v": True} if marked else {}))
        if controlled:
            beside = place.with_name(f"{place.name}-control")
            beside.mkdir(exist_ok=True)
            Image.new("RGB", (width, height)).save(beside / "image.png")
            entries[-1]["control_path"] = str(beside)
    return entries


def put_beside(entries: list[dict[str, Any]], shift: int) -> None:
    """Flex.2: masks beside two of four pictures, and control images beside those that each step encodes (the trainer stops on them where
    latents are cached)."""
    for number, entry in enumerate(entries):
        pictures = Path(entry["folder_path"])
        with Image.open(pictures / "image.png") as image:
            size = image.size
        kinds = {"inpaint": "RGBA"} if (number // 2 + shift) % 2 else {}
        kinds |= {} if entry["cache_latents_to_disk"] else {"control": "RGB"}
        for kind, mode in kinds.items():
            beside = pictures.with_name(f"{pictures.name}-{kind}")
            beside.mkdir(exist_ok=True)
            Image.new(mode, size).save(beside / "image.png")
            entry[f"{kind}_path"] = str(beside)


def write_edits(folder: Path, texts: Texts) -> list[dict[str, Any]]:
    """One folder with one small image for each text, and one for each of its control images."""
    entries = []
    for number, (caption, controls) in enumerate(texts):
        places = [folder / f"edit{number}" / part for part in ("target", *(f"control{k}" for k in range(len(controls))))]
        for place, size in zip(places, ((512, 512), *controls), strict=True):
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size).save(place / "image.png")
        (places[0] / "image.txt").write_text(words(caption))
        paths = [str(place) for place in places[1:]]
        entry = {"folder_path": str(places[0]), "control_path": paths if len(paths) > 1 else paths[0]}
        entries.append(entry | {"caption_ext": "txt", "resolution": 512, "batch_size": 1})
    return entries


def edited_samples(entries: list[dict[str, Any]], texts: Texts) -> list[dict[str, Any]]:
    """A small preview of each text and its control images."""
    out = []
    for entry, (caption, _) in zip(entries, texts, strict=True):
        paths = entry["control_path"] if isinstance(entry["control_path"], list) else [entry["control_path"]]
        images = {f"ctrl_img_{k}": str(Path(path) / "image.png") for k, path in enumerate(paths, 1)}
        out.append({"prompt": words(caption + 3), "width": 256, "height": 256, "guidance_scale": 1.0, **images})
    return out


def picture(folder: Path) -> str:
    """A picture for previews to begin with; the trainer brings it to their size."""
    path = folder / "picture.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (640, 480)).save(path)
    return str(path)


def network(family: Architecture, second: bool, rank: int) -> dict[str, Any]:
    """The adapter that the probe job trains."""
    if family.factors is None:
        without = {"network_kwargs": {"ignore_if_contains": list(family.ignored)}} if family.ignored else {}
        beside = {"conv": family.conv[second], "conv_alpha": family.conv[second]} if family.conv else {}
        return {"type": "lora", "linear": rank, "linear_alpha": rank, **beside, **without, **family.network}
    return {"type": "lokr", "lokr_full_rank": True, "lokr_factor": family.factors[second]}


def text_kind(arch: str, qtype: str) -> str:
    """The text encoder's kind of weights beside a transformer's qtype: the same, or qfloat8 where an encoder of its own key has no such."""
    known = load_archs().archs.get(arch)
    if known is not None and known.prequantised:
        return known.prequantised
    if known is not None and known.te_qtype_key == "qtype":
        return qtype.partition("|")[0]  # the trainer looks at no other key
    return qtype if qtype in OPTIMIZER_WITH else "qfloat8"


def config(arch: str, weights: str, index: int, run: Path) -> dict[str, Any]:
    """The probe job `index` (0, 1, or one of the others above) of an architecture and a kind of base weights, as AI Toolkit reads it."""
    family, optimizer = ARCHITECTURES[arch], OPTIMIZER_WITH.get(weights, OPTIMIZER_WITH_OTHERS)
    cached, unloaded = index in (1, CAPTIONED), index == UNLOADED
    rank, caption, told = RANKS[optimizer][cached], captions_cached(family, index), family.caches_text or index == CAPTIONED
    without = unloaded or index == UNCACHED or (index == CAPTIONED and not (family.captioned and family.captioned[1]))  # no previews
    datasets = job_datasets(family, weights, index, run)
    model: dict[str, Any] = dict(family.model, quantize=weights != "bf16", low_vram=index == LOADED or (cached and not family.loaded))
    if family.unmerged:
        model.update(quantize=True, qtype=UNMERGED)
    elif weights != "bf16":
        model.update(qtype=weights, qtype_te=text_kind(arch, weights))
    process = {
        "type": "sd_trainer", "training_folder": str(run / "out"), "device": "cuda:0",
        **({} if family.beside == WHOLE else {"network": network(family, index == 1, rank)}),
        "save": {"dtype": "float16", "save_every": 10000, "max_step_saves_to_keep": 1},
        "datasets": datasets,
        "train": {
            "batch_size": 1, "steps": 1 if family.texts else len(datasets) + 1, "gradient_accumulation": 1, "train_unet": True,
            "train_text_encoder": False, "gradient_checkpointing": True, "noise_scheduler": "flowmatch", "optimizer": optimizer, "lr": 1e-4,
            "dtype": "bf16", "ema_config": {"use_ema": cached, "ema_decay": 0.99}, "cache_text_embeddings": caption and told,
            "unload_text_encoder": unloaded or (caption and not told), "disable_sampling": without,
            "skip_first_sample": bool(family.own) and weights != "bf16", **family.train,
        },
        "model": model,
        "sample": {
            "sampler": family.train.get("noise_scheduler", "flowmatch"), "sample_every": 10000, "width": 1024, "height": 1024, "neg": "",
            "samples": job_samples(family, weights, index, run, datasets), "sample_steps": 1,
        },
    }  # fmt: skip
    return {"job": "extension", "config": {"name": "probe", "process": [process]}, "meta": {"name": "probe", "version": "1.0"}}


def captions_cached(family: Architecture, index: int) -> bool:
    """Whether a probe job caches its text, or unloads the encoder: the second, or the one that is there for it."""
    return index == CAPTIONED or (index == 1 and (family.captioned is None or not family.caches_text))


def job_datasets(family: Architecture, weights: str, index: int, run: Path) -> list[dict[str, Any]]:
    """A probe job's datasets, of which the pictures and clips are written: one for each bucket."""
    cached, unloaded, caption = index in (1, CAPTIONED), index == UNLOADED, captions_cached(family, index)
    buckets = family.unloaded if unloaded else family.other_buckets.get(weights, family.buckets)
    few = family.brief.get(weights)
    if index == UNCACHED:
        buckets = family.uncached
    elif index == CAPTIONED and family.captioned is not None:
        buckets = family.captioned[0]
    elif index in (0, 1) and weights in family.fewer:
        buckets = family.fewer[weights][index][0]
    elif few is not None:
        buckets = few[0]
    elif cached and family.second is not None:
        buckets = family.second[0]
    datasets = write_edits(run / "data", family.texts) if family.texts else write_images(
        run / "data", buckets, family.controlled, family.begins
    )
    datasets += [] if index >= UNLOADED or few is not None else write_images(run / "data", family.uncontrolled[index])
    # Uncached runs have batches with cached latents too: the step's head of both. Which are cached differs for the last kind of
    # weights, so that the head of each batch size is seen at enough sizes to check its formulas.
    turn = 0 if weights == family.weights[-1] else 1
    for number, entry in enumerate(datasets):
        # no process of its own where weights are on the host unquantised: forking one counts them a second time
        if unloaded or (index == 1 and weights == "bf16"):
            entry["num_workers"] = 0
        held_picture = entry.get("do_i2v", False) and entry["num_frames"] == 1
        disk = (cached or (number % 2 == turn and not family.encodes)) and not family.pictured and not held_picture and index != UNCACHED
        entry.update(cache_latents_to_disk=disk, cache_text_embeddings=caption and (family.caches_text or index == CAPTIONED))
    if family.layout.conditioned:
        put_beside(datasets, sorted(family.weights).index(weights) + index)
    return datasets


def job_samples(family: Architecture, weights: str, index: int, run: Path, datasets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A probe job's previews."""
    if family.texts:
        return edited_samples(datasets, family.texts)
    previews = family.other_samples.get(weights, family.samples)
    if index == 1 and family.second is not None:
        previews = family.second[1]
    if index in (0, 1) and weights in family.fewer:
        previews = family.fewer[weights][index][1]
    if index == CAPTIONED and family.captioned is not None:
        previews = family.captioned[1]
    if weights in family.brief:
        previews = family.brief[weights][1] or previews
    samples: list[dict[str, Any]] = []
    for width, height, guidance, count, *frames in previews:
        samples.append({"prompt": words(count), "width": width, "height": height, "guidance_scale": guidance})
        samples[-1].update({"num_frames": frames[0]} if frames else {})
        if family.controlled and len(samples) > family.bare:  # the trainer brings it to the preview's size
            samples[-1]["ctrl_img"] = str(Path(datasets[0]["control_path"]) / "image.png")
        if family.pictured or (family.begins and frames[1:]):
            samples[-1]["ctrl_img"] = picture(run / "data")
    for entry, count in zip(samples, family.negatives, strict=False):
        entry["neg"] = words(count)
    return samples


def folders(arch: str, folder: Path) -> dict[Path, tuple[str, int]]:
    """The run folders of an architecture's probe jobs, with base weights and index of each; in the order in which they are extracted."""
    family = ARCHITECTURES[arch]
    jobs = [(weights, index) for weights in sorted(family.weights) for index in ((1,) if family.texts else (0, 1))]
    jobs += [(family.weights[0], UNLOADED)] if family.unloaded else []
    jobs += [(weights, LOADED) for weights in sorted(family.weights)] if family.loaded else []
    stepped = [weights for weights in sorted(family.weights) if weights not in {*family.brief, *family.loads}]
    jobs += [(weights, CAPTIONED) for weights in stepped] if family.captioned else []
    jobs += [(weights, UNCACHED) for weights in stepped] if family.uncached else []
    jobs += [(weights, index) for weights in sorted(family.quantised) for index in (READ, LOADED)]
    return {(folder / f"{arch}-{kind_of(weights)}-{index}").resolve(): (weights, index) for weights, index in jobs}


def write(arch: str, folder: Path) -> list[tuple[Path, Path]]:
    """All probe jobs of an architecture: (config, run folder) each. Those that were recorded stay as they are."""
    jobs = []
    for run, (weights, index) in folders(arch, folder).items():
        jobs.append((run / "config.yaml", run))
        if (run / "result.json").exists():
            continue
        run.mkdir(parents=True, exist_ok=True)
        if weights in ARCHITECTURES[arch].loads:
            (run / PREPARED).touch()
        (run / "config.yaml").write_text(yaml.safe_dump(config(arch, weights, index, run), sort_keys=False))
    return jobs


def record(job: tuple[Path, Path], options: list[str]) -> tuple[str, int]:
    path, run = job
    for left in run.glob("data/*/_*_cache"):  # of a run that was broken off: what lies there is not encoded again
        shutil.rmtree(left)
    prepared = (run / PREPARED).exists() or (run / "data" / "edit0").exists()
    stop = "load" if run.name.endswith((f"-{LOADED}", f"-{READ}")) else "prepare" if prepared else ""
    stopping = ["--stop-after", stop] if stop else []
    command = [sys.executable, "-m", "calibration.trainer", str(path), str(run), "--events", "--probe", *stopping, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    print(run.name, done.stdout.strip()[-200:] or done.stderr.strip()[-300:], flush=True)
    return run.name, done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.probes", description=__doc__)
    parser.add_argument("arch", choices=sorted(ARCHITECTURES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", action="store_true", help="record them; further options go to calibration.trainer")
    parser.add_argument("--only", nargs="+", metavar="JOB", help="such as qfloat8-0: kind of weights and number")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    args, options = parser.parse_known_args()
    jobs = [job for job in write(args.arch, args.folder) if not (job[1] / "result.json").exists()]
    if args.only:
        wanted = {f"{args.arch}-{name}" for name in args.only}
        if unknown := wanted - {run.name for run in folders(args.arch, args.folder)}:
            parser.error(f"no such job: {', '.join(sorted(unknown))}")
        jobs = [job for job in jobs if job[1].name in wanted]
    if not args.run:
        return 0
    with ThreadPoolExecutor(args.workers) as pool:
        return max((code for _, code in pool.map(lambda job: record(job, options), jobs)), default=0)


if __name__ == "__main__":
    sys.exit(main())
