"""Run files gone through on the emulated device, beside their estimates: calibration/data/harness_runs.jsonl, a line for each.

None of them is used for extraction: other sizes, texts, ranks, batches and optimizers than the probe jobs'.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from calibration.accuracy_compare import Row
from calibration.accuracy_tables import Table
from estimator.job import Job
from estimator.timeline import simulate
from estimator.trainers import read_jobs

ROWS = Path(__file__).resolve().parents[1] / "data" / "harness_runs.jsonl"
PHASES = {"load": "load", "setup": "prepare", "step": "train"}  # all that is loaded is one phase of a row


def read(run: dict[str, Any]) -> Job:
    """The job of a run file's section."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(yaml.safe_dump({"run": run}), encoding="utf-8")
        (job,) = read_jobs(path)
    return job


def spec(job: Job) -> dict[str, Any]:
    """The harness's job of a run file: two steps, as the second has the optimizer's state."""
    (dataset,), train = job.datasets, job.train
    (bucket,) = dataset.buckets
    assert dataset.text_tokens is not None, "say text_tokens in run files that are gone through"
    size = (bucket.width, bucket.height, train.batch_size, dataset.text_tokens, bucket.frames)
    return {
        "arch": job.arch, "dtype": job.network.dtype if job.network else job.model.weights, "autocast": job.autocast,
        "full": job.network is None, "diffusers": job.diffusers,
        "native": False, "rank": job.network.rank if job.network else 0, "buckets": [size, size],
        "components": False, "resident": [name for name in job.resident or () if name != "transformer"],
        "left_in_cache": list(job.left_in_cache), "given_back": list(job.given_back), "optimizer": train.optimizer,
        "checkpointing": [train.gradient_checkpointing], "events": False, "layers": 0,
    }  # fmt: skip


def row(name: str, run: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """A line of the data file."""
    if result["outcome"] != "ok":
        raise ValueError(f"{name}: {result['error']}")
    peaks: dict[str, dict[str, int]] = {}
    for phase in result["phases"]:
        if (known := PHASES.get(phase["phase"])) is not None:
            kept = peaks.setdefault(known, {"allocated": 0, "reserved": 0})
            kept.update({figure: max(kept[figure], phase[f"{figure}_peak"]) for figure in kept})
    return {"name": name, "run": run, "compute_capability": result["compute_capability"], "peaks": peaks, "versions": result["versions"]}


def rows(path: Path = ROWS) -> list[dict[str, Any]]:
    """All lines; none where nothing was gone through yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def compared(one: dict[str, Any]) -> Iterator[Row]:
    """The phases of a line, each beside the estimate's."""
    phases = simulate(read(one["run"])).phases
    for phase, emulated in one["peaks"].items():
        if phase == "prepare" and one["run"]["method"] == "full":  # nothing is made there
            continue
        own = [peak for peak in phases if peak.phase == phase]
        estimated = max(peak.allocated_bytes for peak in own), max(peak.reserved_bytes for peak in own)
        yield Row(one["name"], one["run"]["arch"], phase, "", emulated["allocated"], emulated["reserved"], *estimated, own[-1].moment)


def every() -> list[Row]:
    """All lines."""
    return [row for one in rows() for row in compared(one)]


def table(found: Sequence[Row]) -> Table:
    lines = tuple(
        (row.run, row.phase, f"{row.allocated_bytes / 2**20:.1f}", f"{100 * row.allocated_error:+.2f}",
         f"{row.reserved_bytes / 2**20:.1f}", f"{100 * row.reserved_error:+.2f}", "BEYOND" if row.misses else "")
        for row in found
    )  # fmt: skip
    return Table(("run", "phase", "allocated MiB", "%", "reserved MiB", "%", ""), lines, frozenset({2, 3, 4, 5}))
