"""Workloads at which the peak rows of programs that are made by rule are told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from estimator.features import feature

NOMINAL_FACTOR = 8
"""Of a LoKr."""
DOMAIN = {"B": (1, 2, 4, 8), "T": (256, 1024, 2304, 4096, 9216), "X": (16, 128, 512), "r": (4, 32, 128)}
FACTORED = {"B": (1, 2, 4, 8), "T": (256, 1024, 2304, 4096, 9216), "X": (16, 128, 512), "f": (4, 8, 16, -1)}
"""The same with a LoKr."""


def points_of(features: tuple[str, ...], domain: Mapping[str, Sequence[int]]) -> npt.NDArray[np.float64]:
    """[feature, workload]: the features' values at every combination of a domain's variables B, T, X and r (or f), each once; images, not
    clips."""
    workloads = np.array(list(product(*domain.values())), dtype=np.int64)
    values = dict(zip(domain, workloads.T, strict=True))
    values |= {"E": (2 * np.sqrt(values["T"])).astype(np.int64), "N": values["X"], "A": values["T"], "Q": values["T"]}
    of_an_image = {"F": 1, "K": 1, "I": 0, "R": 0, "Ib": 0, "O": 1, "M": 5}
    values |= {name: np.full_like(values["T"], value) for name, value in of_an_image.items()}
    values |= {"u": -(-values["T"] // 4), "v": -(-values["T"] // 16)}  # of a UNet's levels
    values = {"f": np.full_like(values["T"], NOMINAL_FACTOR)} | values | {"W": values["X"]}
    values |= {"c": values.get("r", values["f"])}
    points = np.array([np.broadcast_to(feature(name, values), len(workloads)) for name in features], dtype=np.float64)
    return np.array([*dict.fromkeys(map(tuple, points.T.tolist()))], dtype=np.float64).T
