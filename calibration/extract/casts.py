"""Weights that the first forward of all casts for good, in a profile whose parts cast them wherever a recording had its first forward.

    python -m calibration.extract.casts chroma-radiance

Radiance's embedder of pixels makes its layer fp32 in each forward (NerfEmbedder.forward: `self.embedder.float()`), which replaces 9 KB by
17 once, until the trainer next brings the model to its type (behind each round of previews). Programs of those parts that came first in a
probe job replaced it in every step and preview, under the weights' numbers in their own kind of weights; without them a part is the same
wherever it stands, and 9 KB are left out.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from calibration.extract.align import Sequence
from calibration.extract.programs import Program

MOMENT = "transformer.nerf_image_embedder|forward"


def corrected(program: Program) -> Program:
    """A part without weights that it replaces there; any other program as it is."""
    sequence = program.sequence
    made = {name: k for k, name in enumerate(sequence.names) if name and sequence.labels[k] == MOMENT and not sequence.imported[k]}
    gone = {*made.values(), *(k for k, name in enumerate(sequence.names) if name in made and sequence.imported[k])}
    if not gone:
        return program
    kept = [row for k, row in enumerate(program.coefficients) if k not in gone]
    return replace(program, sequence=_without(sequence, gone), coefficients=kept)


def _without(old: Sequence, gone: set[int]) -> Sequence:
    """The sequence without some tensors: those behind them, in numbers, move up."""
    left = [k for k in range(len(old.names)) if k not in gone]

    def moved(k: int | None) -> int | None:
        return k if k is None else k - sum(one < k for one in gone)

    def tensor(event: int | None) -> int | None:
        return event if event is None or event >= 0 else ~event

    events: list[int | None] = []
    for event in old.events:
        k = tensor(event)
        if k not in gone:
            new = moved(k)
            events.append(new if new is None or event == k else ~new)
    place = old.workspace_at
    calls = [
        replace(
            call, first=call.first - sum(one < call.first for one in gone), last=moved(call.last), input=moved(call.input),
            output=moved(call.output), backward=moved(call.backward), until=moved(call.until),
        ) for call in old.calls
    ]  # fmt: skip
    return replace(
        old, events=events, sizes=[old.sizes[k] for k in left], labels=[old.labels[k] for k in left], names=[old.names[k] for k in left],
        imported=[old.imported[k] for k in left], calls=calls,
        workspace_at=None if place is None else place - sum(tensor(event) in gone for event in old.events[:place]),
    )  # fmt: skip


if __name__ == "__main__":
    from calibration.extract import mended  # which needs what extraction is of

    sys.exit(mended.main("casts", __doc__, lambda _, program: corrected(program)))
