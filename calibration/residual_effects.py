"""Fits a residual with the effects of groups integrated out.

The most probable effects and spreads *together* are no summary of what rows say: an effect of nearly nothing is as probable with a wide
spread between groups as with a narrow one (z is nearly nothing then), so the spread stays at its prior however many groups agree, and draws
of a wide spread with the z's of a narrow one are far from every row. What rows say of a spread is in the volume of the effects that go with
it. So biases and effects are integrated out, by Laplace's method, for each value of the rest (spreads and tails); the rest is found where
what is left is greatest, drawn around it and resampled by its density; and the effects are drawn anew for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from calibration.residual_model import MIB, Data, Floats, Priors, curvature, log_posterior, parts, resampled

TRIED = 200  # draws of spreads and tails that are weighed, in a dozen directions
ROUNDS, ENOUGH = 300, 1e-9


@dataclass(frozen=True)
class Inner:
    """The biases and effects for given spreads and tails. `values`: the most probable; `information`: the curvature there; `value`: the
    logarithm of what is left, up to a constant, `slope` its derivatives by the rest."""

    values: Floats
    information: Floats
    value: float
    slope: Floats


class Effects:
    """A fit's rows, and where in its parameters are what is integrated out (`inner`: biases and effects) and the rest (`outer`)."""

    def __init__(self, data: Data, priors: Priors, count: int) -> None:
        self.data, self.priors, self.count = data, priors, count
        first, last = data.phases, 2 * data.phases + 2 + data.kinds
        self.outer, self.inner = np.arange(first, last), np.concatenate([np.arange(first), np.arange(last, count)])
        members = np.concatenate([data.phase[:, None], data.phases + data.group], axis=1)  # a row's places among `inner`
        self.members = members
        self.pairs = (members[:, :, None] * len(self.inner) + members[:, None, :]).reshape(len(members), -1)
        self.precision = np.where(np.arange(len(self.inner)) < data.phases, 1 / priors.bias**2, 1.0)
        self.last = np.zeros(len(self.inner))

    def theta(self, rest: Floats, values: Floats) -> Floats:
        """All parameters in the order of their names."""
        out = np.empty(self.count)
        out[self.outer], out[self.inner] = rest, values
        return out

    def units(self, rest: Floats) -> Floats:
        """What one of each inner parameter is, as a share: biases are shares, effects come in spreads between groups."""
        between = np.exp(rest[-self.data.kinds :]) if self.data.kinds else np.zeros(0)
        return np.concatenate([np.ones(self.data.phases), between[self.data.kind_of]])

    def products(self, each: Floats, units: Floats) -> Floats:
        """Sum over rows of each x x', x a row's inner parameters in their units."""
        size = len(self.inner)
        summed = np.bincount(self.pairs.ravel(), np.repeat(each, self.pairs.shape[1]), size * size).reshape(size, size)
        return np.asarray(summed * units[:, None] * units)

    def most_probable(self, rest: Floats) -> tuple[Floats, Floats, Floats]:
        """(values, the rows' scales, their shares of it by the scale): weighted least squares, weighed anew by how far each row is."""
        data, units = self.data, self.units(rest)
        _, log_share, log_added, log_freedom, _, _ = parts(self.theta(rest, self.last), data)
        scale = np.sqrt((np.exp(log_share)[data.phase] * data.replayed) ** 2 + (math.exp(log_added) * MIB) ** 2 + data.known**2)
        per, off, freedom = data.replayed / scale, (data.observed - data.replayed) / scale, math.exp(log_freedom)
        shares = self.last
        for _ in range(ROUNDS):
            far = off - per * shares[self.members].sum(axis=1)
            weight = data.weight * (freedom + 1) / (freedom + far**2)
            left = self.products(weight * per**2, units) + np.diag(self.precision)
            right = np.bincount(self.members.ravel(), np.repeat(weight * per * off, self.members.shape[1]), len(units)) * units
            found = np.linalg.solve(left, right)
            moved, shares = np.abs(found * units - shares).max(), found * units
            if moved < ENOUGH:
                break
        self.last = shares
        return found, scale, per

    def at(self, rest: Floats) -> Inner:
        """What is left when biases and effects are integrated out: the posterior at their most probable, times the volume around it."""
        data, units = self.data, self.units(rest)
        values, scale, per = self.most_probable(rest)
        freedom = math.exp(rest[data.phases + 1])
        theta = self.theta(rest, values)
        value, slope = log_posterior(theta, data, self.priors)
        expected = data.weight * (freedom + 1) / (freedom + 3)  # Student's information about its place
        information = self.products(expected * per**2, units) + np.diag(self.precision)
        inverse = np.linalg.inv(information)
        value -= float(np.linalg.slogdet(information)[1]) / 2
        spread = inverse * units[:, None] * units
        leverage = expected * per**2 * spread[self.members[:, :, None], self.members[:, None, :]].sum(axis=(1, 2))
        of_share = (np.exp(rest[: data.phases])[data.phase] * data.replayed / scale) ** 2
        of_added = (math.exp(rest[data.phases]) * MIB / scale) ** 2
        known = (1 - np.diag(inverse) * self.precision)[data.phases :]  # of an effect: how much of it rows tell
        volume = np.concatenate([
            np.bincount(data.phase, leverage * of_share, data.phases), [float(np.sum(leverage * of_added))],
            [-float(np.sum(leverage)) * freedom / (freedom + 1) / (freedom + 3)], -np.bincount(data.kind_of, known, data.kinds),
        ])  # fmt: skip
        return Inner(values, information, value, slope[self.outer] + volume)


def fit(data: Data, priors: Priors, start: Floats) -> tuple[Floats, Floats, Callable[[int, int], Floats]]:
    """(the parameters, their standard errors, draws: so many, seed -> a line for each)."""
    from scipy.optimize import minimize

    effects = Effects(data, priors, len(start))

    def cost(rest: Floats) -> tuple[float, Floats]:
        at = effects.at(rest)
        return -at.value, -at.slope

    best = minimize(cost, start[effects.outer], jac=True, method="L-BFGS-B", options={"maxiter": 500, "maxfun": 2000}).x
    middle, around = effects.at(best), curvature(cost, best)
    spread = np.diag(around).clip(0), np.diag(np.linalg.inv(middle.information))

    def draws(count: int, seed: int) -> Floats:
        generator, found = np.random.default_rng(seed), list[Inner]()

        def density(rest: Floats) -> float:
            found.append(effects.at(rest))
            return found[-1].value

        tried, chosen = resampled(density, best, around, TRIED, count, generator)
        out = np.empty((count, len(start)))
        out[:, effects.outer] = tried[chosen]
        for number in set(chosen.tolist()):
            at, those = found[number], np.flatnonzero(chosen == number)
            root = np.linalg.inv(np.linalg.cholesky(at.information))
            out[np.ix_(those, effects.inner)] = at.values + generator.standard_normal((len(those), len(root))) @ root
        return out

    return effects.theta(best, middle.values), np.sqrt(effects.theta(*spread)), draws
