"""A log as one measurement row: JSON Lines, a record a line, of one real observation of a training run's memory.

Only what the log and the config state; what they do not is null. The fields are those of the project's published rows
(calibration/data/published.jsonl). A row is only worth keeping of a real card: numbers of an emulated device are no measurements.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from estimator import crash
from estimator.crash import Diagnosis
from estimator.errors import InputError, Problem
from estimator.gpus import GIB
from estimator.job import Job, Place

_MOST_QUOTE = 160
_MOST_KNOWN_BYTES = 64 * 2**20
"""A file of rows is small; a larger one is not looked through for the same row."""


def row(found: Diagnosis, job: Job | None, gpu: str | None) -> dict[str, Any] | None:
    """The row of a diagnosed log; None where it shows neither a failure on the card nor a finished run."""
    failure, run = found.failure, found.run
    if failure is None and not run.finished:
        return None
    if failure is not None and failure.what in (crash.HOST, crash.VANISHED, crash.DEVICE, crash.SPILLED):
        return None
    numbers = failure.numbers if failure is not None else None
    observed = {} if numbers is None else {
        "oom_tried_gib": _gib(numbers.tried_bytes), "oom_allocated_by_torch_gib": _gib(numbers.allocated_bytes),
        "oom_reserved_unallocated_gib": _gib(numbers.cached_bytes), "oom_free_gib": _gib(numbers.free_bytes),
        "oom_in_use_gib": _gib(numbers.in_use_bytes), "oom_others_gib": _gib(found.others_bytes), "unit_as_stated": "GiB",
    }  # fmt: skip
    body = {
        "source": "local log", "where": f"line {failure.line}" if failure else f"lines {run.first_line} to {run.last_line}", "date": None,
        "outcome": "oom" if failure else "fits", "phase": (failure.phase or "unknown") if failure else "train", "trainer": "ai-toolkit",
        "trainer_version": None, "os": "windows" if run.windows else None, "gpu": gpu,
        "capacity_gib": _gib(numbers.total_bytes) if numbers else None,
        "arch": job.arch if job else None, "method": job.method if job else None,
        "config": _config(job) if job else {}, "observed": {key: value for key, value in observed.items() if value is not None},
        "quote": failure.text[:_MOST_QUOTE] if failure else "the run finished", "completeness": "high" if job else "low",
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]
    return {"id": f"log-{digest}", **body}


def append(row: dict[str, Any], path: str) -> bool:
    """Append a row to a file of rows, which is made if need be; False if it is there already. Raises InputError."""
    try:
        with open(path, "a+", encoding="utf-8") as file:
            end = file.tell()
            file.seek(0)
            known = file.read(_MOST_KNOWN_BYTES) if end <= _MOST_KNOWN_BYTES else ""
            if f'"id": "{row["id"]}"' in known:
                return False
            if known and not known.endswith("\n"):
                file.write("\n")
            file.write(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(Problem("the measurement cannot be written", Place(path, ""), why, "give a file that can be written")) from None
    return True


def _config(job: Job) -> dict[str, Any]:
    """What of the config decides memory, resolved as the trainer would."""
    buckets = [(bucket.width * bucket.height * bucket.frames, bucket) for each in job.datasets for bucket in each.buckets]
    largest = max(buckets, key=lambda each: each[0])[1] if buckets else None
    sample = max(job.samples, key=lambda each: each.width * each.height * each.frames) if job.samples else None
    unquantised = ("bf16", "fp16", "fp32")
    return {
        "batch_size": job.train.batch_size, "gradient_accumulation": job.train.gradient_accumulation,
        "resolution": sorted({each.resolution for each in job.datasets}) or None,
        "bucket_wh": [largest.width, largest.height] if largest and any(each.scanned for each in job.datasets) else None,
        "num_frames": largest.frames if largest else None, "gradient_checkpointing": job.train.gradient_checkpointing,
        "quantize": job.model.weights not in unquantised, "qtype": job.model.weights,
        "quantize_te": job.model.te_weights not in unquantised, "qtype_te": job.model.te_weights, "low_vram": job.model.low_vram,
        "layer_offloading": job.model.layer_offloading, "unload_text_encoder": job.train.unload_text_encoder,
        "cache_text_embeddings": job.train.cache_text_embeddings,
        "cache_latents": all(each.cache_latents or each.cache_latents_to_disk for each in job.datasets), "optimizer": job.train.optimizer,
        "network_rank": job.network.rank or None if job.network and job.network.factor is None else None,
        "dtype": job.model.dtype, "ema": job.train.ema,
        "sample_wh": [sample.width, sample.height] if sample and not job.train.disable_sampling else None,
        "sample_frames": sample.frames if sample else None, "control_images": job.control_images,
    }  # fmt: skip


def _gib(count_bytes: int | None) -> float | None:
    return None if count_bytes is None else round(count_bytes / GIB, 4)
