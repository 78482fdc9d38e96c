"""Z-Image and Z-Image Turbo: Qwen3-4B as text encoder, only valid text tokens, image and text padded to 32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures import flux
from calibration.architectures.base import SAMPLED, WITH_ADAPTER, Architecture, Layout, in_type
from estimator.dtypes import FP32

TEMPLATE_TOKENS = 9  # chat template of the pipeline, as the stand-in tokenizer counts it
LOAD = {
    "load.transformer": (
        "Loading ZImage", "Loading transformer", "Loading assistant", "Merging", "Quantizing Transformer", "- quantizing", "Moving",
    ),
    "load.text": ("Text Encoder", "Quantizing Text"),
    "load.rest": ("Loading VAE", "Making", "Preparing", "Model Loaded"),
}  # fmt: skip
LAYOUT = Layout(
    LOAD, ("T32", "X32", "Z", "Z128", "T", "X"), 3840, ("Z", "T32", "X32"), TEMPLATE_TOKENS, guidance="batched", prompts_apart=True,
    sample_by_sample=True,
)  # fmt: skip
BUCKETS = (
    (512, 512, 1, 12), (784, 656, 1, 60), (1024, 1024, 1, 150), (1232, 816, 1, 30), (336, 624, 1, 100),
    (512, 512, 2, 40), (720, 976, 2, 90), (656, 432, 3, 15), (528, 752, 4, 25),
)  # fmt: skip
SAMPLES = tuple((w, h, cfg, n) for (w, h, _, _), n in zip(flux.SAMPLES, (9, 70, 140, 33), strict=True) for cfg in (1.0, 4.0))

# Words of each preview's negative prompt: of guided ones fewer than of the prompt, so that which of the two is padded is known
NEGATIVES = (20, 5, 0, 41, 3, 100, 60, 15)

BASE = Architecture({"name_or_path": "Tongyi-MAI/Z-Image", "arch": "zimage"}, BUCKETS, SAMPLES, LAYOUT, negatives=NEGATIVES)
TURBO = {
    "name_or_path": "Tongyi-MAI/Z-Image-Turbo", "arch": "zimage:turbo",
    "assistant_lora_path": "ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors",
}  # fmt: skip
FEW = tuple(BUCKETS[n] for n in (0, 1, 2, 5, 7))  # of the second job, which is there for its factor
LOKR = replace(
    BASE, relative="zimage", own=WITH_ADAPTER, weights=("qfloat8",), factors=(4, -1), train=SAMPLED, second=(FEW, SAMPLES[:4]),
    layout=replace(LAYOUT, adapted=((3840, 3840), (3840, 10240), (10240, 3840), (256, 15360))),
)  # fmt: skip
# Of weights of norms (of a stream, of heads of 128, of the text as it comes) and of the biases of what goes in and comes out
WHOLE_SUMS = (
    "norm3840_Z", "norm3840_T32", "norm3840_X32", "norm128_30Z", "norm128_30T32", "norm128_30X32", "norm2560_X32", "norm64_Z", "norm64_T32",
)  # fmt: skip
WHOLE_BUCKETS = tuple((464, 688, 1, 100) if bucket[0] == 336 else bucket for bucket in BUCKETS)
WHOLE = replace(
    BASE, relative="zimage", own=WITH_ADAPTER, left=("preview", "step.update", "setup.network"), weights=("bf16",), beside="whole",
    train=SAMPLED, second=(FEW, SAMPLES[:2]), samples=SAMPLES[:1],
    buckets=WHOLE_BUCKETS,
    layout=replace(LAYOUT, lengths=(*LAYOUT.lengths, "T128", "X128"), scratch=WHOLE_SUMS),
)
# Recorded to hold the rule against (estimator.dora_programs), not shipped: jobs with a magnitude in each layer
DORA = replace(
    BASE, relative="zimage", own=WITH_ADAPTER, weights=("bf16", "qfloat8"), beside="dora", network={"type": "dora"}, train=SAMPLED,
    buckets=FEW, samples=SAMPLES[:2], second=(FEW, SAMPLES[:2]),
)
# In fp32 memory-efficient attention, whose backward pass has a tile for 64 rows of the query's gradient
FULL = in_type(
    BASE, "zimage", FP32, weights=("qfloat8",), second=(FEW, (*SAMPLES[:4], SAMPLES[7], SAMPLES[5])), uncached=flux.UNCACHED,
    layout=replace(LAYOUT, lengths=("T32", "X32", "Z", "T", "X"), scratch=("tiles64_Z",)),
)
ARCHITECTURES = {
    "zimage": BASE,
    "zimage-fp32": FULL,
    # the trainer makes float8 of qfloat8 here
    "zimage-turbo": replace(BASE, model=TURBO, relative="zimage", weights=("bf16", "float8", "uint4")),
    "zimage-lokr": LOKR,
    "zimage-whole": WHOLE,
    "zimage-dora": DORA,
    "zimage-turbo-lokr": replace(LOKR, model=TURBO, relative="zimage-turbo", weights=("float8",)),
}


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    return {} if name == "ZImageTransformer2DModel" else None


def transformers(name: str, place: str) -> dict[str, Any] | None:
    if name != "Qwen3ForCausalLM":
        return None
    return {
        "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True, "rope_theta": 1000000, "max_position_embeddings": 40960,
    }  # fmt: skip


def patch() -> None:
    """Rows of valid tokens are selected by a mask on the device: the tokenizer's own stands in."""
    from diffusers import ZImagePipeline

    from calibration.trainer.patches import cuda_truth, note

    encode = ZImagePipeline._encode_prompt

    def with_mask(self: Any, *a: Any, **k: Any) -> Any:
        with cuda_truth(row_mask=True):
            return encode(self, *a, **k)

    ZImagePipeline._encode_prompt = with_mask
    note("ZImagePipeline._encode_prompt: boolean row selection uses the tokenizer's host mask")
