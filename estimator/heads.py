"""Heads of steps whose prompts are there already, put together from those that were recorded.

A head brings the batch to the card, through the VAE if its latents are not cached, adds noise, and copies the prompts last. What the head
with cached latents and cached prompts has more than the one with cached latents alone is these copies, and they come behind the head with
encoded latents just the same.

Where the text encoder was unloaded and prompts are not cached, every sample has the empty prompt: the trainer clones it, clones the clone
(and lets the first go), and joins as many of the second as the batch has samples. So there is one more of each tensor than cached prompts
have, and one that comes and goes. Architectures that the trainer cannot train with cached text were recorded unloaded: their copies are
these already. Z-Image's prompts are lists, of which the same one stands for every sample; a hundred kilobytes, left as they are.

FLUX.2's heads of all these kinds were recorded as well, and come out to the event (tests/test_heads.py).
Source: ostris/ai-toolkit 27a03a91, extensions_built_in/sd_trainer/SDTrainer.py (train_single_accumulation: cached_blank_embeds).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from estimator.features import Ints
from estimator.footprint import PeakRow
from estimator.program import ALLOCATE, Program

_NAMED = re.compile(r"step\.head/(encoded/cached|cached/unloaded|encoded/unloaded)/(one|many)")
_OF_A_LIST, _SAMPLES = "X", "B"  # in features: prompts as long as they are; samples of the batch


def named(key: str) -> bool:
    """Whether the key is that of a head that this rule makes, where it was not recorded."""
    return _NAMED.fullmatch(key) is not None


def with_prompts(key: str, program_of: Callable[[str], Program]) -> Program:
    """The head of such a key."""
    _, latents, text, many = key.split("/")
    encoded, short, whole = (program_of(f"step.head/{kind}/{many}") for kind in ("encoded/encoded", "cached/encoded", "cached/cached"))
    copies = _copies(short, whole)
    if copies is None:
        return replace(encoded if latents == "encoded" else whole, key=key)
    base = encoded if latents == "encoded" else short if _alike(short, whole) else _without(whole, copies)
    if text == "unloaded" and (copies.events == ALLOCATE).all() and _OF_A_LIST not in copies.features:
        copies = _of_the_empty(copies)
    elif latents == "cached":
        return replace(whole, key=key)
    return _followed(base, key, copies)


@dataclass(frozen=True)
class _Copies:
    """The last events of a head, and the bytes over `features` of what they make."""

    events: Ints
    features: tuple[str, ...]
    coefficients: Ints


def _copies(short: Program, whole: Program) -> _Copies | None:
    """What the whole has behind the short one, or, where they were recorded of unlike batches, behind its last tensor that goes."""
    events = whole.events[len(short.events) :]
    if not _alike(short, whole):
        events = whole.events[int(np.flatnonzero(whole.events != ALLOCATE)[-1]) + 1 :]
    made = int(np.count_nonzero(events == ALLOCATE))
    rows = whole.coefficients[len(whole.labels) - made :]
    used = np.flatnonzero(rows.any(axis=0))
    return _Copies(events, tuple(whole.features[c] for c in used), rows[:, used]) if made else None


def _alike(short: Program, whole: Program) -> bool:
    """Whether the whole begins as the short one does. Of another number of samples it has more, or fewer, of what each makes."""
    return np.array_equal(whole.events[: len(short.events)], short.events)


def _without(whole: Program, copies: _Copies) -> Program:
    """The whole without its last events, which make the copies."""
    left, own = len(whole.events) - len(copies.events), len(whole.labels) - len(copies.coefficients)
    return replace(
        whole, events=whole.events[:left], labels=whole.labels[:own], names=whole.names[:own], coefficients=whole.coefficients[:own],
    )  # fmt: skip


def _of_the_empty(copies: _Copies) -> _Copies:
    """Two clones of the empty prompt, of which the first goes, before the copies of all samples."""
    features = copies.features if "1" in copies.features else (*copies.features, "1")
    count = len(copies.coefficients)
    rows = np.zeros((3 * count, len(features)), dtype=np.int64)
    rows[2 * count :, : len(copies.features)] = copies.coefficients
    single = [features.index("1" if name == _SAMPLES else name) for name in copies.features]
    np.add.at(rows[:count].T, single, copies.coefficients.T)
    rows[count : 2 * count] = rows[:count]
    frees = [2 * count - k for k in range(count)]  # each when all are there
    return _Copies(np.array([ALLOCATE] * 2 * count + frees + copies.events.tolist()), features, rows)


def _followed(base: Program, key: str, copies: _Copies) -> Program:
    """The base with the copies behind it."""
    made = len(copies.coefficients)
    features = (*base.features, *(name for name in copies.features if name not in base.features))
    rows = np.zeros((len(base.labels) + made, len(features)), dtype=np.int64)
    rows[: len(base.labels), : len(base.features)] = base.coefficients
    rows[len(base.labels) :, [features.index(name) for name in copies.features]] = copies.coefficients
    more = (0,) * (len(features) - len(base.features))
    together = replace(
        base, key=key, features=features, coefficients=rows, labels=(*base.labels, *[base.labels[-1]] * made),
        names=(*base.names, *[None] * made), events=np.append(base.events, copies.events),
        peaks=tuple(replace(peak, coefficients=(*peak.coefficients, *more)) for peak in base.peaks),
    )  # fmt: skip
    return replace(together, peaks=(*together.peaks, *_behind(base, together)))


def _behind(base: Program, head: Program) -> list[PeakRow]:
    """What lives after each copy is made."""
    total = head.coefficients[list(base.exported)].sum(axis=0)
    rows = []
    for event, tensor in zip(head.events[len(base.events) :].tolist(), head.tensor_of_event[len(base.events) :].tolist(), strict=True):
        total = total + (1 if event == ALLOCATE else -1) * head.coefficients[tensor]
        if event == ALLOCATE:
            rows.append(PeakRow(tuple(total.tolist()), head.moments[head.labels[tensor]]))
    return rows
