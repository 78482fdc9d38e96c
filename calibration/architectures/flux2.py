"""FLUX.2 klein 4B and 9B: the trainer's own transformer and VAE classes, Qwen3 as text encoder, prompts padded to 512 tokens.

The trainer reads transformer and VAE from files of its own layout; sparse stand-ins of the right shapes take their place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures import zimage
from calibration.architectures.base import Architecture, Layout

TEXT_TOKENS = 512  # MAX_LENGTH of the trainer's Flux2Pipeline, padding="max_length"
LOAD = {
    "load.transformer": (
        "Loading Flux2", "Loading transformer", "Keeping transformer", "Quantizing Transformer", "- quantizing", "Moving transformer",
    ),
    "load.text": ("Loading Qwen3", "Quantizing Qwen3"),
    "load.rest": ("Loading VAE", "Making", "Preparing", "Model Loaded"),
}  # fmt: skip
KLEIN = Layout(
    LOAD, ("T", "S", "S128"), 3072, (), padded_tokens=TEXT_TOKENS, guidance="sequential", text_on_host=True, prompts_apart=True,
    sample_by_sample=True,
)  # fmt: skip
UNLOADED = (
    (512, 512, 1, 12), (528, 496, 1, 12), (784, 656, 1, 12), (1232, 816, 1, 12), (1024, 1024, 1, 12), (640, 640, 1, 12), (336, 624, 1, 12),
    (400, 720, 1, 12), (512, 512, 2, 12), (496, 528, 2, 12), (720, 976, 2, 12), (640, 800, 2, 12), (656, 432, 3, 12), (432, 640, 3, 12),
    (528, 752, 4, 12), (576, 592, 4, 12),
)  # fmt: skip
KLEIN_4B = Architecture(
    {"name_or_path": "black-forest-labs/FLUX.2-klein-base-4B", "arch": "flux2_klein_4b"}, zimage.BUCKETS, zimage.SAMPLES, KLEIN,
)
KLEIN_9B_MODEL = {"name_or_path": "black-forest-labs/FLUX.2-klein-base-9B", "arch": "flux2_klein_9b"}
ARCHITECTURES = {
    "flux2-klein-4b": KLEIN_4B,
    "flux2-klein-9b": replace(KLEIN_4B, model=KLEIN_9B_MODEL, layout=replace(KLEIN, width=4096)),
}


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    return None


def transformers(name: str, place: str) -> dict[str, Any] | None:
    if name != "Qwen3ForCausalLM" or "qwen3-8b" not in place:  # Qwen3-4B is Z-Image's
        return None
    return {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False, "rope_theta": 1000000, "max_position_embeddings": 40960,
    }  # fmt: skip


def stand_in(filename: str) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of the tensors in a file that the trainer downloads: those of its own classes."""
    import torch
    from extensions_built_in.diffusion_models.flux2.src import autoencoder, model

    makers = {
        "flux-2-klein-base-4b.safetensors": lambda: model.Flux2(model.Klein4BParams()),
        "flux-2-klein-base-9b.safetensors": lambda: model.Flux2(model.Klein9BParams()),
        "ae.safetensors": lambda: autoencoder.AutoEncoder(autoencoder.AutoEncoderParams()),
    }
    if filename not in makers:
        return None
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in makers[filename]().state_dict().items()}


def patch() -> None:
    """`scatter_ids` sizes its output by the largest position id, which reads as 0: the token grid that was packed stands in."""
    from extensions_built_in.diffusion_models.flux2 import flux2_model
    from extensions_built_in.diffusion_models.flux2.src import pipeline, sampling

    from calibration.trainer.patches import note

    pack, grids = sampling.batched_prc_img, {}

    def batched_prc_img(x: Any, *a: Any, **k: Any) -> Any:
        grids[x.shape[-2] * x.shape[-1]] = tuple(x.shape[-2:])
        return pack(x, *a, **k)

    def scatter_ids(x: Any, x_ids: Any) -> list[Any]:
        return [_scattered(tokens, ids, *grids[len(tokens)]) for tokens, ids in zip(x, x_ids, strict=True)]

    for module in (sampling, pipeline, flux2_model):
        module.batched_prc_img, module.scatter_ids = batched_prc_img, scatter_ids
    note("FLUX.2: scatter_ids uses the token grid that was packed instead of the largest position ids")


def _scattered(tokens: Any, ids: Any, height: int, width: int) -> Any:
    """As the trainer's scatter_ids for one image of one frame: the same tensors, of known sizes."""
    import torch

    frames, rows, columns = (ids[:, axis].to(torch.int64) for axis in range(3))
    frames = torch.zeros((1,), device=frames.device, dtype=frames.dtype)[frames]
    flat = frames * width * height + rows * width + columns
    out = torch.zeros((height * width, tokens.shape[-1]), device=tokens.device, dtype=tokens.dtype)
    out.scatter_(0, flat.unsqueeze(1).expand(-1, tokens.shape[-1]), tokens)
    return out.reshape(1, height, width, -1).permute(0, 3, 1, 2).unsqueeze(2)
