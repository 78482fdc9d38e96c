"""Steps, previews and texts in a kind of weights that has a recipe: uint4's, with what each layer makes of its weights and its input anew.

In uint4 a layer unpacks its codes, casts them and its zero points, multiplies, and keeps the weight for its backward pass: three tensors
before its output, one of which lives on. They are taken out, and what the recipe (estimator.recipes) makes stands around the output
instead, and around the gradient of the layer's input. A layer trains where any of its calls has a backward pass: the first forward pass of
a checkpointed block goes the same way as the second, and what it would keep is let go of at once.

Under a training adapter that was attached before quantising (Z-Image Turbo) a layer's forward is still torch's own, bound before the module
became another class: it asks for the weight and multiplies with that, whatever the kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from estimator.arrays import joined
from estimator.errors import CannotTell, Problem
from estimator.features import Ints, sum_of
from estimator.layer_calls import NONE, Call, by_columns
from estimator.program import ALLOCATE, EventProgram, Program
from estimator.recipes import FEW_ROWS, HALF, SAVED, Recipe, Size, Stage, own_quantities
from estimator.rewriting import widened, written

UNPACKED, ASKED = 3, 5
"""Tensors that uint4 makes to use a weight (codes, weight, zero points), and to be asked for it (in fp32, and in its own type, besides)."""
NARROW = 4  # the last of those five
GROUP = 64  # weights that share a scale and a zero point in uint4
BATCH, RANK = "B", "r"


@dataclass(frozen=True, slots=True)
class Dims:
    """A layer's outputs and inputs."""

    outputs: int
    inputs: int


@dataclass
class _Laid:
    """Events to be laid in: (the base's event that they come before, turn, tensor, whether it is made), and the further tensors' rows."""

    base: Program
    first: int  # number of the first further tensor
    made: Ints  # the base's event at which each of its tensors is made
    events: list[tuple[int, int, int, bool]] = field(default_factory=list)
    rows: list[dict[str, int]] = field(default_factory=list)
    like: list[int] = field(default_factory=list)
    elsewhere: list[int] = field(default_factory=list)  # the base's events that are laid at another place
    known: dict[tuple[int, _Given], list[dict[str, int]]] = field(default_factory=dict)  # sizes of a stage: blocks are alike

    def stage(self, stage: Stage, result: int, given: _Given, saved: int | None = None) -> int | None:
        """A stage around the base's tensor that is its result. Gives what else it leaves (a weight that is kept), if anything.

        `saved`: the tensor in place of SAVED.
        """
        last, sizes = stage.left[-1], self._sizes(stage, given)
        numbers, before, place = dict[int, int](), True, int(self.made[result])
        for number, born in stage.events:
            if number == last:
                before = False
                continue
            if born:
                numbers[number] = self.first + len(self.rows)
                self.rows.append(sizes[number])
                self.like.append(result)
            tensor = saved if number == SAVED else numbers[number]
            if tensor is not None:
                self.lay(place if before else place + 1, tensor, born)
        others = [numbers[number] for number in stage.left[:-1]]
        return others[0] if others else None

    def _sizes(self, stage: Stage, given: _Given) -> list[dict[str, int]]:
        place = id(stage), given
        if place not in self.known:
            self.known[place] = [given.bytes_of(size) for size in stage.sizes]
        return self.known[place]

    def before(self, result: int, row: Ints) -> None:
        """A tensor of the base's with this row that is let go of right behind a result: before that is made, the oldest such one."""
        place = int(self.made[result])
        until = int(self.made[result + 1])
        found = [n for n in range(place + 1, until) if self._is(n, result, row)]
        if found:
            event = min(found, key=lambda n: int(self.base.tensor_of_event[n]))
            self.elsewhere.append(event)
            self.lay(place, int(self.base.tensor_of_event[event]), born=False)

    def _is(self, event: int, result: int, row: Ints) -> bool:
        tensor = int(self.base.tensor_of_event[event])
        return 0 <= tensor != result and bool((self.base.coefficients[tensor] == row).all())

    def lay(self, place: int, tensor: int, born: bool) -> None:
        self.events.append((place, len(self.events), tensor, born))


