"""FLUX.1 dev and schnell, Flex.1: one transformer class, T5 and CLIP, prompts padded to T5's maximum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures.base import SAMPLED, WITH_ADAPTER, Architecture, Layout, in_type
from estimator.dtypes import FP16

TEXT_TOKENS = 512  # T5, padded to max_length (toolkit/stable_diffusion_model.py, get_prompt_embeds)
LOAD = {
    "load.transformer": ("Loading Flux", "Loading transformer", "Quantizing transformer", "Loading VAE"),
    "load.text": ("Loading T5", "Quantizing T5"),
    "load.rest": ("Loading CLIP", "Making", "Preparing"),
}
LAYOUT = Layout(LOAD, ("T", "S", "S128"), 3072, ("T", "X", "S"), padded_tokens=TEXT_TOKENS, prompts_apart=True)
BUCKETS = (
    (512, 512, 1, 20), (768, 640, 1, 20), (1024, 1024, 1, 20), (1216, 832, 1, 20), (352, 608, 1, 20),
    (512, 512, 2, 20), (704, 960, 2, 20), (640, 448, 3, 20), (512, 768, 4, 20),
)  # fmt: skip
SAMPLES = ((512, 512, 4.0, 9), (768, 1152, 4.0, 9), (1024, 1024, 4.0, 9), (1344, 768, 4.0, 9))

DEV = Architecture({"name_or_path": "black-forest-labs/FLUX.1-dev", "is_flux": True}, BUCKETS, SAMPLES, LAYOUT)
SCHNELL = {
    "name_or_path": "black-forest-labs/FLUX.1-schnell", "is_flux": True,
    "assistant_lora_path": "ostris/FLUX.1-schnell-training-adapter",
}  # fmt: skip
FLEX = {"name_or_path": "ostris/Flex.1-alpha", "is_flux": True}
FEW = tuple(BUCKETS[n] for n in (0, 1, 2, 5, 7))  # of the second job, which is there for its factor
LOKR = replace(
    DEV, relative="flux1-dev", own=WITH_ADAPTER, weights=("qfloat8",), factors=(4, -1), train=SAMPLED, second=(FEW, SAMPLES[:2]),
    layout=replace(LAYOUT, adapted=((3072, 3072), (3072, 12288), (12288, 3072), (15360, 3072), (3072, 18432), (3072, 9216))),
)  # fmt: skip
# Of biases and of norms of heads of 128, of the picture, the text and both; and of the bias of what comes out
WHOLE_SUMS = (*(f"norm{width}_{rows}" for width in (3072, 12288) for rows in "TXS"), *(f"norm128_24{rows}" for rows in "TXS"), "norm64_T")
WHOLE = replace(
    DEV, relative="flux1-dev", own=WITH_ADAPTER, left=("preview", "step.update", "setup.network"), weights=("bf16",), beside="whole",
    train=SAMPLED, second=(FEW, SAMPLES[:1]), samples=SAMPLES[:1], layout=replace(LAYOUT, scratch=WHOLE_SUMS),
    captioned=(FEW[:1], ()),
    buckets=tuple((480, 672, 1, 20) if bucket[0] == 352 else bucket for bucket in BUCKETS),
)
# In fp16 blocks clip what they put out, which keeps what goes into the clip, and T5's clamp it
HALF = in_type(DEV, "flux1-dev", FP16, own=("text", "step.core", "preview"), weights=("qfloat8",), second=(BUCKETS, SAMPLES[:2]))
# Of steps that encode their latents, where one kind of weights alone is recorded
UNCACHED = (
    (880, 512, 1, 20), (1104, 1008, 1, 60), (592, 480, 1, 12), (624, 560, 4, 35), (400, 1008, 3, 20), (832, 560, 2, 90),
)  # fmt: skip
ARCHITECTURES = {
    "flux1-dev": DEV,
    "flux1-dev-fp16": HALF,
    "flux1-dev-whole": WHOLE,
    "flux1-schnell-whole": replace(
        WHOLE, relative="flux1-schnell", model={key: value for key, value in SCHNELL.items() if key != "assistant_lora_path"},
    ),
    # as the trainer's example and its web UI have it: no gradient reaches the embedding of the guidance
    "flex1-whole": replace(WHOLE, relative="flex1", model=FLEX, train={**SAMPLED, "bypass_guidance_embedding": True}),
    "flux1-dev-lokr": LOKR,
    "flux1-schnell": replace(DEV, relative="flux1-dev", model=SCHNELL),
    "flex1": replace(DEV, relative="flux1-dev", model=FLEX),
}

VAE = {  # of FLUX, Flex and Z-Image
    "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "norm_num_groups": 32, "sample_size": 1024,
    "scaling_factor": 0.3611, "shift_factor": 0.1159, "force_upcast": True, "use_quant_conv": False, "use_post_quant_conv": False,
    "mid_block_add_attention": True,
}  # fmt: skip


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    if name == "FluxTransformer2DModel":
        if "flex.1" in place:
            return {"num_layers": 8, "num_single_layers": 38, "guidance_embeds": True}
        return {"guidance_embeds": "schnell" not in place}
    return VAE if name == "AutoencoderKL" else None


def transformers(name: str, place: str) -> dict[str, Any] | None:
    if name == "T5EncoderModel":
        return {
            "d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_heads": 64, "num_layers": 24, "num_decoder_layers": 24, "vocab_size": 32128,
            "feed_forward_proj": "gated-gelu", "dropout_rate": 0.1, "relative_attention_num_buckets": 32, "tie_word_embeddings": False,
        }  # fmt: skip
    if name == "CLIPTextModel":
        return {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408,
            "max_position_embeddings": 77, "projection_dim": 768,
        }  # fmt: skip
    return None


def patch() -> None:
    """Chroma, Kontext and Flex.2 leave T5 on the host when they cache text: there its result is allocated, not computed."""
    import torch
    from transformers import T5EncoderModel
    from transformers.modeling_outputs import BaseModelOutput

    from calibration.trainer.patches import note

    real = T5EncoderModel.forward

    def forward(self: Any, input_ids: Any = None, *a: Any, **k: Any) -> Any:
        if input_ids.is_cuda:
            return real(self, input_ids, *a, **k)
        return BaseModelOutput(last_hidden_state=torch.empty(*input_ids.shape, self.config.d_model, dtype=self.dtype))

    T5EncoderModel.forward = forward
    note("T5 on the host: its result is allocated, not computed")
