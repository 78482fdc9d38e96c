"""Estimates built by hand, for tests of what is made of them: the engine has no part in these."""

from __future__ import annotations

from dataclasses import replace

from estimator.estimate import BORDERLINE, OOM, SAFE, Advice, Estimate, Interval, PhaseEstimate, Variant
from estimator.gpus import Gpu, find_gpu
from estimator.job import Bucket, Dataset, Job, Model, Network, Sample, Train

GIB = 2**30


def job(**changes: object) -> Job:
    """A FLUX.1-dev LoRA job with three resolutions and a preview."""
    datasets = tuple(Dataset("/data/corgi", size, 1, (Bucket(size, size),), cache_latents_to_disk=True) for size in (512, 768, 1024))
    made = Job(
        name="corgi_flux_v1",
        trainer="ai-toolkit",
        arch="flux1-dev",
        trainer_arch="flux",
        method="lora",
        model=Model("black-forest-labs/FLUX.1-dev", weights="qfloat8", te_weights="qfloat8"),
        network=Network(rank=16),
        train=Train(steps=2000, optimizer="adamw8bit", ema=True),
        datasets=datasets,
        samples=(Sample(1024, 1024, cfg=4.0),),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def phase(
    name: str, allocated: float, size: int | None = None, *, cache: float = 0.5, outside: float = 0.45, **changes: object
) -> PhaseEstimate:
    """A phase of so many GiB; its three components sum to allocated."""
    total = round(allocated * GIB)
    device = total + round((cache + outside) * GIB)
    parts = {"transformer": total // 2, "text_encoder": total // 4}
    made = PhaseEstimate(
        phase=name,
        variant=Variant(size, size, 1 if size else None, 1 if size else None),
        allocated_bytes=total,
        reserved_bytes=total + round(cache * GIB),
        device=Interval(device - GIB // 4, device, device + GIB // 2),
        verdict=SAFE,
        moment="backward of the last single block, gradient of its MLP" if name == "train" else "",
        components={**parts, "activations": total - sum(parts.values())},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def estimate(gpu: Gpu | None = None, verdict: str = SAFE, **changes: object) -> Estimate:
    """A whole run whose highest phase is a training step of 19.8 GiB allocated."""
    phases = (
        phase("load", 18.5, detail="Quantizing transformer"),
        phase("cache_latents", 16.82, 1024),
        phase("sample", 18.68, 1024, detail="baseline"),
        phase("train", 18.16, 512),
        phase("train", 18.89, 768),
        phase("train", 19.8, 1024, verdict=verdict),
        phase("save", 17.2),
    )
    made = Estimate(job=job(), gpu=gpu or find_gpu("RTX4090"), verdict=verdict, phases=phases, peak=5)
    return replace(made, **changes)  # type: ignore[arg-type]


def oom(gpu: Gpu | None = None) -> Estimate:
    """The same job with two things to change, on a card that it does not fit."""
    advice = (
        Advice(
            "datasets.*.resolution",
            [512, 768, 1024],
            [512, 768],
            round(0.91 * GIB),
            "no training at 1024 px: less fine detail is learned",
            OOM,
        ),
        Advice("model.low_vram", False, True, 2 * GIB, "weights are quantised on the CPU and wait there while not needed: slower", SAFE),
    )
    return estimate(gpu or find_gpu("RTX4080"), OOM, advice=advice, warnings=("train.stepz: unknown key; did you mean steps?",))


def borderline() -> Estimate:
    """Between the two."""
    made = estimate(verdict=BORDERLINE)
    return replace(made, gpu=replace(made.gpu, total_bytes=21 * GIB))