@dataclass(frozen=True)
class _Given:
    """What sizes are multiples of: a layer's dimensions, and its rows as {feature: times}."""

    dims: Dims
    rows: tuple[tuple[str, int], ...]

    def bytes_of(self, size: Size) -> dict[str, int]:
        own = own_quantities(self.dims.outputs, self.dims.inputs)
        if size.of in own:
            return {"1": _whole(size.times * own[size.of])}
        wide = {"X": HALF * self.dims.inputs, "Y": HALF * self.dims.outputs, "R": 1}[size.of[0]]
        rows = _padded(self.rows, int(size.of[1:])) if size.of[1:] else self.rows
        return {name: _whole(size.times * wide * times) for name, times in rows}

    @property
    def few(self) -> bool:
        """Whether they are rows of samples alone, or no more than a kernel for a few takes."""
        return all(name in ("1", BATCH) for name, _ in self.rows) and sum(times for _, times in self.rows) <= FEW_ROWS


def _whole(number: object) -> int:
    return int(number)  # type: ignore[call-overload, no-any-return]


def program(
    base: Program, key: str, recipe: Recipe, layers: Mapping[int, Dims], calls: Sequence[Call]
) -> tuple[EventProgram, Ints]:
    """The part in the recipe's kind, and where it uses each layer, as the base's calls (rows of Call). `base`: in uint4, with its calls;
    `layers`: the quantised ones. Raises CannotTell."""
    made = np.append(np.flatnonzero(base.events == ALLOCATE), len(base.events))
    laid, dropped = _Laid(base, len(base.names), made), np.zeros(len(base.names) + 1, dtype=np.bool_)
    trained, asked = {call.layer for call in calls if call.until != NONE}, asked_for(base)
    for start, weights in asked.items():
        dropped[start : start + NARROW] = True
        laid.stage(recipe.stages["weight"], start + NARROW, _Given(Dims(weights, 1), ()))
    for call in calls:
        if call.layer in layers:
            _call(laid, dropped, call, recipe, layers[call.layer], asked=asked, trains=call.layer in trained)
    further = np.array(sorted(event for event in laid.events if event[3]), dtype=np.int64).reshape(-1, 4)[:, 0]
    return _joined(base, key, laid, dropped), _renumbered(calls, made, further, dropped, early=recipe.rotates)


def _renumbered(calls: Sequence[Call], made: Ints, further: Ints, dropped: np.ndarray, *, early: bool) -> Ints:
    """The calls by the tensors' new numbers. `further`: the places of what is laid in; `early`: what a layer keeps goes before its input's
    gradient is there."""
    uses, left = by_columns(calls), np.append(0, np.cumsum(~dropped[: len(made) - 1]))
    new, own = left + np.searchsorted(further, made), left + np.searchsorted(further, made, side="right")
    until = np.where(uses.until < 0, uses.until, new[uses.until])
    until = np.where((uses.until > 0) & (uses.backward > 0) & early, own[uses.backward], until)
    places = ((uses.first, new), (uses.last, new), (uses.input, own), (uses.output, own), (uses.backward, new))
    return np.stack([uses.layer, *(np.where(row < 0, row, table[row]) for row, table in places), until], axis=1)


def asked_for(base: Program) -> dict[int, int]:
    """Of each weight that is asked for (codes, weight, zero points, in fp32, in its own type) the first tensor -> how many weights.

    Where previews were recorded at one rank, zero points may go with the rank there.
    """
    sizes = base.constants[: len(base.names) - base.imports]
    count = len(sizes) - ASKED + 1
    if count < 1:
        return {}
    codes, weight, zeros, wide, narrow = (sizes[k : k + count] for k in range(ASKED))
    found = (codes > 0) & (weight == HALF * codes) & (wide == HALF * weight) & (narrow == weight)
    found &= (zeros * GROUP == weight) | (zeros == 0)
    return {start: int(codes[start]) for start in np.flatnonzero(found).tolist()}


