"""Stand-in adapter files, all zero and sparse: the training adapters that AI Toolkit downloads for FLUX.1-schnell and Z-Image Turbo, and
the accuracy recovery adapters of Qwen-Image, Qwen-Image-Edit and Wan 2.2 14B.

`CUDA_PYTHON -m calibration.trainer.adapters FOLDER`. The rank of each is assumed (the files themselves are not at hand; of the recovery
adapters their author names rank 16, for Qwen-Image: README of the hub's ostris/accuracy_recovery_adapters):
a real file of another rank moves the resident adapter in proportion, a recovery adapter's gradients too, and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ASSUMED_RANK = {"zimage-turbo": 32, "flux1-schnell": 16, "qwen-image": 16, "wan22-14b": 16}
ELEMENT_BYTES = 2  # bf16


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros that takes no disk. Other runs may look for it meanwhile: it appears as a whole."""
    offset, header = 0, {}
    for name, shape in shapes.items():
        size = ELEMENT_BYTES * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_suffix(f".{os.getpid()}")
    with unfinished.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    unfinished.rename(path)
    print(path.name, len(shapes), "tensors", offset, "bytes")


def lora_shapes(cls: Any, blocks: tuple[str, ...], rank: int, prefix: str) -> dict[str, tuple[int, int]]:
    """Names and shapes of a LoRA on every linear layer inside `blocks`."""
    import accelerate
    import torch

    with accelerate.init_empty_weights():
        model = cls()
    out = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith(blocks):
            out[f"{prefix}{name}.lora_A.weight"] = (rank, module.in_features)
            out[f"{prefix}{name}.lora_B.weight"] = (module.out_features, rank)
    return out


def main(folder: Path) -> None:
    import diffusers

    folder.mkdir(parents=True, exist_ok=True)
    turbo = lora_shapes(diffusers.ZImageTransformer2DModel, ("layers",), ASSUMED_RANK["zimage-turbo"], "diffusion_model.")
    write_sparse(folder / "zimage_turbo_training_adapter_v2.safetensors", turbo)
    blocks = ("transformer_blocks", "single_transformer_blocks")
    schnell = lora_shapes(diffusers.FluxTransformer2DModel, blocks, ASSUMED_RANK["flux1-schnell"], "transformer.")
    write_sparse(folder / "pytorch_lora_weights.safetensors", schnell)
    qwen = lora_shapes(diffusers.QwenImageTransformer2DModel, ("transformer_blocks",), ASSUMED_RANK["qwen-image"], "transformer.")
    for name in ("qwen_image", "qwen_image_edit", "qwen_image_edit_2509", "qwen_image_edit_2511"):  # of the same layers
        write_sparse(folder / f"{name}_torchao_uint3.safetensors", qwen)
    wan = {}
    for expert in ("transformer_1", "transformer_2"):  # one file for both, by the names of the trainer's class around them
        wan |= lora_shapes(diffusers.WanTransformer3DModel, ("blocks",), ASSUMED_RANK["wan22-14b"], f"transformer.{expert}.")
    for name in ("t2i", "i2v"):
        write_sparse(folder / f"wan22_14b_{name}_torchao_uint4.safetensors", wan)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
