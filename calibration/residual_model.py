"""The residual model: how far a real figure is from the replayed one, fitted by penalised likelihood. Needs scipy (extra `calibrate`).

For a row with the replayed figure b and the observed one y (bytes; both may be of either figure, allocated and reserved are fitted apart)

    y = b (1 + m[phase] + sum over groups of w[kind] z[kind, group]) + s t,    s^2 = (v[phase] b)^2 + a^2,    t ~ Student(n)

m: bias of a phase; z ~ N(0, 1): a group's effect (architecture, kind of weights, optimizer; trainer, card generation), in units of w, the
spread between groups, which is estimated as well: that shrinks a group of few rows to the common mean. v: multiplicative and a: additive
spread (a comes on top of the unit in which figures come, where they have one). A fit is the probability that y is at most the room there
was, an OOM that it is more. Rows are weighted so that every source counts once in a phase.

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
FEW = 60
STEPS = 40_000  # of a walk; a tenth of them is its way in
PROPOSAL_FREEDOM = 6  # of importance resampling: a Student distribution, whose tails cover the true one's


@dataclass(frozen=True)
class Priors:
    """`share`: centre of v; `added_bytes`: of a; `between`: spread of w; `bias`: spread of m; `freedom`: centre of n; `least_bytes`: what
    a comes on top of. Others as in the module."""

    share: float
    added_bytes: float
    between: float
    bias: float = 0.005
    freedom: float = 4.0
    share_factor: float = 1.0
    added_factor: float = 1.0
    freedom_factor: float = math.log(1.6)
    least_bytes: int = 0


SEGMENT_BYTES = 2 * MIB
"""Reserved bytes come in multiples of this, so that figures which agree say no more than that."""
REPLAY = {"allocated": Priors(0.005, 2 * MIB, 0.005), "reserved": Priors(0.01, 2 * MIB, 0.005, least_bytes=SEGMENT_BYTES)}
CARD = Priors(0.005, 8 * MIB, 0.005, share_factor=math.log(2), added_factor=math.log(1.6))


@dataclass(frozen=True)
class Fitted:
    """The fit of one figure. `values`: the parameters at their most probable, `errors`: their standard errors, by place in `names`.

    `drawn`: (so many, seed) -> parameters drawn around the fit, a line for each draw.
    """

    names: tuple[str, ...]
    values: Floats
    errors: Floats
    groups: Mapping[str, tuple[str, ...]]
    phases: tuple[str, ...]
    priors: Priors
    drawn: Callable[[int, int], Floats]

    def draws(self, count: int, seed: int) -> dict[str, Floats]:
        """Parameters drawn around the fit, by name."""
        return dict(zip(self.names, self.drawn(count, seed).T, strict=True))

    def error(self, name: str) -> tuple[float, float]:
        """A parameter and its standard error."""
        place = self.names.index(name)
        return float(self.values[place]), float(self.errors[place])


def resampled(
    density: Callable[[Floats], float], middle: Floats, covariance: Floats, tried: int, count: int, generator: np.random.Generator
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """So many draws by a density, given as its logarithm: (those tried around its middle, which of them, each as often as it is likely)."""
    normal = generator.multivariate_normal(np.zeros(len(middle)), covariance, size=tried, method="eigh")
    found = normal / np.sqrt(generator.chisquare(PROPOSAL_FREEDOM, size=(tried, 1)) / PROPOSAL_FREEDOM)
    squares = np.einsum("ij,jk,ik->i", found, np.linalg.inv(covariance), found)
    proposed = -(PROPOSAL_FREEDOM + len(middle)) / 2 * np.log1p(squares / PROPOSAL_FREEDOM)
    logs = np.array([density(middle + one) for one in found]) - proposed
    chances = np.exp(logs - logs.max())
    return middle + found, generator.choice(tried, size=count, p=chances / chances.sum())


def walked(density: Callable[[Floats], float], middle: Floats, covariance: Floats, count: int, generator: np.random.Generator) -> Floats:
    """So many draws by a density, given as its logarithm: places of a walk (Metropolis), its steps as long as is best in many directions.

    In more than a dozen directions draws that are weighed (`resampled`) may hang on a handful of them; a walk has no weights.
    """
    steps = generator.multivariate_normal(np.zeros(len(middle)), covariance * 2.38**2 / len(middle), size=STEPS, method="eigh")
    limits, here, height = np.log(generator.random(STEPS)), middle, density(middle)
    places = np.empty((STEPS, len(middle)))
    for number, (step, limit) in enumerate(zip(steps, limits, strict=True)):
        there = density(here + step)
        if there - height > limit:
            here, height = here + step, there
        places[number] = here
    return places[generator.integers(STEPS // 10, STEPS, size=count)]


@dataclass(frozen=True)
class Data:
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

    Of more than FEW peaks the effects of groups are integrated out (residual_effects). With few rows, or outcomes among them, all
    parameters are found together, and draws follow their true density.
    """
    from scipy.optimize import minimize

    groups = {kind: tuple(sorted({getattr(row, kind) for row in rows})) for kind in kinds}
    names, members = _names(kinds, groups, phases), [(kind, group) for kind in kinds for group in groups[kind]]
    data = _data(rows, kinds, members, phases, priors, known)
    start = np.array([_start(name, priors) for name in names])
    if data.peak.all() and len(rows) > FEW:
        from calibration import residual_effects

        values, errors, drawn = residual_effects.fit(data, priors, start)
        return Fitted(names, values, errors, groups, tuple(phases), priors, drawn)

    def cost(theta: Floats) -> tuple[float, Floats]:
        value, slope = log_posterior(theta, data, priors)
        return -value, -slope

    found = minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 20_000}).x
    around = curvature(cost, found)

    def drawn(count: int, seed: int) -> Floats:
        return walked(lambda theta: -cost(theta)[0], found, around, count, np.random.default_rng(seed))

    return Fitted(names, found, np.sqrt(np.diag(around)), groups, tuple(phases), priors, drawn)


