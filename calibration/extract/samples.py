"""Tensors of a batch's third and fourth sample alone, in a profile whose cores were extracted without features for them.

    python -m calibration.extract.samples ARCH [ARCH ...]

Z-Image puts image and caption of each sample together by itself, one tensor and its positions for each (transformer_z_image.py,
_build_unified_sequence): as many pairs as a batch has samples. The longest recording has four samples, so that the program has four pairs,
of which two are of batches of three and four only; they were there for every batch, and the first, of one recording, at its size. A new
extraction finds this by itself (`Layout.sample_by_sample`).
"""

from __future__ import annotations

import sys
from dataclasses import replace

from calibration.extract import mended
from calibration.extract.programs import Program

JOINED = ({"Z": 7680}, {"Z": 512})  # of a sample: 3840 channels in bf16; 64 complex numbers a token
PAIRS = (4, 3)  # of the first pair, and of the second: the least samples that a batch with it has
MOST = 4


def corrected(program: Program) -> Program:
    """A core of a batch with each of its pairs where there are so many samples; any other program as it is."""
    features = (*program.features, *(name for least in PAIRS if (name := f"B>{least - 1}*Z") not in program.features))
    rows = [dict(zip(program.features, one, strict=True)) for one in program.coefficients]
    plain = [{name: value for name, value in row.items() if value} for row in rows]
    born = [k for k in program.sequence.events if k is not None and k >= 0]
    for at in range(len(born) - 2 * MOST + 1):
        pairs = [(plain[born[at + 2 * n]], plain[born[at + 2 * n + 1]]) for n in range(MOST)]
        if pairs[1:] == [JOINED] * (MOST - 1) and [list(one) for one in pairs[0]] == [["1"], ["1"]]:
            for n, least in enumerate(PAIRS):
                for place, size in enumerate(JOINED):
                    rows[born[at + 2 * n + place]] = {f"B>{least - 1}*Z": size["Z"]}
            return replace(program, features=features, coefficients=[tuple(row.get(name, 0) for name in features) for row in rows])
    return program


def of_a_batch(key: str, program: Program) -> Program:
    """`corrected`, where the part is the core of a batch."""
    return corrected(program) if key.startswith("step.core") and "/many" in key else program


if __name__ == "__main__":
    sys.exit(mended.main("samples", __doc__, of_a_batch))
