"""Parts of loading and around previews without the training adapter that an architecture was recorded with (FLUX.1 schnell's).

With one, the trainer moves the transformer to the card (with low_vram its blocks in two halves), reads the adapter there and merges it;
the adapter that takes it off again in previews comes to the card at the end of loading, goes behind each round of previews and comes back
for the next. Without one nothing of that is made, and what quantises the transformer is the same.
Source: ostris/ai-toolkit 27a03a91, toolkit/stable_diffusion_model.py (load_model: assistant_lora_path); a whole run (schnell-whole).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from estimator.archs import Arch
from estimator.job import Model
from estimator.offload_loading import emptied
from estimator.program import Program, left_out

UNASSISTED = "/unassisted"  # behind the key of a part
TRANSFORMER, REST, LOW_VRAM = "load.transformer/", "load.rest/", "/low_vram"
ADAPTER = "assistant:"  # beginning of its tensors' names
SAMPLED = "sample."  # beginning of the keys of what is around previews
MOMENT = "load: Loading transformer"
MATRIX = 2  # tensors that are made of each matrix of the adapter there: itself, and a half of the layer's two products


def behind(arch: Arch, model: Model) -> str:
    """What stands behind the keys of such parts of a job."""
    return UNASSISTED if arch.assisted and model.assistant_lora is None else ""


def named(key: str) -> bool:
    """Whether a key is of such a part."""
    return key.endswith(UNASSISTED)


def program(key: str, recorded: Callable[[str], Program]) -> Program:
    """The part that a key names. `recorded`: the program of another key."""
    base = key.removesuffix(UNASSISTED)
    whole = recorded(base)
    if base.startswith(SAMPLED):
        return replace(emptied(whole, _adapter(whole), whole.names), key=key)
    unnamed = {k for k, name in enumerate(whole.names) if name is None}
    if base.startswith(REST):  # what passes there is its scales, and weights in uintN that are rebuilt as each layer is asked for its size
        return left_out(whole, key, _adapter(whole) | unnamed)
    made = [k for k in range(len(whole.names)) if whole.moments[whole.labels[k]] == MOMENT]
    matrices = len(_adapter(recorded(base.replace(TRANSFORMER, REST))))
    return left_out(whole, key, unnamed.intersection(made if base.endswith(LOW_VRAM) else made[-MATRIX * matrices :]))


def _adapter(program: Program) -> set[int]:
    """The adapter's tensors."""
    return {k for k, name in enumerate(program.names) if name is not None and name.startswith(ADAPTER)}
