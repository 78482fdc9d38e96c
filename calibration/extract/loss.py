"""Gradients of the loss in a profile that was extracted before each pass's own were told apart (calibration.extract.runs).

    python -m calibration.extract.loss chroma flux2-dev ...

The loss's own nodes are no layer's. In a run's first step they were called by the phase, in any other by the label that the pass before
had left behind, so that a core laid on a first step had them matched with nothing, and one recording's size stood for a constant. They are
made from the squared error in fp32, and are as large as it, or, where the prediction is in bf16, half of it. A new extraction finds both.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from calibration.extract import mended
from calibration.extract.programs import Program
from calibration.extract.runs import BACKWARD
from estimator.operations import CORE

SAMPLES_BYTES = 512  # of a constant up to here: a number for each sample, or a scalar; the allocator gives each as much
TOKENS = "T"
SEVERAL, SHARES = 2, (1, 2)  # gradients of the error's size, at least; parts of it that others are: fp32 and bf16
LOSS = "step"  # label of what is made behind the transformer and before the backward pass


def corrected(program: Program) -> Program:
    """A core with its loss's gradients called by the phase, and as large as the error that they are of; any other program as it is."""
    if not program.key.startswith(CORE):
        return program
    labels, sizes = list(program.sequence.labels), list(program.coefficients)
    gradients = _of_the_loss(program)
    for k in gradients:
        labels[k] = BACKWARD
    _sized(program, gradients, sizes)
    if (labels, sizes) == (program.sequence.labels, program.coefficients):
        return program
    return replace(program, sequence=replace(program.sequence, labels=labels), coefficients=sizes)


def _of_the_loss(program: Program) -> list[int]:
    """Tensors of a backward pass that are made before any layer's."""
    found: list[int] = []
    for k in (e for e in program.sequence.events if e is not None and e >= 0):
        label = program.sequence.labels[k]
        left_behind = "|backward" in label and "AccumulateGrad" in label  # a weight's gradient is a pass's last
        if "|backward" in label and not left_behind:
            break
        found += [k] if label == BACKWARD or left_behind else []
    return found


def _sized(program: Program, gradients: list[int], sizes: list[tuple[int, ...]]) -> None:
    """Give those that stand at one size the error's formula, or half of it.

    The error's own gradients are several and the largest, whole tokens' each. Anything else stays: of one sample alone, or in a part that
    was recorded at one size.
    """
    rows = [{name: value for name, value in zip(program.features, one, strict=True) if value} for one in sizes]
    fixed = [k for k in gradients if set(rows[k]) == {"1"} and rows[k]["1"] > SAMPLES_BYTES]
    whole = max((rows[k]["1"] for k in fixed), default=0)
    if sum(rows[k]["1"] == whole for k in fixed) < SEVERAL:
        return
    behind = (k for k in reversed(range(fixed[0])) if program.sequence.labels[k] == LOSS)
    error = next((rows[k] for k in behind if any(TOKENS in name.split("*") for name in rows[k])), {})
    if not error or whole % min(error.values()):
        return
    for k in fixed:
        share = whole // rows[k]["1"]
        if rows[k]["1"] * share == whole and share in SHARES:
            sizes[k] = tuple(error.get(name, 0) // share for name in program.features)


if __name__ == "__main__":
    sys.exit(mended.main("loss", __doc__, lambda _, program: corrected(program)))
