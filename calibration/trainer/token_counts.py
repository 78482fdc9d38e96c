"""Stand-in tokenizers: token counts grow with the text, every id is 1. Only lengths matter to memory."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import BatchEncoding

from calibration.architectures import lumina2, qwen

LAST_MASK: list[Any] = [None]  # host copy of the newest attention mask, for shapes that depend on it
LAST_COUNTS: list[int] = []  # valid tokens of each text of the newest call, without what the pipeline drops of its template
LAST_IMAGES: list[int] = []  # text tokens that each image of the newest call became


def count_tokens(text: str) -> int:
    """Tags, words and marks are one token each, every second long word (7 letters and more) two; known templates as they really count."""
    before, after, text = qwen.template_tokens(text)
    began, _, text = lumina2.template_tokens(text)
    return before + began + after + len(re.findall(r"<[^>]*>|\w+|[^\w\s]", text)) + len(re.findall(r"\w{7,}", text)) // 2


class Tokenizer:
    """What the trainer and its pipelines ask of a tokenizer."""

    model_max_length = 512
    bos_token_id, eos_token_id, pad_token_id, unk_token_id = 0, 1, 0, 2
    pad_token, eos_token, bos_token = "<pad>", "</s>", "<s>"
    padding_side = "right"

    def __init__(self, cls: Any = None, path: Any = None) -> None:
        self.kind = cls.__name__ if cls else ""
        self.name_or_path = str(path)
        if "CLIP" in self.kind:
            self.model_max_length = 77
        self.special = 2 if "CLIP" in self.kind else 1 if "T5" in self.kind or "Gemma" in self.kind else 0

    def __len__(self) -> int:
        return 32000

    def __call__(
        self, text: Any = None, padding: Any = False, max_length: Any = None, truncation: Any = False, return_tensors: Any = None, **_: Any
    ) -> Any:
        texts = [text] if isinstance(text, str) else list(text)
        counts = [max(count_tokens(t) + self.special, 1) for t in texts]
        if truncation and max_length:
            counts = [min(n, max_length) for n in counts]
        length = max_length if padding == "max_length" and max_length else max(counts)
        ids = torch.ones(len(texts), length, dtype=torch.long)
        mask = torch.zeros(len(texts), length, dtype=torch.long)
        for row, count in enumerate(counts):
            mask[row, :count] = 1
        if "CLIP" in self.kind:
            ids[:, -1] = 49407
        LAST_MASK[0] = mask.clone()
        LAST_COUNTS[:] = [count - qwen.template_tokens(one)[0] for count, one in zip(counts, texts, strict=True)]
        if return_tensors != "pt":
            return BatchEncoding({"input_ids": ids.tolist(), "attention_mask": mask.tolist()})
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def apply_chat_template(self, messages: Any, tokenize: bool = False, add_generation_prompt: bool = False, **_: Any) -> Any:
        def one(turns: Any) -> str:
            text = "".join(f"<|im_start|>{turn['role']} <nl> {turn['content']} <|im_end|> <nl> " for turn in turns)
            return text + ("<|im_start|>assistant <nl> " if add_generation_prompt else "")

        assert not tokenize
        return [one(turns) for turns in messages] if isinstance(messages[0], list) else one(messages)

    def encode(self, text: str, **_: Any) -> list[int]:
        return [1] * max(1, count_tokens(text))

    def tokenize(self, text: str) -> list[str]:
        return ["x"] * count_tokens(text)

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        return ["x"] * len(rows)

    def decode(self, *_: Any, **__: Any) -> str:
        return "x"

    def save_pretrained(self, *_: Any, **__: Any) -> None: ...


def pretrained(cls: Any, path: Any = None, *_: Any, **__: Any) -> Tokenizer:
    return Tokenizer(cls, path)


def cached_tokens(batch: Any) -> list[int] | None:
    """Text tokens of each item whose embedding comes from the cache; None where the step encodes (its `encode_prompt` says them)."""
    prompts = getattr(batch, "prompt_embeds", None)
    embeds, words = getattr(prompts, "text_embeds", None), lumina2.words_of(prompts)
    if embeds is None or words is not None:  # padded, of which the transformer gets the words
        return words  # type: ignore[no-any-return]
    return [int(one.shape[-2]) for one in embeds]
