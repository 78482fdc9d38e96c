"""Programs of models with a few layers -> those of the whole model: what one layer does, every layer does.

A step's core is recorded with RECORDED layers in each list. The middle one neither begins nor ends its list, nor do its neighbours; its
events, in the forward and in the backward pass (with the recomputation of checkpointing), are repeated for the layers that are missing.
What it frees of its neighbours', its copies free of theirs. Refused where the layers next to it do not do the very same. LTX-Video,
recorded once in full depth, had its peaks within 0.007 % of this (docs/log.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from calibration.extract.align import Sequence
from calibration.extract.programs import Program, Refused

RECORDED, MIDDLE = 5, 2
# Labels that tell a layer. Others are in the midst of what is going on: of no module, and autograd's accumulation, whose label is still
# that of the step before when the next backward pass begins
PLACED = re.compile(r"\|(?!.*AccumulateGrad)")
NUMBERED = ("adapter", "gradient", "optimizer")  # names that count through the parameters


@dataclass(frozen=True)
class Layers:
    """One list of layers: its name in the model, how many it has; of the parameters that are trained the first of its, and how many
    each layer has."""

    name: str
    count: int
    first: int
    each: int

    @property
    def more(self) -> int:
        """Layers that were not recorded."""
        return self.count - RECORDED


@dataclass
class _Stretch:
    """Events [first, last) in a row of one layer (None: of none)."""

    layer: int | None
    first: int
    last: int


def layers_of(lists: dict[str, int], parameters: list[str]) -> list[Layers]:
    """The lists of a model, in the order of its parameters, of which these names are trained in a model with RECORDED layers each."""
    found = []
    for name, count in lists.items():
        own = [k for k, parameter in enumerate(parameters) if f".{parameter}".startswith(f".{name}.")]
        each, rest = divmod(len(own), RECORDED)
        if rest:  # the last may have fewer: Stable Diffusion 3's gives its text no result
            each += 1
        of_layer = [sum(f".{parameters[k]}".startswith(f".{name}.{layer}.") for k in own) for layer in range(RECORDED)]
        if of_layer[:-1] != [each] * (RECORDED - 1) or own != list(range(own[0], own[0] + len(own))):
            raise Refused(f"{name}: {len(own)} parameters of {RECORDED} layers")
        found.append(Layers(name, count, own[0], each))
    return sorted(found, key=lambda layers: layers.first)


def unrolled(program: Program, lists: list[Layers]) -> Program:
    """The program of the whole model. Raises Refused."""
    shift = 0
    for layers in lists:
        program = _Unrolling(program, replace(layers, first=layers.first + shift)).result()
        shift += layers.more * layers.each
    return program


class _Unrolling:
    """One list of one program."""

    def __init__(self, program: Program, layers: Layers) -> None:
        self.program, self.layers, self.old = program, layers, program.sequence
        self.pattern = re.compile(rf"(\b{layers.name}\.)(\d+)(?=[.|])")
        self.stretches = list(self._stretches())
        self.of = {k: s for s, stretch in enumerate(self.stretches) for k in self._born(stretch)}
        self.place = {k: n for stretch in self.stretches for n, k in enumerate(self._born(stretch))}
        self.new = Sequence([], [], [], [], [], None, self.old.workspace_thread)
        self.coefficients: list[tuple[int, ...]] = []
        self.made: dict[tuple[int, int], int] = {}  # (tensor, copy of the middle layer or 0) -> its new number

    def _layer(self, k: int) -> int | None:
        found = self.pattern.search(self.old.labels[k])
        return int(found[2]) if found else None

    def _stretches(self) -> list[_Stretch]:
        out = [_Stretch(None, 0, 0)]
        for at, event in enumerate(self.old.events):
            if event is None or event < 0 or not PLACED.search(self.old.labels[event]):
                continue
            if (layer := self._layer(event)) != out[-1].layer:
                out[-1].last = at
                out.append(_Stretch(layer, at, at))
        out[-1].last = len(self.old.events)
        order = [stretch.layer for stretch in out if stretch.layer is not None]
        up, down = list(range(RECORDED)), list(reversed(range(RECORDED)))
        if order != up + down:
            raise Refused(f"{self.program.key}: {self.layers.name} comes in the order {order}")
        return out

    def _born(self, stretch: _Stretch) -> list[int]:
        return [e for e in self.old.events[stretch.first : stretch.last] if e is not None and e >= 0]

    def _like(self, stretch: _Stretch) -> list[tuple[object, ...]]:
        """What a stretch does, in terms that are the same for every layer in the middle."""
        assert stretch.layer is not None
        out: list[tuple[object, ...]] = []
        for event in self.old.events[stretch.first : stretch.last]:
            if event is None:
                out.append(("e",))
                continue
            k = event if event >= 0 else ~event
            where = self.stretches[self.of[k]] if k in self.of else None
            far = None if where is None or where.layer is None else where.layer - stretch.layer
            early = where is not None and self.of[k] <= len(self.stretches) // 2
            what = self.place.get(k) if far is not None else k
            out.append(("a" if event >= 0 else "f", far, early, what, self.program.coefficients[k] if event >= 0 else None))
        return out

    def result(self) -> Program:
        for stretch in self.stretches:
            if stretch.layer == MIDDLE:
                index = self.stretches.index(stretch)
                step = 1 if self.stretches[index + 1].layer == MIDDLE + 1 else -1
                for other in (index - 1, index + 1):
                    if self._like(self.stretches[other]) != self._like(stretch):
                        raise Refused(f"{self.program.key}: layers {MIDDLE} and {self.stretches[other].layer} of {self.layers.name} differ")
                copies = range(self.layers.more + 1)
                for copy in copies if step > 0 else reversed(copies):
                    self._emit(stretch, copy)
            else:
                self._emit(stretch, 0)
        return replace(self.program, sequence=self.new, coefficients=self.coefficients)

    def _emit(self, stretch: _Stretch, copy: int) -> None:
        for at in range(stretch.first, stretch.last):
            if at == self.old.workspace_at and self.new.workspace_at is None:
                self.new.workspace_at = len(self.new.events)
            event = self.old.events[at]
            if event is None:
                self.new.events.append(None)
            elif event >= 0:
                self.new.events.append(self._make(event, stretch, copy))
            else:
                self.new.events += [~number for number in self._freed(~event, stretch, copy)]

    def _make(self, k: int, stretch: _Stretch, copy: int) -> int:
        number = self.made[k, copy] = len(self.new.sizes)
        moved = copy if stretch.layer == MIDDLE else self.layers.more if (stretch.layer or 0) > MIDDLE else 0
        self.new.sizes.append(self.old.sizes[k])
        self.new.labels.append(self.pattern.sub(lambda found: f"{found[1]}{int(found[2]) + moved}", self.old.labels[k]))
        self.new.names.append(self._renamed(self.old.names[k], copy))
        self.new.imported.append(False)
        self.coefficients.append(self.program.coefficients[k])
        return number

    def _renamed(self, name: str | None, copy: int) -> str | None:
        if name is None or (kind := name.partition(":")[0]) not in NUMBERED:
            return name
        number = int(name.partition(":")[2])
        layer = (number - self.layers.first) // self.layers.each
        layers = 0 if layer < MIDDLE else copy if layer == MIDDLE else self.layers.more
        return f"{kind}:{number + layers * self.layers.each}"

    def _freed(self, k: int, stretch: _Stretch, copy: int) -> list[int]:
        """The new numbers of what an event frees."""
        if k not in self.of:
            raise Refused(f"{self.program.key}: frees {self.old.names[k]} of another part")
        born = self.stretches[self.of[k]]
        if born.layer is None or born.layer not in (MIDDLE - 1, MIDDLE, MIDDLE + 1):
            if stretch.layer == MIDDLE:
                raise Refused(f"{self.program.key}: the middle layer frees a tensor of {self.old.labels[k]!r}")
            return [self.made[k, 0]]
        if stretch.layer is None:
            copies = range(self.layers.more + 1) if born.layer == MIDDLE else range(1)
            return [self.made[k, c] for c in copies]
        if stretch.layer != MIDDLE:
            return [self.made[k, self.layers.more if born.layer == MIDDLE and stretch.layer > MIDDLE else 0]]
        return [self.made[self._neighbour(k, born, copy)]]

    def _neighbour(self, k: int, born: _Stretch, copy: int) -> tuple[int, int]:
        """Of a tensor that the middle layer's copy frees: which it is, and of which copy."""
        assert born.layer is not None
        if born.layer == MIDDLE:
            return k, copy
        step = born.layer - MIDDLE
        if not 0 <= copy + step <= self.layers.more:
            return k, 0
        middle = self.stretches[self.of[k] + (-step if self.of[k] <= len(self.stretches) // 2 else step)]
        assert middle.layer == MIDDLE
        return self._born(middle)[self.place[k]], copy + step
