"""OmniGen2: the trainer's own transformer, Qwen2.5-VL 3B as text encoder, FLUX's VAE, text as long as it is (256 tokens at most).

Every attention has a mask. Rotary positions are complex128, since frequencies are made in float64. Norms are Triton kernels that are
measured when they are first called (estimator.tuned); probes leave the buffer of that measurement out, whole runs have it.

Configurations: transformer/config.json of OmniGen2/OmniGen2 as vLLM-Omni's tests hold it (tests of omnigen2's pipeline, vllm-omni) and as
DFloat11/OmniGen2-transformer-DF11's example builds it; mllm: the published Qwen/Qwen2.5-VL-3B-Instruct.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures import qwen
from calibration.architectures.base import Architecture, Layout

TURN_TOKENS = 25  # what one application of the chat template adds (Qwen's tokenizer): 23 before the prompt, and <|im_end|>, a line break
BEFORE = 23
TEMPLATE_TOKENS = 2 * TURN_TOKENS  # get_prompt_embeds applies it, and encode_prompt applies it again
MOST_TOKENS = 256
LOAD = {
    "load.text": ("Loading OmniGen2", "Loading Qwen2.5 VL", "Quantizing Qwen2.5 VL"),
    "load.transformer": ("Loading transformer", "Quantizing transformer", "- quantizing"),
    "load.beside": ("Loading vae",),
}  # "Moving everything to device", with low_vram, is the timeline's; what comes behind makes nothing
LENGTHS, SCRATCH = ("T", "X", "T32", "X32"), ("splits21_T", "splits21_X", "tiles64_T", "tiles64_X")
LAYOUT = Layout(
    LOAD, (*LENGTHS, "S", "S32"), 2520, ("T", "X", "S"), TEMPLATE_TOKENS, guidance="sequential", prompts_apart=True,
    text_unnamed=True, sample_by_sample=True, flash_text=("flash16_X",), scratch=(*SCRATCH, "splits21_S", "tiles64_S"),
)  # fmt: skip
# A control image has as many tokens as its picture, which are refined apart and then joined to it
LAYOUT = replace(LAYOUT, beside=replace(
    LAYOUT, lengths=(*LENGTHS, "U", "J", "J32"), reduced=("T", "X", "U", "J"),
    scratch=(*SCRATCH, "splits21_J", "tiles64_J"),
))  # fmt: skip
BUCKETS = ((512, 512, 1, 12), (1024, 1024, 1, 150), (656, 432, 3, 15), (528, 752, 4, 25))  # with control images
MORE_BUCKETS = ((576, 448, 1, 45), (1232, 816, 1, 30), (416, 672, 2, 110), (640, 896, 2, 20))
WITHOUT = (
    (512, 512, 1, 40), (896, 1024, 1, 10), (336, 624, 1, 100), (512, 512, 2, 40),
    (720, 976, 2, 90), (352, 432, 4, 130),
)  # fmt: skip
MORE_WITHOUT = ((1024, 1024, 1, 75), (400, 688, 1, 75), (768, 640, 1, 20), (1088, 880, 1, 5), (768, 784, 3, 55), (464, 592, 4, 35))
CAPTIONED = ((608, 480, 1, 65), (880, 976, 1, 15), (480, 736, 2, 50), (544, 384, 3, 80))
SAMPLES = (
    (512, 512, 4.0, 70), (768, 1152, 4.0, 9), (1024, 1024, 4.0, 140), (1344, 768, 1.0, 33), (512, 512, 1.0, 9),
    (768, 768, 1.0, 70), (768, 1024, 4.0, 9), (1024, 1024, 4.0, 140), (1024, 640, 1.0, 33),
)  # fmt: skip
MORE_SAMPLES = (
    (640, 976, 4.0, 20), (1344, 768, 4.0, 110), (896, 896, 4.0, 55), (1024, 1024, 1.0, 12), (528, 752, 1.0, 90),
    (640, 976, 4.0, 20), (896, 768, 4.0, 110), (512, 512, 1.0, 12), (1024, 1024, 1.0, 90),
)  # fmt: skip
NEGATIVES = (21, 0, 60, 5, 0, 3, 100, 0, 12)  # words, of each preview
FEW, FEW_SAMPLES = WITHOUT[:1], SAMPLES[:1]
ARCHITECTURES = {
    "omnigen2": Architecture(
        {"name_or_path": "OmniGen2/OmniGen2", "extras_name_or_path": "OmniGen2/OmniGen2", "arch": "omnigen2"}, BUCKETS, SAMPLES, LAYOUT,
        weights=("bf16", "float8", "uint4", "qfloat8"), second=(MORE_BUCKETS, MORE_SAMPLES), negatives=NEGATIVES, controlled=True, bare=5,
        encodes=True, uncontrolled=(WITHOUT, MORE_WITHOUT), captioned=(CAPTIONED, ()), loads=("float8", "uint4"),
        brief={"bf16": (FEW, ()), "float8": (FEW, FEW_SAMPLES), "uint4": (FEW, FEW_SAMPLES)},
        fewer={"bf16": ((FEW, SAMPLES), (FEW, MORE_SAMPLES))},
    ),
}  # fmt: skip


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    if name != "OmniGen2Transformer2DModel":
        return None
    return {
        "patch_size": 2, "in_channels": 16, "out_channels": None, "hidden_size": 2520, "num_layers": 32, "num_refiner_layers": 2,
        "num_attention_heads": 21, "num_kv_heads": 7, "multiple_of": 256, "ffn_dim_multiplier": None, "norm_eps": 1e-5,
        "axes_dim_rope": (40, 40, 40), "axes_lens": (1024, 1664, 1664), "text_feat_dim": 2048, "timestep_scale": 1000.0,
    }  # fmt: skip


def transformers(name: str, place: str) -> dict[str, Any] | None:
    if name != "Qwen2_5_VLForConditionalGeneration" or "omnigen2" not in place:
        return None
    text = {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1000000.0,
        "max_position_embeddings": 128000, "tie_word_embeddings": True,
    }  # fmt: skip
    known = qwen.transformers(name, place)
    assert known is not None
    vision = {**known["vision_config"], "out_hidden_size": 2048}
    return {**known, "text_config": text, "vision_config": vision, "tie_word_embeddings": True}


class Processor:
    """Stand-in for the processor, of which the pipeline uses the tokenizer alone."""

    def __init__(self, path: Any) -> None:
        from transformers import Qwen2Tokenizer

        from calibration.trainer.token_counts import Tokenizer

        class Templated(Tokenizer):
            """One tag for each token of the chat template, as Qwen's tokenizer counts them."""

            def apply_chat_template(self, messages: Any, **_: Any) -> str:
                return "<t> " * BEFORE + messages[-1]["content"] + " <t>" * (TURN_TOKENS - BEFORE)

        self.tokenizer = Templated(Qwen2Tokenizer, path)


