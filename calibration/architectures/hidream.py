"""HiDream-I1: the trainer's own transformer with a mixture of experts, and four text encoders (two CLIPs, T5, Llama 3.1 8B).

A picture that is no square is padded to 4096 tokens with a mask, whatever its size: cores and previews of their own (`.padded`). Previews
are scaled to the area of 1024 x 1024. Each block is given 128 tokens of T5, 128 of Llama's last layer and 128 of another one of Llama's
layers, so that the joint sequence is T + 3 X (`SX`).

How many tokens go to each expert is read back from the card; as many to each stand in, which is an assumption (`patch`). Cached prompts of
a batch are joined as if Llama's layers were samples: two get 64 tokens each, three stop the trainer. So the second probe job caches no
text, and a third one does, with single samples.
"""

from __future__ import annotations

from typing import Any

from calibration.architectures.base import Architecture, Layout

TEXT_TOKENS = 128  # of each of the three parts (hidream_model.py, get_prompt_embeds: max_sequence_length)
EXPERTS, ACTIVE = 4, 2
LOAD = {
    "load.text": ("Loading HiDream", "Loading llama", "Quantizing llama"),
    "load.transformer": ("Loading transformer", "Quantizing transformer", "- quantizing"),
    "load.beside": ("Loading vae", "Loading clip"),
    "load.text.t5": ("Loading T5", "Quantizing T5"),
    "load.rest": ("Model Loaded",),
}  # "Moving everything to device", with low_vram, is the timeline's
LAYOUT = Layout(
    LOAD, ("T", "SX", "SX128"), 2560, ("T", "SX", "384"), padded_tokens=TEXT_TOKENS, guidance="batched", prompts_apart=True,
    text_unnamed=True, padded_to=4096, preview_side=1024,
)  # fmt: skip
BUCKETS = (
    (512, 512, 1, 20), (768, 768, 1, 20), (1024, 1024, 1, 20), (640, 640, 1, 20), (352, 352, 1, 20),
    (512, 512, 2, 20), (704, 704, 2, 20), (448, 448, 3, 20), (576, 576, 4, 20),
    (768, 640, 1, 20), (1216, 832, 1, 20), (352, 608, 1, 20), (512, 768, 2, 20), (640, 448, 3, 20), (704, 512, 4, 20),
)  # fmt: skip
MORE_BUCKETS = (
    (576, 576, 1, 20), (896, 896, 1, 20), (416, 416, 1, 20), (640, 640, 2, 20), (384, 384, 3, 20), (480, 480, 4, 20),
    (960, 512, 1, 20), (672, 1024, 1, 20), (576, 448, 2, 20), (384, 640, 3, 20), (320, 768, 4, 20),
)  # fmt: skip
UNCACHED = ((608, 608, 2, 20), (416, 416, 4, 20), (384, 704, 4, 20))
CAPTIONED = ((544, 544, 1, 20), (832, 832, 1, 20), (704, 480, 1, 20), (864, 1120, 1, 20))
SAMPLES = (
    (1024, 1024, 4.0, 9), (1344, 768, 4.0, 9), (832, 1216, 4.0, 9), (896, 1152, 4.0, 9),
    (1024, 1024, 1.0, 9), (1216, 832, 1.0, 9), (768, 1344, 1.0, 9), (1152, 896, 1.0, 9),
)  # fmt: skip
MORE_SAMPLES = (
    (1024, 1024, 4.0, 9), (1536, 672, 4.0, 9), (960, 1088, 4.0, 9), (640, 1616, 4.0, 9),
    (1024, 1024, 1.0, 9), (1008, 1040, 1.0, 9), (1536, 672, 1.0, 9), (640, 1616, 1.0, 9),
)  # fmt: skip
FEW = BUCKETS[:1]  # of a kind whose steps are by rule
BRIEF = (FEW, SAMPLES[:1])  # of a kind of weights of which loading is recorded, and nothing behind caching
CAPTIONED_SAMPLES = ((1024, 1024, 4.0, 9), (1344, 768, 4.0, 9), (960, 1088, 1.0, 9))
ARCHITECTURES = {
    "hidream": Architecture(
        {
            "name_or_path": "HiDream-ai/HiDream-I1-Full", "extras_name_or_path": "HiDream-ai/HiDream-I1-Full", "arch": "hidream",
        }, BUCKETS, SAMPLES, LAYOUT, weights=("bf16", "float8", "uint4", "qfloat8"), second=(MORE_BUCKETS, MORE_SAMPLES),
        ignored=("ff_i.experts", "ff_i.gate"), captioned=(CAPTIONED, CAPTIONED_SAMPLES), uncached=UNCACHED,
        brief={"bf16": (FEW, ()), "float8": BRIEF, "uint4": BRIEF}, loads=("float8", "uint4"),
        fewer={"bf16": ((FEW, SAMPLES), (FEW, MORE_SAMPLES))},
    ),
}  # fmt: skip


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    if name != "HiDreamImageTransformer2DModel" or "hidream-i1" not in place:
        return None
    return {
        "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 16, "num_single_layers": 32, "attention_head_dim": 128,
        "num_attention_heads": 20, "caption_channels": [4096, 4096], "text_emb_dim": 2048, "num_routed_experts": EXPERTS,
        "num_activated_experts": ACTIVE, "axes_dims_rope": [64, 32, 32], "max_resolution": [128, 128],
        "llama_layers": [*range(32), *(31,) * 16],
    }  # fmt: skip


