"""A profile as a job with layer offloading sees it: programs with its layers' copies in them, residents without what waits on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

import numpy as np

from estimator import core_rules, derived_weights, offload_beside, offload_loading, offload_programs, optimizers, rebuilt_profile
from estimator.archs import load_archs
from estimator.errors import CannotTell, Problem
from estimator.job import Job, Model
from estimator.offload import OWN, Layer, choose, deviation_bytes, layers_of, table_of, taken_before_quantising
from estimator.offload_left import left
from estimator.offload_programs import Call, Offloaded
from estimator.offload_rounds import denoised
from estimator.offload_rows import Outline
from estimator.program import Footprint, Program
from estimator.programs import Profile, load_profile

# Weights of which the adapter is never merged into the base, as it never is with offloading: what previews of unquantised weights are then
UNMERGED = "float8"
ROUNDS = ("first", "later")  # of previews, in the keys of unquantised ones
USING = {"step.core": "transformer", "step.core.sound": "transformer", "preview": "transformer", "text": "text_encoder0"}
LOADING = {"load.transformer": "transformer", "load.text": "text_encoder0", "load.rest": "transformer"}
# `layer_offloading` of profiles/archs.yaml: when the text encoder's layers are taken
NOTHING, BEFORE, AFTER = "nothing", "before loading", "after loading"  # or "after quantising": before the move to the card
OFFLOAD = "offload"  # in the keys of what is kept with a profile
Making = Callable[[Program, Sequence[Call], Offloaded], Program]


class Shares:
    """What one choice of a component's layers makes: of use to every job with this choice, whatever becomes of the other component."""

    def __init__(self) -> None:
        self.programs: dict[str, Program] = {}
        self.outlines: dict[str, Program] = {}
        self.figures: dict[object, object] = {}
        self.resident: list[int] | None = None


