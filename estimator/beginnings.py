"""Replays that begin alike go on from one another: the states in which phases ended are kept.

Planning replays many jobs that load, cache and prepare alike, and each of them with room to spare and under capacities. A replay is the
same under every capacity down to the most that it was granted: what was replayed without one serves until a request goes beyond the card's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from itertools import count

from estimator import operations as op
from estimator.replay import Replay

MOST_KEPT = 40
"""States, of some megabytes each."""
MOST_IN_A_ROW = 10
"""Of a long list of phases, as many bucket's steps are, no more than about so many are kept."""

MOST_NAMES = 10_000

_numbers = count()  # never the same again
_names: dict[Hashable, int] = {}  # what a replay is of and has been through -> a number
_states: OrderedDict[Hashable, Replay] = OrderedDict()  # by that; asked for longest ago first


def ahead(replay: Replay, operations: Iterable[op.Operation]) -> tuple[Replay, bool]:
    """(a replay that has gone through the operations after all that the given one did, whether memory sufficed). The given one stays."""
    stages = list(_stages(operations))
    places: list[Hashable] = [replay.place]
    for stage in stages:
        places.append(_number((places[-1], tuple(map(name_of, stage)))))
    at, reached = len(stages), None
    while at and reached is None:
        reached = _known(places[at], replay)
        at -= reached is None
    going = replay.fork(replay.capacity_bytes) if reached is None else reached
    every = -(-len(stages) // MOST_IN_A_ROW)
    for n in range(at, len(stages)):
        if not going.run(stages[n]):
            return going, False
        going.place = places[n + 1]
        if (len(stages) - 1 - n) % every == 0:
            _keep(going)
    return going, True


def _stages(operations: Iterable[op.Operation]) -> Iterator[list[op.Operation]]:
    """Up to the end of a phase each; what comes after the last one by itself."""
    stage: list[op.Operation] = []
    for operation in operations:
        stage.append(operation)
        if isinstance(operation, op.End):
            yield stage
            stage = []
    if stage:
        yield stage


def name_of(operation: op.Operation) -> Hashable:
    """All that an operation says, as one value."""
    if not isinstance(operation, op.Part):
        return operation
    inside = tuple(tuple(map(name_of, group)) for group in (*operation.inside, operation.between))
    return operation.key, tuple(operation.values.items()), operation.scope, operation.accumulate, inside, operation.holds


def _number(name: Hashable) -> int:
    if len(_names) >= MOST_NAMES:
        forget()
    return _names.setdefault(name, next(_numbers))


def _known(place: Hashable, like: Replay) -> Replay | None:
    """A replay that is there already, under the capacity of `like`."""
    kept = _states.get(place)
    if kept is None or not kept.serves(like.capacity_bytes):
        return None
    _states.move_to_end(place)
    return kept.fork(like.capacity_bytes)


def _keep(replay: Replay) -> None:
    """In place of another that has been through the same, unless that serves more capacities."""
    kept = _states.get(replay.place)
    if kept is None or not kept.serves(replay.capacity_bytes):
        _states[replay.place] = replay.fork(replay.capacity_bytes)
        if len(_states) > MOST_KEPT:
            _states.popitem(last=False)


def kept() -> int:
    """How many states are."""
    return len(_states)


def forget() -> None:
    """Replay all from the start again."""
    _names.clear()
    _states.clear()
