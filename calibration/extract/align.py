"""Lay the recordings of one part on top of each other: the same tensors in the same order, at different sizes.

Canonical form first: bursts of frees in a row may come in any order (hash-ordered caches), so they are sorted; frees of
unnamed tensors of other parts are left out (the estimator releases those itself); named ones ("imports") stay.

The longest recording is the reference. Tensors are matched by their labels, in order of birth; a recording may lack some
(buffers that kernels add above a size, one copy for each sample of a smaller batch, padding that was not needed). What is
matched must then be born and freed in the same order in both: anything else is another structure, and refused.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from calibration.extract.parts import Occurrence
from estimator.residents import WORKSPACE_BYTES

MOST_MISSING = 0.1  # of the reference's tensors: more than that is another structure
MOST_MOVED = 0.002  # of the tensors: those that live a little longer or shorter where lists are rebuilt for each sample
FEW = 40  # tensors: what a short part may differ in besides
FAR = 10**9
# Between the probe jobs' smallest and largest, batch x tokens x rank grow less than this: a larger ratio is another tensor.
MOST_GROWTH, SURE_BYTES, GROWTH = 100, 2**18, {"f": 1000, "u": 24}
# A LoKr's matrices go with the square of the factor, 4 to 64. A UNet's prompts have one length; attention in parts of the keys leaves
# more of the kind of what it leaves without, which is no further apart.
LCS_CELLS = 250_000  # groups of one label larger than this (rows x columns) are matched in order, without search
LIKE = 1000  # what a pair of alike tensors counts in a search: more than all equally long lives of a group
AUTOGRADS = ("backward", "recompute")  # what autograd's thread does: a checkpointed block runs again on it


class Misaligned(Exception):
    """Two recordings of one part do not have the same events: the key misses a setting, or a size decides a branch."""


@dataclass
class LayerCall:
    """A layer's use within a part, by tensors: its forward begins before `first` is allocated and is over before `last` is; its backward
    begins before `backward` is, and the input that an offloaded layer would have saved is needed until just before `until` is (None: to
    the part's end; each).

    `saved`: whether it would save the input at all; `stays`: beyond the part. `input`: None if it is not of this part.
    """

    layer: int
    first: int
    last: int | None
    input: int | None
    output: int | None
    backward: int | None = None
    until: int | None = None
    saved: bool = False
    stays: bool = False


@dataclass
class Sequence:
    """A part in canonical form. `events`: tensor index k (allocation) or ~k (free) or None (empty_cache).

    Per tensor: `sizes`, `labels`, `names` (None: unnamed), `imported`.
    """

    events: list[int | None]
    sizes: list[int]
    labels: list[str]
    names: list[str | None]
    imported: list[bool]
    workspace_at: int | None = None
    workspace_thread: str = "forward"
    calls: list[LayerCall] = field(default_factory=list)
    growth: int = MOST_GROWTH


def canonical(part: Occurrence) -> Sequence:
    """The part's events with its own numbering of tensors; cuBLAS workspaces are taken out (made once, by whoever is first)."""
    run, out = part.run, Sequence([], [], [], [], [], growth=GROWTH.get(min(GROWTH.keys() & part.values, default=""), MOST_GROWTH))
    local: dict[int, int] = {}
    burst: list[int] = []

    def add(index: int, imported: bool) -> int:
        tensor = run.tensors[index]
        local[index] = len(out.sizes)
        out.sizes.append(tensor.size)
        out.labels.append(tensor.label)
        out.names.append(tensor.name)
        out.imported.append(imported)
        return local[index]

    def end_burst() -> None:
        imports = sorted((i for i in burst if i not in local and run.tensors[i].name), key=lambda i: run.tensors[i].born)
        own = sorted(local[i] for i in burst if i in local)
        out.events.extend(~k for k in own)
        for index in imports:
            out.events.append(~add(index, True))
        burst.clear()

    for e in part.events:
        kind, index = run.events[e]
        if kind == "f":
            burst.append(index)
            continue
        end_burst()
        if kind == "e":
            out.events.append(None)
        elif run.tensors[index].size == WORKSPACE_BYTES and run.tensors[index].died is None:
            out.workspace_at = len(out.events)
            out.workspace_thread = "backward" if run.tensors[index].label.partition("|")[2].startswith(AUTOGRADS) else "forward"
        else:
            out.events.append(add(index, False))
    end_burst()
    out.calls = list(_calls(part, local, out.imported))
    return out


def _calls(part: Occurrence, local: dict[int, int], imported: list[bool]) -> Iterator[LayerCall]:
    """The layers' uses that lie within a part."""
    run = part.run
    born = sorted((run.tensors[index].born, k) for index, k in local.items() if not imported[k])
    places = [event for event, _ in born]

    def before(event: int | None) -> int | None:
        at = len(born) if event is None else bisect_left(places, event)
        return born[at][1] if at < len(born) else None

    def own(index: int | None) -> int | None:
        k = None if index is None else local.get(index)
        return None if k is None or imported[k] else k

    start, end = (part.events[0], part.events[-1]) if part.events else (0, -1)
    for call in run.calls:
        first = before(call.first)
        if not start <= call.first <= end or own(call.output) is None or first is None:
            continue
        needed = min((e for e in (call.after, call.gone) if e is not None), default=None)
        backward = None if call.backward is None else before(call.backward)
        stays = call.saved and (needed is None or needed > end + 1)
        yield LayerCall(
            call.layer, first, before(call.last), own(call.input), own(call.output), backward, before(needed), call.saved, stays
        )


def overlay(reference: Sequence, other: Sequence) -> list[int | None]:
    """For each tensor of `reference`, its index in `other`; None where `other` does without it.

    First plainly, in order of birth; where that matches scalars with large tensors or moves lives, by a search.
    Raises Misaligned, naming the first event that does not fit.
    """
    problems: list[str] = []
    for search in (False, True):
        match = _match(reference, other, search)
        problem = _problem(reference, other, match)
        if problem is None:
            return match
        problems.append(problem)
    raise Misaligned("; by search: ".join(problems))


def _problem(reference: Sequence, other: Sequence, match: list[int | None]) -> str | None:
    """Why a match is not one; None if it is."""
    missing = [k for k, m in enumerate(match) if m is None]
    extra = set(range(len(other.sizes))) - {m for m in match if m is not None}
    if len(missing) + len(extra) > MOST_MISSING * len(match) + FEW:
        first = min(extra) if extra else missing[0]
        return f"{len(missing)} tensors missing, {len(extra)} too many: {_say(other if extra else reference, first)}"
    for k, m in enumerate(match):
        if m is not None and not _plausible(reference.sizes[k], other.sizes[m], reference.growth):
            return f"{_say(reference, k)} is matched with {_say(other, m)}"
    moved = _moved(reference, other, match)
    if len(moved) > MOST_MOVED * len(match) + FEW:
        return f"{len(moved)} of {len(match)} tensors live at another time, the first: {_say(reference, moved[0])}"
    return None


def _plausible(a: int, b: int, growth: int = MOST_GROWTH) -> bool:
    small, large = sorted((a, b))
    return large < SURE_BYTES or large <= growth * max(small, 1)


Signature = tuple[str, str | None, bool, str, int, str | None, int, int]


def _alike(a: Signature, b: Signature) -> bool:
    """Freed in the same one's time, and of sizes that probe jobs can have of one tensor."""
    return a[3] == b[3] and _plausible(a[4], b[4], a[7])


def _likeness(a: Signature, b: Signature) -> int:
    """0: not alike. More than LIKE: as many tensors are made in the life of one as in the other's."""
    return _alike(a, b) * (LIKE + (a[6] == b[6]))


def _signature(sequence: Sequence) -> list[Signature]:
    """What a tensor is: label, name, imported, in whose time it is freed, size, the named tensor made last before it, and how many
    are made while it lives (-1: it stays); and how much larger than another's it can be.
    """
    death, spans = [""] * len(sequence.sizes), [-1] * len(sequence.sizes)
    anchors: list[str | None] = [None] * len(sequence.sizes)
    now, anchor, births, born = "", None, 0, dict[int, int]()
    for event in sequence.events:
        if event is not None and event >= 0:
            now, anchors[event] = sequence.labels[event], anchor
            anchor = sequence.names[event] or anchor
            births += 1
            born[event] = births
        elif event is not None:
            death[~event], spans[~event] = now, births - born.get(~event, 0)
    growth = [min(sequence.growth, MOST_GROWTH)] * len(spans)
    return list(zip(sequence.labels, sequence.names, sequence.imported, death, sequence.sizes, anchors, spans, growth, strict=True))


def _match(reference: Sequence, other: Sequence, search: bool) -> list[int | None]:
    ours, theirs = _signature(reference), _signature(other)
    groups: dict[object, tuple[list[int], list[int]]] = {}
    for side, rows in ((0, ours), (1, theirs)):
        for k, row in enumerate(rows):
            groups.setdefault((*row[:3], row[5] if search else None), ([], []))[side].append(k)
    match: list[int | None] = [None] * len(ours)
    for left, right in groups.values():
        same = len(left) == len(right) and all(_alike(ours[k], theirs[m]) for k, m in zip(left, right, strict=True))
        if same or (not search and len(left) == len(right)) or len(left) * len(right) > LCS_CELLS:
            pairs = list(zip(left, right, strict=False))
        else:
            pairs = _common(left, right, ours, theirs)
        for k, m in pairs:
            match[k] = m
    return match


def _common(left: list[int], right: list[int], ours: list[Any], theirs: list[Any]) -> list[tuple[int, int]]:
    """Longest common subsequence of two groups by where their tensors are freed, among those the one with most of equally long lives;
    gaps of equal length are matched in order.
    """
    head = 0
    while head < min(len(left), len(right)) and _likeness(ours[left[head]], theirs[right[head]]) > LIKE:
        head += 1
    if head == min(len(left), len(right)):
        return list(zip(left, right, strict=False))
    done = list(zip(left[:head], right[:head], strict=True))
    return done + _search(left[head:], right[head:], ours, theirs)


def _search(left: list[int], right: list[int], ours: list[Any], theirs: list[Any]) -> list[tuple[int, int]]:
    rows, columns = len(left), len(right)
    best = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows - 1, -1, -1):
        for j in range(columns - 1, -1, -1):
            worth = _likeness(ours[left[i]], theirs[right[j]])
            best[i][j] = max(best[i + 1][j], best[i][j + 1], best[i + 1][j + 1] + worth if worth else 0)
    pairs, i, j = [], 0, 0
    while i < rows and j < columns:
        worth = _likeness(ours[left[i]], theirs[right[j]])
        if worth and best[i][j] == best[i + 1][j + 1] + worth:
            pairs.append((left[i], right[j]))
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    whole: list[tuple[int, int]] = []
    last = (-1, -1)
    for k, m in [*pairs, (max(left, default=0) + 1, max(right, default=0) + 1)]:
        gap = [a for a in left if last[0] < a < k], [b for b in right if last[1] < b < m]
        if len(gap[0]) == len(gap[1]):
            whole += [(a, b) for a, b in zip(*gap, strict=True) if _plausible(ours[a][4], theirs[b][4])]
        whole.append((k, m))
        last = (k, m)
    return whole[:-1]


