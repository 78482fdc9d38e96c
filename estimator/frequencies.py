"""Which tensors of a recorded part are position frequencies that its transformer kept, the size being new (`estimator.positions`)."""

from __future__ import annotations

import re

import numpy as np

from estimator.program import Program

EMBEDDER = re.compile(r"\.pos_embed\|")
PASSING = 3  # tensors that are made on the way to each picture's, before it


def kept_in(program: Program) -> list[int]:
    """Those that stay, and what passes with them. The forward's own copy of all is not among them."""
    return program.once(kept_in, _kept)  # type: ignore[no-any-return]


def _kept(program: Program) -> list[int]:
    mine = [k for k in program.exported if EMBEDDER.search(program.moments[program.labels[k]])]
    passing = [k - n for k in mine if np.count_nonzero(program.coefficients[k]) and not program.constants[k] for n in range(1, PASSING + 1)]
    return [*mine, *passing]
