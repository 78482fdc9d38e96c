"""LTX-2: video with sound, Gemma-3 12B whose every layer is handed on, connectors between the two, a VAE of factor 32 and 8 frames.

Configurations of the released checkpoints stand in the trainer's own tables of conversion (convert_ltx2_to_diffusers.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures import ltx2_sound
from calibration.architectures.base import Architecture, Layout
from estimator.features import Cells

VERSION, ONE_FILE_VERSION = "2.0", "2.3"
ONE_FILE = "ltx-2.3-22b-dev.safetensors"  # LTX-2.3 comes as one file of all models
LOAD = {
    "load.transformer": ("Loading LTX2", "Loading transformer", "Quantizing Transformer", "- quantizing", "Moving transformer"),
    "load.text": ("Loading text encoder", "Quantizing Text"),
    "load.rest": ("Loading VAEs", "Making", "Preparing", "Model Loaded"),
}
LAYOUT = Layout(
    LOAD, ("T", "O", "T128", "O128"), 4096, ("T", "O"), template_tokens=1, guidance="batched", prompts_apart=True, video=True,
    cells=Cells(32, 8), sound_per_second=25, scratch=("T64", "O64", "splits32_1024", "T*flash32_T", "O*narrow32_O_T"),
)  # fmt: skip
# LTX-2.3: every preview is guided, by forwards of one prompt behind that of both; text attention is modulated, so that gradients are summed
# over 1024 tokens of text in either stream; the widest norms of its VAE are of 1024 channels
LAYOUT_23 = replace(
    LAYOUT, always_guided=True, means=(("mean1024_T", "mean1024_W2"), ("mean1024_T",)),
    scratch=(*LAYOUT.scratch, "reduce4096_1024", "reduce2048_1024"), single_scratch=("T*flash16_T", "O*narrow16_O_T"),
)  # fmt: skip
# width, height, batch, caption words, frames, sound. Images and clips, short and long: attention works otherwise where tokens are few
BUCKETS = (
    (512, 512, 1, 20, 1), (768, 640, 1, 33, 81), (384, 608, 1, 12, 17), (256, 320, 1, 50, 9), (416, 352, 1, 27, 1),
    (288, 416, 1, 41, 17, 1), (512, 320, 1, 16, 25, 1), (352, 384, 1, 24, 9, 1), (736, 416, 1, 37, 97, 1),
    (288, 352, 2, 20, 1), (512, 448, 2, 31, 49), (384, 256, 3, 14, 9), (320, 288, 4, 44, 25), (448, 384, 2, 25, 9),
    (256, 288, 2, 38, 17, 1), (320, 352, 3, 18, 9, 1), (256, 416, 2, 29, 33, 1), (288, 320, 4, 47, 9, 1), (256, 288, 1, 22, 25),
    (416, 288, 3, 22, 1), (544, 352, 3, 19, 1), (384, 416, 4, 35, 1), (448, 288, 1, 28, 9), (448, 320, 2, 26, 41, 1),
)  # fmt: skip
SAMPLES = (
    (512, 512, 4.0, 9, 1), (640, 384, 4.0, 19, 25), (704, 448, 4.0, 14, 65), (448, 256, 4.0, 25, 9), (352, 608, 4.0, 11, 17),
    (320, 416, 1.0, 16, 17), (288, 352, 1.0, 21, 1), (416, 256, 1.0, 12, 9),
)  # fmt: skip
MORE_BUCKETS = (
    (480, 352, 1, 23, 1), (352, 288, 1, 35, 81), (320, 448, 1, 13, 25, 1), (416, 288, 1, 46, 9, 1), (640, 544, 1, 30, 65, 1),
    (352, 256, 2, 28, 9), (288, 288, 3, 17, 1), (320, 256, 2, 39, 17, 1), (256, 352, 3, 22, 25, 1),
)  # fmt: skip
MORE_SAMPLES = (
    (640, 352, 4.0, 22, 33), (416, 256, 4.0, 13, 9), (544, 320, 4.0, 17, 1), (512, 288, 4.0, 15, 49), (448, 352, 4.0, 20, 17),
    (288, 416, 1.0, 26, 17), (384, 256, 1.0, 15, 9), (256, 384, 1.0, 18, 25),
)  # fmt: skip
FEW_BUCKETS = ((256, 288, 1, 22, 9, 1), (288, 256, 1, 31, 1))
FEW_SAMPLES = ((256, 288, 4.0, 15, 9), (288, 256, 4.0, 12, 1))
MORE_MERGED = ((640, 352, 4.0, 22, 33), (416, 256, 4.0, 13, 9), (544, 320, 4.0, 17, 1), (288, 416, 1.0, 26, 17))
BRIEF = {"bf16": (FEW_BUCKETS, ()), "uint4": (FEW_BUCKETS, FEW_SAMPLES), "float8": (FEW_BUCKETS, FEW_SAMPLES)}
CONFIGURATIONS = {
    "LTX2VideoTransformer3DModel": "get_ltx2_transformer_config",
    "AutoencoderKLLTX2Video": "get_ltx2_video_vae_config",
    "AutoencoderKLLTX2Audio": "get_ltx2_audio_vae_config",
    "LTX2TextConnectors": "get_ltx2_connectors_config",
    "LTX2Vocoder": "get_ltx2_vocoder_config",
}

LTX2 = Architecture(
    {"name_or_path": "Lightricks/LTX-2", "arch": "ltx2"}, BUCKETS, SAMPLES, LAYOUT, weights=("bf16", "qfloat8", "float8", "uint4"),
    second=(MORE_BUCKETS, MORE_SAMPLES), brief=BRIEF, loads=("float8", "uint4"),
)  # fmt: skip
LTX23 = replace(
    LTX2, model={"name_or_path": f"Lightricks/LTX-2.3/{ONE_FILE}", "arch": "ltx2.3"}, layout=LAYOUT_23, relative="ltx2",
    left=("load.text", "text/"), text_only=True, fewer={"bf16": ((FEW_BUCKETS, SAMPLES), (FEW_BUCKETS, MORE_MERGED))},
)  # fmt: skip
ARCHITECTURES = {"ltx2": LTX2, "ltx2.3": LTX23}


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    if name not in CONFIGURATIONS:
        return None
    from extensions_built_in.diffusion_models.ltx2 import convert_ltx2_to_diffusers

    found: dict[str, Any] = getattr(convert_ltx2_to_diffusers, CONFIGURATIONS[name])(VERSION)[0]["diffusers_config"]
    return found


def transformers(name: str, place: str) -> dict[str, Any] | None:
    if name != "Gemma3ForConditionalGeneration":
        return None
    text = {
        "vocab_size": 262208, "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "sliding_window": 1024, "max_position_embeddings": 131072, "query_pre_attn_scalar": 256,
    }  # fmt: skip
    vision = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 896,
        "patch_size": 14,
    }  # fmt: skip
    return {"text_config": text, "vision_config": vision}


def stand_in(filename: str) -> dict[str, tuple[int, ...]] | None:
    """LTX-2.3's file holds nothing here: what is made of its parts is built from their configurations (`patch`)."""
    return {"nothing": (1,)} if filename == ONE_FILE else None


