"""Where in a recorded program an adapter's layers are: which tensors each makes, forward, recomputed and backward.

A program says of each tensor which module made it, in the forward pass (again: recomputed, under gradient checkpointing) or by which
node of the backward pass. A LoRA on a layer is two linear modules within it, so that its tensors are known by their place:

    forward, behind the layer's own result:   input in fp32; down; up; times scale; times multiplier; in the result's type; the sum
    backward, before the layer's own:         gradient in fp32; twice multiplied; up's gradient; down's result's; down's gradient;
                                              the input's, in fp32 and in its own type (where the input needs one)
Source: toolkit/network_mixins.py (ToolkitModuleMixin.forward, _call_forward), as recorded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from estimator.errors import CannotTell, Problem
from estimator.features import Ints
from estimator.program import ALLOCATE, EMPTY_CACHE, Program

FORWARD, RECOMPUTED, BACKWARD = "forward", "recompute", "backward"
RUNS = {FORWARD: 0, RECOMPUTED: 1, BACKWARD: 2}
INNER = "/Linear"  # the module that a LoRA's matrices are to the layer they are in
BLOCK = re.compile(r"transformer(?:_1|_2)?\.(\w+)\.(\d+)(?=[./]|$)")
CAST = "ToCopyBackward0"
NEVER = -1
# A workload at which no two sizes of different meaning are alike
UNLIKE = {"B": 3, "T": 1553, "E": 79, "X": 97, "N": 89, "r": 13, "A": 1553, "F": 1, "K": 1, "I": 0, "Ib": 0, "R": 0, "O": 1, "f": 8}


def never(what: str) -> CannotTell:
    return CannotTell(Problem(f"{what} is not where an adapter's tensors are looked for", None, "", "train all layers"))


class Made(NamedTuple):
    """Who made a tensor: the module's name, the pass, the node of the backward pass ("" elsewhere), and the transformer block that the
    module is or is in (the list's name, and its number there)."""

    module: str
    run: str
    node: str
    block: tuple[str, int] | None


@cache  # parts of a profile have their moments' names in common
def made_by(moment: str) -> Made:
    """What the name of a moment says."""
    module, bar, rest = moment.partition("|")
    run, _, node = rest.partition(" ")
    return Made(module, run, node, block_of(module)) if bar else Made("", module, "", None)


def node_of(moment: str) -> str:
    """The node of the backward pass alone."""
    return moment.partition("|")[2].partition(" ")[2]


@cache
def block_of(module: str) -> tuple[str, int] | None:
    found = BLOCK.match(module)
    return (found.group(1), int(found.group(2))) if found else None


@dataclass(frozen=True)
class Makers:
    """Who made each tensor of a program, by columns: numbers of the module, the pass (RUNS; -1: none of them), the block (-1: none)."""

    module: Ints
    run: Ints
    block: Ints


@dataclass(frozen=True, eq=False)
class _Moments:
    """Moments by columns: of each the number of its module among `modules`, and the pass."""

    modules: tuple[str, ...]
    module: Ints
    run: Ints


@lru_cache(maxsize=16)  # parts of a profile have them in common, tens of thousands
def _read(moments: tuple[str, ...]) -> _Moments:
    modules: dict[str, int] = {}
    numbers, runs = [], []
    for moment in moments:
        module, bar, rest = moment.partition("|")
        numbers.append(modules.setdefault(module if bar else "", len(modules)))
        runs.append(RUNS.get(rest.partition(" ")[0] if bar else module, -1))
    return _Moments(tuple(modules), np.array(numbers, dtype=np.int64), np.array(runs, dtype=np.int64))


def makers(program: Program, modules: dict[str, int]) -> Makers:
    """`modules`: numbers of names, to which the program's are added."""
    read = _read(tuple(program.moments))
    numbers = np.array([modules.setdefault(module, len(modules)) for module in read.modules], dtype=np.int64)
    blocks: dict[tuple[str, int] | None, int] = {None: -1}
    inside = np.array([blocks.setdefault(block_of(module), len(blocks) - 1) for module in modules], dtype=np.int64)
    rows = program.label_rows[: len(program.names) - program.imports]
    module = numbers[read.module][rows]
    return Makers(module, read.run[rows], inside[module])


class Tape:
    """A program's tensors: `made`, and when each is born and dies, as places in the list of events (None: it outlives the part)."""

    def __init__(self, base: Program) -> None:
        self.base = base
        known = [made_by(moment) for moment in base.moments]
        self.own = len(base.names) - base.imports
        self.made = [known[label] for label in base.labels[: self.own]]
        codes, tensors = base.events, base.tensor_of_event
        died = np.full(len(base.names), NEVER, dtype=np.int64)
        freed = np.flatnonzero((codes != ALLOCATE) & (codes != EMPTY_CACHE))
        died[tensors[freed]] = freed
        self.born: list[int] = np.flatnonzero(codes == ALLOCATE).tolist()
        self.died: list[int | None] = [None if place == NEVER else place for place in died[: self.own].tolist()]
        self.sizes: list[int] = base.sizes(UNLIKE)[: self.own].tolist()

    def made_before(self, place: int) -> int:
        """The last tensor that is born before a place."""
        return self._made_before[place]

    @cached_property
    def _made_before(self) -> list[int]:
        before: list[int] = np.cumsum(self.base.events == ALLOCATE).tolist()
        return [-1, *(made - 1 for made in before)]

    def next_birth(self, k: int) -> int:
        """The place of the next tensor's birth, or the end."""
        return self.born[k + 1] if k + 1 < self.own else len(self.base.events)

    def at_once(self, k: int) -> bool:
        """Freed before the next tensor is born."""
        died = self.died[k]
        return died is not None and died < self.next_birth(k)


@dataclass(frozen=True)
class Site:
    """A LoRA in a forward pass. `result`: of the layer itself; `total`: with the adapter's; `between`: all else it makes."""

    layer: str
    result: int
    total: int
    between: tuple[int, ...]


def sites(tape: Tape) -> list[Site]:
    """Every use of an adapted layer, in order. Raises CannotTell."""
    out, k = [], 0
    while k < tape.own:
        made = tape.made[k]
        if made.run in (FORWARD, RECOMPUTED) and made.module.endswith(INNER) and made.module.startswith("transformer"):
            beside = _end_of_training_adapter(tape, k)
            if beside is None:
                out.append(_site(tape, k, made.module.removesuffix(INNER)))
            k = out[-1].total if beside is None else beside
        k += 1
    return out


def _end_of_training_adapter(tape: Tape, down: int) -> int | None:
    """The sum of an adapter in the model's own type, which a distilled model has in previews within that which is trained: nothing is
    cast, neither its input nor what comes out. None of another. (toolkit/stable_diffusion_model.py, z_image.py: assistant_lora.)
    """
    ends = (down + n for n in (4, 5) if down + n < tape.own and _ends_after(tape, down, n))
    return next((total for total in ends if tape.sizes[total] == tape.sizes[down + 1]), None)


def _site(tape: Tape, down: int, layer: str) -> Site:
    """Behind up and scale the multiplier is repeated where a forward has several samples for each of its values: one tensor more."""
    made, first, result = tape.made, down - 1, down - 2
    ends = [n for n in (5, 6) if down + n < tape.own and _ends_after(tape, down, n)]
    died = tape.died[result]
    last = -1 if died is None else tape.made_before(died)  # the layer's own result goes when the sum is there
    total = down + next((n for n in ends if down + n == last), next(iter(ends), 0))
    if total == down or any(one.module != layer for one in (made[first], made[result], *made[down + 2 : total + 1])):
        raise never(layer)
    if tape.sizes[result] != tape.sizes[total] or made[result].run != made[total].run or died is None or died < tape.born[total]:
        raise never(layer)
    return Site(layer, result, total, tuple(range(first, total)))


def _ends_after(tape: Tape, down: int, count: int) -> bool:
    """Whether the sum is made so many tensors behind the first matrix's result: the layer's own result goes then."""
    total = down + count
    died = {tape.made_before(place) for k in range(down, total) if (place := tape.died[k]) is not None}
    return total in died and tape.made[total].module == tape.made[down].module.removesuffix(INNER)


@dataclass(frozen=True)
class Returned:
    """A LoRA in the backward pass. `tensors`: all it makes, gradients included; `passed`: the input's gradient in its own type, of which
    `own` is the layer's own (None, both: the input needs none); `first`: the first of all.
    """

    layer: str
    tensors: tuple[int, ...]
    passed: int | None
    own: int | None

    @property
    def first(self) -> int:
        return self.tensors[0]


def returned(tape: Tape, layer: str, up: int) -> Returned:
    """`up`: the tensor that is the second matrix's gradient. Raises CannotTell."""
    first, down = up - 3, up + 2
    nodes = [(made.module, made.node) for made in tape.made[first:up]]
    if nodes[0] != (layer, CAST) or any(module != layer for module, _ in nodes):
        raise never(layer)
    last = down
    if down + 2 < tape.own and tape.made[down + 1].module == layer + INNER and not tape.base.names[down + 1]:
        last = down + 2
        if tape.made[last].node != CAST or tape.made[last].module != layer + INNER:
            raise never(layer)
    if last == down:
        return Returned(layer, tuple(range(first, down + 1)), None, None)
    own, k = None, last + 1
    while k < tape.own and tape.made[k].module == layer:  # a copy of what comes in, perhaps, a weight unpacked and cast, then the gradient
        own = k if tape.sizes[k] == tape.sizes[last] else own
        k += 1
    if own is None:
        raise never(layer)
    return Returned(layer, tuple(range(first, last + 1)), last, own)


def layers_of(tape: Tape) -> dict[str, int]:
    """The adapted layers by name, with the number of each: gradients 2n and 2n + 1 are its matrices'."""
    out: dict[str, int] = {}
    for k in range(tape.own):
        name = tape.base.names[k]
        if name is not None and name.startswith("gradient:") and tape.made[k].module.endswith(INNER):
            out[tape.made[k].module.removesuffix(INNER)] = int(name.partition(":")[2]) // 2
    return dict(sorted(out.items(), key=lambda item: item[1]))
