"""The kept rows of validation runs, and each as the estimator sees it: its config and data set as files, read as a user's are."""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from calibration import validation_rows
from calibration.clips import write_clip
from calibration.validation import all_runs, filled
from calibration.validation_settings import CAPTIONS
from estimator.job import Job

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Peak:
    """A top-level phase of a run.

    `buckets`: of a training step, (width, height, batch, text tokens of the longest item, frames) of each batch.
    `given`: of each batch, whether chance gave it a control image, and a mask (Flex.2; none: chance has no part in it).
    `uneven`: of each batch, whether its captions differ in length.
    `encoded`: of latent caching, the sizes (width, height, frames) of the images in the order in which the trainer found them.
    """

    phase: str
    label: str
    allocated_bytes: int
    reserved_bytes: int
    failed: bool
    buckets: tuple[tuple[int, int, int, int, int], ...] = ()
    encoded: tuple[tuple[int, int, int], ...] = ()
    given: tuple[tuple[bool, bool], ...] = ()
    uneven: tuple[bool, ...] = ()
    texts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """One row: a whole run of the trainer on the emulated device. `capacity_bytes` is what its allocator could have; None: no limit.

    `images`: of each folder (width, height, caption, frames of a clip, whether it has sound).
    """

    name: str
    config: dict[str, Any]
    images: dict[str, list[tuple[int, int, str, int, bool]]]
    capacity_bytes: int | None
    total_bytes: int | None
    peaks: tuple[Peak, ...]
    retries: int
    versions: dict[str, str]
    seed: int | None = None
    capability: str = "8.9"


def read_rows(folder: Path = validation_rows.FOLDER) -> tuple[Run, ...]:
    """All rows, in the order of the jobs. Those on a card of a given capacity name the row that has their config."""
    order = {name: place for place, name in enumerate(all_runs())}
    raw = sorted(validation_rows.read(folder), key=lambda one: order.get(one["name"], len(order)))
    jobs = {one["name"]: one for one in raw}
    return tuple(_run(one, jobs[one["job"]] if "job" in one else one) for one in raw)


def _run(one: dict[str, Any], job: dict[str, Any]) -> Run:
    total = one["capacity_bytes"]
    images = {
        folder: [(w, h, CAPTIONS.get(name, name), clip[0] if clip else 0, clip[1:] == [1]) for w, h, name, *clip in listed]
        for folder, listed in job["images"].items()
    }
    return Run(
        one["name"], job["config"], images, None if total is None else total - one["context_bytes"], total,
        tuple(_peak(phase) for phase in one["phases"] if not _idle(phase)), one["retries"], job["versions"],
        job.get("seed"), one["compute_capability"],
    )  # fmt: skip


def _idle(one: dict[str, Any]) -> bool:
    """Text caching of a folder that another entry has cached before: the trainer finds every embedding on the disk and moves nothing."""
    return bool(one["phase"] == "cache_text" and not one["text_tokens"] and "outcome" not in one)


def _peak(one: dict[str, Any]) -> Peak:
    buckets = tuple((b["width"], b["height"], b["batch"], max(b["text_tokens"] or [0]), b.get("frames", 1)) for b in one.get("buckets", ()))
    encoded = tuple((width, height, *(more or [1])) for width, height, *more in one.get("encoded", ()))
    given = tuple((b["control"], b["mask"]) for b in one.get("buckets", ()) if "mask" in b)
    uneven = tuple(len({*(b["text_tokens"] or ())}) > 1 for b in one.get("buckets", ()))
    peaks = one["allocated_peak"], one["reserved_peak"]
    texts = tuple(max(tokens) for tokens in one["text_tokens"] if tokens) if one["phase"] == "cache_text" else ()
    return Peak(one["phase"], _label(one, buckets), *peaks, "outcome" in one, buckets, encoded, given, uneven, texts)


def _label(one: dict[str, Any], buckets: Iterable[tuple[int, int, int, int, int]]) -> str:
    if one.get("validation"):
        return "validation"
    if one["phase"] == "train":
        sizes = ("x".join(map(str, (w, h, f) if f > 1 else (w, h))) + (f" b{b}" if b > 1 else "") for w, h, b, _, f in buckets)
        return f"step {one['step']}: " + ", ".join(sizes)
    if one["phase"] == "sample":
        return f"step {one['step']}: " + ", ".join("x".join(str(n) for n in (w, h, *more)) for w, h, _, *more in one["samples"])
    return str(one.get("resolution", ""))


# --- as files ----------------------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG without pixels: enough for whoever wants its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")


def write_files(run: Run, folder: Path) -> Path:
    """The run's config and images as files below `folder`; returns the config's path."""
    for name, images in run.images.items():
        place = folder / "data" / name.removeprefix("DATA/").replace(" ", "_")
        place.mkdir(parents=True)
        for index, (width, height, caption, frames, sound) in enumerate(images):
            if frames:
                write_clip(place / f"image{index}.avi", width, height, frames, sound=sound)
            else:
                (place / f"image{index}.png").write_bytes(png_header(width, height))
            (place / f"image{index}.txt").write_text(caption, encoding="utf-8")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(filled(run.config, folder / "data", folder / "out"), sort_keys=False), encoding="utf-8")
    return path


def read_job(run: Run) -> Job:
    """The run's job as `estimate` reads it. Raises what the readers raise, and AssertionError where anything is not modelled."""
    from estimator.trainers import read_jobs

    with tempfile.TemporaryDirectory() as folder:
        (job,) = read_jobs(write_files(run, Path(folder)))
    assert not job.unmodelled, f"{run.name}: not modelled: {', '.join(one.place.key for one in job.unmodelled)}"
    return replace(job, model=replace(job.model, offload_seed=run.seed))
