"""A step's noisy latents in the transformer's type, in a profile of FLUX.2 that was extracted when they were still part of the step's head.

    python -m calibration.extract.noisy flux2-klein-4b flux2-klein-9b

The trainer casts them last before it predicts (condition_noisy_latents), and lets them go when the prediction is made. Heads that end with
the cast, and what a step does with prompts that it encoded (`step.prompts`), kept it to the step's end, 256 bytes a token. It is the first
tensor of the step's core, freed with what the prediction was made from: among those, ordered by age, it comes first. A new extraction has
it there. Where a core begins with it already (klein 9B, whose cores were recorded later than its heads) nothing is added.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from calibration.extract import mended
from calibration.extract.align import Sequence
from calibration.extract.programs import Program
from estimator.operations import CORE
from estimator.stays import LATENT_BYTES

PER_TOKEN = {"one": "T", "many": "B*T"}
STEP = "step"  # label of what a step makes outside of the model's call
BEFORE_THE_CORE = ("step.head/cached/cached/", "step.prompts/")


def corrected(program: Program) -> Program:
    """A head without the cast at its end, a core with it; any other program as it is."""
    kind, _, batch = program.key.rpartition("/")
    if program.key.startswith(BEFORE_THE_CORE):
        return _without(program, PER_TOKEN[batch])
    return _begun(program, PER_TOKEN[batch]) if kind.startswith(f"{CORE}/") else program


def _is_cast(program: Program, k: int, feature: str) -> bool:
    row = {name: value for name, value in zip(program.features, program.coefficients[k], strict=True) if value}
    return program.sequence.labels[k] == STEP and row == {feature: LATENT_BYTES}


def _without(program: Program, feature: str) -> Program:
    """A part without the cast that it ends with, and keeps."""
    last = program.sequence.events[-1]
    if last is None or last < 0 or last != len(program.coefficients) - 1 or not _is_cast(program, last, feature):
        return program
    old = program.sequence
    kept = Sequence(old.events[:-1], old.sizes[:-1], old.labels[:-1], old.names[:-1], old.imported[:-1], old.workspace_at)
    return replace(program, sequence=kept, coefficients=program.coefficients[:-1])


def _begun(program: Program, feature: str) -> Program:
    """A core that begins with the cast, which goes just before the packed latents that are made from it."""
    old, packed = program.sequence, program.sequence.events[0]
    if packed is None or packed < 0 or _is_cast(program, packed, feature):
        return program
    cast, gone = len(program.coefficients), old.events.index(~packed)
    row = tuple(LATENT_BYTES * (name == feature) for name in program.features)
    if program.coefficients[packed] != row:
        raise ValueError(f"{program.key} does not begin with packed latents")
    events = [cast, *old.events[:gone], ~cast, *old.events[gone:]]
    place = old.workspace_at
    begun = replace(
        old, events=events, sizes=[*old.sizes, 0], labels=[*old.labels, STEP], names=[*old.names, None], imported=[*old.imported, False],
        workspace_at=None if place is None else place + 1 + (place > gone),
    )  # fmt: skip
    return replace(program, sequence=begun, coefficients=[*program.coefficients, row])


if __name__ == "__main__":
    sys.exit(mended.main("noisy", __doc__, lambda _, program: corrected(program)))
