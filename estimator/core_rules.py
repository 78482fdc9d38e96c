"""Parts (a step's core, a preview, merging an adapter) as other settings have them, rewritten by rule from the one that was recorded: what
a key ends in says by which."""

from __future__ import annotations

from collections.abc import Callable

from estimator.edited import ALONE, EDITED, FLUSHED, PREVIEWS, TOGETHER, alone, edited, edited_preview, flushed, together
from estimator.guided_step import GUIDED, guided
from estimator.lora_merging import FROM_HOST, from_host
from estimator.loss_weights import WEIGHED, weighed
from estimator.program import Program
from estimator.references import REFERENCED, referenced
from estimator.wan_text import PADDED_TEXT, padded_text

_RULES = {GUIDED: guided, WEIGHED: weighed, REFERENCED: referenced, EDITED: edited, FROM_HOST: from_host}
_RULES |= {FLUSHED: flushed, ALONE: alone, TOGETHER: together, PADDED_TEXT: padded_text}


def named(key: str) -> bool:
    """Whether the key is that of a part that a rule makes."""
    return key.endswith(tuple(_RULES))


def rewritten(key: str, core_of: Callable[[str], Program]) -> Program:
    """The part of such a key, from the one that its last rule rewrites."""
    ending = next(ending for ending in _RULES if key.endswith(ending))
    if key.startswith(PREVIEWS) and ending == EDITED:
        return edited_preview(core_of(key.removesuffix(ending)))
    return _RULES[ending](core_of(key.removesuffix(ending)))


def recorded(key: str) -> str:
    """The part that was recorded: no rule changes its peak rows, or what outlives it (guidance: some latents around the transformer)."""
    key = key.removesuffix(FLUSHED).removesuffix(ALONE).removesuffix(TOGETHER).removesuffix(PADDED_TEXT)
    return key.removesuffix(GUIDED).removesuffix(WEIGHED).removesuffix(REFERENCED).removesuffix(EDITED).removesuffix(FROM_HOST)
