"""Estimated token counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.tokens import MAX_TEXT_TOKENS, qwen3_chat_tokens, qwen_image_tokens, word_tokens

FOX = "a photo of a red fox standing in fresh snow at the edge of a pine forest, soft morning light, detailed fur"
CHESS = "woman with red hair, playing chess at the park, bomb going off in the background"


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("red fox", 2), (FOX, 25), ("background standing", 3), ("<tag> x", 2)])
def test_words_and_marks_are_counted(text: str, tokens: int) -> None:
    assert word_tokens(text) == tokens


@pytest.mark.parametrize(("prompt", "tokens"), [("", 9), (FOX, 35), (CHESS, 27)])
def test_the_chat_template_counts(prompt: str, tokens: int) -> None:
    """The counts that the stand-in tokenizer of the recordings gives for these prompts in the pipeline's template."""
    assert qwen3_chat_tokens(prompt) == tokens


@pytest.mark.parametrize(("prompt", "tokens"), [("", 5), (FOX, 30), (CHESS, 23), ("fox " * 2000, 1024)])
def test_of_qwen_images_template_only_the_end_counts(prompt: str, tokens: int) -> None:
    """The end of a turn and the opening of the assistant's: 5 tokens. The 34 in front are dropped; the text is cut at 1024."""
    assert qwen_image_tokens(prompt) == tokens


def test_sentences_without_spaces_are_not_one_token() -> None:
    assert word_tokens("一只红色的狐狸站在雪地里") == 12


@given(st.text())
def test_a_prompt_is_cut_at_the_maximum_and_never_empty(prompt: str) -> None:
    assert 0 < qwen3_chat_tokens(prompt) <= MAX_TEXT_TOKENS


@given(st.lists(st.sampled_from(["fox", "snow", "standing", "light,"]), max_size=100), st.sampled_from(["red", "beautiful", "."]))
def test_more_words_are_never_fewer_tokens(words: list[str], more: str) -> None:
    assert word_tokens(" ".join(words)) <= word_tokens(" ".join([*words, more]))
