"""Wan 2.1 and 2.2: video, UMT5 padded to 512 tokens that the blocks see in cross attention only, a VAE that works in chunks of frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures.base import SAMPLED, WITH_ADAPTER, Architecture, Layout, in_type
from estimator.dtypes import FP16

ABOVE_ALL_TIMESTEPS = 1e9
TEXT_TOKENS = 512  # UMT5, padded to max_length (toolkit/models/wan21/wan21.py, get_prompt_embeds)
LOAD = {
    "load.transformer": ("Loading Wan", "Loading transformer", "Quantizing Transformer", "- quantizing", "Moving transformer"),
    "load.text": ("Loading UMT5", "Quantizing UMT5"),
    "load.rest": ("Loading VAE", "Making", "Preparing"),
}
LAYOUT = Layout(LOAD, ("T", "T128"), 1536, ("T",), padded_tokens=TEXT_TOKENS, guidance="sequential", video=True)
# width, height, batch, caption words, frames. At 5 frames the second chunk of the VAE is its last.
BUCKETS = (
    (512, 512, 1, 20, 1), (640, 384, 1, 20, 33), (384, 624, 1, 20, 17), (256, 320, 1, 20, 9), (624, 352, 1, 20, 21), (448, 320, 1, 20, 5),
    (256, 448, 2, 20, 13), (320, 384, 3, 20, 9), (288, 256, 4, 20, 17), (480, 640, 2, 20, 1), (336, 416, 2, 20, 5),
)  # fmt: skip
MORE_BUCKETS = (
    (384, 448, 1, 20, 1), (528, 640, 1, 20, 1), (304, 272, 1, 20, 13), (272, 320, 1, 20, 9), (592, 352, 1, 20, 1), (320, 240, 1, 20, 5),
    (304, 224, 2, 20, 21), (416, 288, 2, 20, 1), (240, 400, 3, 20, 13), (256, 208, 2, 20, 5), (368, 272, 2, 20, 1), (304, 512, 4, 20, 1),
    (512, 304, 3, 20, 1),
)  # fmt: skip
SAMPLES = (
    (512, 512, 4.0, 9, 1), (640, 384, 4.0, 9, 17), (384, 448, 4.0, 9, 33), (480, 272, 4.0, 9, 9), (368, 320, 4.0, 9, 5),
    (272, 448, 4.0, 9, 21), (416, 304, 1.0, 9, 13), (512, 384, 1.0, 9, 1), (288, 352, 1.0, 9, 5),
)  # fmt: skip

# With a further kind of base weights: enough for its cores and previews, the rest is known
FEW_BUCKETS = (
    (512, 512, 1, 20, 1), (384, 496, 1, 20, 17), (256, 320, 1, 20, 9), (448, 320, 1, 20, 5), (384, 448, 1, 20, 1), (304, 272, 1, 20, 13),
    (256, 448, 2, 20, 13), (320, 240, 3, 20, 9), (288, 256, 4, 20, 5), (480, 640, 2, 20, 1), (336, 416, 2, 20, 5),
)  # fmt: skip
FEW_SAMPLES = (
    (512, 512, 4.0, 9, 1), (448, 320, 4.0, 9, 17), (480, 272, 4.0, 9, 9), (368, 320, 4.0, 9, 5),
    (416, 304, 1.0, 9, 13), (512, 384, 1.0, 9, 1), (288, 352, 1.0, 9, 5),
)  # fmt: skip
OTHER_BUCKETS = (
    (528, 640, 1, 20, 1), (272, 320, 1, 20, 9), (384, 320, 1, 20, 13), (320, 384, 3, 20, 9), (416, 288, 2, 20, 1), (256, 208, 2, 20, 9),
)  # fmt: skip
OTHER_SAMPLES = (
    (512, 448, 4.0, 9, 1), (384, 320, 4.0, 9, 13), (480, 288, 4.0, 9, 9), (368, 304, 4.0, 9, 5), (272, 256, 4.0, 9, 1),
    (416, 272, 1.0, 9, 13), (512, 368, 1.0, 9, 1), (288, 352, 1.0, 9, 9), (320, 256, 1.0, 9, 5),
)  # fmt: skip
FEW = (FEW_BUCKETS, FEW_SAMPLES), (OTHER_BUCKETS, OTHER_SAMPLES)

# With 12 heads FlashAttention goes through the keys of a short clip in parts, its own and the text's. diffusers' pipeline keeps a mask as
# large as the latents in fp32; the trainer's own for low_vram (AggressiveWanUnloadPipeline) has none.
SMALL = Architecture(
    {"name_or_path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "arch": "wan21"}, BUCKETS, SAMPLES,
    replace(LAYOUT, scratch=("T*flash12_T", f"T*flash12_T_{TEXT_TOKENS}"), pipeline_apart=True),
    relative="wan21-14b", fewer={"qfloat8": FEW}, weights=("bf16", "qfloat8"), quantised=("float8", "uint4"),
)  # fmt: skip
# Of 1024 tokens at least in each sample: sums over fewer rows have no partial results
WHOLE_BUCKETS = (
    (512, 512, 1, 20, 1), (640, 384, 1, 20, 17), (384, 624, 1, 20, 9), (448, 320, 1, 20, 5), (624, 496, 1, 20, 1), (288, 320, 1, 20, 13),
    (256, 448, 2, 20, 13), (320, 384, 3, 20, 9), (288, 256, 4, 20, 13), (480, 640, 2, 20, 1),
)  # fmt: skip


def whole(family: Architecture, arch: str, inner: int) -> Architecture:
    """All of it trained. `inner`: width between the two layers that follow attention. Sums are of biases and of norms, of picture and text,
    and of the bias of what comes out."""
    width = family.layout.width
    sums = (f"norm{width}_T", f"norm{inner}_T", f"norm{width}_X", "norm64_T")
    return replace(
        family, relative=arch, own=WITH_ADAPTER, left=("preview", "step.update", "setup.network"), weights=("bf16",), beside="whole",
        train=SAMPLED, buckets=WHOLE_BUCKETS, samples=FEW_SAMPLES[5:6], fewer={}, quantised=(), other_buckets={},
        layout=replace(family.layout, scratch=(*family.layout.scratch, *sums)),
    )


LARGE = {"name_or_path": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "arch": "wan21"}
# In fp16 UMT5's blocks clamp what they put out; nothing else differs
TEXTS = ((256, 320, 1, 20, 1), (256, 256, 2, 20, 1), (320, 256, 3, 20, 1)), ((256, 256, 1.0, 9, 1),)
HALF = in_type(SMALL, "wan21-1.3b", FP16, own=("text",), fewer=dict.fromkeys(SMALL.weights, (TEXTS, TEXTS)), quantised=())
ARCHITECTURES = {
    "wan21-1.3b": SMALL,
    "wan21-1.3b-fp16": HALF,
    "wan21-1.3b-whole": whole(SMALL, "wan21-1.3b", 8960),
    "wan21-14b": replace(
        SMALL, model=LARGE, relative="wan21-1.3b", layout=replace(LAYOUT, width=5120), weights=("bf16", "qfloat8", "uint4"),
        other_buckets={"bf16": MORE_BUCKETS}, fewer={}, quantised=("float8",),
    ),
}
ARCHITECTURES["wan21-14b-whole"] = whole(ARCHITECTURES["wan21-14b"], "wan21-14b", 13824)

# Wan 2.2 14B: two experts, each Wan 2.1's transformer, but for layers that stay unquantised. Programs are of one expert: the first, which
# is trained throughout. What text encoder, VAE and adapter do is Wan 2.1's.
EXPERT_BUCKETS = (
    (512, 512, 1, 20, 1), (384, 320, 1, 20, 33), (384, 496, 1, 20, 17), (256, 320, 1, 20, 9), (448, 320, 1, 20, 5),
    (256, 448, 2, 20, 13), (320, 240, 3, 20, 9), (288, 256, 4, 20, 5), (480, 640, 2, 20, 1), (336, 416, 2, 20, 5),
)  # fmt: skip
EXPERT_SAMPLES = (
    (512, 512, 4.0, 9, 1), (448, 320, 4.0, 9, 17), (480, 272, 4.0, 9, 9), (368, 320, 4.0, 9, 5), (416, 304, 1.0, 9, 9),
    (512, 384, 1.0, 9, 1), (288, 352, 1.0, 9, 5),
)  # fmt: skip
# With a further kind of base weights the second job's, at another rank and with low_vram, are fewer
EXPERT_FEWER = (
    (EXPERT_BUCKETS, EXPERT_SAMPLES),
    (tuple(EXPERT_BUCKETS[n] for n in (0, 3, 5, 6)), tuple(EXPERT_SAMPLES[n] for n in (0, 3, 5))),
)
# As the trainer's 24 GB example has it
RECOVERED = "uint4|ostris/accuracy_recovery_adapters/wan22_14b_t2i_torchao_uint4.safetensors"
T2V = {"name_or_path": "ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16", "arch": "wan22_14b"}
ARCHITECTURES["wan22-14b"] = Architecture(
    T2V, EXPERT_BUCKETS, EXPERT_SAMPLES,
    replace(LAYOUT, width=5120, load={**LOAD, "load.transformer": (*LOAD["load.transformer"], "Creating Dual", "Applying Accuracy")}),
    relative="wan21-14b", weights=(RECOVERED, "bf16", "float8", "uint4", "qfloat8"),
    own=("load.transformer", "load.rest", "setup.read", "preview", "step.core"), train={"switch_boundary_every": 10**6},
    fewer={"bf16": EXPERT_FEWER, "float8": EXPERT_FEWER},
)  # fmt: skip

# Image to video: what a clip that begins with a picture costs the VAE, in steps and previews. All else is T2V's.
PICTURED_BUCKETS = (
    (512, 512, 1, 20, 1), (384, 320, 1, 20, 1), (272, 448, 1, 20, 1), (448, 320, 1, 20, 5), (256, 352, 1, 20, 5), (400, 288, 1, 20, 5),
    (368, 320, 1, 20, 17), (384, 496, 1, 20, 9), (256, 320, 1, 20, 21), (304, 272, 1, 20, 13),
    (256, 448, 2, 20, 13), (320, 240, 3, 20, 9), (304, 224, 2, 20, 17), (288, 256, 4, 20, 5), (336, 416, 2, 20, 5), (240, 304, 3, 20, 5),
    (480, 640, 2, 20, 1), (416, 288, 2, 20, 1), (304, 512, 3, 20, 1),
)  # fmt: skip
PICTURED_SAMPLES = (
    (512, 512, 1.0, 9, 1), (384, 448, 1.0, 9, 1), (272, 448, 1.0, 9, 1), (448, 320, 1.0, 9, 17), (480, 272, 1.0, 9, 9),
    (416, 304, 1.0, 9, 13), (368, 320, 1.0, 9, 5), (288, 352, 1.0, 9, 5), (256, 400, 1.0, 9, 5),
)  # fmt: skip
# The VAE does not see the transformer behind it: two layers of each expert are enough, and a run takes a minute.
I2V = {"name_or_path": "ai-toolkit/Wan2.2-I2V-A14B-Diffusers-bf16-two-layers", "arch": "wan22_14b_i2v"}
ARCHITECTURES["wan22-i2v-14b"] = replace(
    ARCHITECTURES["wan22-14b"], model=I2V, buckets=PICTURED_BUCKETS, samples=PICTURED_SAMPLES, relative="wan22-14b",
    own=("step.first_frame", "preview.first_frame"), pictured=True, weights=("qfloat8",), fewer={},
)


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    if name == "WanTransformer3DModel":
        if "wan2.2-i2v" in place:
            return {"in_channels": 36, **({"num_layers": 2} if "two-layers" in place else {})}
        return {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30} if "1.3b" in place else {}
    return {} if name == "AutoencoderKLWan" else None  # the published configurations are the classes' defaults


def transformers(name: str, place: str) -> dict[str, Any] | None:
    if name != "UMT5EncoderModel":
        return None
    return {
        "d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_heads": 64, "num_layers": 24, "vocab_size": 256384,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    }  # fmt: skip


def patch() -> None:
    """Timesteps read as 0, and decide which expert of Wan 2.2 runs: the trainer's own stage does, in previews the number of the step."""
    import torch
    from extensions_built_in.diffusion_models.wan22 import wan22_14b_model, wan22_pipeline
    from extensions_built_in.sd_trainer.SDTrainer import SDTrainer

    from calibration.trainer.patches import note

    stage, tensor = [0], torch.Tensor
    dual, pipeline = wan22_14b_model.DualWanTransformer3DModel, wan22_pipeline.Wan22Pipeline
    real_batch, real_forward, real_call = SDTrainer.train_single_accumulation, dual.forward, pipeline.__call__

    def train_single_accumulation(self: Any, *a: Any, **k: Any) -> Any:
        stage[0] = self.current_boundary_index
        return real_batch(self, *a, **k)

    def forward(self: Any, *a: Any, **k: Any) -> Any:
        self.boundary = -1.0 if stage[0] == 0 else ABOVE_ALL_TIMESTEPS
        return real_forward(self, *a, **k)

    def call(self: Any, *a: Any, **k: Any) -> Any:
        asked, real = [0], tensor.__ge__

        def at_least(one: Any, other: Any) -> Any:
            if not (torch.is_tensor(one) and one.is_cuda and one.dim() == 0 and isinstance(other, (int, float))):
                return real(one, other)
            asked[0] += 1
            return asked[0] == 1

        tensor.__ge__ = at_least
        try:
            return real_call(self, *a, **k)
        finally:
            tensor.__ge__ = real

    SDTrainer.train_single_accumulation, dual.forward, pipeline.__call__ = train_single_accumulation, forward, call
    note("Wan 2.2: the trainer's stage chooses a step's expert; in previews the first step is the high noise one's, others the low's")
