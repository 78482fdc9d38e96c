"""Lumina-Image 2.0 as AI Toolkit trains it, in its StableDiffusion class: Gemma-2 2B as text encoder, FLUX's VAE.

Every prompt is encoded at 256 tokens, but only its words are joined to the picture: `X` are those. In a batch whose captions differ in
length, attention has a mask over the shorter ones: steps of their own (`step.core.uneven`), `X` being the longest. Previews stop where text
is cached, which a job without previews is for; where the text encoder is unloaded they go on.

Configuration: transformer/config.json of Alpha-VLLM/Lumina-Image-2.0, which is the class's default but for the text's width; Gemma-2 2B is
transformers' default.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.architectures import flux
from calibration.architectures.base import SAMPLED, WITH_ADAPTER, Architecture, Layout
from estimator.tokens import LUMINA2_MAX_TOKENS, LUMINA2_TEMPLATE_TOKENS

MARK = " <Prompt Start> "  # between the pipeline's system prompt and the prompt
LOAD = {
    "load.transformer": ("Loading Lumina2", "Loading transformer", "Quantizing transformer", "Loading vae"),
    "load.text": ("Loading Gemma2", "Quantizing Gemma2"),
    "load.rest": ("Making", "Preparing"),
}
HEADS, WIDTH = 24, 2304
MASKED = (f"splits{HEADS}_S", f"splits{HEADS}_256", "tiles64_S")
LAYOUT = Layout(
    LOAD, ("T", "X", "S", "S128", "T128", "S32"), WIDTH, ("T", "S"), LUMINA2_TEMPLATE_TOKENS, guidance="sequential", prompts_apart=True,
    sample_by_sample=True, unloaded_apart=True, scratch=MASKED,
)  # fmt: skip
# Of 1024 tokens at least: sums over fewer have no partial results. Behind a batch's size the words of its captions: of all, or of each
BUCKETS = (
    (512, 512, 1, 12), (784, 656, 1, 60), (1024, 1024, 1, 150), (1232, 816, 1, 30), (608, 624, 1, 100),
    (512, 512, 2, 40), (720, 976, 2, 90), (656, 432, 3, 15), (528, 752, 4, 25),
    (560, 544, 2, (70, 20)), (768, 592, 2, (9, 130)), (496, 640, 3, (30, 55, 5)), (640, 672, 4, (14, 45, 160, 3)),
)  # fmt: skip
MORE_BUCKETS = ((1120, 736, 1, 20), (640, 544, 2, 20), (864, 624, 3, 20), (480, 576, 4, 20))
CAPTIONED = (
    (576, 640, 1, 45), (896, 960, 1, 110), (688, 640, 2, 65), (544, 656, 3, 120),
    (624, 592, 2, (25, 80)), (960, 640, 2, (140, 33)), (544, 608, 3, (60, 7, 95)), (576, 512, 4, (22, 50, 11, 18)),
)  # fmt: skip
SAMPLES = (
    (512, 512, 4.0, 70), (768, 1152, 4.0, 9), (1024, 1024, 4.0, 140), (1344, 768, 1.0, 33), (576, 512, 1.0, 9), (768, 768, 1.0, 70),
)  # fmt: skip
MORE_SAMPLES = (
    (640, 976, 4.0, 20), (1344, 768, 4.0, 110), (896, 896, 4.0, 55), (1024, 1024, 1.0, 12), (528, 752, 1.0, 90), (608, 896, 4.0, 30),
)  # fmt: skip
UNCACHED = ((608, 608, 1, 20), (1120, 992, 1, 20), (672, 928, 1, 20))
NEGATIVES = (21, 0, 60, 5, 0, 3)  # words, of each preview
FEW = BUCKETS[:1]
LUMINA2 = Architecture(
    {"name_or_path": "Alpha-VLLM/Lumina-Image-2.0", "arch": "lumina2"}, BUCKETS, SAMPLES, LAYOUT,
    weights=("bf16", "float8", "uint4", "qfloat8"), second=(MORE_BUCKETS, MORE_SAMPLES), negatives=NEGATIVES,
    loads=("float8", "uint4"), brief={"bf16": (FEW, ()), "float8": (FEW, SAMPLES[:1]), "uint4": (FEW, SAMPLES[:1])},
    fewer={"bf16": ((FEW, SAMPLES), (FEW, MORE_SAMPLES))}, uncached=UNCACHED,
    caches_text=False, captioned=(CAPTIONED, ()),
)  # fmt: skip
# Of biases and of norms of the stream and of heads of 96 (8 of keys), of the picture, the text and both
WHOLE_SUMS = (
    *(f"norm{WIDTH}_{rows}" for rows in "TXS"), *(f"norm96_{heads}{rows}" for heads in (HEADS, 8) for rows in "TXS"),
    *(f"norm64_{rows}" for rows in "TS"),
)  # fmt: skip
WHOLE = replace(
    LUMINA2, relative="lumina2-aitk", own=(*WITH_ADAPTER, "step.core.uneven"), left=("preview", "step.update", "setup.network"),
    weights=("bf16",), beside="whole", train=SAMPLED, samples=SAMPLES[4:5], negatives=(), loads=(), brief={}, fewer={}, uncached=(),
    layout=replace(
        LAYOUT, lengths=(*LAYOUT.lengths, "X32", "X128"), reduced=("T", "X", "S"),
        scratch=(*MASKED, f"splits{HEADS}_X", "tiles64_X", *WHOLE_SUMS),
    ),
)  # fmt: skip
ARCHITECTURES = {"lumina2-aitk": LUMINA2, "lumina2-aitk-whole": WHOLE}


def diffusers(name: str, place: str) -> dict[str, Any] | None:
    if "lumina" not in place:
        return None
    return {"cap_feat_dim": WIDTH} if name == "Lumina2Transformer2DModel" else flux.VAE if name == "AutoencoderKL" else None


def transformers(name: str, place: str) -> dict[str, Any] | None:
    return {} if name == "Gemma2Model" and "lumina" in place else None


def template_tokens(text: str) -> tuple[int, int, str]:
    """(Tokens before the prompt, after it, the prompt alone) of a text as the pipeline begins it."""
    _, mark, prompt = text.partition(MARK)
    return (LUMINA2_TEMPLATE_TOKENS, 0, prompt) if mark else (0, 0, text)


def words_of(prompts: Any) -> Any:
    """Words of each prompt: of its mask, or of the object that holds it, which comes from a data loader's process with all it has."""
    mask = getattr(prompts, "attention_mask", None)
    return getattr(mask, "words", None) if hasattr(mask, "words") else getattr(prompts, "words", None)


