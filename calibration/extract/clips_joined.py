"""What a step's encoded clip has come to before its last chunk, in a profile whose heads of steps hold it at its largest recorded size.

    python -m calibration.extract.clips_joined wan21-1.3b

The VAE joins each chunk's latents to those before it (`clip:0`). The part of the last chunk frees what was joined until then: latents of
T - A tokens of each sample, as caching has them (`latents/last`), which were left without a formula. A replay frees what was made,
whatever the part says of its size; peak rows kept the difference with every step.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from calibration.extract import mended
from calibration.extract.programs import Program

JOINED, ENCODED, LAST = "clip:0", "step.head/encoded/encoded/", "/last"
TOKEN_BYTES = 256


def corrected(key: str, program: Program) -> Program:
    """The end of a step's encode with what it frees at its size; any other program as it is."""
    if not (key.startswith(ENCODED) and key.endswith(LAST)):
        return program
    of = "B*" if "/many" in key else ""
    right = {f"{of}T": TOKEN_BYTES, f"{of}A": -TOKEN_BYTES}
    features = (*program.features, *(name for name in right if name not in program.features))
    rows = [dict(zip(program.features, one, strict=True)) for one in program.coefficients]
    wrong = [
        k for k, name in enumerate(program.sequence.names)
        if name == JOINED and {feature for feature, value in rows[k].items() if value} == {"1"}
    ]  # fmt: skip
    if not wrong:
        return program
    held = {f"{program.sequence.labels[k]}: {rows[k]['1']} bytes at most" for k in wrong}
    for k in wrong:
        rows[k] = dict(right)
    coefficients = [tuple(row.get(name, 0) for name in features) for row in rows]
    return replace(program, features=features, coefficients=coefficients, inexact=[one for one in program.inexact if one not in held])


if __name__ == "__main__":
    sys.exit(mended.main("clips_joined", __doc__, corrected))
