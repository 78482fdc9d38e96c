"""What the trainer's OmniGen2 class does differently: its text encoder is loaded first, and previews may have a control image, or none.

Source: ostris/ai-toolkit 27a03a91, extensions_built_in/diffusion_models/omnigen2/__init__.py (load_model, condition_noisy_latents,
generate_single_image), src/pipelines/omnigen2/pipeline_omnigen2.py (__call__: what is larger than a megapixel is made as one).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from estimator.controls import CONTROLLED_PREVIEW
from estimator.job import Bucket, Sample
from estimator.operations import PREVIEW, MoveIn, MoveOut, Operation, Part, Release
from estimator.prompts import FittedControls, PromptsApart, TextFirst
from estimator.stays import PROMPTS_3B

ENCODER = "text_encoder0"
HELD = "control latents"  # a scope


class OmniGen2Plan(FittedControls, TextFirst, PromptsApart):
    """OmniGen2Model. With low_vram the transformer is quantised on the host."""

    waits = ENCODER

    def load_rest(self) -> Iterator[Operation]:
        if self.job.model.low_vram:
            yield from (MoveIn("transformer"), MoveIn(ENCODER))

    def _held(self, operations: Iterator[Operation]) -> Iterator[Operation]:
        """With cached text the trainer lets go of encoders by the names that other pipelines have, and this one's stays on the card
        (toolkit/unloader.py, unload_text_encoder: `text_encoder`; here it is `mllm`)."""
        return (one for one in operations if not (self.text_cached and one == MoveOut(ENCODER)))

    def prepare(self) -> Iterator[Operation]:
        yield from self._held(super().prepare())

    def enter_loop(self) -> Iterator[Operation]:
        yield from self._held(super().enter_loop())

    def condition(self, bucket: Bucket, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        """The model object holds a batch's control latents until the next batch's are made, or until it has none."""
        yield Release(HELD)
        yield from super().condition(bucket, values, HELD)

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        """With the text encoder unloaded prompts come from the host and stay, and a preview is otherwise what it is with prompts that it
        encodes: the pipeline, which is given the encoder, brings that to the card all the same."""
        for operation in super()._preview(sample, when):
            if isinstance(operation, Part) and operation.key == "preview.prompts":
                operation = replace(operation, key=PROMPTS_3B)
            elif isinstance(operation, Part) and operation.key.startswith(f"{PREVIEW}/"):
                part = CONTROLLED_PREVIEW if sample.controls else PREVIEW
                operation = replace(operation, key=part + operation.key.removeprefix(PREVIEW).replace("/cached", "/encoded", 1))
            yield operation
