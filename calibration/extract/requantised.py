"""Parts of a kind of base weights of which only loading was recorded: another kind's, with what linear layers make of weights exchanged.

A frozen linear layer makes its output, and in the backward pass its input's gradient, alike in all kinds. Before the output it rebuilds its
weight, which goes when the product is made: in the forward pass, or in the backward pass where autograd has saved it. Where in a
part each layer is used is recorded (its calls), so that one kind's events become another's:

- float8 (torchao): the cast of its codes, the weight; the cast goes.
- uint4 (the trainer's own): unpacked codes of a byte each, the weight, cast zero points; codes and zero points go.
- qfloat8 (optimum-quanto): the cast, the weight, and with a bias the bare product before the sum. Its layers save their inputs for the
  backward pass, so that it serves only where there is none.

Making the adapter reads every layer's weight: of the trainer's own layers it is rebuilt for that, through fp32. Bringing the adapter in for
previews is alike in all quantised kinds. Recordings of both kinds say the same, event by event (tests/test_requantised.py).

Source: toolkit/util/uintx_quant.py (27a03a91), torchao 0.10 (AffineQuantizedTensor), optimum-quanto 0.2.4 (QBytesTensor.dequantize).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from calibration.extract.align import LayerCall
from calibration.extract.align import Sequence as Events
from calibration.extract.programs import Program, Refused
from estimator.offload import CODES_TO_WEIGHT, OWN, WRAPPED, Layer, layers_of
from estimator.rebuilt_loading import LOADING
from estimator.rebuilt_weights import FP32_TO_BF16, PACKED_TO_CODES

# Kinds of weights whose part serves, the likelier first
BASES = {
    "step.core": ("bf16", "uint4", "float8"), "text": ("bf16",), "preview": ("qfloat8", "uint4", "float8"),
    "sample.enter": ("qfloat8", "uint4", "float8"), "sample.leave": ("qfloat8", "uint4", "float8"), "setup.network": ("bf16", "qfloat8"),
}  # fmt: skip
USING, PLAIN = ("step.core", "text", "preview"), "bf16"
SETUP, SETTING_UP, TRANSFORMER = "setup.network", "setup", "transformer"
PACKED_TO_WEIGHT, PACKED_TO_ZEROS = PACKED_TO_CODES * CODES_TO_WEIGHT, 16
"""Of packed codes in 4 bits: bytes of the weight in bf16, and of packed codes for each byte of cast zero points
(2 bytes for a group of 64 weights)."""
REBUILT = {"qfloat8": (2, 3), "float8": (2,), "uint4": (3,)}  # how many tensors come before a layer's output


def rebuilt(layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a layer makes of its weight: bytes of each tensor (the second is the weight), and which of them go before the product."""
    if layer.what == WRAPPED:
        weight = CODES_TO_WEIGHT * layer.sizes[0]
        return (weight, weight), (0,)
    if layer.what == OWN:
        packed = max(layer.sizes)
        return (PACKED_TO_CODES * packed, PACKED_TO_WEIGHT * packed, packed // PACKED_TO_ZEROS), (0, 2)
    return (), ()


def add(kinds: Sequence[str], programs: dict[str, Program], tables: Mapping[str, list[int]], offload: Mapping[str, Any]) -> list[str]:
    """Puts `further` parts among the programs. Returns a line of report for each."""
    more = list(further(kinds, programs, tables, offload))
    programs.update((one.key, one) for one in more)
    return [f"{one.key}: {len(one.sequence.events)} events, of {one.made_of} by rule" for one in more]


def further(
    kinds: Sequence[str], programs: Mapping[str, Program], tables: Mapping[str, list[int]], offload: Mapping[str, Any]
) -> Iterator[Program]:
    """All parts that can be made in such kinds and are not there. `tables`, `offload`: a profile's (calibration.extract.build)."""
    for kind in kinds:
        if f"{LOADING}/{kind}/plain" not in programs:
            continue
        layers = layers_in(kind, tables, offload)
        adapted = layers[: len(offload["layers"][TRANSFORMER])]
        read_beside = any(layer is not None and layer.what == OWN for layer in layers)
        for name, bases in BASES.items():
            if name == "text" and read_beside:  # T5 asks for a weight's type, which rebuilds the trainer's own: recorded, not by rule
                continue
            of_kind = {base: [key for key in programs if key.startswith(f"{name}/{base}/") or key == f"{name}/{base}"] for base in bases}
            for base, keys in of_kind.items():
                serving = [programs[key] for key in keys if name not in USING or programs[key].sequence.calls]
                mine = adapted if name == SETUP else layers
                found = [made(program, program.key.replace(f"/{base}", f"/{kind}", 1), mine) for program in serving]
                if found:
                    yield from (program for program in found if program.key not in programs)
                    break


def made(base: Program, key: str, layers: Sequence[Layer | None]) -> Program:
    """A part as `key`, of one that serves. `layers`: those that its calls number; for the adapter's set-up the transformer's."""
    if key.startswith(USING):
        return exchanged(base, key, layers)
    program = replace(base, key=key, made_of=base.key)
    return read(program, layers) if key.startswith(SETUP) else program


def layers_in(kind: str, tables: Mapping[str, list[int]], offload: Mapping[str, Any]) -> list[Layer | None]:
    """Layers by the numbers that calls have; None where their component was not loaded in this kind."""
    out: list[Layer | None] = []
    for component, names in offload["layers"].items():
        places = offload["places"].get(f"{component}/{kind}")
        out += [None] * len(names) if places is None else layers_of(places, tables[f"{component}/{kind}"], names)
    return out


def exchanged(base: Program, key: str, layers: Sequence[Layer | None]) -> Program:
    """The base's part as `key`, whose layers are `layers`. Raises Refused."""
    return _Exchange(base, key, layers).program()


class _Exchange:
    def __init__(self, base: Program, key: str, layers: Sequence[Layer | None]) -> None:
        self.base, self.key, self.layers = base, key, layers
        self.plain = base.key.split("/")[1] == PLAIN
        self.born = {e: n for n, e in enumerate(e for e in base.sequence.events if e is not None and e >= 0)}
        self.order = list(self.born)
        self.sizes: list[int] = []  # of further tensors, which are numbered behind the base's
        self.labels: list[str] = []
        self.before: dict[int, list[int]] = {}  # the base's tensor -> events before its allocation
        self.behind: dict[int, list[int]] = {}  # and behind it
        self.dropped: set[int] = set()
        self.first: dict[int, int] = {}  # the base's first tensor of a use -> what is first now

    def program(self) -> Program:
        for call in self.base.sequence.calls:
            self._use(call)
        events, own_at = self._events()
        base, old = self.base, self.base.sequence
        features = base.features if "1" in base.features or not self.sizes else (*base.features, "1")
        rows = [(*row, *[0] * (len(features) - len(base.features))) for row in base.coefficients]
        rows += [tuple(size * (name == "1") for name in features) for size in self.sizes]
        count = len(self.sizes)
        new = Events(
            events, [0] * len(rows), [*old.labels, *self.labels], [*old.names, *[None] * count], [*old.imported, *[False] * count],
            None if old.workspace_at is None else own_at[old.workspace_at], old.workspace_thread, growth=old.growth,
        )  # fmt: skip
        new.calls = [self._call(call) for call in old.calls]
        return replace(base, key=self.key, sequence=new, features=features, coefficients=rows, made_of=base.key)

    def _use(self, call: LayerCall) -> None:
        """One use of a layer: what the base rebuilds is left out, what the other kind rebuilds is laid in."""
        layer = self.layers[call.layer]
        if layer is None or call.output is None:
            raise Refused(f"{self.key}: layer {call.layer} was not recorded in this kind, or what it makes is not in {self.base.key}")
        sizes, passing = rebuilt(layer)
        if not self.plain:
            rebuilding = self.order[self.born[call.first] : self.born[call.output]]
            if rebuilding or sizes:  # else a layer that neither kind quantises
                self._check(rebuilding, sizes[1] if sizes else 0)
            self.dropped |= {*rebuilding}
            self.first[call.first] = call.output
        if not sizes:
            return
        place = call.first if self.plain else call.output
        number = len(self.base.sequence.labels) + len(self.sizes)
        self.sizes += sizes
        self.labels += [self.base.sequence.labels[place]] * len(sizes)
        made = [number + n for n in range(len(sizes))]
        self.before.setdefault(place, []).extend([*made, *(~made[n] for n in passing)])
        self.first[call.first] = made[0]
        if not call.stays:  # a graph that outlives the part keeps the weight
            self.behind.setdefault(call.output if call.backward is None else call.backward, []).append(~made[1])

    def _check(self, rebuilding: Sequence[int], weight_bytes: int) -> None:
        """What is left out is what the base's kind makes of a weight, and nothing else."""
        expected = tuple(weight_bytes * (name == "1") for name in self.base.features)
        if len(rebuilding) not in REBUILT[self.base.key.split("/")[1]] or tuple(self.base.coefficients[rebuilding[1]]) != expected:
            raise Refused(f"{self.key}: a layer of {self.base.key} makes something else before its output")

    def _events(self) -> tuple[list[int | None], list[int]]:
        """Events, frees in a row in the order in which tensors were made; and where each of the base's is now, or what follows it."""
        out: list[int | None] = []
        own_at: list[int] = []
        age: dict[int, int] = {}
        burst: list[int] = []
        for event in self.base.sequence.events:
            own_at.append(len(out) + len(burst))
            if event is not None and (event if event >= 0 else ~event) in self.dropped:
                continue
            around = ([*self.before.get(event, ()), event, *self.behind.get(event, ())] if event is not None and event >= 0 else [event])
            for one in around:
                if one is not None and one < 0:
                    burst.append(one)
                    continue
                out += sorted(burst, key=lambda free: (~free not in age, age.get(~free, 0)))
                burst.clear()
                if one == event:
                    own_at[-1] = len(out)
                out.append(one)
                age.update({} if one is None else {one: len(age)})
        return [*out, *sorted(burst, key=lambda free: (~free not in age, age.get(~free, 0)))], own_at

    def _call(self, call: LayerCall) -> LayerCall:
        first, last, until = (k if k is None else self.first.get(k, k) for k in (call.first, call.last, call.until))
        assert first is not None
        return replace(call, first=first, last=last, until=until)


def read(program: Program, layers: Sequence[Layer | None]) -> Program:
    """The adapter is made when each weight has been read: of the trainer's own layers it is rebuilt, by way of fp32."""
    own = [layer for layer in layers if layer is not None and layer.what == OWN]
    old, at = program.sequence, len(program.sequence.labels)
    events: list[int | None] = []
    sizes: list[int] = []
    for layer in own:
        (codes, weight, zeros), _ = rebuilt(layer)
        n = at + len(sizes)
        sizes += [codes, weight, zeros, FP32_TO_BF16 * weight, weight]
        events += [n, n + 1, n + 2, ~n, ~(n + 2), n + 3, ~(n + 1), n + 4, ~(n + 3), ~(n + 4)]
    place = program.features.index("1")
    rows = [tuple(size * (k == place) for k in range(len(program.features))) for size in sizes]
    sequence = replace(
        old, events=[*events, *old.events], sizes=[0] * (at + len(sizes)), labels=[*old.labels, *[SETTING_UP] * len(sizes)],
        names=[*old.names, *[None] * len(sizes)], imported=[*old.imported, *[False] * len(sizes)],
        workspace_at=None if old.workspace_at is None else old.workspace_at + len(events),
    )  # fmt: skip
    return replace(program, sequence=sequence, coefficients=[*program.coefficients, *rows])
