"""FLUX.1 dev and Flex.1 trained as a whole, with and without `bypass_guidance_embedding`: the two layers that embed the guidance are
trained, or no gradient reaches them. Each was recorded one way, and is made the other way here.

Left out are three tensors of the forward pass, a row for each sample (6 KiB).
Source: ostris/ai-toolkit 27a03a91, toolkit/models/flux.py (bypass_flux_guidance); FLUX.1 dev's and Flex.1's recorded steps, whose
embeddings of time, guidance and text are one class.
"""

from __future__ import annotations

from collections.abc import Sequence

from estimator.adapter_sites import BACKWARD, Tape
from estimator.filtered_edit import Edit
from estimator.laying import Laid
from estimator.program import ALLOCATE, Program

GUIDANCE = "transformer.time_text_embed.guidance_embedder."
BEHIND_IT = "transformer.time_text_embed.timestep_embedder."  # whose backward pass follows


def parameters(names: Sequence[str]) -> frozenset[int]:
    """Those of the embedding, by number."""
    return frozenset(n for n, name in enumerate(names) if name.startswith(GUIDANCE))


def bypassed(core: Program) -> Program:
    """A step's core without the embedding."""
    edit = Edit(Tape(core))
    edit.gone |= {k for k, made in enumerate(edit.tape.made) if made.module.startswith(GUIDANCE)}
    return edit.program(core.names)


def guided(core: Program, donor: Program) -> Program:
    """A step's core that was recorded without, with the embedding's backward pass as `donor` has it. Both number these parameters alike."""
    laid, given = Laid(Tape(core)), Tape(donor)
    like = _first(laid.tape, BEHIND_IT)
    place, start, end = laid.tape.born[like], given.born[_first(given, GUIDANCE)], given.born[_first(given, BEHIND_IT)]
    made: dict[int, int] = {}
    codes, tensors = donor.events[start:end].tolist(), donor.tensor_of_event[start:end].tolist()
    for code, k in zip(codes, tensors, strict=True):
        if code == ALLOCATE:
            sizes = {feature: count for feature, count in zip(donor.features, donor.coefficients[k].tolist(), strict=True) if count}
            made[k] = laid.make(laid.before(place), sizes, like)
            laid.names[made[k]] = donor.names[k]
        elif k in made:
            laid.free(laid.before(place), made[k])
    return laid.program(lambda event: (event, 0, 0))


def _first(tape: Tape, module: str) -> int:
    """The first tensor of a module's backward pass."""
    return next(k for k, made in enumerate(tape.made) if made.run == BACKWARD and made.module.startswith(module))
