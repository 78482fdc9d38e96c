"""Which parts of a profile are another kind of base weights' by rule (estimator.rebuilt_weights), and those parts.

A part is made where it was recorded in another kind with its layers' uses, and where what its layers are in the other kind is known: their
tensors come from recordings of loading. Previews in bf16 have the adapter merged into the weights, and are recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from estimator import rebuilt_loading, rebuilt_swap, rebuilt_weights
from estimator.archive import Archive
from estimator.arrays import among
from estimator.controls import CONTROLLED_PREVIEW
from estimator.features import Ints
from estimator.offload import Layer, layers_of, table_of
from estimator.padded import PADDED_PREVIEW
from estimator.program import Program

SOURCES = {"bf16": ("qfloat8", "float8"), "float8": ("qfloat8",), "uint4": ("qfloat8", "float8")}
"""Kind of weights -> the recorded kinds that its parts may be made of."""
PLAINER = ("uint4",)
"""A batch's core is made of this kind's first, where it was recorded: its layers keep weights and not inputs, as torch's own do, and copy
a gradient that comes in pieces, which quanto's do not (Chroma1-Radiance: in the backward pass of each double block)."""
KINDS = tuple(SOURCES)
READ_TWICE = "DenseReluDense.wo"  # T5's layer whose weight is asked for twice before it is used
ASKED = "distilled_guidance_layer.in_proj"  # Chroma's, whose weight is asked for its type (recorded in uint4, where that makes it anew)
_FULL, _CHECKPOINTED, _GRAPH, _PLAIN = "/full/", "/checkpointed/", "/graph/", "/plain/"
_MANY = "many"
_CORE, _PREVIEWS, _TEXT = "step.core", ("preview", "preview.begun", PADDED_PREVIEW, CONTROLLED_PREVIEW), "text"
_SAMPLED = ("sample.enter", "sample.leave")  # of quantised weights alike (in every architecture that has several)


class Recorded(Protocol):
    """What is needed of a profile (estimator.programs.Profile)."""

    @property
    def data(self) -> Mapping[str, Any]: ...
    @property
    def archive(self) -> Archive: ...
    @property
    def kept(self) -> dict[object, object]: ...
    def recorded(self, key: str) -> Program: ...
    def resident(self, component: str, weights: str, unquantised: int = 0) -> list[int]: ...


def components_of(profile: Recorded, key: str) -> list[str]:
    """Components whose layers a part uses."""
    of_text = key.startswith(_TEXT)
    return [component for component in table_of(profile, "layers") if component.startswith("text_encoder") == of_text]


def base_key(profile: Recorded, key: str) -> str | None:
    """The recorded part that another kind's is made of; None where no rule makes it."""
    name, *rest = key.split("/")
    if not rest or rest[0] not in SOURCES or key in profile.data["parts"]:
        return None
    if name in (rebuilt_loading.LOADING, rebuilt_loading.REST):
        return rebuilt_loading.base_key(profile, key)
    merged = rest[0] == "bf16"
    kinds = (*(PLAINER if name.startswith(_CORE) and rest[-1] == _MANY and rest[0] not in PLAINER else ()), *SOURCES[rest[0]])
    bases = [base for kind in kinds if (base := "/".join([name, kind, *rest[1:]])) in profile.data["parts"]]
    if name in _SAMPLED and merged:
        return next(reversed(rebuilt_swap.made_of(profile.data, key)), None)
    if name in _SAMPLED:
        return bases[0] if bases else None
    if not (name.startswith(_CORE) or (name in _PREVIEWS and not merged) or name == _TEXT):
        return None
    places, components = table_of(profile, "places"), components_of(profile, key)
    for base in bases:
        kinds = rest[0], base.split("/")[1]
        known = all(f"{component}/{kind}" in places for component in components for kind in kinds)
        if known and components and profile.archive.calls(profile.data["parts"][base]["number"]) is not None:
            return base
    return None


