"""Qwen-Image: Qwen2.5-VL as text encoder (its vision tower dropped), a VAE of 3-D convolutions, text as long as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures import flux
from calibration.architectures.base import SAMPLED, WITH_ADAPTER, Architecture, Layout, in_type
from estimator.dtypes import FP16

# Templates of the pipelines (diffusers: pipeline_qwenimage.py, prompt_template_encode) up to the prompt: beginning -> tokens, which the
# pipeline drops again behind the text encoder (prompt_template_encode_start_idx); and what follows the prompt and stays.
DROPPED_TOKENS = 34
EDIT_DROPPED_TOKENS = 64
TEMPLATES = {
    "<|im_start|>system\nDescribe the image by detailing": DROPPED_TOKENS,
    "<|im_start|>system\nDescribe the key features of the input image": EDIT_DROPPED_TOKENS,
}
PROMPT_BEGINS, TEMPLATE_END, END_TOKENS = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", 5
LOAD = {
    "load.transformer": ("Loading Qwen", "Loading transformer", "Quantizing Transformer", "- quantizing", "Moving"),
    "load.text": ("Text Encoder", "Quantizing Text"),
    "load.rest": ("Loading VAE", "Making", "Preparing", "Model Loaded"),
}
# Training steps have a mask over the text and so memory-efficient attention; previews have none
LAYOUT = Layout(
    LOAD, ("T", "X", "S", "S32", "S64", "S128"), 3072, ("T", "X"), END_TOKENS, guidance="sequential", tiled_vae=True,
    scratch=("splits24_S",), flash=("flash28_Y",), flash_text=("flash28_Yi",),
)
BUCKETS = tuple((*bucket[:3], words) for bucket, words in zip(flux.BUCKETS, (12, 60, 150, 30, 100, 40, 90, 15, 25), strict=True))
SAMPLES = tuple((w, h, cfg, n) for (w, h, _, _), n in zip(flux.SAMPLES, (9, 70, 140, 33), strict=True) for cfg in (1.0, 4.0))
NEGATIVES = (0, 21, 0, 3, 0, 170, 0, 60)  # words, of each preview
RECOVERED = "uint3|ostris/accuracy_recovery_adapters/qwen_image_torchao_uint3.safetensors"  # as the trainer's 24 GB example has it

QWEN = Architecture(
    {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image"}, BUCKETS, SAMPLES, LAYOUT, negatives=NEGATIVES,
    weights=("bf16", "qfloat8", "float8", RECOVERED, "uint4"),
)  # fmt: skip
# Of biases, of norms of heads of 128 and of the text as it comes, and of the bias of what comes out
WHOLE_SUMS = (*(f"norm{width}_{rows}" for width in (3072, 12288) for rows in "TX"), "norm128_24T", "norm128_24X", "norm3584_X", "norm64_T")
WHOLE = replace(
    QWEN, relative="qwen-image", own=WITH_ADAPTER, left=("preview", "step.update", "setup.network"), weights=("bf16",), beside="whole",
    train=SAMPLED, samples=SAMPLES[:1], negatives=(), layout=replace(LAYOUT, scratch=(*LAYOUT.scratch, *WHOLE_SUMS)),
    buckets=tuple((480, 672, *bucket[2:]) if bucket[0] == 352 else bucket for bucket in BUCKETS),
)
# In fp16 blocks clip what they put out, which keeps what goes into the clip
HALF = in_type(QWEN, "qwen-image", FP16, own=("step.core", "preview"), weights=("qfloat8",))
ARCHITECTURES = {"qwen-image": QWEN, "qwen-image-fp16": HALF, "qwen-image-whole": WHOLE}


def template_tokens(text: str) -> tuple[int, int, str]:
    """(Tokens before the prompt, after it, the prompt alone) of a text in the pipelines' template, as Qwen's tokenizer counts them."""
    for beginning, tokens in TEMPLATES.items():
        if text.startswith(beginning):
            return tokens, END_TOKENS, text.split(PROMPT_BEGINS, 1)[1].removesuffix(TEMPLATE_END)
    return 0, 0, text


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    """The defaults are the published ones, but for Qwen-Image-Edit-2511's transformer."""
    if name == "QwenImageTransformer2DModel":
        return {"zero_cond_t": True} if "2511" in place else {}
    return {} if name == "AutoencoderKLQwenImage" else None


def transformers(name: str, place: str) -> dict[str, Any] | None:
    if name != "Qwen2_5_VLForConditionalGeneration":
        return None
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1000000.0,
        "max_position_embeddings": 128000, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_channels": 3, "out_hidden_size": 3584,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    }  # fmt: skip
    return {
        "text_config": text, "vision_config": vision, "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
        "vision_end_token_id": 151653, "tie_word_embeddings": False,
    }  # fmt: skip


def patch() -> None:
    from diffusers import QwenImagePipeline

    patch_pipeline(QwenImagePipeline)


def patch_pipeline(pipeline: Any) -> None:
    """Which tokens are valid is read from the device in two places; the tokenizer's own mask stands in."""
    import torch

    from calibration.trainer import token_counts
    from calibration.trainer.patches import cuda_truth, note

    def valid_rows(_: Any, hidden_states: Any, mask: Any) -> Any:
        host = token_counts.LAST_MASK[0]
        rows, columns = host.nonzero(as_tuple=True)
        selected = hidden_states[rows.to(hidden_states.device), columns.to(hidden_states.device)]
        return torch.split(selected, host.sum(1).tolist(), dim=0)

    encode = pipeline.encode_prompt

    def encode_prompt(self: Any, *a: Any, **k: Any) -> Any:
        given = k.get("prompt_embeds") is not None  # a preview's: one prompt, not padded
        with cuda_truth(all_is=lambda: given or bool(token_counts.LAST_MASK[0].all())):
            return encode(self, *a, **k)

    pipeline._extract_masked_hidden = valid_rows
    pipeline.encode_prompt = encode_prompt
    note(f"{pipeline.__name__}: valid tokens, and whether a mask is all true, by the tokenizer's host mask")
