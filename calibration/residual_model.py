"""The residual model: how far a real figure is from the replayed one, fitted by penalised likelihood. Needs scipy (extra `calibrate`).

For a row with the replayed figure b and the observed one y (bytes; both may be of either figure, allocated and reserved are fitted apart)

    y = b (1 + m[phase] + sum over groups of w[kind] z[kind, group]) + s t,    s^2 = (v[phase] b)^2 + a^2,    t ~ Student(n)

m: bias of a phase; z ~ N(0, 1): a group's effect (architecture, kind of weights, optimizer; trainer, card generation), in units of w, the spread
between groups, which is estimated as well: that shrinks a group of few rows to the common mean. v: multiplicative and a: additive spread. A
fit is the probability that y is at most the room there was, an OOM that it is more. Rows are weighted so that every source counts once in a phase.

Priors, and why:
- bias m ~ N(0, 0.5 %): programs are exact by construction; what is left are parts that were missed.
- v: half the emulated bars (1 % allocated, 2 % reserved), log-normal, a factor of e either way. For cards 1 %: allocations on a card are made by the same
  code; kernels, workspaces and orders of freeing differ.
- a: 2 MiB (the allocator's small segment); for cards 32 MiB (one cuBLAS workspace of the larger kind), log-normal, a factor of e either way.
- w: 0.5 %, for cards 1 %, half-normal: groups that differ more than the bars would have been found as missed tensors.
- n: 4, log-normal, a factor of 1.6 either way: tails heavy enough that the 99 % bound is not that of a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.residual_rows import OOM, PEAK, Row

MIB = 2**20
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Priors:
    """`share`: centre of v; `added_bytes`: of a; `between`: spread of w; `bias`: spread of m; `freedom`: centre of n. Others as in the module."""

    share: float
    added_bytes: float
    between: float
    bias: float = 0.005
    freedom: float = 4.0
    share_factor: float = 1.0
    added_factor: float = 1.0
    freedom_factor: float = math.log(1.6)


REPLAY = {"allocated": Priors(0.005, 2 * MIB, 0.005), "reserved": Priors(0.01, 2 * MIB, 0.005)}
CARD = Priors(0.01, 32 * MIB, 0.01, bias=0.01)


@dataclass(frozen=True)
class Fitted:
    """The fit of one figure. `values`: the parameters at their most probable, `covariance` of them (Laplace), by place in `names`."""

    names: tuple[str, ...]
    values: Floats
    covariance: Floats
    groups: Mapping[str, tuple[str, ...]]
    phases: tuple[str, ...]
    priors: Priors

    def draws(self, count: int, seed: int) -> dict[str, Floats]:
        """Parameters drawn around the fit, by name."""
        generator = np.random.default_rng(seed)
        drawn = generator.multivariate_normal(self.values, self.covariance, size=count, method="eigh")
        return {name: drawn[:, place] for place, name in enumerate(self.names)}

    def error(self, name: str) -> tuple[float, float]:
        """A parameter and its standard error."""
        place = self.names.index(name)
        return float(self.values[place]), float(self.covariance[place, place] ** 0.5)


@dataclass(frozen=True)
class _Data:
    replayed: Floats
    observed: Floats
    outcome: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]  # peaks, ooms
    phase: npt.NDArray[np.int64]
    group: dict[str, npt.NDArray[np.int64]]
    weight: Floats
    known: Floats  # spread of the row that is known from elsewhere, bytes


def weights(rows: Sequence[Row]) -> Floats:
    """Each source once in each phase, however many rows it has there."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[row.source, row.phase] = counts.get((row.source, row.phase), 0) + 1
    return np.array([1 / counts[row.source, row.phase] for row in rows])


def fit(rows: Sequence[Row], kinds: Sequence[str], phases: Sequence[str], priors: Priors, known: Sequence[float] = ()) -> Fitted:
    """The most probable parameters for rows of one figure. `kinds`: fields of a row that are groups; `known`: a spread of each row in bytes."""
    from scipy.optimize import minimize

    groups = {kind: tuple(sorted({getattr(row, kind) for row in rows})) for kind in kinds}
    names = _names(kinds, groups, phases)
    data = _Data(
        np.array([row.replayed_bytes for row in rows], float),
        np.array([row.observed_bytes for row in rows], float),
        (np.array([row.outcome == PEAK for row in rows], bool), np.array([row.outcome == OOM for row in rows], bool)),
        np.array([phases.index(row.phase) for row in rows], int),
        {kind: np.array([groups[kind].index(getattr(row, kind)) for row in rows], int) for kind in kinds},
        weights(rows),
        np.array(known, float) if len(known) else np.zeros(len(rows)),
    )
    start = np.array([_start(name, priors) for name in names])

    def cost(theta: Floats) -> float:
        return -_log_posterior(theta, names, groups, tuple(phases), data, priors)

    found = minimize(cost, start, method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 200_000})
    return Fitted(names, found.x, _covariance(cost, found.x), groups, tuple(phases), priors)


