"""The residual model: how far a real figure is from the replayed one, fitted by penalised likelihood. Needs scipy (extra `calibrate`).

For a row with the replayed figure b and the observed one y (bytes; both may be of either figure, allocated and reserved are fitted apart)

    y = b (1 + m[phase] + sum over groups of w[kind] z[kind, group]) + s t,    s^2 = (v[phase] b)^2 + a^2,    t ~ Student(n)

m: bias of a phase; z ~ N(0, 1): a group's effect (architecture, kind of weights, optimizer; trainer, card generation), in units of w, the
spread between groups, which is estimated as well: that shrinks a group of few rows to the common mean. v: multiplicative and a: additive
spread. A fit is the probability that y is at most the room there was, an OOM that it is more. Rows are weighted so that every source
counts once in a phase.

Priors, and why:
- bias m ~ N(0, 0.5 %): programs are exact by construction; what is left are parts that were missed.
- v: half the emulated bars (1 % allocated, 2 % reserved), log-normal, a factor of e either way. For cards 0.5 %, a factor of 2:
  allocations are made by the same code, and the allocator is exact (docs/memory_programs.md); what differs are versions, kernels and the
  order of freeing.
- a: 2 MiB (the allocator's small segment), a factor of e either way; for cards 8 MiB (one cuBLAS workspace), a factor of 1.6: several of
  them at the bound.
- w: 0.5 %, half-normal: groups that differ by more than the bars would have been found as missed tensors.
- n: 4, log-normal, a factor of 1.6 either way: tails heavy enough that the 99 % bound is not that of a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.residual_rows import OOM, PEAK, Row

MIB = 2**20
Floats = npt.NDArray[np.float64]
FEW = 100
PROPOSALS, PROPOSAL_FREEDOM = 40_000, 6  # of importance resampling: a Student distribution, whose tails cover the true one's


@dataclass(frozen=True)
class Priors:
    """`share`: centre of v; `added_bytes`: of a; `between`: spread of w; `bias`: spread of m; `freedom`: centre of n. Others as in the
    module."""

    share: float
    added_bytes: float
    between: float
    bias: float = 0.005
    freedom: float = 4.0
    share_factor: float = 1.0
    added_factor: float = 1.0
    freedom_factor: float = math.log(1.6)


REPLAY = {"allocated": Priors(0.005, 2 * MIB, 0.005), "reserved": Priors(0.01, 2 * MIB, 0.005)}
CARD = Priors(0.005, 8 * MIB, 0.005, share_factor=math.log(2), added_factor=math.log(1.6))


@dataclass(frozen=True)
class Fitted:
    """The fit of one figure. `values`: the parameters at their most probable, `covariance` of them (Laplace), by place in `names`."""

    names: tuple[str, ...]
    values: Floats
    covariance: Floats
    groups: Mapping[str, tuple[str, ...]]
    phases: tuple[str, ...]
    priors: Priors
    density: Callable[[Floats], float] | None = None

    def draws(self, count: int, seed: int) -> dict[str, Floats]:
        """Parameters drawn around the fit, by name: from the normal approximation, or, with `density`, resampled by the true density."""
        generator = np.random.default_rng(seed)
        drawn = generator.multivariate_normal(np.zeros(len(self.values)), self.covariance, size=count, method="eigh")
        if self.density is not None:
            drawn = drawn[:PROPOSALS] / np.sqrt(generator.chisquare(PROPOSAL_FREEDOM, size=(PROPOSALS, 1)) / PROPOSAL_FREEDOM)
            squares = np.einsum("ij,jk,ik->i", drawn, np.linalg.inv(self.covariance), drawn)
            proposed = -(PROPOSAL_FREEDOM + len(self.values)) / 2 * np.log1p(squares / PROPOSAL_FREEDOM)
            logs = np.array([self.density(self.values + one) for one in drawn]) - proposed
            chances = np.exp(logs - logs.max())
            drawn = drawn[generator.choice(PROPOSALS, size=count, p=chances / chances.sum())]
        return {name: self.values[place] + drawn[:, place] for place, name in enumerate(self.names)}

    def error(self, name: str) -> tuple[float, float]:
        """A parameter and its standard error."""
        place = self.names.index(name)
        return float(self.values[place]), float(self.covariance[place, place] ** 0.5)


@dataclass(frozen=True)
class _Data:
    """Rows as arrays. `phase`, `group`: places among the phases, and of all groups of a kind; `known`: spread known from elsewhere,
    bytes."""

    replayed: Floats
    observed: Floats
    peak: npt.NDArray[np.bool_]
    oom: npt.NDArray[np.bool_]
    phase: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    kind_of: npt.NDArray[np.int64]
    weight: Floats
    known: Floats
    phases: int
    kinds: int


def weights(rows: Sequence[Row]) -> Floats:
    """Each source once in each phase, however many rows it has there."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[row.source, row.phase] = counts.get((row.source, row.phase), 0) + 1
    return np.array([1 / counts[row.source, row.phase] for row in rows])


