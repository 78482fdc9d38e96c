"""Loading of kinds of weights that were recorded with low_vram alone, or without it: which recorded part serves, and what comes to it.

Some classes quantise their model on the card block by block, and bring each to the host again whether low_vram is set or not (LTX-2): the
transformer is loaded alike then, and what differs is that without low_vram all of it comes to the card at the end. Read off qfloat8's
recordings, of which there are both.

Wan 2.1's class leaves an unquantised transformer on the host with low_vram until the text encoder is there, and flushes as often as
without (toolkit/models/wan21/wan21.py, load_wan_transformer): loading is then what was recorded without it, less the transformer's
tensors. 1.3B and Wan 2.2 14B were recorded with both (tests/test_rebuilt_loading.py).

Stable Diffusion 3.5 with low_vram is quantised on the host, and then comes to the card whole (toolkit/stable_diffusion_model.py): loading
is what was left of it without low_vram, in the module's order, between two flushes, and the rest the same. Large was recorded with both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from estimator.features import Ints
from estimator.program import ALLOCATE, EMPTY_CACHE, EventProgram, Program

LOADING, REST, LOW_VRAM, PLAIN = "load.transformer", "load.rest", "/low_vram", "/plain"
SOURCE = "qfloat8"
MOVED = ("uint4",)  # kinds whose tensors have a name each (others' are of several parts under one)
CHECKED = frozenset({"ltx2", "ltx2.3"})
"""Architectures with a whole run of such a kind without low_vram; of others it is refused as ever."""
UNMOVED = frozenset({"wan21-14b", "wan21-i2v-14b"})
"""Likewise, of Wan's class unquantised with low_vram."""
BROUGHT = frozenset({"sd35-medium-aitk"})
"""Likewise, of Stable Diffusion 3.5 quantised with low_vram."""
UNQUANTISED = "bf16"
COMPONENT, MOMENT = "transformer", "load: Preparing Model"


class Loaded(Protocol):
    """What is needed of a profile (estimator.programs.Profile)."""

    @property
    def data(self) -> Mapping[str, Any]: ...
    def recorded(self, key: str) -> Program: ...
    def resident(self, component: str, weights: str, unquantised: int = 0) -> list[int]: ...


def base_key(profile: Loaded, key: str) -> str | None:
    """The recorded part that another's is made of; None where no rule makes it."""
    name, kind, *_ = key.split("/")
    parts = profile.data["parts"]
    low, plain = (f"{name}/{SOURCE}{how}" for how in (LOW_VRAM, PLAIN))
    if not {low, plain} <= set(parts):
        return None
    if key.endswith(LOW_VRAM) and f"{name}/{kind}{PLAIN}" in parts:
        if name == REST and profile.data["arch"] not in BROUGHT:
            return low if not _moves(profile.recorded(low)) else None
        ruled = name == REST or profile.data["arch"] in (UNMOVED if kind == UNQUANTISED else BROUGHT)
        return f"{name}/{kind}{PLAIN}" if ruled or _alike(profile, plain, low) else None
    other = f"{name}/{kind}{LOW_VRAM}"
    if not key.endswith(PLAIN) or kind not in MOVED or other not in parts or profile.data["arch"] not in CHECKED:
        return None
    if name == LOADING:
        return other if _alike(profile, plain, low) else None
    return other if _place(profile) is not None else None


def program(profile: Loaded, key: str) -> Program:
    """A part for which `base_key` has one."""
    base = profile.recorded(str(base_key(profile, key)))
    if key.startswith(REST) and key.endswith(PLAIN):
        place = _place(profile)
        assert place is not None
        return _with_move(base, key, profile.resident(COMPONENT, key.split("/")[1]), place)
    if key.startswith(LOADING) and key.endswith(LOW_VRAM) and profile.data["arch"] in UNMOVED | BROUGHT:
        return _unmoved(base, key) if profile.data["arch"] in UNMOVED else _brought(base, key)
    return replace(base, key=key)


def _brought(base: Program, key: str) -> Program:
    """What stays of a part, made at once in the order of its names, between two flushes."""
    numbers = {tensor: [int(n) for n in str(base.names[tensor]).partition(":")[2].split(".")] for tensor in base.exported}
    order = sorted(numbers, key=numbers.__getitem__)
    labels, names = tuple(base.labels[tensor] for tensor in order), tuple(base.names[tensor] for tensor in order)
    events = np.array([EMPTY_CACHE, *[ALLOCATE] * len(order), EMPTY_CACHE], dtype=np.int64)
    return EventProgram(key, base.features, base.coefficients[order], labels, base.moments, names, events, 0, (), {}).with_rows


def _unmoved(base: Program, key: str) -> Program:
    """A part that does nothing but move a component to the card, without that: its flushes. Of another (ValueError)."""
    if base.imports or _moves(base) != len(base.names) or (base.events > ALLOCATE).any():
        raise ValueError(f"{base.key} does more than move the {COMPONENT}")
    events = base.events[base.events != ALLOCATE]
    return Program(key, (), np.zeros((0, 0), dtype=np.int64), (), base.moments, (), events, 0, (), {})


def _alike(profile: Loaded, plain: str, low: str) -> bool:
    return np.array_equal(profile.recorded(plain).events, profile.recorded(low).events)


def _moves(part: Program) -> int:
    """How many of the transformer's tensors a part brings to the card."""
    return sum((name or "").startswith(COMPONENT) for name in part.names)


def _place(profile: Loaded) -> int | None:
    """The event of the rest of loading before which the whole transformer comes, where that is all that low_vram changes there."""
    with_it, rest = (profile.recorded(f"{REST}/{SOURCE}{how}") for how in (PLAIN, LOW_VRAM))
    count, first = len(profile.resident(COMPONENT, SOURCE)), np.flatnonzero(with_it.events == ALLOCATE)
    if _moves(rest) or _moves(with_it) != count or not (with_it.names[0] or "").startswith(COMPONENT):
        return None
    place = int(first[0])
    return place if np.array_equal(with_it.events, _moved_at(place, rest.events, count)) else None


def _moved_at(place: int, events: Ints, count: int) -> Ints:
    """Events with so many tensors more, before all that are made. (What is freed is counted from the latest tensor backwards.)"""
    return np.insert(events, place, np.full(count, ALLOCATE, dtype=np.int64))


def _with_move(base: Program, key: str, resident: Sequence[int], place: int) -> Program:
    """A part with the move of a component's tensors at one of its events. Of one without imports (ValueError)."""
    if base.imports:
        raise ValueError(f"{base.key} frees what others made")
    features = base.features if "1" in base.features else (*base.features, "1")
    wide = np.zeros((len(resident) + len(base.names), len(features)), dtype=np.int64)
    wide[: len(resident), features.index("1")] = resident
    wide[len(resident) :, : len(base.features)] = base.coefficients
    labels = (len(base.moments),) * len(resident) + base.labels
    names = (*(f"{COMPONENT}:{n}" for n in range(len(resident))), *base.names)
    events = _moved_at(place, base.events, len(resident))
    return EventProgram(key, features, wide, labels, [*base.moments, MOMENT], names, events, 0, (), {}).with_rows
