"""What Qwen-Image-Edit's text encoder takes of its control images before it begins, in a profile that was extracted without it.

    python -m calibration.extract.pictures qwen-image-edit-2509

The trainer scales each picture (F.interpolate), and lets the result go when the encode returns: programs kept it, at the largest size that
was recorded. transformers' image processor then copies the pictures as they are, brings them to whole patches, in fp32 and back in bf16,
rescales and normalises them and lays them out in patches: some 10 MB a picture, of which the patches stay while the encoder runs. Sizes and
order are those of whole runs of the trainer on the emulated device.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace

from calibration.extract import mended
from calibration.extract.align import Sequence
from calibration.extract.programs import Program

PICTURED = re.compile(r"text/.+/(\d) images")
LEAST_BYTES = 800_000  # of a scaled picture, as programs have it: a constant
PIXEL, CELL = 6, 28 * 28 * 6  # bytes of a pixel in bf16, three channels; of a cell, which is 28 x 28 pixels
PATCHES = {"I": 4 * CELL}  # in fp32, each of two frames
# `Ib`: cells again, 0 where what is made before the patches is not laid out (the first Qwen-Image-Edit, whose events were not looked at)
# In programs that had them before it was seen that a scaled picture need not be of whole patches: its copies, in bf16 and fp32
AS_PATCHES = {"Ib": CELL}, {"Ib": 2 * CELL}
# What the processor makes before the patches, in order: bytes of each tensor, and which are let go when it is there
MADE: tuple[tuple[dict[str, int], tuple[int, ...]], ...] = (
    ({"R": PIXEL}, ()), ({"R": 2 * PIXEL}, ()), ({"Ib": 2 * CELL}, (1,)), ({"Ib": CELL}, (2,)), ({"Ib": CELL}, (0,)),
    ({"Ib": 2 * CELL}, ()), ({"Ib": 2 * CELL}, (5,)), ({"Ib": 2 * CELL}, ()), ({"Ib": 4 * CELL}, (6,)), ({"Ib": 4 * CELL}, ()),
)  # fmt: skip
AFTER = (3, 4, 7, 8, 9)  # those that go when the patches are there


def corrected(key: str, program: Program) -> Program:
    """A text's encode with its pictures scaled, processed and let go; any other part, and one that has all that, as it is."""
    if "R" in program.features:
        return _copied(program)
    rows = [{name: value for name, value in zip(program.features, one, strict=True) if value} for one in program.coefficients]
    found = PICTURED.fullmatch(key)
    if found is None:
        return program
    count, patches = int(found[1]), rows.index(PATCHES)
    scaled = [k for k in range(patches) if set(rows[k]) == {"1"} and rows[k]["1"] > LEAST_BYTES]
    if len(scaled) != count:
        raise ValueError(f"{key}: {len(scaled)} scaled pictures of {count}")
    for k in scaled:
        rows[k] = {"R": PIXEL // count}
    rows[patches:patches] = [dict(row) for row, _ in MADE]
    features = (*program.features, "R", "Ib")
    coefficients = [tuple(row.get(name, 0) for name in features) for row in rows]
    return replace(program, features=features, coefficients=coefficients, sequence=_laid_in(program.sequence, scaled, patches))


def _copied(program: Program) -> Program:
    """With the processor's copies of scaled pictures as large as these; a program that has them so, as it is."""
    rows = [{name: value for name, value in zip(program.features, one, strict=True) if value} for one in program.coefficients]
    first = rows.index(AS_PATCHES[0])
    if rows[first + 1] != AS_PATCHES[1]:
        return program
    for k, (row, _) in enumerate(MADE[: len(AS_PATCHES)], first):
        rows[k] = row
    return replace(program, coefficients=[tuple(row.get(name, 0) for name in program.features) for row in rows])


def _laid_in(sequence: Sequence, scaled: list[int], patches: int) -> Sequence:
    """The processor's tensors before the patches, which so far had the number `patches`; the scaled pictures let go at the end."""
    more = len(MADE)

    def moved(k: int | None) -> int | None:
        return k if k is None or k < patches else k + more

    events: list[int | None] = []
    workspace_at = sequence.workspace_at
    for at, event in enumerate(sequence.events):
        if at == sequence.workspace_at:
            workspace_at = len(events)
        if event == patches:
            for k, (_, gone) in enumerate(MADE, patches):
                events += [k, *(~(patches + n) for n in gone)]
        given = event if event is None or event >= 0 else ~event
        events.append(event if event is None else moved(given) if event >= 0 else ~(moved(given) or 0))
        if event == patches:
            events += [~(patches + n) for n in AFTER]
    events += [~k for k in scaled]
    order = [*range(patches), *[patches] * more, *range(patches, len(sequence.sizes))]
    labels, names = [sequence.labels[k] for k in order], [sequence.names[k] for k in order]
    sizes, imported = [sequence.sizes[k] for k in order], [sequence.imported[k] for k in order]
    calls = [
        replace(
            call, first=call.first + more, last=moved(call.last), input=moved(call.input), output=moved(call.output),
            backward=moved(call.backward), until=moved(call.until),
        ) for call in sequence.calls
    ]  # fmt: skip
    return Sequence(events, sizes, labels, names, imported, workspace_at, sequence.workspace_thread, calls)


if __name__ == "__main__":
    sys.exit(mended.main("pictures", __doc__, corrected))
