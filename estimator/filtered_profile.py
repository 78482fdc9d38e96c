"""A profile as a job sees it whose adapter sits on some of the layers only (`ignore_if_contains`, `only_if_contains`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from estimator import core_rules, derived_weights, optimizers
from estimator.adapter_sites import UNLIKE, Tape, layers_of, sites
from estimator.errors import CannotTell, Problem
from estimator.filtered_edit import AFTER, OF_LAYERS, Edit, renamed
from estimator.filtered_programs import core
from estimator.footprint import Footprint
from estimator.guided_step import GUIDED
from estimator.program import Program
from estimator.programs import CHECKPOINTED, COMPOSED, FULL, Profile, load_profile

# Parts that go through the adapter's tensors
ONE_BY_ONE = ("setup.network", "setup.ema", "step.ema", "save", "sample.enter", "sample.leave")
# Previews that the adapter's layers are in; steps are by their beginning
PREVIEWS = ("preview", "preview.begun", "preview.controlled", "preview.padded")
CORE = "step.core"


def has_layers(name: str) -> bool:
    """Whether a part (the first word of its key) goes through the transformer, with the adapter in it."""
    return name == CORE or name.startswith(f"{CORE}.") or name in PREVIEWS


@dataclass(frozen=True)
class FilteredProfile(Profile):
    """`base`: the profile as recorded, with all layers; `ignored` and `only`: parts of layers' names, as the trainer looks for them."""

    base: Profile
    ignored: tuple[str, ...]
    only: tuple[str, ...] | None

    @cached_property
    def layers(self) -> dict[str, int]:
        """All layers that can have an adapter, with the number of each."""
        key = next(key for key in self.base.data["parts"] if key.startswith("step.core/"))
        return layers_of(Tape(self.base.program(key)))

    @cached_property
    def adapted(self) -> frozenset[int]:
        """Numbers of the layers that have an adapter. Raises CannotTell where none is left."""
        kept = frozenset(n for layer, n in self.layers.items() if self.adapts(layer))
        if not kept:
            fix = "see network_kwargs.only_if_contains and ignore_if_contains"
            raise CannotTell(Problem("the filters of network_kwargs leave no layer with an adapter", None, "nothing would be trained", fix))
        return kept

    def adapts(self, layer: str) -> bool:
        """toolkit/lora_special.py (create_modules): any word in the dotted name; `only` is looked for in the name with $$ for dots too."""
        if any(word in layer for word in self.ignored):
            return False
        return self.only is None or any(word in layer or word in layer.replace(".", "$$") for word in self.only)

    @cached_property
    def adapter(self) -> tuple[int, ...]:
        """See `Profile`."""
        return tuple(width for n in sorted(self.adapted) for width in self.base.adapter[2 * n : 2 * n + 2])

    def _rewritten(self, key: str) -> bool:
        return key.split("/")[0] in (*ONE_BY_ONE, "step.core", "preview") or key.startswith((*optimizers.PARTS, *COMPOSED))

    def program(self, key: str) -> Program:
        """See `Profile`. Raises CannotTell as well where the adapter's tensors are not found."""
        if not self._rewritten(key):
            return self.base.program(key)
        if key not in self._programs:
            self._programs[key] = self._made(key)
        return self._programs[key]

    def outline(self, key: str) -> Program | Footprint:
        """See `Profile`."""
        return self.program(key) if self._rewritten(key) else self.base.outline(key)

    def _made(self, key: str) -> Program:
        if key.startswith(optimizers.PARTS):
            return optimizers.program(key, self.adapter)
        if optimizers.FUSED in key:
            inner, update = key.split(optimizers.FUSED, 1)
            return optimizers.fused(self.program(inner), update, self.adapter)
        if key.endswith(GUIDED):  # behind the filter and other weights, which know of one number of samples
            return core_rules.rewritten(key, self.program)
        if (derived := derived_weights.base_key(key)) is not None:  # last: an adapter's tensors are found in what was recorded
            return self._derived(key, *derived)
        if key.startswith(COMPOSED):
            return self._composed(key)
        base = self.base.program(key)
        if key.startswith("step.core/"):
            return core(base, self.base.program(key.replace(FULL, CHECKPOINTED)), self.adapted)
        if key.startswith("preview/"):
            return self._preview(base)
        return one_by_one(base, self.base.adapter, self.adapted)

    def _preview(self, base: Program) -> Program:
        edit = Edit(Tape(base))
        for site in sites(edit.tape):
            if self.layers[site.layer] not in self.adapted:
                edit.without_adapter(site)
        return edit.program(list(base.names))

    def __hash__(self) -> int:
        return id(self)


def one_by_one(base: Program, widths: Sequence[int], kept: frozenset[int]) -> Program:
    """A part that goes through the adapter's tensors in their order, without those of other layers and what is made along with them."""
    edit = Edit(Tape(base))
    owners = _owners(edit.tape, widths)
    edit.gone |= {k for k, layer in owners.items() if layer not in kept}
    for k in range(edit.tape.own):  # a tensor that is let go as the next one is made
        died = edit.tape.died[k]
        last = -1 if died is None else edit.tape.made_before(died)
        if k not in edit.gone and last in edit.gone and last > k:
            following = next((n for n in range(last + 1, edit.tape.own) if n not in edit.gone), None)
            if following is not None and owners.get(last) != owners.get(k):
                edit.ends[k] = (edit.tape.born[following], AFTER)
    return edit.program(renamed(base.names, kept))


def _owners(tape: Tape, widths: Sequence[int]) -> dict[int, int]:
    """Tensor -> layer. Tensors as large as the next layer's two are those; what follows is its layer's until the next layer's."""
    out: dict[int, int] = {}
    at, layer, length, longest = 0, None, 0, 0
    for k in range(tape.own):
        name = tape.base.names[k] or ""
        component, _, number = name.partition(":")
        if component in OF_LAYERS:
            layer, at, length = int(number) // 2, int(number) + 1, 0
        elif tape.sizes[k] in _pair(widths, at):
            if at % 2 == 0:
                longest, length = max(longest, length), 0
                layer = at % len(widths) // 2
            at += 1
        length += 1
        if layer is not None and (not longest or length <= longest):
            out[k] = layer
    return out


def _pair(widths: Sequence[int], at: int) -> set[int]:
    """Sizes of the two matrices of a layer: merging takes the second one first."""
    first = at % len(widths) // 2 * 2
    return {width * UNLIKE["r"] for width in widths[first : first + 2]}


@cache
def filtered(arch: str, ignored: tuple[str, ...], only: tuple[str, ...] | None) -> FilteredProfile:
    """The profile of an architecture with an adapter on some layers. Raises CannotTell."""
    base = load_profile(arch)
    return FilteredProfile(base.arch, base.data, base.folder, base, ignored, only)