def _moved(reference: Sequence, other: Sequence, match: list[int | None]) -> list[int]:
    """Matched tensors that are born, or freed, more than a FEW births earlier or later in one recording than in the other."""
    back = {m: k for k, m in enumerate(match) if m is not None}
    ours, theirs = _lives(reference.events, {k: k for k in back.values()}), _lives(other.events, back)
    nowhere = (-FAR, -FAR)
    moved = {k: zip(ours.get(k, nowhere), theirs.get(k, nowhere), strict=True) for k in back.values()}
    return [k for k, pairs in moved.items() if any(abs(a - b) > FEW for a, b in pairs)]


def _lives(events: list[int | None], number: dict[int, int]) -> dict[int, tuple[int, int]]:
    """For each tensor in `number`: how many of them were born before it, and before its end (-FAR: it stays)."""
    lives: dict[int, tuple[int, int]] = {}
    births = 0
    for event in events:
        if event is not None and event >= 0 and event in number:
            lives[number[event]] = (births, -FAR)
            births += 1
        elif event is not None and event < 0 and ~event in number:
            born = lives.get(number[~event], (-FAR, -FAR))[0]
            lives[number[~event]] = (born, births)
    return lives


def _say(sequence: Sequence, event: int | None) -> str:
    if event is None:
        return "the end or empty_cache"
    k = event if event >= 0 else ~event
    what = "allocation" if event >= 0 else "free"
    return f"{what} of {sequence.sizes[k]} bytes in {sequence.labels[k]!r} ({sequence.names[k]})"
