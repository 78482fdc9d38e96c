"""What the trainer's HiDream-I1 class does differently: Llama is loaded first, all four text encoders end on the card, low_vram or not.

Source: ostris/ai-toolkit 27a03a91, extensions_built_in/diffusion_models/hidream/hidream_model.py (load_model, get_prompt_embeds).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from estimator.features import image_values
from estimator.job import Bucket, Sample
from estimator.operations import CORE, PREVIEW, MoveIn, MoveOut, Operation, Part
from estimator.padded import PADDED_CORE, PADDED_PREVIEW, is_square
from estimator.prompts import PromptsApart, TextFirst

LLAMA = "text_encoder3"  # the only encoder that leaves the card while others are loaded


class HiDreamPlan(TextFirst, PromptsApart):
    """HidreamModel. With low_vram the transformer, quantised on the card, waits on the host like Llama."""

    waits = LLAMA

    def load_rest(self) -> Iterator[Operation]:
        yield Part(f"load.text.t5/{self.te_weights}")
        if self.job.model.low_vram:  # its layers' scales of inputs and outputs, made on the host, come at the end of that part
            yield from (MoveOut(LLAMA), MoveIn("transformer"), MoveIn(LLAMA))
        yield Part(f"load.rest/{self.weights}/{self.low}")

    def core(self, bucket: Bucket) -> str:
        return CORE if is_square(image_values(bucket.width, bucket.height)) else PADDED_CORE

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        for operation in super()._preview(sample, when):
            if isinstance(operation, Part) and operation.key.startswith(f"{PREVIEW}/") and not is_square(operation.values):
                operation = replace(operation, key=PADDED_PREVIEW + operation.key.removeprefix(PREVIEW))
            yield operation
