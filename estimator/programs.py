"""Memory programs: the recorded allocations and frees of each part of the timeline, with sizes affine in a few features.

An architecture's programs are in `profiles/<arch>/`: `profile.json` says what there is (parts, features, peak rows with their
moments, residents, and what made them), `programs.bin` holds the events. Both are written by `python -m calibration.extract`.

Each part has a number, by which estimator.archive finds its events and tensors. Imports are tensors of other parts that are freed
here, always named. An event 0 allocates the next tensor, k > 0 frees the one allocated k allocations ago, -1 empties the cache, and
-2 - i frees import i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from estimator import core_rules, derived_weights, experts, heads, optimizers, rebuilt_profile, recipe_profile, shared, stays, unassisted
from estimator.archive import Archive, described, opened, sizes_of
from estimator.archs import load_archs
from estimator.arrays import distinct
from estimator.derived_weights import TENSORS_OF_LINEAR, Derivation
from estimator.errors import CannotTell, Problem
from estimator.footprint import Footprint, peaks_of
from estimator.loss_weights import WEIGHED
from estimator.parameters import LORA
from estimator.paths import profiles_dir
from estimator.program import Program
from estimator.recipes import kind_named
from estimator.references import ENCODES, encode
from estimator.unrecorded import problem as never_recorded

PRESERVING = "step.core.preserving/"  # with what follows in a core's key
COMPOSED = (PRESERVING, stays.ADAPTED, stays.BARE, stays.EMBEDDINGS)  # made of whole passes
FULL, CHECKPOINTED = "/full/", "/checkpointed/"  # in the keys of cores
PICTURED, OF_TEXT = " images", ("load.text", "text/", "cache_text")  # at the end of a text's key: encoded with pictures; of texts
TEXT_ENCODERS = ("text_encoder0", "text_encoder1", "text_encoder2", "text_encoder3")


@dataclass(frozen=True)
class Profile:
    """An architecture's programs and residents.

    `data["residents"]`: "component" or "component/weights" -> bytes of each tensor, in `.to()` order, see `sizes_of`.
    """

    arch: str
    data: Mapping[str, Any]
    folder: Path

    @cached_property
    def archive(self) -> Archive:
        return opened(self.folder)

    @cached_property
    def _programs(self) -> dict[str, Program]:
        return {}

    @cached_property
    def kept(self) -> dict[object, object]:
        """Figures that were computed before (estimator.rows)."""
        return {}

    def outline(self, key: str) -> Program | Footprint:
        """The part as far as peak rows and what stays or is freed are concerned: where that is quicker to have than all."""
        if ("outline", key) not in self.kept:
            base, whose = experts.split(key)
            if whose == experts.LOW or core_rules.named(key):  # the first expert's sizes
                return self.outline(core_rules.recorded(base))
            alike = derived_weights.of_same_outline(key)
            if alike is not None and not (whose or optimizers.FUSED in key or self.has(key)):
                return self.outline(alike)
            holder = self._recorded_by(key)
            self.kept["outline", key] = self.program(key) if holder is None else holder._footprint(key)
        return self.kept["outline", key]  # type: ignore[return-value]

    def figures(self, key: str) -> dict[object, object]:
        """Where figures of a part are kept (estimator.rows): with all profiles that have the same program of it."""
        return self.kept

    def has(self, key: str) -> bool:
        return key in self.data["parts"] or (self._is_relatives(key) and self.relative is not None and self.relative.has(key))

    def has_own(self, beginning: str) -> bool:
        """Whether any part that begins so was recorded for this very architecture."""
        place = "own", beginning
        if place not in self.kept:  # planning asks for every config that it reads
            self.kept[place] = any(key.startswith(beginning) for key in self.data["parts"])
        return bool(self.kept[place])

    @cached_property
    def kinds(self) -> frozenset[str]:  # of the parts that were recorded for this very architecture
        return frozenset(key.split("/")[0] for key in self.data["parts"])

    @property
    def shares_all(self) -> bool:
        """Whether all that was not recorded for it is the relative's, to the last weight (Qwen-Image-Edit: Qwen-Image's)."""
        return self.data.get("shares") == shared.ALL

    def _is_relatives(self, key: str) -> bool:
        """Whether a part is the relative's: of a kind of which none was recorded here, or a text without pictures where all have some."""
        kind = key.split("/")[0]
        if not self.shares_all or kind not in self.kinds:
            return self.shares_all
        texts = (mine for mine in self.data["parts"] if mine.startswith("text/"))
        return kind == "text" and not key.endswith(PICTURED) and all(mine.endswith(PICTURED) for mine in texts)

    @property
    def lenders(self) -> tuple[Profile, ...]:
        """Profiles whose text encoders (and VAE: `shared`) are its own too, the nearest first: its relative, that one's, and so on."""
        found, one = {self.arch: self}, None if self.shares_all else self.relative
        while one is not None and one.arch not in found:
            found[one.arch], one = one, one.relative
        return tuple(found.values())[1:]

    @cached_property
    def relative(self) -> Profile | None:
        """The architecture with the same text encoder (and VAE), whose recordings of them serve where there is no own one."""
        return load_profile(self.data["relative"]) if self.data.get("relative") else None

    def program(self, key: str) -> Program:
        """The part's program. Raises CannotTell if it was never recorded."""
        if key not in self._programs:
            holder = self._recorded_by(key)
            if holder is not None and holder is not self:
                return holder.program(key)
            self._programs[key] = self._by_rule(key) if holder is None else self.recorded(key)
        return self._programs[key]

    def holder(self, key: str) -> Profile:
        """The profile that holds a recorded part: this one or a relative. Raises CannotTell if none does."""
        return self._recorded_by(key) or self

    def _recorded_by(self, key: str, arch: str = "") -> Profile | None:
        """The profile that holds a part; None for what is made by rule. Raises CannotTell, of the architecture asked for (`arch`)."""
        if self._has_rule(key):
            return None
        if key in self.data["parts"]:
            return self
        if self.relative is not None and self._is_relatives(key):
            return self.relative._recorded_by(key, arch or self.arch)
        for lender in self.lenders if key.startswith(shared.parts(self.data)) else ():
            if key in lender.data["parts"] or rebuilt_profile.base_key(lender, key) is not None:
                return lender
        raise CannotTell(never_recorded(key, arch or self.arch, self.data["parts"]))

    def _has_rule(self, key: str) -> bool:
        named = key in stays.PROGRAMS or key in ENCODES or core_rules.named(key) or key.startswith(COMPOSED) or unassisted.named(key)
        if named or experts.split(key)[1] or (key.startswith("step.core") and optimizers.FUSED in key):
            return True
        if key.startswith(optimizers.PARTS) and optimizers.known(key.split("/")[1]):
            return True
        if rebuilt_profile.base_key(self, key) is not None or (recipe_profile.base_key(key) is not None and not self.has(key)):
            return True
        return (heads.named(key) or derived_weights.base_key(key) is not None) and not self.has(key)

    def _by_rule(self, key: str) -> Program:
        if key in stays.PROGRAMS:
            return stays.PROGRAMS[key]
        if unassisted.named(key):
            return unassisted.program(key, self.program)
        if rebuilt_profile.base_key(self, key) is not None:
            return rebuilt_profile.program(self, key)
        if key in ENCODES:
            return encode(key, self.program)
        derived = derived_weights.base_key(key)
        if key.startswith(COMPOSED):  # made of the recorded kind: with derived weights last, for which see FilteredProfile too
            return self._composed(key) if derived is None else self._derived(key, *derived)
        base, whose = experts.split(key)
        if whose:
            return self._of_expert(base, whose)
        if key.startswith(optimizers.PARTS):
            idle = load_archs().archs[self.arch].without_gradient if self.adapter_kind == LORA else ()
            return optimizers.program(key, self.adapter, self.adapter_kind, idle)
        if heads.named(key):
            return heads.with_prompts(key, self.program)
        if optimizers.FUSED in key:
            core, update = key.split(optimizers.FUSED, 1)
            return optimizers.fused(self.program(core), update, self.adapter, self.adapter_kind)
        if core_rules.named(key):
            return core_rules.rewritten(key, self.program)
        if recipe_profile.base_key(key) is not None:
            return recipe_profile.program(self, key)
        assert derived is not None
        return self._derived(key, *derived)

    def _composed(self, key: str) -> Program:
        from estimator import forward_pass, preservation  # reading them takes longer than most estimates need
        if not key.startswith(PRESERVING):
            return forward_pass.program(key, self.program)
        core = key.replace(PRESERVING, "step.core/")
        return preservation.program(key, self.program(core), self.program(core.removesuffix(WEIGHED).replace(FULL, CHECKPOINTED)))

    def _of_expert(self, key: str, whose: str) -> Program:
        if whose == experts.BOTH and key.startswith(optimizers.PARTS):
            return optimizers.program(key, self.adapter * 2, self.adapter_kind)
        made = experts.doubled if whose == experts.BOTH else experts.of_second
        return made(self.program(key), key + whose, len(self.adapter))

    def _derived(self, key: str, base: str, derivation: Derivation) -> Program:
        named = [each for each in TEXT_ENCODERS if self.has_resident(each)] if key.startswith(OF_TEXT) else ["transformer"]
        sizes = [size for each in named for size in self.resident(each, derivation.base)]
        return derived_weights.program(self.program(base), key, derivation, sizes)

    @property
    def adapter_kind(self) -> str:
        return self.data.get("adapter", LORA)  # type: ignore[no-any-return]

    @cached_property
    def adapter(self) -> tuple[int, ...]:
        """Bytes of each of a LoRA's parameters in fp32 at rank 1, whatever the base weights are (of two experts: of one's)."""
        if self.shares_all and self.relative is not None:
            return self.relative.adapter
        key = next(key for key in self.data["parts"] if key.startswith("setup.network/"))
        sizes = self.program(key).stay_bytes("adapter", {"r": 1})
        return tuple(2 * size for size in sizes) if key.endswith("/bf16/bf16") else sizes

    def recorded(self, key: str) -> Program:
        """The program of a part that this profile holds, as it was recorded. Raises KeyError for another."""
        part = self.data["parts"][key]
        number = part["number"]
        table = self.archive.tensors(number)
        names = [*self.archive.names, None]  # the last is that of -1
        sizes = self.archive.coefficients
        used = np.flatnonzero(sizes[distinct(table[:, 0])].any(axis=0)).tolist()  # a part is given only the variables that it depends on
        features = tuple(self.data["features"][c] for c in used)
        made = Program(
            key, features, sizes[:, used].take(table[:, 0], axis=0), tuple(table[:, 1].tolist()), self.archive.labels,
            tuple(map(names.__getitem__, table[:, 2].tolist())), self.archive.events(number),
            part["imports"], peaks_of(part, features), part.get("workspace_at", {}),
        )  # fmt: skip
        return made.known(label_rows=table[:, 1], named=np.flatnonzero(table[:, 2] >= 0))

    def _footprint(self, key: str) -> Program | Footprint:
        """Of a part that this profile holds; the whole program where that was read already, or where an older profile says no more."""
        part = self.data["parts"].get(key, {})
        if key in self._programs or "stays" not in part:
            return self.program(key)
        rows = part["stays"], part["freed"]
        named = {name for side in rows for group in side.values() for _, row in group for name in row}
        named.update(*(row["bytes"] for row in part["peaks"]))
        features = tuple(name for name in self.data["features"] if name in named)
        return Footprint(key, features, peaks_of(part, features), rows, part.get("workspace_at", {}))

    def resident(self, component: str, weights: str, unquantised: int = 0) -> list[int]:
        """Bytes of each of a component's tensors when it is on the card. Raises CannotTell.

        Either of two experts is the profile's `transformer`. `unquantised`: so many linear layers at the beginning are as in bf16.
        """
        key = ("sizes", component, weights, unquantised)
        if key not in self.kept:
            self.kept[key] = self._sizes(experts.RESIDENT_OF.get(component, component), weights, unquantised)
        return self.kept[key]  # type: ignore[return-value]

    def _sizes(self, component: str, weights: str, unquantised: int) -> list[int]:
        if unquantised and weights in TENSORS_OF_LINEAR:
            bf16, rest = self.resident(component, "bf16"), self.resident(component, weights)
            return bf16[: unquantised * TENSORS_OF_LINEAR["bf16"]] + rest[unquantised * TENSORS_OF_LINEAR[weights] :]
        # a component of which any kind was recorded is another one than the relative's (a vision tower more), but for the transformer: what
        # differs there is which of its layers are quantised
        recorded = self.has_own_resident(component)
        if self.shares_all and self.relative is not None and (not recorded or (component, weights) == ("transformer", "bf16")):
            return self.relative.resident(component, weights)
        for profile in (self, *(self.lenders if component.startswith(shared.components(self.data)) else ())):
            sizes = profile._own_resident(component, weights)
            if sizes is not None:
                return sizes
        raise CannotTell(Problem(f"{self.arch}: {component} in {weights} was never recorded", None, "", "choose another quantisation"))

    def has_own_resident(self, component: str) -> bool:
        return any(key.split("/")[0] == component for key in self.data["residents"])

    def _own_resident(self, component: str, weights: str) -> list[int] | None:
        """`resident` from this profile's own recordings, or derived from them; None without. (Two may be each other's relative.)"""
        table = self.data["residents"]
        for key in (f"{component}/{weights}", component):
            if key in table:
                return sizes_of(table[key])
        if kind_named(weights):
            return recipe_profile.residents(self, component, weights) if self._own_resident(component, recipe_profile.BASE) else None
        derivation = derived_weights.DERIVED.get(weights)
        base = self._own_resident(component, derivation.base) if derivation else None
        return None if base is None or derivation is None else derived_weights.residents(base, derivation)

    def has_resident(self, component: str) -> bool:
        return self.has_own_resident(component) or (self.shares_all and self.relative is not None and self.relative.has_resident(component))


@cache
def load_profile(arch: str) -> Profile:
    """The profile of an architecture key. Raises CannotTell if there is none."""
    folder = profiles_dir() / arch
    try:
        data = described(folder)
    except FileNotFoundError:
        raise CannotTell(Problem(f"{arch} has no memory programs yet", None, "", "see `estimate archs`")) from None
    return Profile(arch, data, folder)
