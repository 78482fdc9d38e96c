"""A LoKr merged into unquantised weights before previews and taken out behind them, layer by layer.

Each layer's weight is cast to fp32, the matrices' product is made (as large, in fp32), multiplied with the scale, then with the strength,
and added; the sum goes back in the layer's type. A LoRA is passed over while it is all zero, a LoKr never is. Where the transformer waits
on the host, only the product and its multiples are on the card.

Source: toolkit/models/lokr.py (`merge_in`, `get_weight`, `make_kron`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from estimator.adapter_sites import never
from estimator.dtypes import UNQUANTISED
from estimator.job import Job
from estimator.parameters import DORA, WHOLE
from estimator.program import ALLOCATE, EMPTY_CACHE, Program, peak_rows
from estimator.rewriting import widened, written

FULL, HALF = 4, 2  # bytes of an element in fp32, and in the weight's type
CONSTANT = "1"
AWAY = "/away"  # behind the key of a part before previews, while the transformer still waits on the host
# Bytes of an element that is made (None: the number of one that is freed)
ON_CARD = ((FULL, None), (FULL, None), (FULL, None), (None, 1), (FULL, None), (FULL, None), (None, 3), (HALF, None), (None, 0), (None, 2),
           (None, 4), (None, 5))  # fmt: skip
FROM_HOST = ((FULL, None), (FULL, None), (None, 0), (FULL, None), (None, 2), (None, 1))


def merges(job: Job) -> bool:
    """Whether previews have the adapter in the transformer's weights: a LoRA or a LoKr, in unquantised ones."""
    adapter, model = job.network is not None and job.network.kind not in (DORA, WHOLE), job.model
    return adapter and model.kind == UNQUANTISED and model.merges and not model.layer_offloading


def merged(base: Program, widths: Sequence[int], away: bool) -> Program:
    """Entering or leaving previews, from the same part with a LoRA: what merging it makes of each layer, and lets go, is gone.

    `away`: the transformer waits on the host. Raises CannotTell.
    """
    own, count = len(base.names) - base.imports, len(base.names)
    passing = set(base.tensor_of_event[(base.events != ALLOCATE) & (base.events != EMPTY_CACHE)].tolist())
    copied = [k for k in range(own) if base.names[k] is None and k in passing]
    if not copied:
        raise never(base.key)
    kept = [(k, code == ALLOCATE) for k, code in zip(base.tensor_of_event.tolist(), base.events.tolist(), strict=True)]
    at = next(n for n, (k, _) in enumerate(kept) if k in set(copied))
    sizes: list[int] = []
    events: list[tuple[int, bool]] = []
    for inputs, outputs in zip(widths[::2], widths[1::2], strict=True):
        first = len(sizes)
        for size, freed in FROM_HOST if away else ON_CARD:
            if freed is not None:
                events.append((count + first + freed, False))
            elif size is not None:
                events.append((count + len(sizes), True))
                sizes.append(size * (inputs // FULL) * (outputs // FULL))
    gone = set(copied)
    rows = [row for row in kept[:at] if row[0] not in gone] + events + [row for row in kept[at:] if row[0] not in gone]
    features = (*base.features, *(() if CONSTANT in base.features else (CONSTANT,)))
    wide = widened(base, features, len(sizes))
    wide[count:, features.index(CONSTANT)] = sizes
    tensors, births = np.array([k for k, _ in rows], dtype=np.int64), np.array([born for _, born in rows], dtype=bool)
    made = written(base, base.key, (tensors, births), (features, wide), [copied[0]] * len(sizes))
    peaks = peak_rows(features, made.coefficients, made.events, made.labels, base.moments, len(made.names) - made.imports)
    return replace(made, peaks=peaks)
