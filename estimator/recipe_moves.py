"""Loading and moves in a kind of weights that has a recipe: uint4's, with how each layer is quantised, and what of it stays, exchanged.

Quantising a layer to uint4 makes 24 tensors, whose sizes are known from the first one's; three of them stay: codes, scales, zero points.
They are found so, and named ones (which a move brings to the card or takes away) by their names. In place of each stands what the recipe
(estimator.recipes) makes. Where the weight of a layer is asked for, as adapters do, five tensors are known by their sizes. Which layer it
is follows from the order in which a component's layers are quantised, and the number of its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from estimator.derived_weights import highest
from estimator.features import Ints
from estimator.program import ALLOCATE, EMPTY_CACHE, FIRST_IMPORT, EventProgram, Program
from estimator.recipe_uses import ASKED, GROUP, NARROW, Dims, asked_for
from estimator.recipes import SAVED, Recipe, Size, own_quantities

SCALES, CODES, ZEROS = 8, 21, 23  # of what quantising makes, what stays
MADE = (*(2,) * 13, 4, 2, 2, *(2 * GROUP,) * 4, GROUP, GROUP // 2, GROUP // 2, 1)
"""Bytes of each of those tensors for a group of weights (toolkit/util/uintx_quant.py, _quantize_impl)."""
PARTS_OF_OWN = 3  # codes, scales, zero points
ROTATED = 1  # of what quantising makes, the rotated weight: the product of a matrix, the first that a process multiplies


@dataclass(frozen=True, slots=True)
class Quantised:
    """A layer that the recipe quantises: where its codes stand in uint4 among its component's residents, and in names of tensors."""

    place: int
    number: int
    dims: Dims


Layers = Mapping[str, Sequence[Quantised]]
"""By component, in the order in which they are quantised."""
Named = Mapping[int, tuple[Dims, list[str]] | None]
"""Tensors with names: those of codes -> the layer, and the names of what stands for them; of scales and zero points -> None."""


def residents(sizes: Sequence[int], recipe: Recipe, layers: Sequence[Quantised]) -> list[int]:
    """Bytes of a component's tensors, from those in uint4."""
    of_codes = {layer.place: layer.dims for layer in layers}
    out, place = list[int](), 0
    while place < len(sizes):
        dims = of_codes.get(place)
        out += [sizes[place]] if dims is None else [bytes_of(size, dims) for size in recipe.sizes]
        place += 1 if dims is None else PARTS_OF_OWN
    return out


@cache
def bytes_of(size: Size, dims: Dims) -> int:
    """Bytes of what a layer makes of its weights."""
    return int(size.times * own_quantities(dims.outputs, dims.inputs)[size.of])


@dataclass
class _Draft:
    """The part as it is written anew. `now`: the base's tensor -> those that stand for it."""

    base: Program
    sizes: list[int] = field(default_factory=list)  # of a further tensor its bytes; of the base's its number there, negative
    labels: list[int] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    now: dict[int, list[int]] = field(default_factory=dict)
    imports: list[tuple[int, str | None]] = field(default_factory=list)  # of each its bytes or number as above, and its name
    product: int | None = None  # the event before which the first product is multiplied

    def birth(self, size: int, like: int, name: str | None = None) -> int:
        self.sizes.append(size)
        self.labels.append(self.base.labels[like])
        self.names.append(name)
        self.codes.append(ALLOCATE)
        return len(self.sizes) - 1

    def death(self, tensor: int) -> None:
        self.codes.append(len(self.sizes) - tensor)


def program(base: Program, key: str, recipe: Recipe, layers: Layers) -> Program:
    """The part in the recipe's kind. `base`: in uint4."""
    own = len(base.names) - base.imports
    starts, asked = _quantising(base, layers), asked_for(base)
    named, names = _named(base, recipe, layers), _renumbered(base, recipe, layers)
    block = {start + k for start in starts for k in range(len(MADE))} | {start + k for start in asked for k in range(ASKED)}
    draft, moved_to = _Draft(base), list[int]()
    _imports(draft, own, recipe, named, names)
    for code, tensor in zip(base.events.tolist(), base.tensor_of_event.tolist(), strict=True):
        moved_to.append(len(draft.codes))
        if code == EMPTY_CACHE:
            draft.codes.append(EMPTY_CACHE)
        elif code == ALLOCATE and tensor in starts:
            _quantise(draft, tensor, recipe, starts[tensor], named)
        elif code == ALLOCATE and tensor in asked:
            _ask(draft, tensor, recipe, asked[tensor])
        elif code == ALLOCATE and tensor not in block:
            _birth(draft, tensor, recipe, named, names)
        elif code != ALLOCATE and tensor >= own:
            draft.codes += [FIRST_IMPORT - n for n in draft.now.pop(tensor, [])]
        elif code != ALLOCATE:
            for number in draft.now.pop(tensor, []):
                draft.death(number)
    workspace_at = {thread: moved_to[at] if at < len(moved_to) else len(draft.codes) for thread, at in base.workspace_at.items()}
    if draft.product is not None:
        workspace_at.setdefault("forward", draft.product)
    return _written(draft, key, workspace_at)


def _ask(draft: _Draft, start: int, recipe: Recipe, weights: int) -> None:
    stage, numbers = recipe.stages["weight"], dict[int, int]()
    for number, born in stage.events:
        if born:
            numbers[number] = draft.birth(bytes_of(stage.sizes[number], Dims(weights, 1)), start)
        else:
            draft.death(numbers[number])
    draft.now[start + NARROW] = [numbers[number] for number in stage.left]


