"""Which layers of a job wait on the host, and what of its components that leaves on the card.

Wan 2.2 14B has two experts, each with a choice of its own: the trainer goes through the first, then the second, then the text encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from estimator import derived_weights, experts, recipe_profile
from estimator.archs import load_archs
from estimator.errors import CannotTell, Problem
from estimator.job import Model
from estimator.offload import WRAPPED, Layer, choose, deviation_bytes, layers_of, table_of, taken_before_quantising
from estimator.offload_left import left
from estimator.program import Program
from estimator.programs import Profile
from estimator.recipes import kind_named

# `layer_offloading` of profiles/archs.yaml: when the text encoder's layers are taken
NOTHING, BEFORE, AFTER = "nothing", "before loading", "after loading"  # or "after quantising": before the move to the card
OFFLOAD = "offload"  # in the keys of what is kept with a profile


class Shares:
    """What one choice of a component's layers makes: of use to every job with this choice, whatever becomes of the other component."""

    def __init__(self) -> None:
        self.programs: dict[str, Program] = {}
        self.outlines: dict[str, Program] = {}
        self.figures: dict[object, object] = {}
        self.resident: list[int] | None = None


@dataclass(frozen=True)
class ChosenProfile(Profile):
    """`base`: the profile as recorded; `model`: what is offloaded, by which percentages, in which weights."""

    base: Profile
    model: Model

    @cached_property
    def transformers(self) -> tuple[str, ...]:
        """The transformer, or its experts."""
        return experts.components(load_archs().archs[self.arch].model_class)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Percentage of each component of which any layer is taken, in the order in which the trainer takes them."""
        if load_archs().archs[self.arch].layer_offloading == NOTHING:
            return {}
        model = self.model
        asked = dict.fromkeys(self.transformers, model.layer_offloading_transformer_percent)
        asked["text_encoder0"] = model.layer_offloading_text_encoder_percent
        return {component: share for component, share in asked.items() if share > 0}

    @cached_property
    def taken(self) -> dict[str, frozenset[int]]:
        """Layers that wait on the host, by component."""
        seed, weights = self.model.offload_seed, {c: self.weights_of(c) for c in self.shares}
        if seed is not None:
            chosen = choose([(self.layers(c, weights[c]), p) for c, p in self.shares.items()], seed)
            return dict(zip(self.shares, chosen, strict=True))
        return {c: self._once(("taken", c, weights[c], p), partial(self._even, c, p)) for c, p in self.shares.items()}

    def _even(self, component: str, percent: float) -> frozenset[int]:
        return choose([(self.layers(component, self.weights_of(component)), percent)])[0]

    def _once(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        """What was made before for any job of this architecture, or is made now."""
        kept = self.base.kept
        if (OFFLOAD, *key) not in kept:
            kept[OFFLOAD, *key] = make()
        return kept[OFFLOAD, *key]

    def _of(self, components: tuple[str, ...], weights: str) -> Shares:
        of_both = tuple(self.taken.get(component, frozenset()) for component in components)
        made = self._once(("shares", components, weights, of_both), Shares)
        assert isinstance(made, Shares)
        return made

    @cached_property
    def deviation_bytes(self) -> int:
        """Standard deviation of what stays on the card, where the trainer chooses anew in every run."""
        if self.model.offload_seed is not None:
            return 0
        return sum(deviation_bytes(self.layers(c, self.weights_of(c)), p) for c, p in self.shares.items())

    def weights_of(self, component: str) -> str:
        return self.model.te_kind if component.startswith("text_encoder") else self.model.kind

    def layers(self, component: str, weights: str) -> tuple[Layer, ...]:
        """A component's layers in a kind of weights. Raises CannotTell."""
        return self._once(("layers", component, weights), lambda: self._read_layers(component, weights))  # type: ignore[no-any-return]

    def _read_layers(self, component: str, weights: str) -> tuple[Layer, ...]:
        table, named = table_of(self.base, "places"), experts.RESIDENT_OF.get(component, component)
        derivation = derived_weights.DERIVED.get(weights)
        recorded = weights if derivation is None or f"{named}/{weights}" in table else derivation.base
        by_recipe = kind_named(weights) and f"{named}/{weights}" not in table
        places = recipe_profile.places(self.base, named, weights) if by_recipe else table.get(f"{named}/{recorded}")
        if places is None:
            raise CannotTell(unknown(f"{self.arch}: layers of {component} in {weights}"))
        layers = layers_of(places, self.base.resident(component, weights), table_of(self.base, "layers")[named], weights)
        if component.startswith("text") and self._takes_text(BEFORE) and weights != "bf16":
            return taken_before_quantising(layers, self.layers(component, "bf16"))
        return layers

    def numbers(self, component: str) -> int:
        """How many numbers a component's tensors have in names: what is wrapped has one for both of its own."""
        weights = self.weights_of(component)
        return len(self.base.resident(component, weights)) - sum(layer.what == WRAPPED for layer in self.layers(component, weights))

    def _takes_text(self, when: str) -> bool:
        return load_archs().archs[self.arch].layer_offloading == when

    def _away(self, component: str) -> frozenset[int]:
        """Layers whose weights leave the card."""
        taken = self.taken.get(component, frozenset())
        layers = self.layers(component, self.weights_of(component)) if taken else ()
        return frozenset(n for n in taken if not layers[n].carried)

    def _gone(self, component: str) -> list[Layer]:
        """Those layers, and tensors of none that stay on the host with them."""
        weights = self.weights_of(component)
        layers, base = self.layers(component, weights), self.base
        stays = self._once(("left", component, weights), lambda: left(self.arch, component, base.resident(component, weights), layers))
        return [*(layers[n] for n in sorted(self._away(component))), *stays]

    def resident(self, component: str, weights: str, unquantised: int = 0) -> list[int]:
        """See `Profile`: what stays on the card."""
        if not self.taken.get(component):
            return self.base.resident(component, weights, unquantised)
        share = self._of((component,), weights)
        if share.resident is None:
            gone = {place for layer in self._gone(component) for place in range(layer.place, layer.place + len(layer.sizes))}
            share.resident = [size for place, size in enumerate(self.base.resident(component, weights, unquantised)) if place not in gone]
        return share.resident

    def waiting_bytes(self, component: str) -> int:
        """Bytes of the weights that wait in pinned host memory."""
        return sum(self.layers(component, self.weights_of(component))[n].total_bytes for n in self._away(component))


def unknown(what: str) -> Problem:
    return Problem(f"{what} was never recorded", None, "layer offloading needs it", "record it: see docs/adding_an_architecture.md")
