"""Qwen-Image-Edit-2509 (`qwen_image_edit_plus`): Qwen-Image with control images, as tokens behind the image's and in the text encoder.

The transformer, its VAE and the adapter are Qwen-Image's to the last weight, and a control image is encoded by the function that caches
latents. So the programs of these are Qwen-Image's, with the tokens of all images for T; recorded here is what is its own: the text encoder
with its vision tower. That this holds is what the whole runs in docs/accuracy.md show.
"""

from __future__ import annotations

from typing import Any

from calibration.architectures import qwen
from calibration.architectures.base import Architecture

IMAGE_TOKEN = 151655
LEAST_PIXELS, MOST_PIXELS = 3136, 12_845_056  # of the published preprocessor_config.json

SQUARE, WIDE, TALL, PHONE = (1024, 1024), (1280, 720), (640, 960), (1200, 1600)
# (caption words, control images) of each text that the encoder is recorded with: one to three images, each at several lengths and shapes
TEXTS = (
    (12, (SQUARE,)), (70, (WIDE,)), (150, (TALL,)), (33, (PHONE,)),
    (25, (SQUARE, SQUARE)), (90, (WIDE, TALL)), (140, (PHONE, WIDE)), (7, (TALL, PHONE)),
    (40, (SQUARE, SQUARE, SQUARE)), (110, (WIDE, TALL, PHONE)), (15, (PHONE, PHONE, SQUARE)), (160, (TALL, TALL, WIDE)),
)  # fmt: skip
# Buckets of 2511 with a recovery adapter, of the first job and the second: what else there is has been seen with Qwen-Image's
RECOVERED = tuple(tuple(qwen.BUCKETS[n] for n in chosen) for chosen in ((0, 1, 2, 4, 5, 6, 8), (0, 1, 3, 4, 5, 7, 8)))
# 2511's transformer modulates token by token (zero_cond_t): what it trains on is Qwen-Image's class without control images, since a
# control image is tokens like the others. What it shares with 2509 (text encoder, VAE, adapter) is not recorded again.
ARCHITECTURES = {
    "qwen-image-edit-2509": Architecture(
        {"name_or_path": "Qwen/Qwen-Image-Edit-2509", "arch": "qwen_image_edit_plus"}, (), (), qwen.LAYOUT, relative="qwen-image",
        texts=TEXTS, own=("load.text", "text"),
    ),
    "qwen-image-edit-2511": Architecture(
        {"name_or_path": "Qwen/Qwen-Image-Edit-2511", "arch": "qwen_image"}, qwen.BUCKETS, qwen.SAMPLES, qwen.LAYOUT,
        relative="qwen-image-edit-2509", weights=("bf16", "qfloat8", "float8", qwen.RECOVERED, "uint4"), negatives=qwen.NEGATIVES,
        own=("step.core", "preview"), fewer={qwen.RECOVERED: ((RECOVERED[0], qwen.SAMPLES), (RECOVERED[1], qwen.SAMPLES))},
    ),
}


class Processor:
    """Stand-in for Qwen2VLProcessor: the real image processor; a placeholder in the text becomes as many tokens as the image has cells."""

    image_token = "<|image_pad|>"

    def __init__(self, path: Any) -> None:
        from transformers import Qwen2Tokenizer, Qwen2VLImageProcessor

        from calibration.trainer.token_counts import Tokenizer

        self.tokenizer = Tokenizer(Qwen2Tokenizer, path)
        self.image_processor = Qwen2VLImageProcessor(size={"shortest_edge": LEAST_PIXELS, "longest_edge": MOST_PIXELS})

    def __call__(self, text: Any = None, images: Any = None, **_: Any) -> Any:
        import torch

        from calibration.trainer import token_counts

        texts = [text] if isinstance(text, str) else list(text)
        encoded = self.tokenizer(texts, padding=True, return_tensors="pt")
        token_counts.LAST_IMAGES[:] = []
        if images is None:
            return encoded
        seen = self.image_processor(images=images, return_tensors="pt")
        cells = [height * width // 4 for _, height, width in seen["image_grid_thw"].tolist()]
        if len(cells) != sum(one.count(self.image_token) for one in texts):
            raise IndexError("as in the real one: another number of images than of placeholders")
        more = (sum(cells) - len(cells)) // len(texts)
        length = encoded["input_ids"].shape[1] + more
        ids = torch.ones(len(texts), length, dtype=torch.long)
        ids[:, qwen.EDIT_DROPPED_TOKENS : qwen.EDIT_DROPPED_TOKENS + sum(cells) // len(texts)] = IMAGE_TOKEN
        mask = torch.ones(len(texts), length, dtype=torch.long)
        token_counts.LAST_MASK[0] = mask.clone()
        token_counts.LAST_COUNTS[:] = [count + more for count in token_counts.LAST_COUNTS]
        token_counts.LAST_IMAGES[:] = cells
        return _encoding({"input_ids": ids, "attention_mask": mask, **seen})


def _encoding(data: dict[str, Any]) -> Any:
    """A batch whose grid stays on the host, because its values decide shapes."""
    from transformers import BatchEncoding

    class Encoding(BatchEncoding):
        def to(self, *a: Any, **k: Any) -> Any:
            grid = self.data.pop("image_grid_thw")
            super().to(*a, **k)
            self.data["image_grid_thw"] = grid
            return self

    return Encoding(data)


def diffusers(name: str, place: str) -> None:
    """Qwen-Image's."""


def transformers(name: str, place: str) -> None:
    """Qwen-Image's."""


def patch() -> None:
    """Image grids and lengths of attention windows are real ones, on the host; which tokens are valid as for Qwen-Image."""
    import torch
    import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl as modeling
    from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
    from transformers import Qwen2VLProcessor

    from calibration.trainer.patches import note

    for pipeline in (QwenImageEditPipeline, QwenImageEditPlusPipeline):
        qwen.patch_pipeline(pipeline)
    Qwen2VLProcessor.from_pretrained = classmethod(lambda _, path=None, *a, **k: Processor(path))
    modeling.torch_compilable_check = lambda *_, **__: None
    tower = modeling.Qwen2_5_VisionTransformerPretrainedModel
    real_index, real_unique, bounds = tower.get_window_index, torch.unique_consecutive, {}

    def get_window_index(self: Any, grid: Any) -> Any:
        index, bounds["host"] = real_index(self, grid)
        return index, bounds["host"]

    def unique_consecutive(x: Any, *a: Any, **k: Any) -> Any:
        on_device = torch.is_tensor(x) and x.is_cuda and "host" in bounds
        return real_unique(torch.tensor(bounds["host"], dtype=torch.int32) if on_device else x, *a, **k)

    tower.get_window_index, torch.unique_consecutive = get_window_index, unique_consecutive
    note("Qwen2.5-VL: image grids and lengths of windows on the host; the check that images and tokens match is off")