def _marked(made: Any, words: Any) -> Any:
    if words is not None and made is not None:
        made.words = words
    return made


def _held(made: Any, words: Any) -> Any:
    _marked(made.attention_mask, words)
    return _marked(made, words)


def _embeddings() -> None:
    """How many words each prompt has goes with its mask, on the host, as far as the transformer: here through the trainer's objects."""
    from toolkit import prompt_utils

    embeds, on_disk = prompt_utils.PromptEmbeds, dict[str, Any]()
    save, load, joined = embeds.save, embeds.load.__func__, prompt_utils.concat_prompt_embeds

    def keeping(method: Any) -> Any:
        return lambda self: _held(method(self), words_of(self))

    def saved(self: Any, path: str) -> None:
        on_disk[path] = words_of(self)
        save(self, path)

    def loaded(cls: Any, path: str) -> Any:
        return _held(load(cls, path), on_disk.get(path))

    def concatenated(prompts: Any, *a: Any, **k: Any) -> Any:
        made, words = joined(prompts, *a, **k), [words_of(one) for one in prompts]
        return _held(made, [count for one in words for count in one]) if all(one is not None for one in words) else made

    embeds.save, embeds.load, embeds.clone, embeds.detach = saved, classmethod(loaded), keeping(embeds.clone), keeping(embeds.detach)
    _everywhere("concat_prompt_embeds", joined, concatenated)


def _masks() -> None:
    """The same through `.to`, and the pipeline's encode_prompt, which gives new masks for those that it is given."""
    import torch
    from diffusers import Lumina2Pipeline

    move, encode = torch.Tensor.to, Lumina2Pipeline.encode_prompt

    def to(self: Any, *a: Any, **k: Any) -> Any:
        return _marked(move(self, *a, **k), self.__dict__.get("words"))

    def encode_prompt(self: Any, *a: Any, prompt_attention_mask: Any = None, negative_prompt_attention_mask: Any = None, **k: Any) -> Any:
        from calibration.trainer import token_counts

        masks = {"prompt_attention_mask": prompt_attention_mask, "negative_prompt_attention_mask": negative_prompt_attention_mask}
        words = [getattr(one, "words", None) for one in masks.values()]
        prompt, mask, negative, other = encode(self, *a, **masks, **k)
        if prompt_attention_mask is None:  # encoded here: the tokenizer has counted them, the last time without cutting them
            token_counts.LAST_COUNTS[:] = [min(count, LUMINA2_MAX_TOKENS) for count in token_counts.LAST_COUNTS]
            words[0] = list(token_counts.LAST_COUNTS)
        return prompt, _marked(mask, words[0]), negative, _marked(other, words[1])

    torch.Tensor.to, Lumina2Pipeline.encode_prompt = to, encode_prompt


def _everywhere(name: str, real: Any, new: Any) -> None:
    """In all modules that hold the function."""
    import sys

    for module in list(sys.modules.values()):
        if vars(module).get(name) is real:  # not getattr: it would have lazy modules read what they hold
            setattr(module, name, new)


def _lengths() -> None:
    """The transformer reads how many words each prompt has back from the card, where all is 0."""
    import torch
    from diffusers.models.transformers import transformer_lumina2 as module

    positions, real = module.Lumina2RotaryPosEmbed.forward, torch.Tensor.tolist

    def forward(self: Any, hidden_states: Any, attention_mask: Any) -> Any:
        torch.Tensor.tolist = lambda one: list(attention_mask.words) if one.is_cuda else real(one)
        try:
            return positions(self, hidden_states, attention_mask)
        finally:
            torch.Tensor.tolist = real

    module.Lumina2RotaryPosEmbed.forward = forward


def patch() -> None:
    """Words of prompts, and the text encoder's class, which the trainer leaves to the checkpoint."""
    from toolkit import stable_diffusion_model as trainer
    from transformers import Gemma2Model

    from calibration.trainer.patches import note

    chosen = trainer.AutoModel.from_pretrained

    class Chosen:
        @staticmethod
        def from_pretrained(path: Any, *a: Any, **k: Any) -> Any:
            return Gemma2Model.from_pretrained(path, *a, **k) if "lumina" in str(path).lower() else chosen(path, *a, **k)

    trainer.AutoModel = Chosen
    _embeddings()
    _masks()
    _lengths()
    note("Lumina2: how many words a prompt has, by the tokenizer's count")
