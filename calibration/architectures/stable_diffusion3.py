"""Stable Diffusion 3.5 medium and large as AI Toolkit trains them: one transformer class, T5 and two CLIPs, in its StableDiffusion class.

The loader prints its stages and reports none, so the launcher reports what it prints (`PRINTED`); the pipeline with both CLIPs and the VAE
comes last. `quantize` means T5 too, in the transformer's kind. Every prompt has CLIP's 77 tokens and T5's 256 behind them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures import flux
from calibration.architectures.base import SAMPLED, WITH_ADAPTER, Architecture, Layout

TEXT_TOKENS = 333  # 77 and 256, padded (toolkit/train_tools.py: encode_prompts_sd3; diffusers: _get_t5_prompt_embeds)
LOAD = {
    "load.transformer": ("Loading SD3", "Loading transformer", "Quantizing transformer", "Loading vae"),
    "load.text": ("Loading t5", "Quantizing T5"),
    "load.rest": ("Loading pipeline",),
}
PRINTED = tuple(text for texts in LOAD.values() for text in texts)
LAYOUT = Layout(LOAD, ("T", "S", "S128"), 2432, ("T", "X"), padded_tokens=TEXT_TOKENS, prompts_apart=True, guidance="batched")
# Sides are multiples of 32 (get_bucket_divisibility: twice the VAE's factor, twice)
BUCKETS = (
    (512, 512, 1, 20), (768, 640, 1, 20), (1024, 1024, 1, 20), (1216, 832, 1, 20), (352, 608, 1, 20),
    (512, 512, 2, 20), (704, 960, 2, 20), (640, 448, 3, 20), (512, 768, 4, 20),
)  # fmt: skip
SAMPLES = ((512, 512, 4.0, 9), (768, 1152, 4.0, 9), (1024, 1024, 4.0, 9), (1344, 768, 4.0, 9), (1024, 1024, 1.0, 9), (400, 656, 1.0, 9))
UNCACHED = ((608, 608, 1, 20), (1120, 992, 1, 20), (672, 928, 1, 20), (608, 608, 2, 20), (416, 416, 4, 20), (384, 704, 3, 20))
FEW = BUCKETS[:1]  # of a kind whose steps are by rule
BRIEF = (FEW, SAMPLES[:1])  # of a kind of weights of which loading is recorded, and nothing behind caching
LARGE = Architecture(
    {"name_or_path": "stabilityai/stable-diffusion-3.5-large", "arch": "sd3"}, BUCKETS, SAMPLES, LAYOUT,
    weights=("bf16", "float8", "uint4", "qfloat8"), brief={"bf16": (FEW, ()), "float8": BRIEF, "uint4": BRIEF}, loads=("float8", "uint4"),
    left=("step.update/",), uncached=UNCACHED,
)  # fmt: skip
# Medium: of 1024 tokens at least, since sums over fewer have no partial results and lie elsewhere in the backward pass
MEDIUM_BUCKETS = (
    (512, 512, 1, 20), (768, 640, 1, 20), (1024, 1024, 1, 20), (512, 512, 2, 20), (640, 448, 3, 20), (512, 768, 4, 20),
)  # fmt: skip
MORE_BUCKETS = ((1216, 832, 1, 20), (640, 896, 1, 20), (704, 960, 2, 20))
MORE_SAMPLES = ((640, 1024, 4.0, 9), (1152, 896, 4.0, 9), (832, 640, 1.0, 9))
# Text encoders and VAE are large's, and so is what becomes of them
MEDIUM = replace(
    LARGE, model={"name_or_path": "stabilityai/stable-diffusion-3.5-medium", "arch": "sd3"}, relative="sd35-large-aitk", uncached=(),
    buckets=MEDIUM_BUCKETS, second=(MORE_BUCKETS, MORE_SAMPLES), fewer={"bf16": ((FEW, SAMPLES), (FEW, (*SAMPLES, *MORE_SAMPLES)))},
    left=("step.update/", "load.text/", "text/", "cache_latents.item", "step.head/encoded", "preview.prompts"),
    layout=replace(LAYOUT, width=1536, lengths=("T", "S", "S128", "T128")),
)  # fmt: skip

def whole(family: Architecture, arch: str) -> Architecture:
    """All of it trained. Sums are of biases and of norms of heads of 64, of picture and text, and of the bias of what comes out."""
    width, heads = family.layout.width, family.layout.width // 64
    sums = (*(f"norm{times * width}_{rows}" for times in (1, 4) for rows in "TX"), *(f"norm64_{heads}{rows}" for rows in "TX"), "norm64_T")
    return replace(
        family, relative=arch, own=WITH_ADAPTER, left=("preview", "step.update", "setup.network"), weights=("bf16",), beside="whole",
        train=SAMPLED, samples=SAMPLES[5:], brief={}, fewer={}, loads=(), uncached=(), layout=replace(family.layout, scratch=sums),
        buckets=(*MEDIUM_BUCKETS, *MORE_BUCKETS, (544, 672, 3, 20), (576, 608, 4, 20)),
    )


ARCHITECTURES = {
    "sd35-large-aitk": LARGE, "sd35-medium-aitk": MEDIUM, "sd35-medium-aitk-whole": whole(MEDIUM, "sd35-medium-aitk"),
    "sd35-large-aitk-whole": whole(LARGE, "sd35-large-aitk"),
}  # fmt: skip

# Published transformer/config.json; medium's first 13 layers have a second attention, over the picture alone
TRANSFORMERS = {
    "stable-diffusion-3.5-large": {
        "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192, "qk_norm": "rms_norm",
    },
    "stable-diffusion-3.5-medium": {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(13)),
    },
}  # fmt: skip
CLIPS = {"text_encoder": (768, 12, "quick_gelu"), "text_encoder_2": (1280, 32, "gelu")}  # width, layers, activation


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    if "stable-diffusion-3" not in place:
        return None
    if name == "SD3Transformer2DModel":
        return next((config for checkpoint, config in TRANSFORMERS.items() if checkpoint in place), None)
    return {**flux.VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609} if name == "AutoencoderKL" else None


def transformers(name: str, place: str) -> dict[str, Any] | None:
    if "stable-diffusion-3" not in place or name != "CLIPTextModelWithProjection":
        return None
    width, layers, activation = CLIPS[place.rpartition("/")[2]]
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": width // 64,
        "vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": width, "hidden_act": activation,
    }  # fmt: skip


def _positions_as_saved() -> None:
    """The table of positions is a buffer that the checkpoint holds: it is read in the type asked for, as the weights are."""
    import torch
    from diffusers import SD3Transformer2DModel

    from calibration.trainer.patches import note

    read = SD3Transformer2DModel.from_pretrained

    def from_pretrained(*a: Any, torch_dtype: Any = None, **k: Any) -> Any:
        model = read(*a, torch_dtype=torch_dtype, **k)
        model.pos_embed.pos_embed = model.pos_embed.pos_embed.to(torch_dtype or torch.float32)
        return model

    SD3Transformer2DModel.from_pretrained = from_pretrained
    note("SD3Transformer2DModel: positions in the type that the checkpoint is read in")


def patch() -> None:
    """What the loader prints is reported, as its stages are elsewhere; that it reads the pipeline, with CLIPs and VAE, is a stage more."""
    from toolkit import stable_diffusion_model as trainer

    _positions_as_saved()
    loader, printed, pipeline = trainer.StableDiffusion.load_model, trainer.print_acc, trainer.StableDiffusion3Pipeline
    read = pipeline.from_pretrained

    def load_model(self: Any) -> None:
        def report(text: str, *_: Any) -> None:
            trainer.print_acc = printed
            (self.print_and_status_update if text.startswith(PRINTED) else printed)(text)
            trainer.print_acc = report

        def from_pretrained(*a: Any, **k: Any) -> Any:
            report("Loading pipeline")
            return read(*a, **k)

        if not self.is_v3:
            loader(self)
            return
        trainer.print_acc, pipeline.from_pretrained = report, from_pretrained
        try:
            loader(self)
        finally:
            trainer.print_acc, pipeline.from_pretrained = printed, read

    trainer.StableDiffusion.load_model = load_model
