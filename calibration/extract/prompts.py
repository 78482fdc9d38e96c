"""Prompts of Qwen-Image in a profile that was extracted before these were found; a new extraction finds the first by itself.

    python -m calibration.extract.prompts qwen-image

Attention: prompts of 129 tokens and more (the template's 34 counted) go through the keys in parts, each with a result of its own; shorter
ones do not. Programs had two parts whatever the prompt (`Layout.flash_text`).

Steps: what a step copies of the prompts that it has encoded (PromptEmbeds.detach) was in the part before the encode, in one program at the
largest size that was recorded; the plan makes it where it is made (estimator.edit.QwenPlan). A timestep was matched with such a copy.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from calibration.extract import mended
from calibration.extract.programs import Program

HEADS, WIDTH, FP32, BF16, TEMPLATE = 28, 128, 4, 2, 34
FEATURE = "flash28_Yi*Yi"
OUTPUT, SUM = HEADS * WIDTH * FP32, HEADS * FP32  # bytes of a part for each token: its output, and its logsumexp
PARTS = 2  # of every prompt that was recorded in parts
EMBEDDING = HEADS * WIDTH * BF16  # bytes of a token's embedding
LONGEST, ANOTHER = 155, 35  # tokens of two recorded prompts
COPIES = ({"X": EMBEDDING}, {"B*X": EMBEDDING}, {"1": LONGEST * EMBEDDING})
MATCHED, TIMESTEP = {"1": ANOTHER * EMBEDDING}, {"1": 4}


def corrected(program: Program) -> Program:
    """A prompt's encode with its partial results where there are some, a step's head without copies of prompts; any other as it is."""
    rows = [{name: value for name, value in zip(program.features, one, strict=True) if value} for one in program.coefficients]
    before = [dict(row) for row in rows]
    if program.key.startswith("text/"):
        for k in [k for k, row in enumerate(rows) if row == {"X": PARTS * OUTPUT, "1": PARTS * OUTPUT * TEMPLATE}]:
            rows[k - 1], rows[k] = {FEATURE: SUM}, {FEATURE: OUTPUT}  # its logsumexp is made before
    elif program.key.startswith("step.head/"):
        freed = {~event for event in program.sequence.events if event is not None and event < 0}
        for k in [k for k in range(len(rows)) if k not in freed]:
            if rows[k] == MATCHED:
                rows[k] = dict(TIMESTEP)
            elif program.key.split("/")[2] == "encoded" and rows[k] in COPIES:
                rows[k] = {}
    if rows == before:
        return program
    features = (*program.features, *(name for name in (FEATURE,) if name not in program.features and any(name in row for row in rows)))
    return replace(program, features=features, coefficients=[tuple(row.get(name, 0) for name in features) for row in rows])


if __name__ == "__main__":
    sys.exit(mended.main("prompts", __doc__, lambda _, program: corrected(program)))