def _names(kinds: Sequence[str], groups: Mapping[str, tuple[str, ...]], phases: Sequence[str]) -> tuple[str, ...]:
    own = [f"{what}/{phase}" for what in ("bias", "log_share") for phase in phases]
    return (
        *own, "log_added", "log_freedom", *(f"log_between/{kind}" for kind in kinds),
        *(f"{kind}/{group}" for kind in kinds for group in groups[kind]),
    )  # fmt: skip


def _start(name: str, priors: Priors) -> float:
    centres = {
        "log_share": math.log(priors.share), "log_added": math.log(priors.added_bytes / MIB), "log_freedom": math.log(priors.freedom),
        "log_between": math.log(priors.between / 2),
    }  # fmt: skip
    return centres.get(name.split("/")[0], 0.0)


def _log_posterior(
    theta: Floats, names: tuple[str, ...], groups: Mapping[str, tuple[str, ...]], phases: tuple[str, ...], data: _Data, priors: Priors
) -> float:
    from scipy.stats import t as student

    at = dict(zip(names, theta, strict=True))
    bias = np.array([at[f"bias/{phase}"] for phase in phases])
    share = np.exp([at[f"log_share/{phase}"] for phase in phases])
    added, freedom = math.exp(at["log_added"]) * MIB, math.exp(at["log_freedom"])
    mean = bias[data.phase]
    for kind, members in groups.items():
        effects = np.array([at[f"{kind}/{group}"] for group in members]) * math.exp(at[f"log_between/{kind}"])
        mean = mean + effects[data.group[kind]]
    scale = np.sqrt((share[data.phase] * data.replayed) ** 2 + added**2 + data.known**2)
    far = (data.observed - data.replayed * (1 + mean)) / scale
    peak, oom = data.outcome
    each = np.where(
        peak, student.logpdf(far, freedom) - np.log(scale / MIB), np.where(oom, student.logsf(far, freedom), student.logcdf(far, freedom))
    )
    return float(np.sum(data.weight * each)) + _log_prior(at, priors)


def _log_prior(at: Mapping[str, float], priors: Priors) -> float:
    total = 0.0
    for name, value in at.items():
        what = name.split("/")[0]
        if what == "bias":
            total -= 0.5 * (value / priors.bias) ** 2
        elif what == "log_share":
            total -= 0.5 * ((value - math.log(priors.share)) / priors.share_factor) ** 2
        elif what == "log_added":
            total -= 0.5 * ((value - math.log(priors.added_bytes / MIB)) / priors.added_factor) ** 2
        elif what == "log_freedom":
            total -= 0.5 * ((value - math.log(priors.freedom)) / priors.freedom_factor) ** 2
        elif what == "log_between":  # half-normal in w itself; the Jacobian of log w keeps it from zero
            total += value - 0.5 * (math.exp(value) / priors.between) ** 2
        else:
            total -= 0.5 * value**2
    return total


def _covariance(cost: Any, at: Floats) -> Floats:
    """The inverse of the cost's second derivatives, by central differences; directions without curvature get the prior's unit scale."""
    count, step = len(at), 1e-4
    steps = np.where(np.abs(at) > 0.05, step * 10, step)
    base, hessian = cost(at), np.empty((count, count))
    forward = [cost(_moved(at, {i: steps[i]})) for i in range(count)]
    back = [cost(_moved(at, {i: -steps[i]})) for i in range(count)]
    for i in range(count):
        hessian[i, i] = (forward[i] - 2 * base + back[i]) / steps[i] ** 2
        for j in range(i):
            both = cost(_moved(at, {i: steps[i], j: steps[j]})) + cost(_moved(at, {i: -steps[i], j: -steps[j]}))
            hessian[i, j] = hessian[j, i] = (both - forward[i] - forward[j] - back[i] - back[j] + 2 * base) / (2 * steps[i] * steps[j])
    values, vectors = np.linalg.eigh(hessian)
    return np.asarray((vectors / np.maximum(values, 1.0)) @ vectors.T)


def _moved(at: Floats, by: Mapping[int, float]) -> Floats:
    out = at.copy()
    for place, size in by.items():
        out[place] += size
    return out
