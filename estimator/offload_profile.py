"""A profile as a job with layer offloading sees it: programs with its layers' copies in them, residents without what waits on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np

from estimator import (
    core_rules,
    derived_weights,
    experts,
    offload_beside,
    offload_loading,
    offload_programs,
    optimizers,
    rebuilt_profile,
    recipe_profile,
)
from estimator.edited import EDITED
from estimator.errors import CannotTell
from estimator.footprint import Footprint
from estimator.job import Job, Model
from estimator.layer_calls import Uses, of_rows
from estimator.offload import OWN, table_of
from estimator.offload_choice import AFTER, BEFORE, ChosenProfile, Shares, unknown
from estimator.offload_programs import Offloaded
from estimator.offload_rounds import beside, denoised, in_two_steps
from estimator.offload_rows import Outline
from estimator.program import Program
from estimator.programs import Profile, load_profile

# Weights of which the adapter is never merged into the base, as it never is with offloading: what previews of unquantised weights are then
UNMERGED = "float8"
ROUNDS = ("first", "later")  # of previews, in the keys of unquantised ones
CORE, PREVIEW = "step.core", "preview"
CORES, PREVIEWS = (CORE, "step.core.sound", "step.core.timed", "step.core.timed_image"), (PREVIEW, "preview.begun")
LOAD_TRANSFORMER, LOAD_TEXT, LOAD_REST, TEXT, TEXT_ENCODER = "load.transformer", "load.text", "load.rest", "text", "text_encoder0"
Making = Callable[[Program, Uses, Offloaded], Program]


@dataclass(frozen=True)
class OffloadProfile(ChosenProfile):
    """See `ChosenProfile`. A part of either expert is of its own choice of layers; previews are of both, one step of each."""

    _figures: dict[str, dict[object, object]] = field(default_factory=dict, repr=False, compare=False)  # by part

    # ---- programs

    def program(self, key: str) -> Program:
        """See `Profile`. Raises CannotTell as well where it was not recorded where layers are used."""
        share = self._share(key)
        if share is None:
            return self.base.program(self._instead(key))
        if key not in share.programs:
            _, whose = experts.split(key)
            made = self._made(key, partial(self._core, whose), _rewritten)
            share.programs[key] = experts.of_second(made, key, len(self.adapter)) if whose else made
        return share.programs[key]

    def _core(self, whose: str, key: str) -> Program:
        """An expert's core, in the first one's names."""
        return self._made(key + whose, partial(self._core, whose), _rewritten) if whose else self.program(key)

    def outline(self, key: str) -> Program | Footprint:
        """See `Profile`."""
        if core_rules.named(key):
            base, whose = experts.split(key)
            return self.outline(core_rules.recorded(base) + whose)
        share = self._share(key)
        if share is None:
            return self.base.outline(self._instead(key))
        if key not in share.outlines:
            share.outlines[key] = self._made(key, partial(self._outlined_core, experts.split(key)[1]), self._outlined)
        return share.outlines[key]

    def _outlined_core(self, whose: str, key: str) -> Program:
        made = self.outline(key + whose)
        assert isinstance(made, Program)  # a step's core always depends on the choice of layers
        return made

    def figures(self, key: str) -> dict[object, object]:
        """See `Profile`."""
        if key not in self._figures:  # planning asks thousands of times
            share = self._share(key)
            own = self.base.kept if self._instead(key) == key else self.kept
            self._figures[key] = own if share is None else share.figures
        return self._figures[key]

    def _components(self, key: str) -> tuple[str, ...]:
        """The components on whose choice a part depends."""
        (name, *_), (_, whose) = key.split("/"), experts.split(key)
        if name in CORES:
            return self.transformers[-1:] if whose == experts.LOW else self.transformers[:1]
        if name in (*PREVIEWS, LOAD_TRANSFORMER, LOAD_REST) or self._brings(key):
            return self.transformers
        return (TEXT_ENCODER,) if name in (TEXT, LOAD_TEXT) else ()

    def _share(self, key: str) -> Shares | None:
        """Of which choice of layers a part is; None: it depends on none."""
        components, (name, kind) = self._components(key), (*key.split("/"), "")[:2]
        unmerged = name in PREVIEWS and kind == "bf16"
        if not components or not (unmerged or any(self.taken.get(component) for component in components)):
            return None
        return self._of(components, self.weights_of(components[0]))

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
        key, whose = experts.split(key)
        edited = key.startswith(f"{PREVIEW}/") and key.endswith(EDITED)
        key = key.removesuffix(EDITED) if edited else key
        name, *rest = key.split("/")
        if name in (LOAD_TRANSFORMER, LOAD_TEXT, LOAD_REST):
            return self._loaded(name, key)
        if self._brings(key):
            first = self._instead(key)
            later = self.base.program(f"{first.removesuffix('first')}later")
            return offload_beside.entered(self.base.program(first), later, self.taken["transformer"])
        if optimizers.FUSED in key and name == CORE:
            core, update = key.split(optimizers.FUSED, 1)
            return optimizers.fused(core_of(core), update, self.adapter)
        if core_rules.named(key):
            return core_rules.rewritten(key, core_of)
        components = self._components(key + whose)
        layers = resident = self.layers(components[0], rest[0])
        if name in PREVIEWS and rest[0] == "bf16":
            key = "/".join([name, UNMERGED, *(word for word in rest[1:] if word not in ROUNDS)])
            resident = self.layers(components[0], UNMERGED)
        derived = derived_weights.base_key(key)
        recorded = key if derived is None else derived[0]
        what = Offloaded(resident, layers, self.taken.get(components[0], frozenset()))
        base, calls = self.base.program(recorded), self._calls(recorded, components[0])
        beside_it = name == PREVIEW and self.model.assistant_lora is not None
        if beside_it:
            calls, what = offload_beside.used_beside(base, calls, what)
        one, uses, further = base, calls, len(what.layers) if components[1:] else 0
        if edited:
            base, calls = self._once(("edited", recorded, beside_it), lambda: in_two_steps(one, uses))
        elif name in PREVIEWS and make is _rewritten:
            base, calls = self._once(("denoised", recorded, further, beside_it), lambda: denoised(one, uses, further))
            what = beside(what, *(self.taken.get(each, frozenset()) for each in components[1:]))
        program = make(base, calls, what)
        if derived is None or (make == self._outlined and derived[1].casts):  # see derived_weights.of_same_outline
            return program
        return derived_weights.program(program, key, derived[1], self.base.resident(components[0], derived[1].base))

    def _outlined(self, base: Program, uses: Uses, what: Offloaded) -> Program:
        outline = self._once(("outline", base.key, what.layers is what.resident), lambda: Outline(base, uses, what))
        made: Program = outline.program(what)
        return made

    def _loaded(self, name: str, key: str) -> Program:
        program, numbers = self.base.program(key), 0
        for component in self._components(key):
            if name == LOAD_TRANSFORMER and self.model.assistant_lora is not None:
                program = offload_beside.loaded(program, self.taken.get(component, frozenset()))
            program = self._left(program, component, name, numbers)
            numbers += self.numbers(component)
        return program

    def _left(self, program: Program, component: str, name: str, first: int) -> Program:
        """A part of loading without what of a component waits on the host. `first`: the number of its first tensor in names."""
        taken = self._away(component)
        if not taken:
            return program
        named = experts.RESIDENT_OF.get(component, component)
        if name == LOAD_TEXT and self._takes_text(BEFORE):
            layers = self.layers(component, self.weights_of(component))
            return offload_loading.loaded_late(program, named, self.layers(component, "bf16"), layers, taken)
        made = offload_loading.loaded_first if self._takes_text(AFTER) else offload_loading.loaded
        gone = self._gone(component)
        return made(program, named, [replace(layer, number=first + layer.number) for layer in gone] if first else gone)

    def _calls(self, key: str, component: str) -> Uses:
        """Where in a recorded part the component's layers are used."""
        component = experts.RESIDENT_OF.get(component, component)
        return self._once(("calls", key, component), lambda: self._read_calls(key, component))  # type: ignore[no-any-return]

    def _read_calls(self, key: str, component: str) -> Uses:
        if recipe_profile.base_key(key) is not None and not self.base.has(key):  # of texts none are taken
            return of_rows(recipe_profile.calls_of(self.base, key))
        holder = self.base.holder(key)
        names, mine = table_of(holder, "layers"), {name: n for n, name in enumerate(table_of(self.base, "layers")[component])}
        calls = rebuilt_profile.calls(holder, key, component, names)
        if calls is None:
            raise CannotTell(unknown(f"{self.arch}: where {key!r} uses each layer"))
        number = np.array([mine[name] for name in names[component]])  # a relative's encoder may be without a vision tower
        return of_rows(np.column_stack([number[calls[:, 0]], calls[:, 1:]]))

    def __hash__(self) -> int:
        return id(self)


_rewritten: Making = offload_programs.offloaded


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
