"""Chroma: FLUX's shape in the trainer's own class, T5 alone as text encoder, and a dense attention mask.

The mask is [samples, heads, tokens, tokens]: made in fp32, copied to int32 and bool, and converted to the compute dtype by every attention,
which pads the converted one to whole rows of 8 where it must (`M8`, `S8`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures import flux
from calibration.architectures.base import SAMPLED, WITH_ADAPTER, Architecture, Layout

LOAD = {
    "load.transformer": ("Loading transformer", "Quantizing transformer"),
    "load.text": ("Loading T5", "Quantizing T5"),
    "load.rest": ("Loading VAE", "Making", "Preparing", "Model Loaded"),
}
LAYOUT = Layout(
    LOAD, ("T", "S", "S32", "S64"), 3072, ("T", "X", "S"), padded_tokens=flux.TEXT_TOKENS, guidance="sequential",
    masks=("S*S", "S*S8", "S*M8"), scratch=("splits24_S",), prompts_apart=True,
)  # fmt: skip
# With odd numbers of 32 pixels on both sides the tokens are no multiple of 8: 352x608, 1248x800, 672x992, 544x800
BUCKETS = (
    (512, 512, 1, 20), (768, 640, 1, 20), (1024, 1024, 1, 20), (1248, 800, 1, 20), (352, 608, 1, 20),
    (512, 512, 2, 20), (672, 992, 2, 20), (640, 448, 3, 20), (544, 800, 4, 20),
)  # fmt: skip
SAMPLES = tuple((w, h, cfg, n) for w, h, _, n in flux.SAMPLES for cfg in (1.0, 4.0))
CHROMA = Architecture({"name_or_path": "lodestones/Chroma1-Base", "arch": "chroma"}, BUCKETS, SAMPLES, LAYOUT, caches_text=False)
# Of biases of layers that are one here: queries, keys and values, and these with what goes beside attention
JOINED_SUMS = ("norm9216_T", "norm9216_X", "norm21504_S")
WHOLE = replace(
    CHROMA, relative="chroma", own=WITH_ADAPTER, left=("preview", "step.update", "setup.network"), weights=("bf16",), beside="whole",
    train=SAMPLED, samples=SAMPLES[:1], layout=replace(LAYOUT, scratch=(*LAYOUT.scratch, *flux.WHOLE_SUMS, *JOINED_SUMS)),
    buckets=tuple((480, 672, *bucket[2:]) if bucket[0] == 352 else bucket for bucket in BUCKETS),
)
ARCHITECTURES = {"chroma": CHROMA, "chroma-whole": WHOLE}
FILE = "Chroma1-Base.safetensors"


def diffusers(_name: str, _place: str) -> dict[str, Any] | None:
    return None


def transformers(_name: str, _place: str) -> dict[str, Any] | None:
    return None


def stand_in(filename: str) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of the tensors in the checkpoint: those of the trainer's own class."""
    if filename != FILE:
        return None
    import torch
    from extensions_built_in.diffusion_models.chroma.src import model

    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in model.Chroma(model.chroma_params).state_dict().items()}


def patch() -> None:
    """The constructor would write 35 GB of fp32 on the host."""
    from extensions_built_in.diffusion_models.chroma import chroma_model

    from calibration.trainer.models import build_untouched

    build_untouched(chroma_model, "Chroma", "Chroma")
