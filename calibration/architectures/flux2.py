"""FLUX.2 dev, klein 4B and 9B: the trainer's own transformer and VAE classes, prompts padded to 512 tokens.

The text encoder is a Qwen3 (klein) or Mistral Small 3.1 with its vision tower, which is loaded and never used (dev).

The trainer reads transformer and VAE from files of its own layout; sparse stand-ins of the right shapes take their place.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from calibration.architectures import flux, zimage
from calibration.architectures.base import SAMPLED, WITH_ADAPTER, Architecture, Layout

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
    sample_by_sample=True, unloaded_apart=True, decode_apart=True,
)  # fmt: skip
UNLOADED = (
    (512, 512, 1, 12), (528, 496, 1, 12), (784, 656, 1, 12), (1232, 816, 1, 12), (1024, 1024, 1, 12), (640, 640, 1, 12), (336, 624, 1, 12),
    (400, 720, 1, 12), (512, 512, 2, 12), (496, 528, 2, 12), (720, 976, 2, 12), (640, 800, 2, 12), (656, 432, 3, 12), (432, 640, 3, 12),
    (528, 752, 4, 12), (576, 592, 4, 12),
)  # fmt: skip
KLEIN_4B = Architecture(
    {"name_or_path": "black-forest-labs/FLUX.2-klein-base-4B", "arch": "flux2_klein_4b"}, zimage.BUCKETS, zimage.SAMPLES, KLEIN,
    unloaded=UNLOADED,
)
WHOLE = replace(  # modulations, which no adapter is on, are trained: gates and scales have gradients; and weights of norms of heads of 128
    KLEIN_4B, relative="flux2-klein-4b", own=WITH_ADAPTER, left=("preview", "step.update", "setup.network"), weights=("bf16",),
    beside="whole", train=SAMPLED, second=(zimage.FEW, zimage.SAMPLES[:1]), samples=zimage.SAMPLES[:1], buckets=zimage.WHOLE_BUCKETS,
    unloaded=(), layout=replace(KLEIN, reduced=("T", "X", "S"), scratch=("norm128_24T", "norm128_24X", "norm128_24S")),
)
DEV_LOAD = {**LOAD, "load.text": ("Loading Mistral", "Quantizing Mistral")}
DEV = replace(KLEIN, load=DEV_LOAD, width=6144, guidance="none", text_on_host=False, text_unnamed=True)
DEV_SAMPLES = tuple((width, height, 4.0, words) for width, height, _, words in flux.SAMPLES)
KLEIN_9B_MODEL = {"name_or_path": "black-forest-labs/FLUX.2-klein-base-9B", "arch": "flux2_klein_9b"}
ARCHITECTURES = {
    "flux2-klein-4b": KLEIN_4B,
    "flux2-klein-4b-whole": WHOLE,
    "flux2-klein-9b-whole": replace(
        WHOLE, model=KLEIN_9B_MODEL, relative="flux2-klein-9b", captioned=(zimage.FEW[:1], ()),
        layout=replace(WHOLE.layout, width=4096, scratch=("norm128_32T", "norm128_32X", "norm128_32S")),
    ),
    "flux2-klein-9b": replace(KLEIN_4B, model=KLEIN_9B_MODEL, layout=replace(KLEIN, width=4096)),
    "flux2-dev": Architecture(
        {"name_or_path": "black-forest-labs/FLUX.2-dev", "arch": "flux2"}, zimage.BUCKETS, DEV_SAMPLES, DEV,
        weights=("bf16", "qfloat8", "float8", "uint4"), unloaded=UNLOADED,
    ),
}


# config.json of mistralai/Mistral-Small-3.1-24B-Instruct-2503; its checkpoint has a head of its own
MISTRAL = {
    "text_config": {
        "model_type": "mistral", "vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072, "sliding_window": None,
    },
    "vision_config": {
        "model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "head_dim": 64, "image_size": 1540, "patch_size": 14,
    },
    "tie_word_embeddings": False,
}  # fmt: skip


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    return None


def transformers(name: str, place: str) -> dict[str, Any] | None:
    if name == "Mistral3ForConditionalGeneration":
        return MISTRAL
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
        "flux2-dev.safetensors": lambda: model.Flux2(model.Flux2Params()),
        "flux-2-klein-base-4b.safetensors": lambda: model.Flux2(model.Klein4BParams()),
        "flux-2-klein-base-9b.safetensors": lambda: model.Flux2(model.Klein9BParams()),
        "ae.safetensors": lambda: autoencoder.AutoEncoder(autoencoder.AutoEncoderParams()),
    }
    if filename not in makers:
        return None
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in makers[filename]().state_dict().items()}


class Processor:
    """Stand-in for Mistral's processor: chat templates of one text each, padded to one length."""

    def __init__(self, path: Any) -> None:
        from calibration.trainer.token_counts import Tokenizer

        self.tokenizer = Tokenizer(None, path)

    def apply_chat_template(self, messages: Any, *, padding: Any, max_length: int, truncation: bool, **_: Any) -> Any:
        texts = ["".join(f"[{turn['role']}]{part['text']}" for turn in turns for part in turn["content"]) for turns in messages]
        return self.tokenizer(texts, padding=padding, max_length=max_length, truncation=truncation, return_tensors="pt")


def patch() -> None:
    """`scatter_ids` sizes its output by the largest position id, which reads as 0: the token grid that was packed stands in."""
    from extensions_built_in.diffusion_models.flux2 import flux2_model
    from extensions_built_in.diffusion_models.flux2.src import pipeline, sampling

    from calibration.trainer.patches import note

    flux2_model.load_file = _untouched
    flux2_model.AutoProcessor = type("AutoProcessor", (), {"from_pretrained": staticmethod(Processor)})
    pack, grids = sampling.batched_prc_img, {}

    def batched_prc_img(x: Any, *a: Any, **k: Any) -> Any:
        grids[x.shape[-2] * x.shape[-1]] = tuple(x.shape[-2:])
        return pack(x, *a, **k)

    def scatter_ids(x: Any, x_ids: Any) -> list[Any]:
        return [_scattered(tokens, ids, *grids[len(tokens)]) for tokens, ids in zip(x, x_ids, strict=True)]

    for module in (sampling, pipeline, flux2_model):
        module.batched_prc_img, module.scatter_ids = batched_prc_img, scatter_ids
    note("FLUX.2: files are not mapped; tensors of the shapes in their headers are untouched memory")
    note("FLUX.2: scatter_ids uses the token grid that was packed instead of the largest position ids")


def _untouched(path: str, device: str = "cpu") -> dict[str, Any]:
    """What a safetensors file holds, by its header: dev's 64 GB could not be mapped where memory is small, though nothing is read."""
    import torch

    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return {name: torch.empty(entry["shape"], dtype=torch.bfloat16, device=device) for name, entry in header.items()}


def _scattered(tokens: Any, ids: Any, height: int, width: int) -> Any:
    """As the trainer's scatter_ids for one image of one frame: the same tensors, of known sizes."""
    import torch

    frames, rows, columns = (ids[:, axis].to(torch.int64) for axis in range(3))
    frames = torch.zeros((1,), device=frames.device, dtype=frames.dtype)[frames]
    flat = frames * width * height + rows * width + columns
    out = torch.zeros((height * width, tokens.shape[-1]), device=tokens.device, dtype=tokens.dtype)
    out.scatter_(0, flat.unsqueeze(1).expand(-1, tokens.shape[-1]), tokens)
    return out.reshape(1, height, width, -1).permute(0, 3, 1, 2).unsqueeze(2)
