"""LTX-2.5: LTX-2.3's models as the trainer's converter says, in files whose linear layers are int8 already (ConvRot), and Gemma-4 12B.

Sources: the converter's version 2.5 (no biases in the video's feed-forward, one embedding more, of [1, 4096]); the text encoder's
configuration as ports that read the published file's metadata state it (`gemma_config`): 48 layers, every sixth with one key of 512
that is the value too. What is quantised follows from the published files' sizes (docs/log.md, Video).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from calibration.architectures import ltx2
from calibration.architectures.base import Architecture

VERSION = "2.5"
QUANTISED = "convrot8"  # as the files come, whatever the config says
FILES = (
    "ltx-2.5-22b-dev-transformer-comfy-int8-convrot.safetensors", "gemma4-12b-with-proj-ltx-2.5-comfy-int8-convrot.safetensors",
    "ltx-2.5-video-vae-conv-bf16.safetensors", "ltx-2.5-audio-vae-bf16.safetensors",
)  # fmt: skip
MARKER = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}  # behind each quantised layer (comfy_quant_import.py)
TABLES = "scale_shift_table"  # in fp32: the file in bf16 is by so much larger than all of its tensors would be (docs/log.md)
KEYFRAMES = "keyframes_abs_pos_embedding"
GEMMA = {
    "vocab_size": 262144, "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16,
    "num_key_value_heads": 8, "num_global_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512, "attention_k_eq_v": True,
    "sliding_window": 1024, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision",
}  # fmt: skip
LOAD = {
    "load.transformer": (
        "Loading LTX-2.5", "Loading transformer", "- attached 1344", "Transformer is pre-quantized", "Moving transformer",
        "Loading connectors", "- attached 96",
    ),
    "load.text": ("Loading text encoder", "- attached 328", "Text encoder is pre-quantized"),
    "load.rest": ("Loading VAEs", "Making", "Preparing", "Model Loaded"),
}  # fmt: skip

# Rows of int8 products are padded to 32: of both prompts together in a guided preview's first forward, of one alone in the others
LAYOUT = replace(ltx2.LAYOUT_23, load=LOAD, int8_rows=True, single_scratch=(*ltx2.LAYOUT_23.single_scratch, "T32", "O32"))

LEFT = ("latents", "encode.", "decode", "step.head/")  # of the VAE: as recorded, LTX-2.3's

# Of both jobs fewer than of LTX-2.3's: VAE and tiles are that one's
FIRST = (tuple(ltx2.BUCKETS[k] for k in (0, 2, 5, 8, 9, 11, 14, 15, 1, 16)), tuple(ltx2.SAMPLES[k] for k in (0, 2)))
SECOND = (tuple(ltx2.MORE_BUCKETS[k] for k in (0, 1, 3, 5, 6, 7)), tuple(ltx2.MORE_SAMPLES[k] for k in (0, 1, 3)))

LTX25 = replace(
    ltx2.LTX23, model={"name_or_path": "Lightricks/LTX-2.5", "arch": "ltx2.5"}, buckets=FIRST[0], samples=FIRST[1], relative="ltx2.3",
    weights=(QUANTISED,), second=SECOND, layout=LAYOUT, left=LEFT, text_only=False, vae_only=True,
)  # fmt: skip
ARCHITECTURES: dict[str, Architecture] = {"ltx2.5": LTX25}


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    return None


def transformers(name: str, place: str) -> dict[str, Any] | None:
    return None


def stand_in(filename: str) -> dict[str, tuple[int, ...]] | None:
    """The files hold nothing here: what is made of them is built from configurations (`patch`)."""
    return {"nothing": (1,)} if filename in FILES else None


def stored(module: Any, quantised: Callable[[str], bool]) -> dict[str, Any]:
    """What the file holds of a module, untouched: int8 weights, scales in fp32 and a marker of each quantised layer, all else in bf16 but
    for the tables of modulation, which are in fp32 until the trainer brings the transformer to its type (BaseSDTrainProcess.run)."""
    import torch

    marker = torch.tensor(list(json.dumps(MARKER).encode()), dtype=torch.uint8)
    out: dict[str, Any] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear) and quantised(name):
            out[f"{name}.weight"] = torch.empty(layer.weight.shape, dtype=torch.int8)
            out[f"{name}.weight_scale"] = torch.empty(layer.out_features, 1, dtype=torch.float32)
            out[f"{name}.comfy_quant"] = marker
    for name, tensor in module.state_dict().items():
        out.setdefault(name, torch.empty(tensor.shape, dtype=torch.float32 if name.endswith(TABLES) else torch.bfloat16))
    return out


def in_blocks(name: str) -> bool:
    """Of transformer and connectors: all linear layers of their blocks but for the gates' logits."""
    return "transformer_blocks." in name and not name.endswith("to_gate_logits")


def _converters(module: Any, built: Any) -> None:
    """`module`'s converters of the transformer and the connectors: real ones on what the files would hold."""
    import torch
    from accelerate import init_empty_weights
    from extensions_built_in.diffusion_models.ltx2 import convert_ltx2_to_diffusers as real

    def transformer(file: Any, version: str = VERSION, load: bool = True) -> Any:
        if load:
            return built["transformer"](file, version=version)
        model, _ = real.convert_ltx2_transformer({KEYFRAMES: torch.empty(1, 4096, device="meta")}, version=version, load=False)
        return model, stored(model, in_blocks)

    def connectors(file: Any, version: str = VERSION, load: bool = True) -> Any:
        if load:
            return built["connectors"](file, version=version)
        with init_empty_weights():
            model = module.LTX2TextConnectors.from_config(real.get_ltx2_connectors_config(version)[0]["diffusers_config"])
        return model, stored(model, in_blocks)

    module.convert_ltx2_transformer, module.convert_ltx2_connectors = transformer, connectors


def _text_encoder(model: Any, *_: Any) -> tuple[Any, int]:
    """Gemma-4's decoder, all of whose linear layers are quantised."""
    from accelerate import init_empty_weights
    from transformers import Gemma4TextConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextModel

    with init_empty_weights():
        encoder = Gemma4TextModel(Gemma4TextConfig(**GEMMA))
    return encoder, model._load_quantized_module(encoder, stored(encoder, lambda _: True), "text encoder")


def patch() -> None:
    """Files without weights, and a stand-in tokenizer. Behind the family's own, whose converters it goes on from."""
    from extensions_built_in.diffusion_models.ltx2 import ltx2 as module
    from transformers import GemmaTokenizerFast

    from calibration.trainer.patches import note
    from calibration.trainer.token_counts import Tokenizer

    _converters(module, {"transformer": module.convert_ltx2_transformer, "connectors": module.convert_ltx2_connectors})
    model = module.LTX25Model
    model._load_gemma4_text_encoder = _text_encoder
    model._load_gemma4_tokenizer = lambda *_: Tokenizer(GemmaTokenizerFast, FILES[1])
    note("LTX-2.5: transformer, connectors and text encoder built from configurations, int8 weights and scales as in its files")
