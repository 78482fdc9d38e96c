"""Parts of loading with offloaded layers: without the weights that wait on the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from estimator.derived_weights import highest
from estimator.offload import STUCK, Layer
from estimator.program import Program


def loaded(base: Program, component: str, gone: Iterable[Layer]) -> Program:
    """A part of loading without the weights that wait on the host: they were taken before the move that would bring them to the card."""
    return emptied(base, _leaves(base, component, gone), base.names)


def loaded_first(base: Program, component: str, gone: Iterable[Layer]) -> Program:
    """A part of loading after which the weights that wait on the host are taken off the card."""
    off = _leaves(base, component, gone)
    own = len(base.names) - base.imports
    names = tuple(None if k in off else name for k, name in enumerate(base.names))
    return replace(base, events=np.append(base.events, [own - k for k in sorted(off)]).astype(np.int64), names=names)


def _leaves(base: Program, component: str, gone: Iterable[Layer]) -> set[int]:
    """Tensors of offloaded layers that the part leaves on the card."""
    names = _names(component, gone)
    return {k for k in base.exported if (base.names[k] or "").split(".")[0] in names}


def loaded_late(base: Program, component: str, plain: Sequence[Layer], layers: Sequence[Layer], taken: frozenset[int]) -> Program:
    """A part of loading whose layers are taken before they are moved and quantised: neither happens on the card.

    The part begins with the move of all weights (those of `plain`, in the order of residents). What quantising a layer needs stands before
    what it leaves. Layers that are stuck keep both; theirs is another name then, since they do not move with the component.
    """
    moved = max((layer.place + len(layer.sizes) for layer in plain), default=0)
    dropped = {k for n in taken for k in range(plain[n].place, plain[n].place + len(plain[n].sizes))}
    gone = _names(component, (layers[n] for n in taken if not layers[n].stuck))
    stuck = _names(component, (layers[n] for n in taken if layers[n].stuck))
    following = False
    for k in range(len(base.names) - base.imports - 1, moved - 1, -1):
        name = (base.names[k] or "").split(".")[0]
        following = name in gone if name else following
        if following:
            dropped.add(k)
    names = tuple(STUCK + name[len(component) :] if name and name.split(".")[0] in stuck else name for name in base.names)
    return emptied(base, dropped, names)


def emptied(base: Program, dropped: set[int], names: tuple[str | None, ...]) -> Program:
    """With tensors of no bytes in place of some: the allocator gives them no block."""
    if not len(base.names):
        return base
    coefficients = base.coefficients.copy()
    coefficients[sorted(dropped)] = 0
    return replace(base, coefficients=coefficients, names=names, peaks=highest(base, coefficients))


def _names(component: str, layers: Iterable[Layer]) -> set[str]:
    return {f"{component}:{n}" for layer in layers for n in range(layer.number, layer.number + layer.numbers)}
