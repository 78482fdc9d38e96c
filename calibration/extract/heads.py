"""Noise of each sample by itself in the head of a step, in a profile whose samples were laid on one another crosswise.

    python -m calibration.extract.heads chroma-radiance zimage-l2p

The trainer draws noise for each sample, two temporaries in fp32 beside it, and joins what it has of all (`Layout.heads_by_sample`):
groups of five tensors, as many as the longest recording has samples. Which of them a batch of two has is anyone's choice as long as they
are whole groups; laid together by sizes it was the temporaries of the first group and the noise of a later one, which then came into the
temporaries' place. Here the first two groups are of every batch, and each further one of batches that have such a sample.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from calibration.extract.programs import Program

GROUP = 5  # the scale's and the shift's four bytes, two temporaries, the noise
LEAST = 2  # samples of a batch


def corrected(key: str, program: Program) -> Program:
    """A batch's head with the noise of its samples in whole groups; any other part, and one that has it so, as it is."""
    if not (key.startswith("step.head/") and key.endswith("/many")):
        return program
    rows = [{name: value for name, value in zip(program.features, one, strict=True) if value} for one in program.coefficients]
    for joined, row in enumerate(rows):
        noise = {"T": row.get("B*T", 0)}
        if list(row) == ["B*T"] and rows[joined - 1] == noise:
            return _regrouped(program, rows, joined, noise)
    return program


def _regrouped(program: Program, rows: list[dict[str, int]], joined: int, noise: dict[str, int]) -> Program:
    samples = next(n for n in range(joined // GROUP + 1) if not _is_group(rows[joined - GROUP * (n + 1) : joined - GROUP * n]))
    first, ours = joined - GROUP * samples, [dict(row) for row in rows]
    for number in range(samples):
        later = f"B>{number}"
        small, large = ({"1": 4}, noise) if number < LEAST else ({later: 4}, {f"{later}*T": noise["T"]})
        ours[first + GROUP * number : first + GROUP * (number + 1)] = [small] * 2 + [large] * 3
    if ours == rows:
        return program
    wanted = (name for n in range(LEAST, samples) for name in (f"B>{n}", f"B>{n}*T"))
    features = (*program.features, *(name for name in wanted if name not in program.features))
    held = {f"{program.sequence.labels[k]}: {rows[k]['1']} bytes at most" for k in range(first, joined) if "1" in rows[k]}
    coefficients = [tuple(row.get(name, 0) for name in features) for row in ours]
    return replace(program, features=features, coefficients=coefficients, inexact=[one for one in program.inexact if one not in held])


def _is_group(rows: list[dict[str, int]]) -> bool:
    """Two of four bytes, and three of a sample's noise, of which batches that have the sample at one size alone give constants."""
    return len(rows) == GROUP and all(set(row.values()) == {4} for row in rows[:2]) and all(max(row.values()) > 4 for row in rows[2:])


if __name__ == "__main__":
    from calibration.extract import mended  # which needs what extraction is of

    sys.exit(mended.main("heads", __doc__, corrected))