def fit(rows: Sequence[Row], kinds: Sequence[str], phases: Sequence[str], priors: Priors, known: Sequence[float] = ()) -> Fitted:
    """The most probable parameters for rows of one figure. `kinds`: fields of a row that are groups; `known`: a spread of each row in
    bytes.

    With few rows (at most FEW) draws follow the true density, of which the normal approximation is then a poor one.
    """
    from scipy.optimize import minimize

    groups = {kind: tuple(sorted({getattr(row, kind) for row in rows})) for kind in kinds}
    names, members = _names(kinds, groups, phases), [(kind, group) for kind in kinds for group in groups[kind]]
    data = _Data(
        np.array([row.replayed_bytes for row in rows], float),
        np.array([row.observed_bytes for row in rows], float),
        np.array([row.outcome == PEAK for row in rows], bool),
        np.array([row.outcome == OOM for row in rows], bool),
        np.array([phases.index(row.phase) if row.phase in phases else 0 for row in rows], int),
        np.array([[members.index((kind, getattr(row, kind))) for kind in kinds] for row in rows], int),
        np.array([list(kinds).index(kind) for kind, _ in members], int),
        weights(rows),
        np.array(known, float) if len(known) else np.zeros(len(rows)),
        len(phases),
        len(kinds),
    )  # fmt: skip
    start = np.array([_start(name, priors) for name in names])

    def cost(theta: Floats) -> tuple[float, Floats]:
        value, slope = _log_posterior(theta, data, priors)
        return -value, -slope

    found = minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 20_000})
    density = (lambda theta: -cost(theta)[0]) if len(rows) <= FEW else None
    return Fitted(names, found.x, _covariance(cost, found.x), groups, tuple(phases), priors, density)


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


def _parts(theta: Floats, data: _Data) -> tuple[Floats, Floats, float, float, Floats, Floats]:
    """bias and log share of phases, log added, log freedom, log between of kinds, effects of groups."""
    phases, kinds = data.phases, data.kinds
    return theta[:phases], theta[phases : 2 * phases], theta[2 * phases], theta[2 * phases + 1], theta[2 * phases + 2 :][:kinds], theta[
        2 * phases + 2 + kinds :
    ]  # fmt: skip


def _log_posterior(theta: Floats, data: _Data, priors: Priors) -> tuple[float, Floats]:
    """The logarithm, up to a constant, and its derivatives."""
    bias, log_share, log_added, log_freedom, log_between, effects = _parts(theta, data)
    between = np.exp(log_between)[data.kind_of]
    mean = bias[data.phase] + (effects * between)[data.group].sum(axis=1)
    share2, added2 = (np.exp(log_share)[data.phase] * data.replayed) ** 2, (math.exp(log_added) * MIB) ** 2
    scale = np.sqrt(share2 + added2 + data.known**2)
    far = (data.observed - data.replayed * (1 + mean)) / scale
    each, by_far = _student(far, log_freedom, data)
    by_mean = data.weight * by_far * -data.replayed / scale
    by_scale = data.weight * (-by_far * far - data.peak)  # of the logarithm of the scale
    per_group = np.zeros(len(effects))
    np.add.at(per_group, data.group, by_mean[:, None])
    per_kind = np.zeros(data.kinds)
    np.add.at(per_kind, data.kind_of, per_group * effects * between)
    nudge = 1e-5
    ahead, back = (np.sum(data.weight * _student(far, log_freedom + by, data)[0]) for by in (nudge, -nudge))
    slope = np.concatenate([
        np.bincount(data.phase, by_mean, data.phases),
        np.bincount(data.phase, by_scale * share2 / scale**2, data.phases),
        [float(np.sum(by_scale * added2 / scale**2)), float(ahead - back) / (2 * nudge)],
        per_kind, per_group * between,
    ])  # fmt: skip
    prior, prior_slope = _log_prior(theta, data, priors)
    return float(np.sum(data.weight * (each - np.where(data.peak, np.log(scale / MIB), 0)))) + prior, slope + prior_slope


def _student(far: Floats, log_freedom: float, data: _Data) -> tuple[Floats, Floats]:
    """Logarithm of Student's density for peaks, of its probability for outcomes, by row; and the derivative by the distance."""
    from scipy.special import gammaln, stdtr

    freedom = math.exp(log_freedom)
    constant = float(gammaln((freedom + 1) / 2) - gammaln(freedom / 2)) - 0.5 * math.log(freedom * math.pi)
    each, slope = constant - (freedom + 1) / 2 * np.log1p(far**2 / freedom), -(freedom + 1) * far / (freedom + far**2)
    if not data.peak.all():
        one = ~data.peak
        sign = np.where(data.oom, -1.0, 1.0)[one]
        chance = np.maximum(stdtr(freedom, sign * far[one]), 1e-300)
        slope[one] = sign * np.exp(each[one]) / chance
        each[one] = np.log(chance)
    return each, slope


def _log_prior(theta: Floats, data: _Data, priors: Priors) -> tuple[float, Floats]:
    bias, log_share, log_added, log_freedom, log_between, effects = _parts(theta, data)
    between = np.exp(log_between) / priors.between  # half-normal in w itself; the Jacobian keeps log w from going to minus infinity
    centred = (
        bias / priors.bias, (log_share - math.log(priors.share)) / priors.share_factor,
        np.array([(log_added - math.log(priors.added_bytes / MIB)) / priors.added_factor]),
        np.array([(log_freedom - math.log(priors.freedom)) / priors.freedom_factor]), between, effects,
    )  # fmt: skip
    scales = (priors.bias, priors.share_factor, priors.added_factor, priors.freedom_factor)
    slopes = [-one / by for one, by in zip(centred, scales, strict=False)] + [1 - between**2, -effects]
    return float(np.sum(log_between) - sum(np.sum(one**2) for one in centred) / 2), np.concatenate(slopes)


def _covariance(cost: Callable[[Floats], tuple[float, Floats]], at: Floats) -> Floats:
    """The inverse of the cost's second derivatives, by differences of its slope; in no direction wider than the priors' unit scale."""
    count, hessian = len(at), np.empty((len(at), len(at)))
    for i in range(count):
        step = np.zeros(count)
        step[i] = 1e-5
        hessian[i] = (cost(at + step)[1] - cost(at - step)[1]) / 2e-5
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    return np.asarray((vectors / np.maximum(values, 1.0)) @ vectors.T)
