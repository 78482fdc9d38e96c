"""The mask of a video's preview at each size, in a profile that has it at the one at which it was told from the low_vram pipeline's.

    python -m calibration.extract.masks ARCH [ARCH ...]

diffusers' WanPipeline keeps a mask of ones as large as the latents in fp32 beside them, whatever is done with it; the trainer's pipeline
for low_vram has none (toolkit/models/wan21/wan21.py, AggressiveWanUnloadPipeline). Of Wan 2.1 14B one probe job has each, so that the mask
was there at one size alone. With low_vram it is now too much by as much as the latents: 4.4 MB at 832x480 and 41 frames.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise

from calibration.extract import mended
from calibration.extract.programs import Program

LATENTS = {"T": 256}  # 16 channels in fp32, of 2 x 2 places a token
SMALLEST = 4096  # bytes: what is smaller is no tensor of a picture


def corrected(key: str, program: Program) -> Program:
    """A preview whose mask, made right behind the latents, is of their size; any other program as it is."""
    if not key.startswith("preview/"):
        return program
    rows = [{f: c for f, c in zip(program.features, one, strict=True) if c} for one in program.coefficients]
    born = [k for k in program.sequence.events if k is not None and k >= 0]
    for latents, mask in pairwise(born):
        if rows[latents] == LATENTS:
            if list(rows[mask]) == ["1"] and rows[mask]["1"] >= SMALLEST:
                rows[mask] = LATENTS
                return replace(program, coefficients=[tuple(row.get(name, 0) for name in program.features) for row in rows])
            break
    return program


if __name__ == "__main__":
    sys.exit(mended.main("masks", __doc__, corrected))
