"""Jobs and workloads built by hand, for tests of programs, timeline and laws; config reading has no part in these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from estimator.archs import load_archs
from estimator.features import image_values
from estimator.job import Bucket, Dataset, Job, Model, Network, Sample, Train
from estimator.trainers import read_jobs

ROOT = Path(__file__).resolve().parent.parent
ARCHS = tuple(sorted(path.parent.name for path in (ROOT / "profiles").glob("*/profile.json")))
"""The architectures that have memory programs."""
RECORDED_WEIGHTS = ("bf16", "float8", "qfloat8", "uint4")
RECORDED_OPTIMIZERS = ("adafactor", "adamw", "adamw8bit", "prodigy")


def padded_text(arch: str) -> bool:
    """FLUX and Flex.1: text always comes as 512 tokens."""
    return load_archs().archs[arch].fixed_text_tokens is not None


def guidance(arch: str) -> str:
    """Whether guidance runs two prompts, and how: Z-Image in one forward, Qwen-Image one after the other."""
    return load_archs().archs[arch].guidance


def guided(arch: str) -> bool:
    return guidance(arch) != "none"


def batched(arch: str) -> bool:
    return guidance(arch) == "batched"


def weights_of(arch: str) -> tuple[str, ...]:
    """What the trainer can make of the transformer: it turns qfloat8 into float8 for Z-Image turbo."""
    return tuple(w for w in RECORDED_WEIGHTS if not (arch == "zimage-turbo" and w == "qfloat8"))


def dataset(*sizes: tuple[int, int], batch: int = 1, tokens: int | None = None, **cached: bool) -> Dataset:
    buckets = tuple(Bucket(width, height, count=1) for width, height in sizes)
    return Dataset("/data/folder", max(max(size) for size in sizes), batch, buckets, text_tokens=tokens, **cached)


def job(arch: str, **changes: object) -> Job:
    """A LoRA job on two buckets with one preview, everything quantised to float8, text encoder resident, nothing cached."""
    both = 2 if batched(arch) else 1
    made = Job(
        name="made",
        trainer="ai-toolkit",
        arch=arch,
        trainer_arch=arch,
        method="lora",
        model=Model("model", weights="float8", te_weights="float8"),
        network=Network(rank=16),
        train=Train(optimizer="adamw8bit"),
        datasets=(dataset((512, 512), (768, 640), tokens=40),),
        samples=(Sample(768, 768, cfg=4.0, text_tokens=30, negative_tokens=9, batch=both, guided=guided(arch)),),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def example(name: str) -> Job:
    """The job of a shipped example."""
    (read,) = read_jobs(ROOT / "examples" / f"{name}.yaml")
    return read


def values(arch: str, key: str, width: int, height: int, batch: int, rank: int, tokens: int) -> dict[str, int]:
    """Variables of a workload as the timeline gives them to the part `key`."""
    kind = key.split("/")
    size = max(batch, 2) if kind[-1] == "many" else 1
    if kind[0] == "preview" and kind[2] == "cfg" and batched(arch):
        size = 2
    text = 512 if padded_text(arch) else tokens
    return {**image_values(width, height), "B": size, "r": rank, "X": text, "N": text}