def transformers(name: str, place: str) -> dict[str, Any] | None:
    if name == "CLIPTextModelWithProjection" and "hidream" in place:
        small = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768}
        large = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280}
        second = place.endswith("/text_encoder_2")
        return {**(large if second else small), "max_position_embeddings": 218 if second else 248, "vocab_size": 49408}
    if name == "LlamaForCausalLM":
        return {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
        }  # fmt: skip
    return None


def shares(tokens: int) -> list[int]:
    """Tokens that each expert gets where as many go to each: every token goes to ACTIVE of EXPERTS."""
    routed = tokens * ACTIVE
    return [routed * (n + 1) // EXPERTS - routed * n // EXPERTS for n in range(EXPERTS)]


class _Counts:
    """What `bincount` gives of the experts' tokens: the tensor on the card, and counts that can be read from it."""

    def __init__(self, on_card: Any, counts: list[int]) -> None:
        self.on_card, self.counts = on_card, counts

    def cpu(self) -> Any:
        import torch

        return torch.tensor(self.counts)


def _experts() -> None:
    import torch
    from extensions_built_in.diffusion_models.hidream.src.models import moe

    infer, real = moe.MOEFeedForwardSwiGLU.moe_infer, torch.Tensor.bincount

    def bincount(self: Any, *a: Any, **k: Any) -> Any:
        return _Counts(real(self, *a, **k), shares(self.numel() // ACTIVE))

    def moe_infer(self: Any, *a: Any, **k: Any) -> Any:
        torch.Tensor.bincount = bincount
        try:
            return infer(self, *a, **k)
        finally:
            torch.Tensor.bincount = real

    moe.MOEFeedForwardSwiGLU.moe_infer = moe_infer


def _sizes() -> None:
    """The size in patches of a picture that is no square, which the transformer reads back from the card, from the latents' own shape."""
    from extensions_built_in.diffusion_models.hidream import hidream_model
    from extensions_built_in.diffusion_models.hidream.src.models.transformers import transformer_hidream_image as module

    newest: list[tuple[int, int]] = [(0, 0)]
    model, pipeline, cls = hidream_model.HidreamModel, hidream_model.HiDreamImagePipeline, module.HiDreamImageTransformer2DModel
    predict, prepare, forward = model.get_noise_prediction, pipeline.prepare_latents, cls.forward

    def seen(latents: Any) -> Any:
        newest[0] = (latents.shape[-2] // 2, latents.shape[-1] // 2)
        return latents

    def get_noise_prediction(self: Any, latent_model_input: Any, *a: Any, **k: Any) -> Any:
        return predict(self, seen(latent_model_input), *a, **k)

    def read(self: Any, *a: Any, img_sizes: Any = None, **k: Any) -> Any:
        return forward(self, *a, img_sizes=None if img_sizes is None else [newest[0]] * len(img_sizes), **k)

    model.get_noise_prediction, cls.forward = get_noise_prediction, read
    pipeline.prepare_latents = lambda self, *a, **k: seen(prepare(self, *a, **k))


def patch() -> None:
    """How many tokens go to each expert, and the size of a picture that is no square: read back from the card, where all is 0."""
    from calibration.trainer.patches import note

    _experts()
    _sizes()
    note("HiDream: as many tokens to each expert (assumed); sizes in patches of padded pictures by the shape of their latents")