def _imports(draft: _Draft, own: int, recipe: Recipe, named: Named, names: Sequence[str | None]) -> None:
    for tensor in range(own, len(draft.base.names)):
        if tensor not in named:
            rows = [(-1 - tensor, names[tensor])]
        elif (one := named[tensor]) is None:
            rows = []
        else:
            rows = [(bytes_of(size, one[0]), name) for size, name in zip(recipe.sizes, one[1], strict=True)]
        draft.now[tensor] = list(range(len(draft.imports), len(draft.imports) + len(rows)))
        draft.imports += rows


def _birth(draft: _Draft, tensor: int, recipe: Recipe, named: Named, names: Sequence[str | None]) -> None:
    if tensor not in named:
        draft.now[tensor] = [draft.birth(-1 - tensor, tensor, names[tensor])]
    elif (one := named[tensor]) is not None:
        pairs = zip(recipe.sizes, one[1], strict=True)
        draft.now[tensor] = [draft.birth(bytes_of(size, one[0]), tensor, name) for size, name in pairs]


def _quantise(draft: _Draft, start: int, recipe: Recipe, dims: Dims, named: Named) -> None:
    """The recipe's quantising. What stays goes where the base's codes go; the weight goes where it did."""
    stage, numbers = recipe.stages["convert"], dict[int, int]()
    one = named.get(start + CODES)
    of_buffer = dict(zip(recipe.buffers, one[1] if one else [None] * len(recipe.buffers), strict=True))
    for number, born in stage.events:
        if born:
            numbers[number] = draft.birth(bytes_of(stage.sizes[number], dims), start, of_buffer.get(number))
            if recipe.rotates and draft.product is None and number == ROTATED:
                draft.product = len(draft.codes)
        elif number != SAVED:
            draft.death(numbers[number])
    draft.now[start + CODES] = [numbers[number] for number in recipe.buffers]


def _quantising(base: Program, layers: Layers) -> dict[int, Dims]:
    """The first tensor of each layer's quantising -> the layer's dimensions."""
    sizes = base.constants[: len(base.names) - base.imports]
    count = len(sizes) - len(MADE) + 1
    if count < 1:
        return {}
    groups = sizes[:count] // MADE[0]
    found = groups > 0
    for k, times in enumerate(MADE):
        found &= sizes[k : k + count] == times * groups
    out, turn = dict[int, Dims](), _InTurn([layer.dims for each in layers.values() for layer in each])
    for start in np.flatnonzero(found).tolist():
        out[start] = turn(int(groups[start]) * GROUP)
    return out


class _InTurn:
    """Gives the next of some layers that has so many weights."""

    def __init__(self, dims: Sequence[Dims]) -> None:
        self._dims, self._at = dims, 0

    def __call__(self, weights: int) -> Dims:
        count = len(self._dims)
        for step in range(count):
            one = self._dims[(self._at + step) % count]
            if one.outputs * one.inputs == weights:
                self._at = (self._at + step + 1) % count
                return one
        raise ValueError(f"no layer has {weights} weights")



def _named(base: Program, recipe: Recipe, layers: Layers) -> dict[int, tuple[Dims, list[str]] | None]:
    """See Named."""
    codes, others = dict[str, tuple[Dims, list[str]]](), set[str]()
    for component, listed in layers.items():
        for n, layer in enumerate(listed):
            first = layer.number + n * (len(recipe.buffers) - PARTS_OF_OWN)
            codes[f"{component}:{layer.number}"] = layer.dims, [f"{component}:{first + k}" for k in range(len(recipe.buffers))]
            others |= {f"{component}:{layer.number + k}" for k in range(1, PARTS_OF_OWN)}
    out: dict[int, tuple[Dims, list[str]] | None] = {}
    for tensor in base.named.tolist():
        name = base.names[tensor]
        if name in codes:
            out[tensor] = codes[name]
        elif name in others:
            out[tensor] = None
    return out


def _renumbered(base: Program, recipe: Recipe, layers: Layers) -> list[str | None]:
    """Names of all tensors, with what the recipe's layers have more or less in front of them."""
    more, names = len(recipe.buffers) - PARTS_OF_OWN, list(base.names)
    if not more:
        return names
    numbers = {component: np.array([layer.number for layer in listed], dtype=np.int64) for component, listed in layers.items()}
    for tensor, component, number in _numbered(base):
        if component in numbers:
            names[tensor] = f"{component}:{number + more * int((numbers[component] < number).sum())}"
    return names


def _numbered(base: Program) -> Iterator[tuple[int, str, int]]:
    for tensor in base.named.tolist():
        component, _, number = str(base.names[tensor]).partition(":")
        if number.isdigit():
            yield tensor, component, int(number)


def _written(draft: _Draft, key: str, workspace_at: Mapping[str, int]) -> Program:
    base = draft.base
    features = base.features if "1" in base.features else (*base.features, "1")
    sizes = np.array([*draft.sizes, *(size for size, _ in draft.imports)], dtype=np.int64)
    rows: Ints = np.zeros((len(sizes), len(features)), dtype=np.int64)
    kept = sizes < 0
    rows[kept, : len(base.features)] = base.coefficients[-1 - sizes[kept]]
    rows[~kept, features.index("1")] = sizes[~kept]
    names = (*draft.names, *(name for _, name in draft.imports))
    labels = (*draft.labels, *(0 for _ in draft.imports))
    events = np.array(draft.codes, dtype=np.int64)
    made = EventProgram(key, features, rows, labels, base.moments, names, events, len(draft.imports), (), workspace_at)
    constant = made.features == ("1",) and len(draft.sizes) > 0
    return replace(made, peaks=highest(made, rows)) if constant else made.with_rows
