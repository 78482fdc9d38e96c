"""Jobs and workloads built by hand, for tests of programs, timeline and laws; config reading has no part in these."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from estimator.archs import load_archs
from estimator.controls import CELL
from estimator.errors import CannotTell
from estimator.features import image_values
from estimator.job import Bucket, Dataset, Job, Model, Network, Sample, Train
from estimator.levels import levels
from estimator.programs import Profile, load_profile
from estimator.trainers import read_jobs

ROOT = Path(__file__).resolve().parent.parent
RECORDED = sorted(path.parent.name for path in (ROOT / "profiles").glob("*/profile.json"))
ARCHS = tuple(key for key in RECORDED if not load_archs().archs[key].harness)
"""The architectures that have memory programs of the whole of AI Toolkit's timeline."""
RECORDED_WEIGHTS = ("bf16", "float8", "qfloat8", "uint4", "convrot8")
EIGHT_BIT = ("float8", "qfloat8", "convrot8")
RECORDED_OPTIMIZERS = ("adafactor", "adamw", "adamw8bit", "prodigy")


def padded_text(arch: str) -> bool:
    """FLUX and Flex.1: text always comes as 512 tokens."""
    return load_archs().archs[arch].fixed_text_tokens is not None


def guidance(arch: str) -> str:
    """Whether guidance runs two prompts, and how: Z-Image in one forward, Qwen-Image one after the other."""
    return load_archs().archs[arch].guidance


def guided(arch: str) -> bool:
    return guidance(arch) != "none"


def always_guided(arch: str) -> bool:
    """A preview runs both prompts whatever its scale (LTX-2.3): there is no other."""
    return load_archs().archs[arch].always_guided


def batched(arch: str) -> bool:
    return guidance(arch) == "batched"


def weights_of(arch: str) -> tuple[str, ...]:
    """Kinds of base weights that were recorded, with low_vram and without. (The trainer turns qfloat8 into float8 for Z-Image turbo.)"""
    profile = load_profile(arch)
    return tuple(w for w in RECORDED_WEIGHTS if all(map(profile.has, _needed(w))))


def _needed(weights: str) -> list[str]:
    return [f"load.transformer/{weights}/plain", f"load.transformer/{weights}/low_vram", f"step.core/{weights}/checkpointed/one"]


def te_weights_of(arch: str) -> tuple[str, ...]:
    """Kinds of text encoder weights that were recorded, of the architecture or its relative."""
    both, profile = list[Profile](), load_profile(arch)
    while profile.relative is not None and not profile.has_own("load.text/"):
        both.append(profile)
        profile = profile.relative
    both += [profile, *([profile.relative] if profile.relative is not None and not (both or profile.shares_all) else [])]
    known = [key for one in both for key in one.data["parts"]]
    return tuple(w for w in RECORDED_WEIGHTS if any(key.startswith(f"load.text/{w}") for key in known))


def optimizers_of(arch: str) -> tuple[str, ...]:
    """Optimizers whose update was recorded on this architecture's adapter or one of the same shapes."""
    profile, found = load_profile(arch), []
    for optimizer in RECORDED_OPTIMIZERS:
        with suppress(CannotTell):
            profile.program(f"step.update/{optimizer}/first")
            found.append(optimizer)
    return tuple(found)


def _first_of(wanted: tuple[str, ...], recorded: tuple[str, ...]) -> str:
    return next((one for one in wanted if one in recorded), recorded[0])


def dataset(*sizes: tuple[int, int], batch: int = 1, tokens: int | None = None, **cached: bool) -> Dataset:
    buckets = tuple(Bucket(width, height, count=1) for width, height in sizes)
    return Dataset("/data/folder", max(max(size) for size in sizes), batch, buckets, text_tokens=tokens, **cached)


def job(arch: str, **changes: object) -> Job:
    """A LoRA job on two buckets with one preview, quantised to 8 bit if that was recorded, text encoder resident, nothing cached."""
    both = 2 if batched(arch) else 1
    made = Job(
        name="made",
        trainer="ai-toolkit",
        arch=arch,
        trainer_arch=arch,
        method="lora",
        model=Model("model", weights=_first_of(EIGHT_BIT, weights_of(arch)), te_weights=_first_of(EIGHT_BIT, te_weights_of(arch))),
        network=Network(rank=16),
        train=Train(optimizer=_first_of(("adamw8bit",), optimizers_of(arch))),
        datasets=(dataset((512, 512), (768, 640), tokens=40),),
        samples=(Sample(768, 768, cfg=4.0, text_tokens=30, negative_tokens=9, batch=both, guided=guided(arch)),),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def taken(made: Job) -> bool:
    """Whether the trainer takes a job and it is modelled (HiDream-I1: checkpointed, and cached text is of single pictures; Stable Diffusion
    XL makes no previews without its text encoders)."""
    arch = load_archs().archs[made.arch]
    batch = max(one.batch_size for one in made.datasets)
    texts = batch == 1 if made.text_cached else not made.train.unload_text_encoder
    if arch.previews_need_text and (made.text_cached or made.train.unload_text_encoder) and not made.train.disable_sampling:
        return False
    if made.text_cached and not arch.cached_previews and not made.train.disable_sampling:
        return False
    return (made.train.gradient_checkpointing or not arch.needs_checkpointing) and (texts or not arch.single_captions)


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
    text = load_archs().archs[arch].fixed_text_tokens or tokens
    cells = text // 2
    given = {**image_values(width, height), **levels(width, height), "B": size, "r": rank, "X": text, "N": text, "K": 2, "O": 1, "M": 5}
    return given | {"I": cells, "Ib": cells, "R": cells * CELL**2}
