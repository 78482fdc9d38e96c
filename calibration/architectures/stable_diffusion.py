"""Stable Diffusion XL and 1.5 as AI Toolkit trains them: UNets of diffusers with CLIP beside them, loaded as whole pipelines.

The loader prints no status texts and quantises nothing, whatever `quantize` says: it moves text encoders, VAE and UNet to the card.
Every prompt has CLIP's 77 tokens. Previews stop where text is cached, which a job without previews is for. A UNet's second and
third levels are half and a quarter as wide as its latents, rounded up where a side is no multiple (`u`, `v`): sides of training pictures
are multiples of 16 (get_bucket_divisibility: twice the VAE's factor). Both have one VAE, of which SDXL's recordings serve.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures.base import WITH_ADAPTER, Architecture, Layout, in_type
from estimator.dtypes import FP32

BY_RULE = ("step.update/",)  # parts of which no recording is kept
TEXT_TOKENS = 77  # CLIP's, padded (toolkit/train_tools.py: text_tokenize)
# Every second one has cached latents: four of the single ones, two of the others
BUCKETS = (
    (512, 512, 1, 20), (784, 656, 1, 20), (1024, 1024, 1, 20), (1232, 816, 1, 20),
    (512, 512, 2, 20), (656, 432, 3, 20), (528, 752, 4, 20), (720, 976, 2, 20),
    (336, 624, 1, 20), (448, 784, 3, 20), (944, 576, 1, 20),
)  # fmt: skip
MORE_BUCKETS = (
    (608, 880, 1, 20), (1152, 912, 1, 20), (768, 1344, 1, 20), (624, 368, 4, 20), (832, 560, 2, 20), (400, 1008, 3, 20),
)  # fmt: skip
CAPTIONED = ((576, 704, 1, 20), (848, 1040, 1, 20), (592, 480, 2, 20), (384, 688, 3, 20))
UNCACHED = ((880, 512, 1, 20), (1104, 1008, 1, 20), (624, 560, 4, 20))
FEW = (BUCKETS[0], BUCKETS[1], BUCKETS[3], *BUCKETS[4:7])
FEW_MORE = (*MORE_BUCKETS[:2], (336, 624, 1, 20), *MORE_BUCKETS[3:5])
SEEN = (BUCKETS[0], BUCKETS[2], BUCKETS[1], BUCKETS[8], *BUCKETS[4:7], BUCKETS[9])
SAMPLES = ((512, 512, 6.0, 9), (768, 1152, 6.0, 9), (1344, 768, 6.0, 9), (1024, 1024, 1.0, 9), (400, 656, 1.0, 9))
MORE_SAMPLES = ((1024, 1024, 6.0, 9), (640, 976, 6.0, 9), (528, 752, 6.0, 9), (1344, 768, 1.0, 9), (656, 912, 1.0, 9))
FEW_SAMPLES, FEW_MORE_SAMPLES = (SAMPLES[0], SAMPLES[2], SAMPLES[4]), (*MORE_SAMPLES[:2], MORE_SAMPLES[3])
LAYOUT = Layout(
    {"load.transformer": ("transformer",), "load.text": ("text_encoder",), "load.rest": ("vae",)}, ("T", "u", "T128", "u128"), 1280, (),
    padded_tokens=TEXT_TOKENS, guidance="batched", prompts_apart=True, scratch=("u*narrow20_u", "T*narrow10_T"), silent=True, unet=True,
    decode_apart=True,
)  # fmt: skip
SDXL = Architecture(
    {"name_or_path": "stabilityai/stable-diffusion-xl-base-1.0", "arch": "sdxl"}, BUCKETS, SAMPLES, LAYOUT, weights=("bf16",),
    train={"noise_scheduler": "ddpm"}, second=(MORE_BUCKETS, MORE_SAMPLES), captioned=(CAPTIONED, ()), uncached=UNCACHED,
    left=BY_RULE,
)  # fmt: skip
SD15 = replace(
    SDXL, model={"name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5", "arch": "sd15"}, uncached=(),
    relative="sdxl-aitk", left=(*BY_RULE, "cache_latents.item", "step.head/encoded", "decode"), buckets=SEEN, samples=FEW_SAMPLES,
    second=((*MORE_BUCKETS[:5],), FEW_MORE_SAMPLES), layout=replace(
        LAYOUT, lengths=("T", "u", "v", "T128", "u128", "v128", "L128"),
        scratch=("T*flash8_T", "u*wide8_u", "v*wide8_v", "T*flash8_T_77", "u*wide8_u_77", "v*wide8_v_77", "L*narrow8_L"),
    ),
)  # fmt: skip


def convolved(family: Architecture, arch: str) -> Architecture:
    """With an adapter on 3 x 3 convolutions too, of ranks whose tensors have no size of the others; as the web UI writes it of each."""
    layout = replace(family.layout, convolved=True)
    return replace(
        family, relative=arch, own=WITH_ADAPTER, conv=(7, 13), layout=layout, buckets=FEW, samples=FEW_SAMPLES,
        second=(FEW_MORE, FEW_MORE_SAMPLES), uncached=(), left=(*BY_RULE, "preview/bf16"), unmerged=arch == "sd15-aitk",
    )


def texted(family: Architecture, arch: str) -> Architecture:
    """With an adapter on the text encoders too (`train.train_text_encoder`): steps encode their prompts with a graph, and train on what
    comes out and not on a copy."""
    return replace(
        family, relative=arch, own=(*WITH_ADAPTER, "text/bf16/graph", "step.prompts"), beside="texted", buckets=FEW, samples=FEW_SAMPLES,
        second=(FEW_MORE, FEW_MORE_SAMPLES), uncached=(), left=BY_RULE,
        train={**family.train, "train_text_encoder": True},
    )


# Of the biases of linear layers in a UNet's transformers
WHOLE_SUMS = ("norm640_T", "norm5120_T", "norm1280_u", "norm10240_u")
WHOLE = replace(
    SDXL, relative="sdxl-aitk", own=WITH_ADAPTER, left=(*BY_RULE, "preview", "setup.network"), beside="whole", buckets=SEEN[:7],
    samples=FEW_SAMPLES[:1], second=(FEW_MORE, FEW_MORE_SAMPLES[:1]), uncached=(),
    layout=replace(LAYOUT, scratch=(*LAYOUT.scratch, *WHOLE_SUMS)),
)
# Of 1.5's likewise, whose first level has transformers too
SD15_WHOLE_SUMS = ("norm320_4T", "norm2560_4T", "norm640_T", "norm5120_T", "norm1280_u", "norm10240_u", "norm1280_v", "norm10240_v")
SD15_WHOLE = replace(
    WHOLE, model=SD15.model, relative="sd15-aitk",
    layout=replace(SD15.layout, scratch=(*SD15.layout.scratch, *SD15_WHOLE_SUMS)),
)  # fmt: skip
# In fp32 (train.dtype) all is recorded anew: memory-efficient attention has 32 rows to a block of its sums, and its backward pass a tile of
# 16,400 bytes for 64 rows of the query's gradient (aten/native/transformers/cuda/mem_eff_attention/kernel_backward.h: GradQTempStorage)
FULL_LENGTHS, FULL_TILES = ("T", "u", "v", "T32", "u32", "v32", "L32"), ("tiles64_T", "tiles64_u", "tiles64_v", "tiles64_L")
FULL = in_type(SDXL, "sdxl-aitk", FP32, layout=replace(LAYOUT, lengths=("T", "u", "T32", "u32"), scratch=("tiles64_T", "tiles64_u")))
SD15_FULL = in_type(SD15, "sd15-aitk", FP32, layout=replace(SD15.layout, lengths=FULL_LENGTHS, scratch=FULL_TILES))
ARCHITECTURES = {
    "sdxl-aitk-fp32": FULL, "sd15-aitk-fp32": SD15_FULL,
    "sdxl-aitk-whole": WHOLE, "sd15-aitk-whole": SD15_WHOLE, "sdxl-aitk": SDXL, "sdxl-aitk-convolved": convolved(SDXL, "sdxl-aitk"),
    "sd15-aitk-texted": texted(SD15, "sd15-aitk"), "sdxl-aitk-texted": texted(SDXL, "sdxl-aitk"),
    "sd15-aitk": SD15, "sd15-aitk-convolved": convolved(SD15, "sd15-aitk"),
}  # fmt: skip

# Published unet/config.json
UNETS = {
    "stable-diffusion-xl": {
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "stable-diffusion-v1": {"sample_size": 64, "cross_attention_dim": 768},
}  # fmt: skip
VAE = {
    "latent_channels": 4, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def _checkpoint(place: str) -> str | None:
    return next((name for name in UNETS if name in place), None)


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    checkpoint = _checkpoint(place)
    if checkpoint is None:
        return None
    if name == "UNet2DConditionModel":
        return UNETS[checkpoint]
    if name != "AutoencoderKL":
        return None
    large = checkpoint == "stable-diffusion-xl"
    return {**VAE, "sample_size": 1024 if large else 512, "scaling_factor": 0.13025 if large else 0.18215}


def transformers(name: str, place: str) -> dict[str, Any] | None:
    if _checkpoint(place) is None or name not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        return None
    if name == "CLIPTextModelWithProjection":
        return {
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "vocab_size": 49408,
            "max_position_embeddings": 77, "projection_dim": 1280, "hidden_act": "gelu",
        }  # fmt: skip
    return {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408,
        "max_position_embeddings": 77, "projection_dim": 768,
    }  # fmt: skip


def patch() -> None:
    """DDPM looks for a timestep among its own on the card, where none is found: the first stands in."""
    import torch
    from diffusers import DDPMScheduler

    from calibration.trainer.patches import note

    previous, tensor = DDPMScheduler.previous_timestep, torch.Tensor

    def previous_timestep(self: Any, timestep: Any) -> Any:
        real = tensor.nonzero

        def nonzero(found: Any, *a: Any, **k: Any) -> Any:
            real(found, *a, **k)
            return (torch.zeros(1, dtype=torch.long, device=found.device),)

        tensor.nonzero = nonzero
        try:
            return previous(self, timestep)
        finally:
            tensor.nonzero = real

    DDPMScheduler.previous_timestep = previous_timestep
    note("DDPMScheduler.previous_timestep: the first of its timesteps")
