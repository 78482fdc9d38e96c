"""A prompt of Wan, which is padded behind the text encoder: what the pipeline makes on the way to one length.

Zeros for what is missing, a prompt and its zeros joined, all prompts stacked, and their repetition, which stays. Each is let go of when the
next is there, and what the encoder gave when they are stacked. Programs have the last one alone, since no size of a part says how many
zeros there are. They are as large here as a prompt of one token needs, such as a negative one: 8 KB more than for each token more.

Source: diffusers c9438378, pipeline_wan.py (_get_t5_prompt_embeds, encode_prompt). The order is that of a whole run's events.
"""

from __future__ import annotations

import numpy as np

from estimator.errors import CannotTell, Problem
from estimator.program import ALLOCATE, Program
from estimator.rewriting import written

PADDED_TEXT = "/padded"  # behind the key of a text's encode
WORDS = 512  # tokens of a padded prompt


def padded_text(text: Program) -> Program:
    """The encode of one prompt with its padding. Raises CannotTell of a program that does not end with the prompt that stays."""
    tensors, births, count = text.tensor_of_event, text.events == ALLOCATE, len(text.names)
    last = int(text.exported[-1])
    alike = np.flatnonzero((text.coefficients[:last] == text.coefficients[last]).all(axis=1))
    if not births[-1] or tensors[-1] != last or not len(alike):
        raise CannotTell(Problem(f"how the prompt of {text.key} is padded is not known", None, "it does not end with what stays"))
    given = int(alike[-1])  # by the encoder
    freed = np.flatnonzero((tensors == given) & ~births)
    kept = np.delete(np.arange(len(tensors) - 1), freed)
    zeros, joined, stacked = range(count, count + 3)
    behind = [zeros, joined, zeros, stacked, joined, *[given] * len(freed), last, stacked]
    made = [True, True, False, True, False, *[False] * len(freed), True, False]
    rows = np.vstack([text.coefficients, *[text.coefficients[last]] * 3])
    rows[zeros] -= rows[zeros] // WORDS
    events = np.append(tensors[kept], behind), np.append(births[kept], made)
    return written(text, text.key + PADDED_TEXT, events, (text.features, rows), [last] * 3)
