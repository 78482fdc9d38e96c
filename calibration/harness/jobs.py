"""The harness's probe jobs, and how one is run on the emulated device (or, by the same worker, on whatever torch finds)."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from calibration.harness.families import FAMILIES, KINDS, RANKS, Kind
from calibration.harness.unroll import RECORDED
from calibration.trainer.__main__ import UNBOUNDED_MIB

HERE = Path(__file__).resolve().parent
JOB = "job.json"


def probes(arch: str) -> dict[str, dict[str, Any]]:
    """Folder name -> job: for each kind of training steps of a model with few layers (see unroll), of an adapter at two ranks, and the
    whole model brought to the card without a step; the first of these brings the other components as well."""
    made: dict[str, dict[str, Any]] = {}
    for kind in FAMILIES[arch].kinds:
        for rank in (0,) if kind.full else RANKS:
            made[f"{arch}-{kind.name}-{rank}"] = {
                "arch": arch, **asdict(kind), "rank": rank, "buckets": FAMILIES[arch].probe_buckets(rank, kind), "components": False,
                "resident": [], "left_in_cache": [], "given_back": [], "optimizer": "adamw", "checkpointing": [True, False],
                "events": True, "layers": RECORDED,
            }  # fmt: skip
        for rank in (0,) if kind.full else RANKS:
            if not kind.autocast or kind.core_alone:  # brought there alike without, and by others
                continue
            whole = {"buckets": [], "components": kind == KINDS[0] and rank in (0, RANKS[0]), "layers": 0}
            made[f"{arch}-{kind.name}-whole-{rank}"] = {**made[f"{arch}-{kind.name}-{rank}"], **whole}
    return made


def kind_of(job: dict[str, Any]) -> Kind:
    return Kind(job["dtype"], job["autocast"], job["full"], job["diffusers"], job["native"])


def write(job: dict[str, Any], folder: Path) -> None:
    """The job, and what extraction reads of a trainer's config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOB).write_text(json.dumps(job))
    model = {"quantize": True, "qtype": kind_of(job).weights, "qtype_te": "bf16"}
    process = {"model": model, "network": {"type": "lora", "linear": job["rank"]}, "train": {"optimizer": job["optimizer"]}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": {"process": [process]}}))


def spec(folder: Path) -> dict[str, Any]:
    job: dict[str, Any] = json.loads((folder / JOB).read_text())
    return job


def environment(python: str, capability: str, convolved: bool = False) -> dict[str, str]:
    """Of a process on the emulated device, which has room for everything. `convolved`: with cuDNN's workspaces (families.Family)."""
    return {
        **os.environ, "FAKECUDA_PYTHON": python, "FAKECUDA_CC": capability, "FAKECUDA_TOTAL_MIB": str(UNBOUNDED_MIB),
        "TORCH_DISABLE_NATIVE_JIT": "1", "PYTHONDONTWRITEBYTECODE": "1", "MALLOC_MMAP_THRESHOLD_": "1048576",
        "MALLOC_TRIM_THRESHOLD_": "1048576", "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "2",
        "FAKECUDA_CUDNN_WS": "layout" if convolved else "0",
    }  # fmt: skip


def run(folder: Path, python: str, capability: str = "8.9") -> int:
    """Run a folder's job; result.json (and trace.npz) are written beside it. As the trainer's runs: see calibration.trainer."""
    env = environment(python, capability, FAMILIES[spec(folder)["arch"]].convolved)
    command = [os.environ.get("EMULATED_CUDA_RUN", str(HERE.parent / "emulated_cuda" / "run.sh")), str(HERE / "worker.py")]
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run([*command, str(folder / JOB), str(folder)], env=env, stdout=log, stderr=log)
    return done.returncode if (folder / "result.json").exists() else 1
