"""What the extraction has to know of an architecture: its loader's status texts, its text lengths, its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FLUX_TEXT_TOKENS = 512  # T5, padded to max_length (toolkit/stable_diffusion_model.py, get_prompt_embeds)
ZIMAGE_TEMPLATE_TOKENS = 9  # chat template of the pipeline, as the stand-in tokenizer counts it

FLUX_LOAD = {
    "load.transformer": ("Loading Flux", "Loading transformer", "Quantizing transformer", "Loading VAE"),
    "load.text": ("Loading T5", "Quantizing T5"),
    "load.rest": ("Loading CLIP", "Making", "Preparing"),
}
ZIMAGE_LOAD = {
    "load.transformer": (
        "Loading ZImage", "Loading transformer", "Loading assistant", "Merging", "Quantizing Transformer", "- quantizing", "Moving",
    ),
    "load.text": ("Text Encoder", "Quantizing Text"),
    "load.rest": ("Loading VAE", "Making", "Preparing", "Model Loaded"),
}  # fmt: skip
FLUX_LENGTHS, ZIMAGE_LENGTHS = ("T", "S", "S128"), ("T32", "X32", "Z", "Z128", "T", "X")


@dataclass(frozen=True)
class Layout:
    """`load`: part -> status texts. `lengths`: sequence lengths that sizes depend on. `width`: of the transformer's stream."""

    load: dict[str, tuple[str, ...]]
    lengths: tuple[str, ...]
    width: int
    padded_text: bool

    def caption_tokens(self, words: int) -> int:
        """Text tokens of a probe job's caption of so many words (each is one token of the stand-in tokenizer)."""
        return FLUX_TEXT_TOKENS if self.padded_text else words + ZIMAGE_TEMPLATE_TOKENS

    def features(self, key: str) -> tuple[str, ...]:
        """Candidate features of a part, the likelier first."""
        kind = key.split("/")[0]
        if kind.startswith("load") or kind == "step.end":
            return ("1",)
        if kind in ("setup.network", "setup.ema", "step.update", "step.ema", "save", "sample.enter", "sample.leave"):
            return ("1", "r")
        if kind.startswith(("text", "cache_text")):
            return ("1", "B", "B*X") if key.endswith("/many") else ("1", "X")
        if kind == "cache_latents.item":
            return ("1", "T", "E", "L32")
        many = key.endswith("/many")
        single = (*self.lengths, "E", "L32", *(f"r*{length}" for length in self.lengths), *self._reductions())
        if not many:
            return ("1", "r", *single)
        return ("1", "B", "r", "B*r", *(f"B*{name}" for name in single), *single)

    def _reductions(self) -> tuple[str, ...]:
        over = ("T", "X", "S") if self.padded_text else ("Z", "T32", "X32")
        return tuple(f"reduce{self.width}_{length}" for length in over)


FLUX = Layout(FLUX_LOAD, FLUX_LENGTHS, 3072, True)
ZIMAGE = Layout(ZIMAGE_LOAD, ZIMAGE_LENGTHS, 3840, False)
# An architecture with the same text encoder and VAE: its recordings of them serve where an own one is lacking (text encoder
# and transformer may be quantised differently, and not every pair was recorded).
RELATIVES = {"zimage-turbo": "zimage", "flux1-schnell": "flux1-dev", "flex1": "flux1-dev"}
LAYOUTS = {"flux1-dev": FLUX, "flux1-schnell": FLUX, "flex1": FLUX, "zimage": ZIMAGE, "zimage-turbo": ZIMAGE}


def words_of(text: Any) -> int:
    return len(str(text).split())