def _call(
    laid: _Laid, dropped: np.ndarray, call: Call, recipe: Recipe, dims: Dims, *, asked: Mapping[int, int], trains: bool
) -> None:
    base, at = laid.base, call.first
    while at in asked:
        at += ASKED
    if at > call.first and base.constants[at] != dims.outputs * dims.inputs:
        return  # it multiplies with the weight that it was asked for
    output = at + UNPACKED
    if output > call.output:
        raise unlike(base.key)
    dropped[at:output] = True
    given = _Given(dims, _rows_of(base, output, HALF * dims.outputs))
    stage = "train" if trains else "few" if given.few else "plain"
    kept = laid.stage(recipe.stages[stage], output, given)
    if call.backward != NONE and trains:
        if _rows_of(base, call.backward, HALF * dims.inputs) != given.rows:
            raise unlike(base.key)
        laid.stage(recipe.stages["backward"], call.backward, given, kept)
        if recipe.rotates:  # the layer's gradient goes with its product, before the rotation's
            laid.before(call.backward, base.coefficients[output])
    elif kept is not None and call.until == NONE:
        laid.lay(int(laid.made[output]) + 1, kept, born=False)


def unlike(key: str) -> CannotTell:
    """What is raised of a part that the rule does not know."""
    return CannotTell(Problem(f"{key}: a layer makes other tensors than those of its weight", None, "", "choose another quantisation"))


def _rows_of(base: Program, tensor: int, width_bytes: int) -> tuple[tuple[str, int], ...]:
    """Rows of a tensor of so many bytes a row. Raises CannotTell where there is no whole number of them.

    Where previews were recorded at one rank, bytes of one sample may go with the rank there.
    """
    row = base.coefficients[tensor]
    if np.flatnonzero(row).tolist() == [base.features.index(RANK)] if RANK in base.features else False:
        return (("1", 1),)
    if (row % width_bytes).any():
        raise unlike(base.key)
    return tuple((base.features[n], int(row[n]) // width_bytes) for n in np.flatnonzero(row).tolist())


@cache
def _padded(rows: tuple[tuple[str, int], ...], multiple: int) -> tuple[tuple[str, int], ...]:
    """Rows of all samples together, rounded up to a multiple, as features. Raises KeyError of a sum that no variable stands for."""
    if all(name == "1" for name, _ in rows):
        return tuple((name, -(-times // multiple) * multiple) for name, times in rows)
    lengths = {"1" if name == BATCH else name.removeprefix(f"{BATCH}*"): times for name, times in rows}
    if len(lengths) == 1:
        (name, times), = lengths.items()
        over = str(times) if name == "1" else f"{times}{name}" if times > 1 else name
    else:
        over = sum_of(lengths)
    kind = "rows" if any(name.startswith(BATCH) for name, _ in rows) else "lone"
    return ((f"{kind}{multiple}_{over}", 1),)


def _joined(base: Program, key: str, laid: _Laid, dropped: np.ndarray) -> EventProgram:
    tensors, births = base.tensor_of_event, base.events == ALLOCATE
    left = ~dropped[tensors]  # the last is that of empty_cache's -1
    left[laid.elsewhere] = False
    before: Ints = np.append(0, np.cumsum(left))
    events = sorted(laid.events)
    rows = np.array(events, dtype=np.int64).reshape(-1, 4)
    features = tuple(dict.fromkeys((*base.features, *(name for row in laid.rows for name in row))))
    place = {name: n for n, name in enumerate(features)}
    wide = widened(base, features, len(laid.rows))
    for n, row in enumerate(laid.rows, len(base.names)):
        for name, size in row.items():
            wide[n, place[name]] = size
    joint = joined((tensors[left], births[left]), before[rows[:, 0]], (rows[:, 2], rows[:, 3] == 1))
    workspace_at = {thread: int(before[at] + np.searchsorted(rows[:, 0], at)) for thread, at in base.workspace_at.items()}
    one = written(base, key, joint, (features, wide), laid.like)
    made = EventProgram(
        key, one.features, one.coefficients, one.labels, one.moments, one.names, one.events, one.imports, (), workspace_at,
        streams=one.streams,
    )  # fmt: skip
    return made.known(label_rows=one.label_rows, named=one.named)
