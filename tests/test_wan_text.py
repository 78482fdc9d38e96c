"""Prompts of Wan: what is made of one behind its encoder, and what stays of the first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from estimator.operations import Copy, Part, Release
from estimator.plans import before_steps, plan_of
from estimator.program import ALLOCATE
from estimator.programs import load_profile
from estimator.wan_text import PADDED_TEXT
from tests.made_jobs import job

WORD_BYTES, PROMPT_BYTES = 8192, 512 * 8192


@pytest.mark.parametrize("key", ["text/bf16/plain/one", "text/qfloat8/plain/one"])
def test_a_prompt_is_padded_stacked_and_repeated_before_what_the_encoder_gave_is_all_gone(key: str) -> None:
    """The order is that of `wan5b-offload-half-b2`'s events. Was: the last of the four alone."""
    recorded, padded = (load_profile("wan21-1.3b").program(f"{key}{ending}") for ending in ("", PADDED_TEXT))
    sizes, made = padded.sizes({"X": 512, "B": 1}), padded.events == ALLOCATE
    end = [(bool(born), int(sizes[k])) for born, k in zip(made, padded.tensor_of_event, strict=True)][-8:]
    assert end == [
        (True, PROMPT_BYTES - WORD_BYTES), (True, PROMPT_BYTES), (False, PROMPT_BYTES - WORD_BYTES), (True, PROMPT_BYTES),
        (False, PROMPT_BYTES), (False, PROMPT_BYTES), (True, PROMPT_BYTES), (False, PROMPT_BYTES),
    ]  # fmt: skip
    assert sizes[list(padded.exported)].tolist() == recorded.sizes({"X": 512, "B": 1})[list(recorded.exported)].tolist()
    assert len(padded.names) == len(recorded.names) + 3
    assert np.cumsum(np.where(made, 1, -1)).min() >= 0


@pytest.mark.parametrize("cached", [False, True])
def test_the_first_prompt_stays_as_a_copy_and_a_previews_goes_before_the_next(cached: bool) -> None:
    one = job("wan21-1.3b")
    one = replace(one, train=replace(one.train, cache_text_embeddings=cached))
    operations = list(before_steps(plan_of(one, load_profile("wan21-1.3b"))))
    encodes = [(n, op.scope) for n, op in enumerate(operations) if isinstance(op, Part) and op.key.startswith("text/")]
    first, *later = [(n, scope) for n, scope in encodes if scope in ("embeddings", "prompt")]
    assert operations[first[0] + 1 : first[0] + 3] == [Copy("embeddings", "job"), Release("embeddings")]
    assert all(operations[n + 1] == Release("prompt") for n, scope in later if scope == "prompt")