def _data(
    rows: Sequence[Row], kinds: Sequence[str], members: Sequence[tuple[str, str]], phases: Sequence[str], priors: Priors,
    known: Sequence[float],
) -> Data:  # fmt: skip
    """The rows as arrays. `members`: every (kind, group) in the order of their parameters."""
    return Data(
        np.array([row.replayed_bytes for row in rows], float),
        np.array([row.observed_bytes for row in rows], float),
        np.array([row.outcome == PEAK for row in rows], bool),
        np.array([row.outcome == OOM for row in rows], bool),
        np.array([phases.index(row.phase) if row.phase in phases else 0 for row in rows], int),
        np.array([[members.index((kind, getattr(row, kind))) for kind in kinds] for row in rows], int),
        np.array([list(kinds).index(kind) for kind, _ in members], int),
        weights(rows),
        np.hypot(np.array(known, float) if len(known) else np.zeros(len(rows)), priors.least_bytes),
        len(phases),
        len(kinds),
    )  # fmt: skip


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


def parts(theta: Floats, data: Data) -> tuple[Floats, Floats, float, float, Floats, Floats]:
    """bias and log share of phases, log added, log freedom, log between of kinds, effects of groups."""
    phases, kinds = data.phases, data.kinds
    return theta[:phases], theta[phases : 2 * phases], theta[2 * phases], theta[2 * phases + 1], theta[2 * phases + 2 :][:kinds], theta[
        2 * phases + 2 + kinds :
    ]  # fmt: skip


def log_posterior(theta: Floats, data: Data, priors: Priors) -> tuple[float, Floats]:
    """The logarithm, up to a constant, and its derivatives."""
    bias, log_share, log_added, log_freedom, log_between, effects = parts(theta, data)
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


def _student(far: Floats, log_freedom: float, data: Data) -> tuple[Floats, Floats]:
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


def _log_prior(theta: Floats, data: Data, priors: Priors) -> tuple[float, Floats]:
    bias, log_share, log_added, log_freedom, log_between, effects = parts(theta, data)
    between = np.exp(log_between) / priors.between  # half-normal in w itself; the Jacobian keeps log w from going to minus infinity
    centred = (
        bias / priors.bias, (log_share - math.log(priors.share)) / priors.share_factor,
        np.array([(log_added - math.log(priors.added_bytes / MIB)) / priors.added_factor]),
        np.array([(log_freedom - math.log(priors.freedom)) / priors.freedom_factor]), between, effects,
    )  # fmt: skip
    scales = (priors.bias, priors.share_factor, priors.added_factor, priors.freedom_factor)
    slopes = [-one / by for one, by in zip(centred, scales, strict=False)] + [1 - between**2, -effects]
    return float(np.sum(log_between) - sum(np.sum(one**2) for one in centred) / 2), np.concatenate(slopes)


def curvature(cost: Callable[[Floats], tuple[float, Floats]], at: Floats) -> Floats:
    """The inverse of the cost's second derivatives, by differences of its slope; in no direction wider than the priors' unit scale."""
    count, hessian = len(at), np.empty((len(at), len(at)))
    for i in range(count):
        step = np.zeros(count)
        step[i] = 1e-5
        hessian[i] = (cost(at + step)[1] - cost(at - step)[1]) / 2e-5
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    return np.asarray((vectors / np.maximum(values, 1.0)) @ vectors.T)
