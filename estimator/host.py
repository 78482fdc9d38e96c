"""Memory of the machine beside the card: what waits in RAM, which layer offloading moves the limit to. A lower bound, by named terms.

Moments that can be the highest: reading the transformer, reading the text encoder beside what of the transformer waits already, caching
(everything but the VAE is on the host), and training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from estimator.archs import load_archs
from estimator.dtypes import FP32
from estimator.errors import CannotTell
from estimator.estimate import Host
from estimator.experts import OF_EXPERTS
from estimator.features import Cells, latent_frames
from estimator.gpus import GIB
from estimator.job import Job
from estimator.levels import UNET
from estimator.programs import TEXT_ENCODERS, Profile
from estimator.typed_profile import typed

if TYPE_CHECKING:
    from estimator.offload_profile import OffloadProfile

PROCESS_BYTES = 4 * GIB
"""Python, torch with CUDA's libraries, the data loader: assumed, not measured."""
LATENT_BYTES = {
    "flux2": (256, 16), "flux2_klein": (256, 16), "wan22_5b": (96, 16), "ltx2": (256, 32), UNET: (8, 8), "zimage_l2p": (6, 1),
    "chroma_radiance": (6, 1),
}  # fmt: skip
"""By model class: bytes of a latent's column of channels in 2 bytes, and pixels on its side (128 channels for 16 x 16 pixels; 48; 128
for 32 x 32; 4 for 8 x 8; without a VAE the three values of each pixel: toolkit/models/FakeVAE.py, 27a03a91)."""
WIDER = 2  # an element in fp32 in place of two bytes
LATENT_BYTES_ELSE = (32, 8)
"""The same of the other VAEs: 16 channels for 8 x 8 pixels."""


def host_memory(job: Job, ram_bytes: int | None = None) -> Host | None:
    """What the job keeps in RAM at the moment when it is most; None where weights of the architecture were not recorded unquantised."""
    try:
        moments = _moments(job, typed(job.arch, job.model.dtype))
    except CannotTell:
        return None
    worst = max(moments.values(), key=lambda terms: sum(terms.values()))
    moment = next(name for name, terms in moments.items() if terms is worst)
    components = {name: size for name, size in (worst | {"process": PROCESS_BYTES}).items() if size}
    return Host(components, moment, ram_bytes)


def _offloading(job: Job) -> OffloadProfile | None:
    if not job.model.layer_offloading:
        return None
    from estimator.offload_profile import profile_of, waiting

    return waiting(profile_of(job.arch, job.model))


def _moments(job: Job, base: Profile) -> dict[str, dict[str, int]]:
    model, arch = job.model, load_archs().archs[job.arch]
    encoders = [name for name in TEXT_ENCODERS if base.has_resident(name)]
    plain, text_plain = _bytes(base, ["transformer"], "bf16"), _bytes(base, encoders, "bf16")
    if arch.harness:  # latents and prompts were computed before
        beside = {"loading the text encoder": {"text_encoder": text_plain}} if "text_encoder" in (job.resident or ()) else {}
        return {"loading the transformer": {"transformer": plain}, **beside}
    offload = _offloading(job)
    held, text_held = _bytes(base, ["transformer"], model.kind), _bytes(base, encoders, model.te_kind)
    pinned = sum(map(offload.waiting_bytes, offload.transformers)) if offload is not None else 0
    text_pinned = sum(offload.waiting_bytes(name) for name in encoders) if offload is not None and offload.shares else 0
    waiting_there = pinned or (held if model.low_vram else 0)
    unloaded = job.train.unload_text_encoder or job.text_cached
    caches = job.text_cached or any(dataset.latents_cached for dataset in job.datasets)
    out: dict[str, dict[str, int]] = {
        "loading the transformer": {"transformer": plain},
        "loading the text encoder": {"transformer": waiting_there, "text_encoder": text_plain},
        "training": {
            "transformer": pinned, "text_encoder": 0 if unloaded else text_pinned, "latents": latent_bytes(job),
        },
    }  # fmt: skip
    if arch.model_class.startswith(OF_EXPERTS):
        held = _experts_wait(out, held, pinned, model.low_vram)
    if caches:
        out["caching"] = {"transformer": held, "text_encoder": text_held, "latents": latent_bytes(job)}
    return out


def _experts_wait(moments: dict[str, dict[str, int]], each: int, pinned: int, low_vram: bool) -> int:
    """Two experts: with low_vram both wait there while loading and caching, and one in training, or what is not pinned of them. Layers
    are taken when both are loaded. Returns the bytes that wait while caching."""
    held = 2 * each if low_vram else pinned
    moments["loading the transformer"]["transformer"] += each if low_vram else 0
    moments["loading the text encoder"]["transformer"] = held
    moments["training"]["transformer"] = pinned + ((2 * each - pinned) // 2 if low_vram else 0)
    return held


def _bytes(base: Profile, components: list[str], weights: str) -> int:
    return sum(sum(base.resident(component, weights)) for component in components)


def latent_bytes(job: Job, by_class: Mapping[str, tuple[int, int]] = LATENT_BYTES) -> int:
    """Latents that are kept in memory, where they are cached there (on disk besides or not: toolkit/config_modules.py, DatasetConfig), in
    the compute type (toolkit/dataloader_mixins.py: _encoded_latent)."""
    arch = load_archs().archs[job.arch]
    size, side = by_class.get(arch.model_class, LATENT_BYTES_ELSE)
    cells = Cells(arch.cell_pixels, arch.cell_frames)
    columns = sum(
        bucket.width * bucket.height * latent_frames(bucket.frames, cells) * bucket.count
        for dataset in job.datasets
        if dataset.cache_latents
        for bucket in dataset.buckets
    )
    return columns * size * (WIDER if job.model.dtype == FP32 else 1) // side**2


def warning(host: Host | None, ram_bytes: int | None) -> str | None:
    """What to say where the machine's RAM is named, and too small or nothing is known of what it must be."""
    if host is None and ram_bytes is not None:
        return "--ram: how much RAM is needed is not known here: the model's weights were not recorded unquantised"
    if host is None or host.ram_bytes is None or host.enough:
        return None
    return (
        f"at least {host.total_bytes / GIB:.1f} GiB of RAM are needed (while {host.moment}), {host.ram_bytes / GIB:.1f} are there: "
        "the trainer will swap, or be killed by the system"
    )
