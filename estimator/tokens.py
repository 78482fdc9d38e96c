"""How many text tokens a caption or prompt becomes, without a tokenizer.

FLUX pads its T5 text to 512 tokens whatever is written, so nothing is estimated there. Z-Image hands only the valid tokens of Qwen3 to
the transformer, and Qwen-Image those of Qwen2.5-VL: their number moves the sequence length. The count here is a count of words and marks;
against real tokenizers it is off by about 20 % of the text (English), which is some 10 to 30 tokens beside the 1,024 to 4,096 of an image.

Written so that the recordings, whose tokenizer stand-in (calibration/trainer/token_counts.py) counts this way too, have equal lengths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_TEXT_TOKENS = 512  # max_sequence_length of both pipelines: FLUX pads to it, Z-Image cuts at it (diffusers c9438378)

QWEN_IMAGE_END_TOKENS = 5  # <|im_end|>, a line break, <|im_start|>, assistant, a line break
QWEN_IMAGE_MAX_TOKENS = 1024  # tokenizer_max_length of the pipeline
OMNIGEN2_TEMPLATE_TOKENS, OMNIGEN2_MAX_TOKENS = 2 * 25, 256
LUMINA2_TEMPLATE_TOKENS, LUMINA2_MAX_TOKENS = 31, 256  # <bos>, the system prompt (26 words and marks), " <Prompt Start> " (4)
GEMMA_BEGIN_TOKENS = 1  # <bos>
GEMMA_MAX_TOKENS = 1024  # max_length of LTX2Model.get_prompt_embeds (ostris/ai-toolkit 27a03a91)

_PIECE = r"<[^>]*>|\w+|[^\w\s]"  # compiled, and kept by `re`, when a text is first counted: many models pad theirs
_LONG_WORD = r"\w{7,}"
# Kana, Han and Hangul have no spaces between words: the word count would see a sentence as one token. One token per character is the
# high side of what Qwen's tokenizer makes of them (a token often covers one to two characters).
_CJK = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"


def word_tokens(text: str) -> int:
    """Estimated tokens of a text: one per tag, word and mark, one more for every second word of 7 letters or more, one per CJK character.

    >>> word_tokens("a photo of a red fox, detailed fur")
    9
    """
    cjk = 0
    if not text.isascii():
        cjk = len(re.findall(_CJK, text))
        text = re.sub(_CJK, " ", text)
    return len(re.findall(_PIECE, text)) + len(re.findall(_LONG_WORD, text)) // 2 + cjk


def qwen3_chat_tokens(prompt: str) -> int:
    """Estimated tokens of a prompt in Qwen3's chat template, as Z-Image's pipeline builds it (one user turn, the assistant's turn opened).

    The template adds 8 tokens (source: ZImagePipeline._encode_prompt; <nl> stands for a line break, a token of its own). Cut at 512.
    """
    text = f"<|im_start|>user <nl> {prompt} <|im_end|> <nl> <|im_start|>assistant <nl> "
    return min(word_tokens(text), MAX_TEXT_TOKENS)


def qwen_image_tokens(prompt: str) -> int:
    """Estimated tokens of a prompt as Qwen-Image's transformer gets it: of the template around it only the end is kept.

    That is 5 tokens, and a text is cut at 1024 (source: QwenImagePipeline._get_qwen_prompt_embeds, diffusers c9438378).
    """
    return min(word_tokens(prompt) + QWEN_IMAGE_END_TOKENS, QWEN_IMAGE_MAX_TOKENS)


def qwen_edit_tokens(prompt: str, cells: Sequence[int]) -> int:
    """Estimated tokens of a prompt with control images of so many cells each, as Qwen-Image-Edit's transformer gets it; nothing is cut.

    Each image stands before the prompt as "Picture 1: <|vision_start|><|image_pad|><|vision_end|>", its placeholder as long as it has
    cells (source: QwenImageEditPlusPipeline._get_qwen_prompt_embeds, diffusers c9438378).
    """
    pictures = "".join(f"Picture {number}: <|vision_start|><|image_pad|><|vision_end|>" for number in range(1, len(cells) + 1))
    return word_tokens(pictures + prompt) + sum(cells) - len(cells) + QWEN_IMAGE_END_TOKENS


def qwen_first_edit_tokens(prompt: str, cells: Sequence[int]) -> int:
    """The same of the first Qwen-Image-Edit, whose template has one placeholder before the prompt: without a picture it is one token.

    Source: QwenImageEditPipeline.prompt_template_encode, of which the first 64 tokens are dropped (diffusers c9438378).
    """
    text = f"<|vision_start|><|image_pad|><|vision_end|>{prompt}"
    return word_tokens(text) + sum(cells) - len(cells) + QWEN_IMAGE_END_TOKENS


def gemma_tokens(prompt: str) -> int:
    """Estimated tokens of a prompt as Gemma-3 gets it: one before the text, and at most 1024 (source: LTX2Model.get_prompt_embeds)."""
    return min(word_tokens(prompt.strip()) + GEMMA_BEGIN_TOKENS, GEMMA_MAX_TOKENS)


def omnigen2_tokens(prompt: str) -> int:
    """Estimated tokens of a prompt as OmniGen2 gets it, cut at 256, beginning included.

    Qwen2.5's chat template, with a system prompt, is applied by the trainer and again by the pipeline: 25 tokens each time (source:
    OmniGen2Model.get_prompt_embeds and OmniGen2Pipeline.encode_prompt, _get_qwen2_prompt_embeds, ostris/ai-toolkit 27a03a91).
    """
    return min(word_tokens(prompt) + OMNIGEN2_TEMPLATE_TOKENS, OMNIGEN2_MAX_TOKENS)


def lumina2_tokens(prompt: str) -> int:
    """Estimated tokens of a prompt that Lumina2 joins to a picture, of the 256 that it is padded to and cut at, beginning included.

    Before the prompt stands the pipeline's system prompt, 30 tokens of Gemma-2's by hand with " <Prompt Start> ", and <bos> (source:
    Lumina2Pipeline.encode_prompt, diffusers c9438378; ostris/ai-toolkit 27a03a91, stable_diffusion_model.py: max_sequence_length).
    """
    return min(word_tokens(prompt) + LUMINA2_TEMPLATE_TOKENS, LUMINA2_MAX_TOKENS)


# By the name that profiles/archs.yaml uses
TEMPLATES = {
    "qwen3_chat": qwen3_chat_tokens, "qwen_image": qwen_image_tokens, "gemma": gemma_tokens, "omnigen2": omnigen2_tokens,
    "lumina2": lumina2_tokens,
}  # fmt: skip
# Of prompts that control images are part of
IMAGE_TEMPLATES = {"qwen_image_edit": qwen_edit_tokens, "qwen_image_first_edit": qwen_first_edit_tokens}
