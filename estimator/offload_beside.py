"""A training adapter on offloaded layers (Z-Image Turbo's): the two layers that it has beside each of them are taken with it.

They wait on the host until the first round of previews, which brings the whole adapter to the card (`network.to` goes past the manager),
uses it there, and takes it off again. So there is nothing to copy in; but each use turns the ring on, and what lay in the slot goes.

Source: toolkit/memory_management/manager.py (attach: ara_lora_ref), toolkit/network_mixins.py (force_to), toolkit/models/base_model.py
(generate_images), 27a03a91.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from estimator.derived_weights import highest
from estimator.layer_calls import NONE, Call, Uses, by_columns, together
from estimator.offload import PLAIN, Layer
from estimator.offload_programs import Offloaded
from estimator.program import ALLOCATE, EMPTY_CACHE, Program

COMPONENT = "assistant"
SIDES = 2
"""Layers of the adapter beside each: down and up. Its tensors have their numbers in the order of the transformer's layers."""
USED = "/Linear|forward"
"""End of the moment's name in which one of them is used."""


def used_beside(base: Program, uses: Uses, what: Offloaded) -> tuple[Uses, Offloaded]:
    """A preview's calls and layers with the adapter's, which have nothing to copy."""
    count = len(what.layers)
    more = []
    for call in uses.calls():
        inside = range(call.first, call.last)
        more += [Call(call.layer + count, k, k + 1, NONE, k, NONE, NONE) for k in inside if base.moments[base.labels[k]].endswith(USED)]
    layers = (*what.layers, *(Layer(0, 0, 0, PLAIN, ()) for _ in what.layers))
    resident = layers if what.resident is what.layers else (*what.resident, *layers[count:])
    return together(uses, by_columns(more)), Offloaded(resident, layers, what.taken | {n + count for n in what.taken})


def loaded(base: Program, taken: frozenset[int]) -> Program:
    """The part of loading in which the adapter is merged: what is beside layers that are taken leaves the card before the last flush."""
    own = len(base.names) - base.imports
    gone = [k for k in base.exported if _beside(base.names[k]) in taken]
    end = len(base.events) - int(base.events[-1] == EMPTY_CACHE)
    left = set(gone)
    names = tuple(None if k in left else name for k, name in enumerate(base.names))
    return replace(base, events=np.insert(base.events, end, [own - k for k in gone]).astype(np.int64), names=names)


def entered(first: Program, later: Program, taken: frozenset[int]) -> Program:
    """The beginning of the first round of previews, which brings to the card what waits on the host, as that of later ones brings all."""
    own, brought = len(first.names) - first.imports, [k for k in later.exported if _beside(later.names[k]) in taken]
    if not brought:
        return first
    features = tuple(dict.fromkeys((*first.features, *later.features)))
    coefficients = np.zeros((len(first.names) + len(brought), len(features)), dtype=np.int64)
    rows = np.array([*range(own), *range(own + len(brought), len(coefficients))], dtype=np.int64)
    coefficients[rows, : len(first.features)] = first.coefficients
    columns = [features.index(name) for name in later.features]
    coefficients[own : own + len(brought), columns] = later.coefficients[brought]
    moments, count = [*first.moments, *later.moments], len(first.moments)
    labels = (*first.labels[:own], *(count + later.labels[k] for k in brought), *first.labels[own:])
    names = (*first.names[:own], *(later.names[k] for k in brought), *first.names[own:])
    events = np.append(first.events, np.full(len(brought), ALLOCATE)).astype(np.int64)
    made = replace(first, features=features, coefficients=coefficients, labels=labels, moments=moments, names=names, events=events)
    return replace(made, peaks=highest(made, coefficients))


def _beside(name: str | None) -> int | None:
    """The layer beside which a tensor of the adapter is."""
    component, _, number = (name or "").partition(":")
    return int(number.split(".")[0]) // SIDES if component == COMPONENT else None
