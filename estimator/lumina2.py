"""What the trainer's StableDiffusion class does with Gemma-2 (Lumina-Image 2.0): presets of devices ask it for a weight (estimator.asked).

Source: ostris/ai-toolkit 27a03a91, toolkit/stable_diffusion_model.py (save_device_state, set_device_state_preset, generate_images).
"""

from __future__ import annotations

from collections.abc import Iterator

from estimator.asked import ASKED, BITS
from estimator.job import Dataset, Job
from estimator.operations import Begin, MoveIn, Operation, Part
from estimator.prompts import PromptsApart

OF_PREVIEWS = 2  # times in generate_images, which notes the state itself before it sets the preset that does so again


class Lumina2Plan(PromptsApart):
    """StableDiffusion with Gemma-2, which is asked for its weight wherever it is: on the host it takes nothing of the card."""

    def __init__(self, job: Job, encoders: tuple[str, ...]) -> None:
        super().__init__(job, encoders)
        self.legacy = True

    def _asked(self, times: int = 1) -> Iterator[Operation]:
        yield from [Part(f"{ASKED}/{self.te_weights}")] * (times if self.te_weights in BITS else 0)

    def _cache_latents(self, dataset: Dataset, home: dict[str, bool]) -> Iterator[Operation]:
        yield from _behind_begin(super()._cache_latents(dataset, home), self._asked() if home["text"] else iter(()))

    def _cache_text(self, dataset: Dataset, home: dict[str, bool]) -> Iterator[Operation]:
        yield from _behind_begin(super()._cache_text(dataset, home), self._asked())

    def sampling(self, when: str) -> Iterator[Operation]:
        asked = not self.text_away
        for operation in super().sampling(when):
            if asked and operation == MoveIn("vae"):
                yield from self._asked(OF_PREVIEWS)
                asked = False
            yield operation


def _behind_begin(operations: Iterator[Operation], more: Iterator[Operation]) -> Iterator[Operation]:
    for operation in operations:
        yield operation
        if isinstance(operation, Begin):
            yield from more
