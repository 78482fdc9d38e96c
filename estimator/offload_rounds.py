"""Denoising with offloaded layers, step after step: programs of previews hold one step, and in the next the layers meet other slots.

A forward copies in so many layers that the four slots turn on from step to step; so each layer's weights come to lie in a block that
another has left, which may be too small. Without offloading a second step finds the blocks of the first, and nothing more is needed.

Of two experts (Wan 2.2 14B) the first makes the first step and the second those behind it, each with layers of its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from estimator.arrays import among
from estimator.edited import edited_preview, tensors_of_step
from estimator.features import Ints
from estimator.layer_calls import Uses, together
from estimator.offload import TRANSFORMER
from estimator.offload_programs import Offloaded
from estimator.program import ALLOCATE, FIRST_IMPORT, Program

ROUNDS = 2
ONCE = "connectors"  # moments of what runs before the first step alone: LTX-2's, over the prompts


def denoised(base: Program, uses: Uses, further: int = 0, rounds: int = ROUNDS) -> tuple[Program, Uses]:
    """A preview's program with so many steps, and its calls. What is decoded is what the last step has made.

    `further`: by so many the numbers of layers are higher in each step than in the one before (see `beside`).
    """
    inside = np.flatnonzero(base.made_in(TRANSFORMER))
    if not len(inside) or rounds < 2:
        return base, uses
    count = int(inside[-1]) + 1
    born = np.cumsum(base.events == ALLOCATE)
    step = base.events[born <= count]
    step = step[step > FIRST_IMPORT]  # what others made is let go once
    made = step == ALLOCATE
    freed = (np.cumsum(made) - step)[step > ALLOCATE]
    left = np.flatnonzero(~among(np.arange(count), freed))
    events = np.concatenate([*[np.append(step, count - left)] * (rounds - 1), base.events])
    later = base.coefficients.copy()
    later[_passing_once(base, count)] = 0
    sizes = [base.coefficients[:count], *[later[:count]] * (rounds - 2), later]
    program = replace(
        base, events=events, coefficients=np.concatenate(sizes),
        labels=(*base.labels[:count] * (rounds - 1), *base.labels), names=(*[None] * (count * (rounds - 1)), *base.names),
    )  # fmt: skip
    return program, together(*(uses.behind(count * n, further * n) for n in range(rounds)))


def in_two_steps(base: Program, uses: Uses) -> tuple[Program, Uses]:
    """A preview's program with control images, which has two steps anyway, and the uses of layers in both: behind each's joined tokens."""
    places = 1, 2 + tensors_of_step(base)
    return edited_preview(base), together(*map(uses.behind, places))


def _passing_once(base: Program, count: int) -> Ints:
    """What comes and goes before the first step begins. (What stays of it is let go behind each step, and made again.)"""
    inside = np.flatnonzero(base.made_in(ONCE)[:count])
    return np.flatnonzero(base.deaths[: inside[-1] + 1] <= inside[-1] + 1) if len(inside) else inside


def beside(what: Offloaded, *others: frozenset[int]) -> Offloaded:
    """The layers with those of further experts behind them. `others`: those of each that wait on the host; its step comes second."""
    if not others:
        return what
    count, many = len(what.layers), 1 + len(others)
    taken = frozenset(count * n + k for n, each in enumerate((what.taken, *others)) for k in each)
    layers = (*what.layers,) * many
    return Offloaded(layers if what.resident is what.layers else (*what.resident,) * many, layers, taken)
