"""Rules of optimizers: what one step allocates and frees for any list of adapter parameters.

`profiles/optimizers.json` has a rule for each optimizer of the trainer, extracted from recordings of its steps on the emulated device
without a model (`python -m calibration.optimizers`). A step depends on the shapes of the parameters and on nothing else, so a rule holds
for every architecture, rank and kind of adapter.

A rule has stages: `created` (what the constructor makes), `first` and `later` steps. A stage is a list of stretches, one after another; a
stretch marked `each` is gone through once for each parameter. Its events are
- `["a", slot]`: allocate; in a stretch that is not `each`, a slot that has one tensor for each parameter is allocated for all;
- `["f", slot, which]`: free; `which` is `own` (this parameter's), `before` (that of the parameter before: a loop's variables hold it
  until they are set again), `last` or `first` (that parameter's, after the loop or when the next one
  begins), `all`, or `one`;
- `["i", slot, which]`: free what an earlier step left in a slot.
Slots: `each` (one tensor for each parameter), `one`, or `once` (made by the first parameter that the condition holds for), with `size`:
terms [condition, feature, coefficient], added up. A tensor of 0 bytes is not there. `holds`: "gradient" of what is a copy of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from estimator.paths import profiles_dir
from estimator.reductions import partials

SMALL_BELOW = 4096  # elements: bitsandbytes' min_8bit_size; smaller tensors keep their state in fp32
FOREACH_CHUNK = 65536  # elements: torch's multi_tensor_apply (kChunkSize)
BLOCK = 256  # elements that share a scale: bitsandbytes' block-wise states
GRADIENT = "gradient"
ALL = slice(None)

Shape = tuple[int, int, bool]
"""Rows, columns, and whether all of it is zero when training starts (a LoRA's second matrix)."""


def _up(value: int, divisor: int) -> int:
    return -(-value // divisor)


CONDITIONS: Mapping[str, Callable[[Shape], bool]] = {
    "": lambda s: True,
    "small": lambda s: s[0] * s[1] < SMALL_BELOW,
    "large": lambda s: s[0] * s[1] >= SMALL_BELOW,
    "zero": lambda s: s[2],
    "nonzero": lambda s: not s[2],
    "matrix": lambda s: min(s[:2]) > 1,
}
FEATURES: Mapping[str, Callable[[int, int], int]] = {
    "1": lambda r, c: 1,
    "elements": lambda r, c: r * c,
    "rows": lambda r, c: r,
    "columns": lambda r, c: c,
    "bits": lambda r, c: _up(r * c, 8),
    "blocks": lambda r, c: _up(r * c, BLOCK),
    "whole": lambda r, c: partials(1, r * c, contiguous=True)[0],
    "whole, of bytes": lambda r, c: partials(1, r * c, contiguous=True, element_bytes=1)[0],
    "whole semaphores": lambda r, c: partials(1, r * c, contiguous=True)[1],
    "along columns": lambda r, c: partials(r, c, contiguous=True)[0],
    "along columns semaphores": lambda r, c: partials(r, c, contiguous=True)[1],
    "along rows": lambda r, c: partials(c, r, contiguous=False)[0],
    "along rows semaphores": lambda r, c: partials(c, r, contiguous=False)[1],
    "a row": lambda r, c: partials(1, c, contiguous=True)[0],
    "a column": lambda r, c: partials(1, r, contiguous=True)[0],
}
LIST_FEATURES: Mapping[str, Callable[[list[Shape]], int]] = {
    "1": lambda shapes: 1,
    "parameters": len,
    "chunks": lambda shapes: len(shapes) * max(_up(r * c, FOREACH_CHUNK) for r, c, _ in shapes),
    "elements": lambda shapes: sum(r * c for r, c, _ in shapes),
}


@cache
def feature(name: str, rows: int, columns: int) -> int:
    return FEATURES[name](rows, columns)


def size_of(terms: list[list[Any]], shape: Shape) -> int:
    """Bytes of a slot's tensor for one parameter."""
    return sum(c * feature(name, shape[0], shape[1]) for condition, name, c in terms if CONDITIONS[condition](shape))


def size_of_list(terms: list[list[Any]], shapes: list[Shape]) -> int:
    """Bytes of a slot that has one tensor for all parameters."""
    return sum(c * LIST_FEATURES[name](shapes) for _, name, c in terms)


Event = tuple[str, str, int]
"""("a" | "f" | "i", slot, number of the parameter or -1)."""


def expand(
    stage: list[dict[str, Any]], slots: Mapping[str, Any], shapes: list[Shape], made: frozenset[str] = frozenset(), stretches: slice = ALL
) -> list[Event]:
    """The events of a stage for a list of parameters, also those of tensors of 0 bytes.

    `made`: slots of kind `once` that are there. `stretches`: of which.
    """
    out: list[Event] = []
    held_back = {e[1] for stretch in stage for e in stretch["events"] if e[0] == "f" and e[2] == "first"}
    done = set(made)
    for stretch in stage[stretches]:
        if stretch["each"]:
            for k in range(len(shapes)):
                out += _iteration(stretch["events"], slots, shapes, k, held_back, done)
            continue
        for kind, slot, *which in stretch["events"]:
            if slots[slot]["kind"] != "each" and slot != GRADIENT:
                out.append((kind, slot, -1))
                continue
            place = which[0] if which else "all"
            numbers = {"last": [len(shapes) - 1], "first": [0]}.get(place, list(range(len(shapes))))
            out += [(kind, slot, k) for k in numbers]
    return out


def _iteration(
    events: list[list[str]], slots: Mapping[str, Any], shapes: list[Shape], k: int, held_back: set[str], done: set[str]
) -> list[Event]:
    out: list[Event] = []
    for kind, slot, *which in events:
        what = slots[slot]["kind"]
        if what == "once":
            if slot not in done and any(CONDITIONS[condition](shapes[k]) for condition, _, _ in slots[slot]["size"]):
                done.add(slot)
                out.append((kind, slot, -1))
        elif what == "one":
            out.append((kind, slot, -1))
        elif which and which[0] == "before":
            if k:
                out.append((kind, slot, k - 1))
        elif which and which[0] == "last":
            if k == 0:
                out.append((kind, slot, len(shapes) - 1))
        elif not (kind == "f" and k == 0 and slot in held_back):
            out.append((kind, slot, k))
    return out


@cache
def load_rules() -> Mapping[str, Any]:
    """All rules, by optimizer; `name+weight_decay` where a weight decay changes the step."""
    data: dict[str, Any] = json.loads((profiles_dir() / "optimizers.json").read_text())
    return {name: rule for name, rule in data.items() if name != "made"}
