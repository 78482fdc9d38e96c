"""The EMA of a model that is trained as a whole, of which none was recorded: it goes from parameter to parameter.

- `setup.ema` clones each parameter, in its own type;
- `sample.enter/bf16/ema/later` clones each again and takes the clones that there were before (`store`: the parameters' own values, while
  the averages stand in their place), and `sample.leave` copies in place, which makes nothing;
- `step.ema` makes four tensors of fp32 of each parameter, one after the other: the average and the parameter cast, their difference, and
  what rounding back makes (`copy_stochastic`). The last goes at once, the others as the next parameter's take their names.

Recorded of FLUX.1 dev, FLUX.2 klein 4B and Z-Image, whose programs these are to the event (tests/test_whole.py).
Source: ostris/ai-toolkit 27a03a91, toolkit/ema.py (ExponentialMovingAverage: __init__, update, store, copy_to, restore).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from estimator.features import Ints
from estimator.program import ALLOCATE, FIRST_IMPORT, EventProgram, Program

SET_UP, ENTER, LEAVE, STEP = "setup.ema", "sample.enter/bf16/ema/later", "sample.leave/bf16/ema/", "step.ema"
LEAVES = tuple(LEAVE + when for when in ("first", "later"))
PARTS = frozenset({SET_UP, ENTER, *LEAVES, STEP})
# Events of the first parameter, of one between others, of the last: 0 makes a tensor, k frees the k-th made last
FIRST, NEXT, LAST = (0, 0, 0, 0, 1, 0, 5, 4), (0, 0, 5, 0, 1, 0, 5, 4), (0, 0, 5, 0, 4, 3, 2, 1)
TENSORS, FP32_TO_BF16 = 4, 2  # of a parameter in a step, and the bytes of each for one of the parameter's


def program(key: str, parameters: Sequence[int]) -> Program:
    """One of PARTS. `parameters`: bytes of each in bf16, two of them at least."""
    sizes, count = np.array(parameters, dtype=np.int64), len(parameters)
    if key in LEAVES:
        return _made(key, np.array([], dtype=np.int64), (), np.array([], dtype=np.int64), "")
    if key == SET_UP:
        return _made(key, sizes, tuple(f"ema:{n}" for n in range(count)), np.full(count, ALLOCATE), "setup_ema")
    if key == ENTER:
        names = tuple(f"ema_copy:{n}" for n in range(count))
        events = np.append(np.full(count, ALLOCATE), FIRST_IMPORT - np.arange(count))
        return _made(key, np.append(sizes, sizes), (*names, *names), events, "sample", imports=count)
    events = np.array([*FIRST, *NEXT * (count - 2), *LAST], dtype=np.int64)
    return _made(key, np.repeat(FP32_TO_BF16 * sizes, TENSORS), (None,) * TENSORS * count, events, "ema_update")


def _made(key: str, sizes: Ints, names: tuple[str | None, ...], events: Ints, moment: str, imports: int = 0) -> Program:
    """A program of tensors whose bytes are known."""
    labels = (0,) * len(sizes)
    return EventProgram(key, ("1",), sizes[:, None], labels, [moment], names, events, imports, (), {}).with_rows
