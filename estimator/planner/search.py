"""The cheapest combination of edits that is safe: by rising loss through the peak rows, and only what they let pass through the replay.

Peak rows are a lower bound, so what they reject no replay would call safe: the first that the replay calls safe has the least loss of all
(but for what fits by a few MiB alone, where a start was taken to fail between its ends: estimator.planner.sight).
Settings are decided one after the other. Before any way is followed further, the lowest that it can lead to is tried: where that fails,
all that lies on the way fails (estimator.planner.sight).
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from estimator.engine import EARLY
from estimator.kernels import without_flash
from estimator.planner.edits import NOTHING, Dimension, Edit, Level, Loss, merged
from estimator.planner.judge import Judge
from estimator.planner.known import Known, Places
from estimator.planner.sight import AFTERWARDS, BEFORE_PREVIEWS, BESIDE_STEPS, LOAD, START, TRAIN, UNTOLD, phase_of

SPEED, OFFLOADING, FRAMES = "speed", "offloading", "frames"
"""SPEED: the dimension of all that changes the time of a step."""
FIRST = (SPEED, "text", "low_vram", "weights", "dtype", "latents")
LAST = ("batch", "buckets", "frames", "controls", "checkpointing", "optimizer", OFFLOADING, "previews")
"""In which order settings are decided. LAST: those of which it is known where they leave a phase least (estimator.planner.sight)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One level of each dimension: what they are together."""

    levels: tuple[Level, ...] = ()

    @property
    def edits(self) -> tuple[Edit, ...]:
        return tuple(edit for level in self.levels for edit in level.edits)

    @property
    def loss(self) -> Loss:
        return sum((level.loss for level in self.levels), NOTHING)


Entry = tuple[int, int, int, int, int, int, Places]
"""aimed, learned, trouble, edits, -decided, part, places: see `_Search.entry`."""
Named = tuple[str, Level]
"""A level with the name of its dimension."""


def named(space: Sequence[Dimension], choice: Choice) -> tuple[Named, ...]:
    """The levels that change something."""
    return tuple((each.name, level) for each, level in zip(space, choice.levels, strict=True) if level.edits)


def cheapest(judge: Judge, space: Sequence[Dimension], base: tuple[Edit, ...] = (), *, by_rows: bool = False) -> Choice | None:
    """The safe choice of the least loss over the edits `base`; None if there is none. Of equal losses, that with the fewest edits.

    `by_rows`: the first that peak rows do not rule out.
    """
    if without_flash(judge.gpu):
        return None  # nothing is called safe there
    parts = [_Search(judge, part, base) for part in _apart(space)]
    for search, places in itertools.chain(((parts[0], (0,) * len(space)),), _rising(parts)):
        edits = search.edits(places)
        if judge.failing(edits) == ():
            if by_rows or judge.safe(edits):
                return search.choice(places)
            search.learn(places)
    return None


def _apart(space: Sequence[Dimension]) -> list[Sequence[Dimension]]:
    """The space without layer offloading, with it, and with the text encoder's layers offloaded as well.

    The interval is wider with it, so that the two fail in different phases: where they were searched as one, neither phase spoke for all.
    Of some text encoders it is not known where they use their layers: no end of a space with both could be told.
    """
    offloading = next((each for each in space if each.name == OFFLOADING and len(each.levels) > 1), None)
    if offloading is None:
        return [space]
    parts = itertools.groupby(offloading.levels, key=lambda level: {edit.key: bool(edit.value) for edit in level.edits})
    alike = [replace(offloading, levels=tuple(levels)) for _, levels in parts]
    return [[part if each is offloading else each for each in space] for part in alike]


def _rising(parts: Sequence[_Search]) -> Iterator[tuple[_Search, Places]]:
    """The places of every choice in any of the parts by rising loss, each once, but for those that are known to fail."""
    waiting = [search.entry((), n) for n, search in enumerate(parts)]
    heapq.heapify(waiting)
    while waiting:
        *_, n, places = heapq.heappop(waiting)
        search, at = parts[n], len(places)
        fails = search.fails(places)
        if at and (following := search.following(places, fails)) < len(search.space[at - 1].levels):
            heapq.heappush(waiting, search.entry((*places[:-1], following), n))
        if fails:
            continue
        if at == len(search.space):
            yield search, places
        else:
            heapq.heappush(waiting, search.entry((*places, 0), n))


class _Search:
    """Decides one dimension after the other, the cheapest beginning first: what is decided costs no less with what is not.

    Places are those of levels in the first dimensions, in the order in which they are decided. `replayed`: of what peak rows let pass,
    these (LOAD, START) are replayed before it is followed further; asked for once some choice has failed in them.
    """

    def __init__(self, judge: Judge, space: Sequence[Dimension], base: tuple[Edit, ...]) -> None:
        self.judge, self.base, self.given, self.replayed = judge, base, space, set[str]()
        self.space = sorted(space, key=lambda each: (*FIRST, *LAST).index(each.name))
        self.known = Known(self.space, base, judge.subject.job.train)
        self.lowest = tuple(len(each.levels) - 1 if each.name in LAST else 0 for each in self.space)
        self.costs = [[(*level.loss.order, len(level.edits)) for level in each.levels] for each in self.space]
        least = [tuple(map(min, zip(*costs, strict=True))) for costs in self.costs]
        self.ahead = [tuple(map(sum, zip(*least[at:], (0, 0, 0, 0), strict=True))) for at in range(len(least) + 1)]

    def entry(self, places: Places, part: int) -> Entry:
        """What the search goes by: the loss of what is decided and the least of what is not, then the fewest edits, then what is decided
        furthest."""
        aimed, learned, trouble, edits = self.ahead[len(places)]
        for costs, n in zip(self.costs, places, strict=False):
            each = costs[n]
            aimed, learned, trouble, edits = aimed + each[0], learned + each[1], trouble + each[2], edits + each[3]
        return aimed, learned, trouble, edits, -len(places), part, places

    def edits(self, places: Places) -> tuple[Edit, ...]:
        """Those of the choice at these places, over the base."""
        return merged((*self.base, *self.choice(places).edits))

    def choice(self, places: Places) -> Choice:
        """The levels at these places, one for each dimension."""
        levels = {each.name: each.levels[n] for each, n in zip(self.space, places, strict=True)}
        return Choice(tuple(levels[each.name] for each in self.given))

    def learn(self, places: Places) -> None:
        """What the replay says against a choice that peak rows let pass.

        A training step that fails with and without previews and cached latents is taken to fail with any size of previews: what a step
        needs is the same, only the free blocks that it finds are not. Where one of these ends goes through, nothing is concluded.
        """
        fails = self.judge.shortfall(self.edits(places))[1]
        if EARLY.intersection(fails):
            self.replayed |= {LOAD if LOAD in fails else START}
        elif TRAIN in fails and all(self._fails_in_training(corner) for corner in self.known.corners(TRAIN, places, BESIDE_STEPS)):
            self.known.bury_between(TRAIN, places, BESIDE_STEPS)

    def _fails_in_training(self, places: Places) -> bool:
        edits = self.edits(places)
        failing = self.judge.failing(edits)
        if failing == ():
            return not self.judge.safe(edits) and TRAIN in self.judge.shortfall(edits)[1]
        return failing is not None and any(phase_of(peak) == TRAIN for peak in failing)

    def fails(self, places: Places) -> bool:
        """Whether all that these places can lead to fails, as far as can be told from where each phase is least."""
        at = len(places)
        if self.known.dead(places):
            return True
        if at and places[-1] == self.lowest[at - 1]:
            return False  # what would be tried was, one place earlier
        whole = places + self.lowest[at:]
        if any(self._buries(phase, whole, at) for phase in BEFORE_PREVIEWS):
            return True
        for part in sorted(self.replayed):
            if self._stops(part, whole) and all(self._stops(part, corner) for corner in self._corners(part, whole, at)):
                self.known.bury(part, whole, at)
        return self.known.dead(places) or any(self._buries(phase, whole, at) for phase in AFTERWARDS)

    def _buries(self, phase: str, whole: Places, at: int) -> bool:
        """Whether all that begins with the first `at` of these places fails, now that the phase has been looked at where it is least."""
        if not self._fails(phase, whole):
            return False
        if all(self._fails(phase, corner) for corner in self._corners(phase, whole, at)):
            self.known.bury(phase, whole, at)
        return self.known.dead(whole[:at])

    def _corners(self, phase: str, whole: Places, at: int) -> Iterator[Places]:
        """Where a phase could be less than at these places, of which the first `at` are decided."""
        return (tuple(corner.get(d, n) for d, n in enumerate(whole)) for corner in self.known.ends(phase, whole, at))

    def _stops(self, part: str, places: Places) -> bool:
        """Whether a replay of LOAD or START runs out of memory at these places, as far as it can be told."""
        edits = self.edits(places)
        return self.judge.failing_early(edits) is not None and not self.judge.starts(edits, part)

    def following(self, places: Places, fails: bool) -> int:
        """The level of the last dimension to look at after this one. Of frames, the first that does not fail as well.

        There are hundreds of levels, and more frames never need less (tests/test_laws.py).
        """
        decided, last = places[:-1], self.space[len(places) - 1]
        if not fails or last.name != FRAMES:
            return places[-1] + 1
        return bisect_left(range(len(last.levels)), 1, places[-1] + 1, key=lambda n: not self.fails((*decided, n)))

    def _fails(self, phase: str, places: Places) -> bool:
        """Whether the phase fails at these places by its own bytes; UNTOLD: whether nothing can be told.

        Programs of training steps are made only where what comes before them fails in nothing.
        """
        fails = self.known.fails(phase, places)
        if fails is not None:
            return fails
        edits, early = self.edits(places), phase in BEFORE_PREVIEWS
        peaks = self.judge.failing_early(edits) if early else self.judge.failing_alone(edits)
        if peaks is not None:
            failing = {phase_of(peak) for peak in peaks}
            self.known.note(places, BEFORE_PREVIEWS if early else AFTERWARDS, failing)
            return phase in failing
        if not early:
            self.known.note(places, (UNTOLD,), (UNTOLD,))
        return phase == UNTOLD
