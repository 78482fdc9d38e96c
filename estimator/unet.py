"""What the trainer's StableDiffusion class does with UNets (Stable Diffusion XL, 1.5): components come whole, and unquantised.

Source: ostris/ai-toolkit 27a03a91, toolkit/stable_diffusion_model.py (load_model, generate_images). Of the numbers of places of a UNet's
levels see estimator.features (`levels`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from estimator.dtypes import FP16
from estimator.job import Job, Sample
from estimator.levels import UNMERGED
from estimator.operations import PREVIEW, Begin, End, Operation, Part, Recast
from estimator.prompts import PromptsApart
from estimator.sizes import sizes_of

FP32_TIMES = 2  # as many bytes as in the types that profiles are recorded in


class UNetPlan(PromptsApart):
    """Text encoders come first, then the VAE, then the UNet. `quantize` leaves the weights as they are, but previews are made then with the
    adapter beside them."""

    def __init__(self, job: Job, encoders: tuple[str, ...]) -> None:
        super().__init__(job, encoders)
        self.legacy = True

    def encode_batch(self, values: Mapping[str, int], scope: str) -> Iterator[Operation]:
        """With an adapter on the text encoder too prompts are encoded with a graph, which is there until the backward pass is over."""
        if self.job.network is not None and self.job.network.texted:
            yield self.encode(values["X"], scope, values["B"], graph=True)
        else:
            yield from super().encode_batch(values, scope)

    def load(self) -> Iterator[Operation]:
        yield Begin("load", "text encoder")
        yield self.load_text()
        yield End()
        yield Begin("load", "the rest")
        yield Part(f"load.rest/{self.weights}/{self.low}")
        yield End()
        yield Begin("load", "transformer")
        yield Part(f"load.transformer/{self.weights}/{self.low}")
        yield End()

    def sampling(self, when: str) -> Iterator[Operation]:
        for operation in super().sampling(when):
            if not self.job.model.merges and isinstance(operation, Part) and operation.key.startswith("sample."):
                operation = replace(operation, key=operation.key.replace(f"/{self.weights}/", f"/{UNMERGED}/", 1))
            yield operation

    def _preview(self, sample: Sample, when: str) -> Iterator[Operation]:
        for operation in super()._preview(sample, when):
            if isinstance(operation, Part) and operation.key.startswith(f"{PREVIEW}/"):
                key, values = operation.key, {**operation.values, **sizes_of(self.arch, sample)}
                if not self.job.model.merges:
                    key = key.replace(f"/{self.weights}/", f"/{UNMERGED}/", 1).removesuffix(f"/{when}")
                operation = replace(operation, key=key, values=values)
            yield operation

    def _decode(self, values: dict[str, int]) -> Iterator[Operation]:
        """XL's pipeline brings the VAE to fp32 for it, and back (toolkit/pipelines.py: needs_upcasting)."""
        if not (self.arch.decodes_in_fp32 and self.job.model.dtype == FP16):
            yield from super()._decode(values)
            return
        yield Recast("vae", FP32_TIMES)
        yield from super()._decode(values)
        yield Recast("vae", 1)