def program(profile: Recorded, key: str) -> Program:
    """A part for which `base_key` has one."""
    parts = rebuilt_swap.made_of(profile.data, key) if key.startswith(_SAMPLED) else ()
    if len(parts) == 2:
        return rebuilt_swap.joined(profile.recorded(parts[0]), profile.recorded(parts[1]), key)
    if key.startswith((rebuilt_loading.LOADING, rebuilt_loading.REST)):
        return rebuilt_loading.program(profile, key)
    if key.startswith(_SAMPLED):
        return replace(profile.recorded(str(base_key(profile, key))), key=key)
    return _made(profile, key)[0]


def calls(profile: Recorded, key: str, component: str, names: Mapping[str, Sequence[str]]) -> Ints | None:
    """Where a part uses each of its component's layers, by rule or as recorded: rows of Call. None where nobody saw it.

    `names`: of the layers, by component.
    """
    found = uses(profile, key)
    if found is None:
        return None
    first = sum(len(names[other]) for other in list(names)[: list(names).index(component)])
    layers = found[:, 0] - first
    return np.column_stack([layers, found[:, 1:]])[(layers >= 0) & (layers < len(names[component]))]


def uses(profile: Recorded, key: str) -> Ints | None:
    """The same of all layers, numbered through."""
    return _made(profile, key)[1] if base_key(profile, key) is not None else _recorded(profile, key)


def _recorded(profile: Recorded, key: str) -> Ints | None:
    """The same of all layers, numbered through."""
    part = profile.data["parts"].get(key)
    return profile.archive.calls(part["number"]) if part else None


def _made(profile: Recorded, key: str) -> tuple[Program, Ints]:
    if ("rebuilt", key) not in profile.kept:
        base = base_key(profile, key)
        assert base is not None
        kind, components, names = key.split("/")[1], components_of(profile, key), table_of(profile, "layers")
        layers = tuple(_layers(profile, names, components, each) for each in (base.split("/")[1], kind))
        through = [name for listed in names.values() for name in listed]
        read = {number for number in layers[0] if through[number].endswith(READ_TWICE)}
        asked = [number for number in layers[0] if through[number].endswith(ASKED)]
        source = _source(profile, base, layers[0])
        profile.kept["rebuilt", key] = rebuilt_weights.program(source, key, (layers[0], layers[1]), read, asked)
    return profile.kept["rebuilt", key]  # type: ignore[return-value]


def _source(profile: Recorded, base: str, layers: Mapping[int, Layer]) -> rebuilt_weights.Base:
    """The recorded part of which those of several kinds of weights are made."""
    if ("source", base) not in profile.kept:
        unsaved, recorded = base.replace(_FULL, _CHECKPOINTED).replace(_GRAPH, _PLAIN), profile.recorded(base)
        twin = recorded if unsaved == base else profile.recorded(unsaved)
        shown = f"{_PREVIEWS[0]}/{base.split('/')[1]}/" if base.startswith(_CORE) else None

        def preview() -> Program | None:
            key = next((key for key in profile.data["parts"] if shown is not None and key.startswith(shown)), None)
            return None if key is None else profile.recorded(key)

        uses = _recorded(profile, base)
        assert uses is not None
        profile.kept["source", base] = rebuilt_weights.base_of(recorded, twin, uses[among(uses[:, 0], layers)], preview)
    return profile.kept["source", base]  # type: ignore[return-value]


def _layers(profile: Recorded, names: Mapping[str, Sequence[str]], components: Sequence[str], kind: str) -> dict[int, Layer]:
    """Layers of some components, by their numbers among those of all."""
    out, first = dict[int, Layer](), 0
    for component, listed in names.items():
        if component in components:
            known = "layers", component, kind
            if known not in profile.kept:
                places = table_of(profile, "places")[f"{component}/{kind}"]
                profile.kept[known] = layers_of(places, profile.resident(component, kind), listed)
            out |= dict(enumerate(profile.kept[known], first))  # type: ignore[arg-type]
        first += len(listed)
    return out
