"""A vision tower attends window by window, image by image: how many calls there are depends on the shape of each image, their sum does not.

Each call of FlashAttention makes its result, the logsumexp of its rows, where it splits the keys two buffers for the parts, and two scalars
of its random state. All calls of one layer become one: results and logsumexps as large as all together. Left out are the scalars (a KiB
of the allocator's for each call) and the buffers, which are gone with the call (27 MB beside gigabytes).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from calibration.extract.align import LayerCall, Sequence
from estimator.windows import RESULT_BY_LSE

WINDOWED = (".visual.blocks.", ".attn|forward")  # of the label of a layer that attends window by window
RANDOM_STATE = [16, 8]  # bytes: seed and offset (ATen/native/transformers/cuda/flash_attn)


def joined(sequence: Sequence) -> Sequence:
    """The sequence with the calls of each windowed layer joined; as it is, where there are none."""
    calls = _calls(sequence)
    if not calls:
        return sequence
    sizes, into, dropped = list(sequence.sizes), dict[int, int](), set[int]()
    for all_of in calls.values():
        for position in (0, 1):
            first = all_of[0][position]
            sizes[first] = sum(sequence.sizes[one[position]] for one in all_of)
            into |= {one[position]: first for one in all_of}
        dropped |= {k for one in all_of for k in one[2:]}
    last_free = {into.get(~e, ~e): i for i, e in enumerate(sequence.events) if e is not None and e < 0}
    out = Sequence([], [], [], [], [], None, sequence.workspace_thread)
    number: dict[int, int] = {}
    for i, event in enumerate(sequence.events):
        if i == sequence.workspace_at:
            out.workspace_at = len(out.events)
        k = event if event is None or event >= 0 else ~event
        if k is None:
            out.events.append(None)
            continue
        whole = into.get(k, k)
        if k in dropped or (event == k and whole != k) or (event != k and last_free[whole] != i):
            continue
        if whole not in number:
            number[whole] = len(out.sizes)
            out.sizes.append(sizes[whole])
            out.labels.append(sequence.labels[whole])
            out.names.append(sequence.names[whole])
            out.imported.append(sequence.imported[whole])
        out.events.append(number[whole] if event == k else ~number[whole])
    calls = renumbered(sequence, number, number | {k: number[whole] for k, whole in into.items()})
    if calls is None:
        raise ValueError("a layer is used behind all tensors that are kept")
    out.calls = calls
    return out


def renumbered(sequence: Sequence, number: dict[int, int], held_by: dict[int, int]) -> list[LayerCall] | None:
    """A sequence's calls by other numbers of its tensors. `number`: of those that are kept; `held_by`: what each input or output is in.

    Moments before an allocation are before the next one that is kept. None if a call begins behind them all.
    """
    later: dict[int, int | None] = {}  # for each tensor that is allocated here: the first that is kept, itself or a later one
    following: int | None = None
    for k in reversed([e for e in sequence.events if e is not None and e >= 0]):
        following = later[k] = number.get(k, following)
    out = []
    for call in sequence.calls:
        first = later[call.first]
        if first is None:
            return None
        last, backward, until = (None if k is None else later[k] for k in (call.last, call.backward, call.until))
        given, made = (None if k is None else held_by.get(k) for k in (call.input, call.output))
        out.append(replace(call, first=first, last=last, input=given, output=made, backward=backward, until=until))
    return out


def _calls(sequence: Sequence) -> dict[str, list[list[int]]]:
    """Label of a windowed layer -> the tensors of each call: result, logsumexp, and all that is left out."""
    born = [e for e in sequence.events if e is not None and e >= 0]
    found: dict[str, list[list[int]]] = defaultdict(list)
    for at, first in enumerate(born[:-1]):
        label = sequence.labels[first]
        if not all(part in label for part in WINDOWED) or [sequence.sizes[k] for k in born[at : at + 2]] != RANDOM_STATE:
            continue
        begin = at - 2 if sequence.sizes[born[at - 2]] == RESULT_BY_LSE * sequence.sizes[born[at - 1]] else at - 4
        call = born[max(begin, 0) : at + 2]
        if sequence.sizes[call[0]] != RESULT_BY_LSE * sequence.sizes[call[1]] or any(sequence.labels[k] != label for k in call):
            raise ValueError(f"{label}: a call of attention of another kind: {[sequence.sizes[k] for k in call]} bytes")
        found[label].append(call)
    return found