def _lengths() -> None:
    """How many tokens of each prompt are valid is read back from the card, where all is 0: as many as the longest of its batch."""
    import torch
    from extensions_built_in.diffusion_models.omnigen2.src.models.transformers import repo

    place, real_sum = repo.OmniGen2RotaryPosEmbed.forward, torch.Tensor.sum

    def forward(self: Any, freqs_cis: Any, attention_mask: Any, *a: Any, **k: Any) -> Any:
        class Summed:
            def __init__(self, made: Any) -> None:
                self.made = made

            def tolist(self) -> list[int]:
                return [int(attention_mask.shape[1])] * len(attention_mask)

        def summed(tensor: Any, *a: Any, **k: Any) -> Any:
            made = real_sum(tensor, *a, **k)
            return Summed(made) if tensor is attention_mask else made

        torch.Tensor.sum = summed
        try:
            return place(self, freqs_cis, attention_mask, *a, **k)
        finally:
            torch.Tensor.sum = real_sum

    repo.OmniGen2RotaryPosEmbed.forward = forward


def _kernels() -> None:
    """The norms' Triton kernels, whose results torch allocates before, are not launched; measuring them takes a buffer, but in probes."""
    import os

    import torch
    from extensions_built_in.diffusion_models.omnigen2.src.ops.triton import layer_norm

    from estimator.tuned import BUFFER_BYTES

    def measured(kernel_call: Any, quantiles: Any = None) -> list[float]:
        kernel_call()
        if os.environ.get("TRAINER_PROBE") != "1":
            torch.empty(BUFFER_BYTES // 4, dtype=torch.int, device="cuda")
        return [1.0, 1.0, 1.0]

    for kernel in (layer_norm._layer_norm_fwd_1pass_kernel, layer_norm._layer_norm_bwd_kernel):
        kernel._do_bench = measured
        while hasattr(kernel, "fn") and hasattr(kernel.fn, "run"):
            kernel = kernel.fn
        kernel.run = lambda *_, **__: None


def _masks(pipeline: Any) -> None:
    """Whether a prompt's mask is all true, which decides how the text encoder attends, is read back: the tokenizer's own stands in."""
    from calibration.trainer import token_counts
    from calibration.trainer.patches import cuda_truth

    embeds = pipeline._get_qwen2_prompt_embeds

    def _get_qwen2_prompt_embeds(self: Any, *a: Any, **k: Any) -> Any:
        with cuda_truth(all_is=lambda: bool(token_counts.LAST_MASK[0].all())):
            return embeds(self, *a, **k)

    pipeline._get_qwen2_prompt_embeds = _get_qwen2_prompt_embeds


def patch() -> None:
    """Lengths of prompts, their masks, the processor, and Triton's kernels."""
    from extensions_built_in.diffusion_models import omnigen2 as module

    from calibration.trainer.patches import note

    class Loader:
        @staticmethod
        def from_pretrained(path: Any = None, *_: Any, **__: Any) -> Processor:
            return Processor(path)

    module.CLIPProcessor = Loader
    _masks(module.OmniGen2Pipeline)
    _lengths()
    _kernels()
    note("OmniGen2: whether a mask is all true, by the tokenizer's; tokens of a batch's longest prompt are valid")
    note("OmniGen2: Triton kernels are not launched, and in probes measured without a buffer")
