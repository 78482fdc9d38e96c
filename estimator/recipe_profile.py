"""Parts and residents of a profile in kinds of weights that have a recipe (estimator.recipes), made of those in uint4.

They are made wherever the part is there in uint4, recorded or by rule, with its layers' uses; how large a layer is follows from float8, in
which each has a scale for every output. An architecture with a layer whose inputs or outputs such a kind does not take (can_quantize of the
trainer's class) is not in `estimator.trainers.modelled.BY_RECIPE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from estimator import experts, rebuilt_profile, recipe_moves, recipe_uses
from estimator.features import Ints
from estimator.layer_calls import Call
from estimator.offload import OWN, WRAPPED, layers_of, table_of
from estimator.program import Program
from estimator.recipe_moves import Quantised
from estimator.recipe_uses import Dims
from estimator.recipes import HALF, kind_named, load_recipes

BASE, SCALED = "uint4", "float8"
"""The kind that parts are made of, and the one that tells each layer's outputs: its scales follow its weights, two bytes each."""
USING = ("step.core", "preview", "text")
LOADING = {"transformer": "load.transformer", "text_encoder": "load.text"}
"""The part that quantises a component, which it may not name (block by block, each back to the host)."""
NOT_USING = ("preview.prompts", "text.")


class Holder(Protocol):
    """What is needed of a profile (estimator.programs.Profile)."""

    @property
    def data(self) -> Mapping[str, Any]: ...
    @property
    def kept(self) -> dict[object, object]: ...
    def program(self, key: str) -> Program: ...
    def holder(self, key: str) -> Any: ...
    def resident(self, component: str, weights: str, unquantised: int = 0) -> list[int]: ...


def base_key(key: str) -> str | None:
    """The part in uint4 that one of a kind with a recipe is made of; None of other keys."""
    name, *rest = key.split("/")
    return "/".join([name, BASE, *rest[1:]]) if rest and kind_named(rest[0]) else None


def program(profile: Holder, key: str) -> Program:
    """A part for which `base_key` has one. Raises CannotTell where that is not there."""
    base, recipe = base_key(key), load_recipes()[key.split("/")[1]]
    assert base is not None
    part = profile.program(base)
    if not key.startswith(USING) or key.startswith(NOT_USING):
        return recipe_moves.program(part, key, recipe, _all_layers(profile, part))
    return _used(profile, key, base, part)[0]


def _used(profile: Holder, key: str, base: str, part: Program) -> tuple[Program, Ints]:
    """A part that uses layers, and where: rows of Call, layers of all its components numbered through."""
    place = "by recipe", key
    if place not in profile.kept:
        holder = profile.holder(base)
        names, calls, dims, first = table_of(holder, "layers"), list[Call](), dict[int, Dims](), 0
        for component in rebuilt_profile.components_of(holder, base):
            uses = rebuilt_profile.calls(holder, base, component, names)
            if uses is None:
                raise recipe_uses.unlike(key)
            dims |= {first + n: layer.dims for n, layer in enumerate(_layers(holder, component)) if layer is not None}
            calls += [Call(row[0] + first, *row[1:]) for row in uses.tolist()]
            first += len(names[component])
        profile.kept[place] = recipe_uses.program(part, key, load_recipes()[key.split("/")[1]], dims, calls)
    return profile.kept[place]  # type: ignore[return-value]


def calls_of(profile: Holder, key: str) -> Ints:
    """Where a part uses the transformer's layers: rows of Call."""
    base = str(base_key(key))
    return _used(profile, key, base, profile.program(base))[1]


def places(profile: Holder, component: str, weights: str) -> list[tuple[int, int, int, int]]:
    """Where each of a component's layers stands among its tensors (estimator.offload.layers_of), in a kind that has a recipe."""
    more, before, out = len(load_recipes()[weights].buffers) - recipe_moves.PARTS_OF_OWN, 0, list[tuple[int, int, int, int]]()
    for place, count, number, what in table_of(profile, "places")[f"{component}/{BASE}"]:
        own = what == OWN
        out.append((place + before, count + more * own, number + before, what))
        before += more * own
    return out


def residents(profile: Holder, component: str, weights: str) -> list[int]:
    """Bytes of each of a component's tensors. Raises CannotTell where uint4's are not known."""
    return recipe_moves.residents(profile.resident(component, BASE), load_recipes()[weights], _quantised(profile, component))


def _all_layers(profile: Holder, part: Program) -> dict[str, Sequence[Quantised]]:
    """The quantised layers of all components that the part names or loads; of two experts each has the one's."""
    known = table_of(profile, "layers")
    named = [str(part.names[tensor]).partition(":")[0] for tensor in part.named.tolist()]
    loaded = [component for component in known if part.key.startswith(LOADING.get(component.rstrip("0123456789"), ()))]
    resident = {component: experts.RESIDENT_OF.get(component, component) for component in (*loaded, *named)}
    return {component: _quantised(profile, whose) for component, whose in resident.items() if whose in known}


def _quantised(profile: Holder, component: str) -> list[Quantised]:
    return [layer for layer in _layers(profile, component) if layer is not None]


def _layers(profile: Holder, component: str) -> list[Quantised | None]:
    """Of each of a component's layers what is needed of it; None of those that uint4 leaves as they are. Raises CannotTell."""
    if ("quantised", component) not in profile.kept:
        places, names = table_of(profile, "places"), table_of(profile, "layers")[component]
        if not {f"{component}/{kind}" for kind in (BASE, SCALED)} <= set(places):
            raise recipe_uses.unlike(f"{component}/{BASE}")
        own, scaled = (layers_of(places[f"{component}/{kind}"], profile.resident(component, kind), names) for kind in (BASE, SCALED))
        out = list[Quantised | None]()
        for layer, other in zip(own, scaled, strict=True):
            if layer.what != OWN or other.what != WRAPPED:
                out.append(None)
                continue
            codes, outputs = layer.sizes.index(max(layer.sizes)), other.sizes[1] // HALF
            out.append(Quantised(layer.place + codes, layer.number + codes, Dims(outputs, other.sizes[0] // outputs)))
        profile.kept["quantised", component] = out
    return profile.kept["quantised", component]  # type: ignore[return-value]