def _from_one_file(module: Any) -> None:
    """The converters of LTX-2.3's file, as `module` calls them, give models without weights."""
    import torch
    from diffusers.models.autoencoders import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
    from diffusers.models.transformers import LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
    from extensions_built_in.diffusion_models.ltx2 import convert_ltx2_to_diffusers

    from calibration.trainer.models import build

    def converter(cls: Any, getter: str) -> Any:
        def convert(_file: Any, version: str = ONE_FILE_VERSION, **_: Any) -> Any:
            known = getattr(convert_ltx2_to_diffusers, getter)(version)[0]["diffusers_config"]
            return build(lambda: cls(**known), torch.bfloat16, (), f"{ONE_FILE}: {cls.__name__}")

        return convert

    kinds = {"vocoder": LTX2VocoderWithBWE, "transformer": LTX2VideoTransformer3DModel, "connectors": LTX2TextConnectors}
    kinds |= {"video_vae": AutoencoderKLLTX2Video, "audio_vae": AutoencoderKLLTX2Audio}
    for what, cls in kinds.items():
        setattr(module, f"convert_ltx2_{what}", converter(cls, f"get_ltx2_{what}_config"))


def patch() -> None:
    """Whether a text's mask is all true is read from the device: the tokenizer's own mask stands in. And torchaudio, which is not there."""
    from extensions_built_in.diffusion_models.ltx2 import ltx2
    from extensions_built_in.diffusion_models.ltx2.ltx2 import LTX2Model

    from calibration.trainer import token_counts
    from calibration.trainer.patches import cuda_truth, note

    encode = LTX2Model.get_prompt_embeds

    def get_prompt_embeds(self: Any, prompt: Any) -> Any:
        with cuda_truth(all_is=lambda: bool(token_counts.LAST_MASK[0].all())):
            return encode(self, prompt)

    LTX2Model.get_prompt_embeds = get_prompt_embeds
    note("LTX-2: whether a text's mask is all true, by the tokenizer's host mask")
    _from_one_file(ltx2)
    ltx2_sound.install()
