"""Previews of a DoRA beside unquantised weights, from those without an adapter.

The trainer merges a LoRA into unquantised weights before it makes previews, so that these were recorded without one; a DoRA it leaves
where it is (`ToolkitNetworkMixin.merge_in`). What a LoRA makes in a forward pass without gradients (estimator.adapter_sites) is laid behind
each layer's result, and what a DoRA makes behind that. A training adapter (Z-Image Turbo's) is within the layer: the result is its sum, and
the layer is through when what was added to is gone. Two prompts that go through together have the multiplier repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from estimator.adapter_sites import FORWARD, INNER, Tape, never
from estimator.dora_forward import FULL, HALF, weighed
from estimator.dora_programs import freer, maker, sizes_of
from estimator.laying import BEFORE, CONSTANT, RANK, RECORDED_RANK, THERE, Laid
from estimator.program import Program
from estimator.rewriting import widened

GUIDED = "cfg"  # in keys of previews


def adapted(base: Program, numbers: Mapping[str, int], widths: Sequence[int]) -> Program:
    """`numbers`: layer -> number; `widths`: bytes of each of a LoRA's parameters at rank 1. Raises CannotTell."""
    base = _unranked(base)
    tape = Tape(base)
    laid, seen = Laid(tape), set[str]()
    for k in range(tape.own):
        made = tape.made[k]
        following = tape.made[k + 1].module if k + 1 < tape.own else ""
        if made.module not in numbers or made.run != FORWARD or following in (made.module, made.module + INNER):
            continue
        seen.add(made.module)
        n = numbers[made.module]
        _behind(laid, k, widths[2 * n : 2 * n + 2], GUIDED in base.key.split("/"))
    if seen != set(numbers):
        raise never(base.key)
    return laid.program(lambda at: (at, BEFORE, 0))


def _behind(laid: Laid, result: int, widths: Sequence[int], repeats: bool) -> None:
    """One layer's adapter."""
    tape = laid.tape
    at, died = _returned(tape, result), tape.died[result]
    if died is None:
        raise never(tape.made[result].module)
    size = sizes_of(tape, result, widths)
    make, free = maker(laid, laid.behind, at, result), freer(laid, laid.behind, at)
    given = make(size.given(FULL))
    down = make({RANK if name == CONSTANT else f"{RANK}*{name}": FULL * count for name, count in size.rows.items()})
    up = make(size.result(FULL))
    free(down)
    scaled = make(size.result(FULL))
    free(up)
    repeated = [make({"B": FULL})] if repeats else []
    times = make(size.result(FULL))
    half = make(size.result(HALF))
    free(times)
    more = weighed(make, free, size, (), saves=False, passes=False)
    free(half)
    total = make(size.result(HALF))
    laid.ends[result] = laid.behind(at)
    free(given, scaled, *repeated, *more.passing)
    laid.free((died, THERE, 0), total)


def _returned(tape: Tape, result: int) -> int:
    """The event with which the layer is through: its result's birth, or the end of the last that a training adapter on it lets go."""
    layer, k, until = tape.made[result].module, result - 1, tape.next_birth(result)
    ends = [tape.born[result]]
    while k >= 0 and tape.made[k].module in (layer, layer + INNER):
        died = tape.died[k]
        ends += [died] if died is not None and died < until else []
        k -= 1
    return max(ends)


def _unranked(base: Program) -> Program:
    """No size depends on the rank: what was taken for proportional to the one that was recorded is of one size."""
    if RANK not in base.features:
        return base
    features = base.features if CONSTANT in base.features else (*base.features, CONSTANT)
    wide = widened(base, features, 0)
    rank, constant = features.index(RANK), features.index(CONSTANT)
    wide[:, constant] += RECORDED_RANK * wide[:, rank]
    kept = np.arange(len(features)) != rank
    return replace(base, features=tuple(name for name in features if name != RANK), coefficients=wide[:, kept], peaks=())