@dataclass(frozen=True)
class OffloadProfile(Profile):
    """`base`: the profile as recorded; `model`: what is offloaded, by which percentages, in which weights."""

    base: Profile
    model: Model
    _figures: dict[str, dict[object, object]] = field(default_factory=dict, repr=False, compare=False)  # by part

    @cached_property
    def shares(self) -> dict[str, float]:
        """Percentage of each component of which any layer is taken, in the order in which the trainer takes them."""
        if load_archs().archs[self.arch].layer_offloading == NOTHING:
            return {}
        model = self.model
        asked = {
            "transformer": model.layer_offloading_transformer_percent, "text_encoder0": model.layer_offloading_text_encoder_percent,
        }  # fmt: skip
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

    def _of(self, component: str, weights: str) -> Shares:
        made = self._once(("shares", component, weights, self.taken.get(component, frozenset())), Shares)
        assert isinstance(made, Shares)
        return made

    @cached_property
    def deviation_bytes(self) -> int:
        """Standard deviation of what stays on the card, where the trainer chooses anew in every run."""
        if self.model.offload_seed is not None:
            return 0
        return sum(deviation_bytes(self.layers(c, self.weights_of(c)), p) for c, p in self.shares.items())

    def weights_of(self, component: str) -> str:
        return self.model.te_weights if component.startswith("text_encoder") else self.model.weights

    def layers(self, component: str, weights: str) -> tuple[Layer, ...]:
        """A component's layers in a kind of weights. Raises CannotTell."""
        return self._once(("layers", component, weights), lambda: self._read_layers(component, weights))  # type: ignore[no-any-return]

    def _read_layers(self, component: str, weights: str) -> tuple[Layer, ...]:
        table = table_of(self.base, "places")
        derivation = derived_weights.DERIVED.get(weights)
        recorded = weights if derivation is None or f"{component}/{weights}" in table else derivation.base
        places = table.get(f"{component}/{recorded}")
        if places is None:
            raise CannotTell(_unknown(f"{self.arch}: layers of {component} in {weights}"))
        layers = layers_of(places, self.base.resident(component, weights), table_of(self.base, "layers")[component], weights)
        if component.startswith("text") and self._takes_text(BEFORE) and weights != "bf16":
            return taken_before_quantising(layers, self.layers(component, "bf16"))
        return layers

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
        share = self._of(component, weights)
        if share.resident is None:
            gone = {place for layer in self._gone(component) for place in range(layer.place, layer.place + len(layer.sizes))}
            share.resident = [size for place, size in enumerate(self.base.resident(component, weights, unquantised)) if place not in gone]
        return share.resident

    def waiting_bytes(self, component: str) -> int:
        """Bytes of the weights that wait in pinned host memory."""
        return sum(self.layers(component, self.weights_of(component))[n].total_bytes for n in self._away(component))

    # ---- programs

    def program(self, key: str) -> Program:
        """See `Profile`. Raises CannotTell as well where it was not recorded where layers are used."""
        share = self._share(key)
        if share is None:
            return self.base.program(self._instead(key))
        if key not in share.programs:
            share.programs[key] = self._made(key, self.program, _rewritten)
        return share.programs[key]

    def outline(self, key: str) -> Program | Footprint:
        """See `Profile`."""
        if core_rules.named(key):
            return self.outline(core_rules.recorded(key))
        share = self._share(key)
        if share is None:
            return self.base.outline(self._instead(key))
        if key not in share.outlines:
            share.outlines[key] = self._made(key, self._outlined_core, self._outlined)
        return share.outlines[key]

    def _outlined_core(self, key: str) -> Program:
        made = self.outline(key)
        assert isinstance(made, Program)  # a step's core always depends on the choice of layers
        return made

    def figures(self, key: str) -> dict[object, object]:
        """See `Profile`."""
        if key not in self._figures:  # planning asks thousands of times
            share = self._share(key)
            own = self.base.kept if self._instead(key) == key else self.kept
            self._figures[key] = own if share is None else share.figures
        return self._figures[key]

    def _share(self, key: str) -> Shares | None:
        """Of which component's choice a part depends; None: of none's."""
        name, *rest = key.split("/")
        component = USING.get(name) or LOADING.get(name) or ("transformer" if self._brings(key) else None)
        if component is None or (not self.taken.get(component) and (name, rest[0]) != ("preview", "bf16")):
            return None
        return self._of(component, self.weights_of(component))

    def _brings(self, key: str) -> bool:
        """Whether a part brings a training adapter's layers to the card for the first time."""
        return self.model.assistant_lora is not None and key.startswith("sample.enter/") and key.endswith("/first")

    def _instead(self, key: str) -> str:
        """The recorded part that stands for one: the adapter is never merged; and it is made from weights that are rebuilt on the host."""
        name, *rest = key.split("/")
        if name in ("sample.enter", "sample.leave") and rest[0] == "bf16":
            return "/".join([name, UNMERGED, *rest[1:]])
        if name == "setup.network" and self.taken.get("transformer") and rest[0] != "bf16":
            own = {n for n, layer in enumerate(self.layers("transformer", rest[0])) if layer.what == OWN}
            return f"{name}/bf16" if own and own <= self.taken["transformer"] else key
        return key

    def _made(self, key: str, core_of: Callable[[str], Program], make: Making) -> Program:
        name, *rest = key.split("/")
        if name in LOADING:
            return self._loaded(name, key)
        if self._brings(key):
            first = self._instead(key)
            later = self.base.program(f"{first.removesuffix('first')}later")
            return offload_beside.entered(self.base.program(first), later, self.taken["transformer"])
        if optimizers.FUSED in key and name == "step.core":
            core, update = key.split(optimizers.FUSED, 1)
            return optimizers.fused(core_of(core), update, self.adapter)
        if core_rules.named(key):
            return core_rules.rewritten(key, core_of)
        component = USING[name]
        layers = resident = self.layers(component, rest[0])
        if (name, rest[0]) == ("preview", "bf16"):
            key = "/".join([name, UNMERGED, *(word for word in rest[1:] if word not in ROUNDS)])
            resident = self.layers(component, UNMERGED)
        derived = derived_weights.base_key(key)
        recorded = key if derived is None else derived[0]
        what = Offloaded(resident, layers, self.taken.get(component, frozenset()))
        base, calls = self.base.program(recorded), self._calls(recorded, component)
        if name == "preview" and self.model.assistant_lora is not None:
            calls, what = offload_beside.used_beside(base, calls, what)
        if name == "preview" and make is _rewritten:
            base, calls = denoised(base, calls)
        program = make(base, calls, what)
        if derived is None or (make == self._outlined and derived[1].casts):  # see derived_weights.of_same_outline
            return program
        return derived_weights.program(program, key, derived[1], self.base.resident(component, derived[1].base))

    def _outlined(self, base: Program, calls: Sequence[Call], what: Offloaded) -> Program:
        outline = self._once(("outline", base.key, what.layers is what.resident), lambda: Outline(base, calls, what))
        made: Program = outline.program(what)
        return made

    def _loaded(self, name: str, key: str) -> Program:
        component, program = LOADING[name], self.base.program(key)
        taken = self._away(component)
        if name == "load.transformer" and self.model.assistant_lora is not None:
            program = offload_beside.loaded(program, self.taken.get(component, frozenset()))
        if not taken:
            return program
        if name == "load.text" and self._takes_text(BEFORE):
            layers = self.layers(component, self.weights_of(component))
            return offload_loading.loaded_late(program, component, self.layers(component, "bf16"), layers, taken)
        made = offload_loading.loaded_first if self._takes_text(AFTER) else offload_loading.loaded
        return made(program, component, self._gone(component))

    def _calls(self, key: str, component: str) -> tuple[Call, ...]:
        """Where in a recorded part the component's layers are used."""
        return self._once(("calls", key, component), lambda: self._read_calls(key, component))  # type: ignore[no-any-return]

    def _read_calls(self, key: str, component: str) -> tuple[Call, ...]:
        holder = self.base.holder(key)
        names, mine = table_of(holder, "layers"), {name: n for n, name in enumerate(table_of(self.base, "layers")[component])}
        calls = rebuilt_profile.calls(holder, key, component, names)
        if calls is None:
            raise CannotTell(_unknown(f"{self.arch}: where {key!r} uses each layer"))
        number = np.array([mine[name] for name in names[component]])  # a relative's encoder may be without a vision tower
        return tuple(Call(*row) for row in np.column_stack([number[calls[:, 0]], calls[:, 1:]]).tolist())

    def __hash__(self) -> int:
        return id(self)


_rewritten: Making = offload_programs.offloaded


def _unknown(what: str) -> Problem:
    return Problem(f"{what} was never recorded", None, "layer offloading needs it", "record it: see docs/adding_an_architecture.md")


def profile_of(arch: str, model: Model) -> Profile:
    """The profile of an architecture for a job's model. Raises CannotTell."""
    base = load_profile(arch)
    if not model.layer_offloading:
        return base
    return _offloading(arch, model)


@cache
def _offloading(arch: str, model: Model) -> OffloadProfile:
    base = load_profile(arch)
    return OffloadProfile(base.arch, base.data, base.folder, base, model)


ONE_IN_A_HUNDRED = 2.326
"""Standard deviations above the mean that one of a hundred normal draws exceeds."""


def chance_bytes(job: Job) -> int:
    """How much more than estimated may stay on the card where the trainer draws the offloaded layers anew, in 99 of 100 runs."""
    profile = waiting(profile_of(job.arch, job.model))
    return 0 if profile is None else round(ONE_IN_A_HUNDRED * profile.deviation_bytes)


def waiting(profile: Any) -> OffloadProfile | None:
    """The profile, if it is one with offloading."""
    return profile if isinstance(profile, OffloadProfile) else None
