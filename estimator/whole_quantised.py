"""The profile of a job that trains the whole transformer in float8 or qfloat8.

In float8 torchao's layers give their weights no gradient, so that all other parameters are trained (norms, biases, layers that are not
quantised): a step is bf16's with those weights frozen (estimator.whole_frozen), and each such layer makes its weight before it multiplies:
a cast of its codes, the weight, and the cast goes. Where a graph is made autograd saves the weight until the gradient of the input is
there. In qfloat8 all parameters get gradients (estimator.whole_quanto). Previews are a LoRA's in that kind without it.
Source: torchao 0.10.0 (AffineQuantizedTensor, float8_weight_only), ostris/ai-toolkit 27a03a91, toolkit/util/quantize.py; recordings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from estimator import whole_quanto
from estimator.adapter_sites import BACKWARD, FORWARD, RECOMPUTED, Tape, sites
from estimator.filtered_edit import Edit
from estimator.frozen_layers import LINEAR, WITH_BIAS
from estimator.laying import CONSTANT, Laid
from estimator.offload import WRAPPED, layers_of, table_of
from estimator.program import Program
from estimator.programs import CHECKPOINTED, load_profile
from estimator.whole_filtered import FrozenWholeProfile
from estimator.whole_profile import recorded_of

FLOAT8, QUANTO, PLAIN, TRANSFORMER = "float8", "qfloat8", "bf16", "transformer"
KINDS = (FLOAT8, QUANTO)
SAVE = "save/none"


def cores(kind: str) -> tuple[str, ...]:
    """Keys of a kind's cores."""
    return tuple(f"step.core/{kind}/{kept}/{many}" for kept in ("checkpointed", "full") for many in ("one", "many"))


@dataclass(frozen=True)
class QuantisedWholeProfile(FrozenWholeProfile):
    """`kind`: one of KINDS."""

    kind: str

    @cached_property
    def weights(self) -> Mapping[str, int]:
        """Quantised layers by the name of their module -> bytes of the weight that they make."""
        base = load_profile(self.arch)
        names, places = table_of(base, "layers")[TRANSFORMER], table_of(base, "places")
        layers = layers_of(places[f"{TRANSFORMER}/{self.kind}"], base.resident(TRANSFORMER, self.kind), names)
        plain = layers_of(places[f"{TRANSFORMER}/{PLAIN}"], base.resident(TRANSFORMER, PLAIN), names)
        pairs = zip(names, layers, plain, strict=True)
        return {f"{TRANSFORMER}.{name}": alike.sizes[0] for name, layer, alike in pairs if layer.what == WRAPPED}

    @cached_property
    def remaking(self) -> tuple[int, ...]:
        """Their weights, by number."""
        return tuple(k for k, name in enumerate(self.names) if name.removesuffix(".weight") in self.weights)

    @cached_property
    def left(self) -> frozenset[int]:
        return frozenset(self.remaking if self.kind == FLOAT8 else ())

    def _has_rule(self, key: str) -> bool:
        mine = key in cores(self.kind) or key.startswith(self._around) or (key == SAVE and self.kind == QUANTO)
        return mine or super()._has_rule(key)

    @property
    def _around(self) -> tuple[str, ...]:
        return tuple(f"{part}/{self.kind}/" for part in ("sample.enter", "sample.leave", "preview"))

    def _by_rule(self, key: str) -> Program:
        if key in cores(self.kind):
            base = self.recorded(key.replace(self.kind, PLAIN))
            return remade(base, self.weights, CHECKPOINTED in key) if self.kind == FLOAT8 else whole_quanto.core(base, self.weights)
        if key.startswith(self._around[:2]):
            return self.recorded(key.replace(self.kind, PLAIN))
        if key.startswith(self._around):
            return without_adapter(load_profile(self.arch).program(key))
        if key == SAVE:
            return whole_quanto.saving([(self.adapter.shapes[k][0], self.adapter[k]) for k in self.remaking])
        return super()._by_rule(key)

    def __hash__(self) -> int:
        return id(self)


def remade(core: Program, weights: Mapping[str, int], checkpointed: bool) -> Program:
    """A step's core with weights that layers make anew. `weights`: bytes, by module."""
    laid = Laid(Tape(core))
    uses, ends = _uses(laid.tape, weights), _backward(laid.tape, weights, checkpointed)
    for k in uses:
        module, run = laid.tape.made[k].module, laid.tape.made[k].run
        size, place = {CONSTANT: weights[module]}, laid.tape.born[k]
        cast = laid.make(laid.before(place), size, k)
        weight = laid.make(laid.before(place), size, k)
        laid.free(laid.before(place), cast)
        saved = module in ends and (run == RECOMPUTED or not checkpointed or not _recomputed(laid.tape, module))
        laid.free(laid.behind(ends[module] if saved else place), weight)
    return laid.program(lambda event: (event, 0, 0))


def _recomputed(tape: Tape, module: str) -> bool:
    """Whether checkpointing runs a module again: those outside the blocks run once, with a graph."""
    return any(made.module == module and made.run == RECOMPUTED for made in tape.made)


def _uses(tape: Tape, weights: Mapping[str, int]) -> list[int]:
    """The first tensor of each quantised layer in each pass: its result."""
    seen: set[tuple[str, str]] = set()
    out = []
    for k, made in enumerate(tape.made):
        use = made.module, made.run
        if made.module in weights and made.run in (FORWARD, RECOMPUTED) and use not in seen:
            seen.add(use)
            out.append(k)
    return out


def _backward(tape: Tape, weights: Mapping[str, int], checkpointed: bool) -> dict[str, int]:
    """Of each layer whose input needs a gradient the event behind which its weight goes: the last of its node; under checkpointing, and of
    a layer without a bias, the gradient itself."""
    out: dict[str, int] = {}
    seen: set[str] = set()
    for k, made in enumerate(tape.made):
        if made.module not in weights or made.run != BACKWARD or made.node not in LINEAR or made.module in seen:
            continue
        seen.add(made.module)
        if tape.base.names[k]:  # a bias's gradient comes first where the input needs none
            continue
        last = k
        while last + 1 < tape.own and tape.made[last + 1] == made:
            last += 1
        at_once = checkpointed or made.node != WITH_BIAS
        out[made.module] = tape.born[k] if at_once else tape.next_birth(last) - 1
    return out


def without_adapter(preview: Program) -> Program:
    """A preview of quantised weights, beside which a LoRA lies, without it."""
    edit = Edit(Tape(preview))
    for site in sites(edit.tape):
        edit.without_adapter(site)
    return edit.program(list(preview.names))


@cache
def quantised(arch: str, kind: str, bypassed: bool | None = None) -> QuantisedWholeProfile:
    """The profile of an architecture that is trained as a whole in such a kind. Raises CannotTell."""
    base = recorded_of(arch)
    return QuantisedWholeProfile(base.arch, base.data, base.folder, kind, bypassed=bypassed)
