"""Fit laws of the loss whose terms are powers: additive in width and depth, joint in N and D, or with the aspect ratio.

    ln L = LSE_k(X_k theta)

Each term of L is exp(X_k theta), with X_k linear in centred logarithms of width, depth, N and D, so that one Jacobian
serves all laws: d ln L / d theta = sum_k share_k X_k. The additive law L = E + c_m / width^a + c_l / depth^b + c_D / D^c
is equation 3 of Liu et al. (arXiv 2602.05970); the joint law is section 3.3 of Hoffmann et al. (arXiv 2203.15556).
The objective is the SUM of the squares or Huber losses of the residuals of ln L (Besiroglu et al., arXiv 2404.10102).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from analysis.arrays import Floats, Ints
from slm.rounding import condition_number, first_argmin

EXPONENT_BOUNDS = (0.01, 6.0)  # wide: a bound must not look like an identified exponent
LEVEL_BOUNDS = (-30.0, 30.0)  # of the logarithm of a term, in nats
ASPECT_BOUNDS = (-3.0, 3.0)
TOLERANCE = 1e-13  # of the sum of squares; looser tolerances stop on the way to the minimum
SAME_OBJECTIVE = 1e-6  # relative difference of the objectives of one minimum
SAME_PARAMETER = 1e-2  # difference of the parameters of one minimum


@dataclass(frozen=True)
class Runs:
    """Finished runs: width, depth, N, D and loss in nats per token, arrays of shape (n,)."""

    width: Floats
    depth: Floats
    size: Floats
    tokens: Floats
    loss: Floats

    @classmethod
    def of(cls, table: pd.DataFrame) -> Runs:
        """Read the columns of `get_fitting_data_chinchilla.csv`; its N is the number of all parameters."""
        names = ("d_model", "n_layers", "model_size", "num_tokens", "loss")
        return cls(*(table[name].to_numpy(float) for name in names))

    def __len__(self) -> int:
        return len(self.loss)

    @classmethod
    def selections(cls, table: pd.DataFrame) -> dict[str, Runs]:
        """Return the runs of three choices of rows: all, without the five largest losses, and those of the paper.

        The 240 runs are those of Besiroglu et al. The paper's code keeps losses below the 40th largest one; runs that
        are equal to it are dropped too, because losses were read off a figure and repeat.
        """
        losses = np.sort(table["loss"].to_numpy(float))
        kept = {
            "all": table,
            "without the 5 largest losses": table[table["loss"] < losses[-5]],
            "below the 40th largest loss": table[table["loss"] < losses[-40]],
        }
        return {name: cls.of(rows) for name, rows in kept.items()}

    @cached_property
    def shape(self) -> Ints:
        """Index of the shape (width, depth) of each run, shape (n,)."""
        pairs = np.column_stack([self.width, self.depth])
        index: Ints = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
        return index

    @cached_property
    def shapes(self) -> Floats:
        """Width and depth of each shape, shape (shapes, 2)."""
        return np.unique(np.column_stack([self.width, self.depth]), axis=0)


@dataclass(frozen=True)
class LossLaw:
    """A law of the loss at given runs.

    Attributes:
        names: names of the parameters. The first ones are the logarithms of the terms at the centre of the runs.
        columns: X_k of each term, shape (terms, n, parameters).
        y: ln L of each run, shape (n,).
        low, high: bounds of the parameters, shape (parameters,).
    """

    names: tuple[str, ...]
    columns: Floats
    y: Floats
    low: Floats
    high: Floats

    @property
    def terms(self) -> int:
        """Number of terms, E included."""
        return len(self.columns)

    @property
    def df(self) -> int:
        """Degrees of freedom of the residuals."""
        return len(self.y) - len(self.names)

    def predict(self, theta: Floats) -> tuple[Floats, Floats]:
        """Return ln L of each run, shape (n,), and its Jacobian, shape (n, parameters)."""
        logs = self.columns @ theta
        top = logs.max(axis=0)
        parts = np.exp(logs - top)
        total = parts.sum(axis=0)
        shares = parts / total
        return top + np.log(total), np.einsum("kn,knp->np", shares, self.columns)

    def residuals(self, theta: Floats) -> Floats:
        """Return ln L minus its prediction, shape (n,)."""
        return self.y - self.predict(theta)[0]

    def covariance(self, theta: Floats) -> Floats:
        """Return the least-squares covariance for independent runs, s^2 (J'J)^-1."""
        slope, residual = self.predict(theta)[1], self.residuals(theta)
        norms = np.linalg.norm(slope, axis=0)
        inverse = np.linalg.pinv(slope / norms) / norms[:, None]
        return float(residual @ residual) / self.df * inverse @ inverse.T

    def condition(self, theta: Floats) -> float:
        """Return the condition number of the Jacobian with columns scaled to length 1."""
        slope = self.predict(theta)[1]
        return condition_number(slope / np.linalg.norm(slope, axis=0))

    def starts(self, number: int, seed: int = 0) -> Floats:
        """Return random starts scaled by the data, shape (number, parameters)."""
        generator = np.random.default_rng(seed)
        lowest, typical = math.exp(self.y.min()), math.exp(self.y.mean())
        constant = generator.uniform(0.1, 0.97, number) * lowest
        shares = generator.dirichlet(np.ones(self.terms - 1), number)
        levels = np.log(np.column_stack([constant, shares * (typical - constant)[:, None]]))
        is_exponent = self.low[self.terms :] > 0
        rest = generator.uniform(0, 1, (number, len(is_exponent)))
        rest = np.where(is_exponent, 0.05 + 1.95 * rest, 0.4 * (rest - 0.5))
        return np.column_stack([levels, rest])


def width_depth_law(runs: Runs, *, uncounted_layers: int = 0) -> LossLaw:
    """Return L = E + c_m / width^a + c_l / (depth - uncounted_layers)^b + c_D / D^c, parameters E, m, l, D, a, b, c."""
    logs = [_centred(runs.width), _centred(runs.depth - uncounted_layers), _centred(runs.tokens)]
    columns = np.zeros((4, len(runs), 7))
    columns[range(4), :, range(4)] = 1
    for term, log in enumerate(logs):
        columns[1 + term, :, 4 + term] = -log
    return _law(("E", "m", "l", "D", "a", "b", "c"), columns, runs)


def joint_law(runs: Runs) -> LossLaw:
    """Return L = E + A N^-alpha + B D^-beta, parameters E, A, B, alpha, beta."""
    columns = _joint_columns(runs, 5)
    return _law(("E", "A", "B", "alpha", "beta"), columns, runs)


def aspect_law(runs: Runs) -> LossLaw:
    """Return L = E + A e^(h u) N^-(alpha + gamma u) + B D^-beta, parameters E, A, B, alpha, beta, h, gamma.

    u = ln(width / depth), centred over shapes: h is the level and gamma the change of the exponent with u.
    """
    columns = _joint_columns(runs, 7)
    u = aspect(runs)
    columns[1, :, 5], columns[1, :, 6] = u, -u * _centred(runs.size)
    return _law(("E", "A", "B", "alpha", "beta", "h", "gamma"), columns, runs)


def aspect(runs: Runs) -> Floats:
    """Return u = ln(width / depth) of each run, centred over shapes."""
    logs = np.log(runs.shapes)
    return np.log(runs.width / runs.depth) - float((logs[:, 0] - logs[:, 1]).mean())


def _joint_columns(runs: Runs, parameters: int) -> Floats:
    columns = np.zeros((3, len(runs), parameters))
    columns[range(3), :, range(3)] = 1
    columns[1, :, 3], columns[2, :, 4] = -_centred(runs.size), -_centred(runs.tokens)
    return columns


def _centred(values: Floats) -> Floats:
    logs = np.log(values)
    return np.asarray(logs - logs.mean())


def _law(names: tuple[str, ...], columns: Floats, runs: Runs) -> LossLaw:
    y, terms = np.log(runs.loss), len(columns)
    boxes = [LEVEL_BOUNDS] * terms + [
        ASPECT_BOUNDS if name in ("h", "gamma") else EXPONENT_BOUNDS for name in names[terms:]
    ]
    boxes[0] = (float(y.min()) + math.log(0.05), float(y.min()) + math.log(0.999))
    low, high = np.array(boxes).T
    return LossLaw(names, columns, y, low, high)


@dataclass(frozen=True)
class Optima:
    """Local minima, one per start: `theta` of shape (starts, parameters), `objective` of shape (starts,)."""

    theta: Floats
    objective: Floats

    @cached_property
    def best(self) -> Floats:
        """Parameters of the lowest minimum."""
        return np.asarray(self.theta[first_argmin(self.objective)])

    @property
    def lowest(self) -> float:
        return float(self.objective.min())

    def distinct(self) -> list[tuple[int, float, Floats]]:
        """Return starts that reached it, objective and parameters of each distinct minimum, the lowest first."""
        found: list[tuple[int, float, Floats]] = []
        for index in np.argsort(self.objective, kind="stable"):
            objective, theta = float(self.objective[index]), self.theta[index]
            for place, (count, other, at) in enumerate(found):
                is_equal = objective <= other * (1 + SAME_OBJECTIVE)
                if is_equal and np.abs(theta - at).max() < SAME_PARAMETER:
                    found[place] = (count + 1, other, at)
                    break
            else:
                found.append((1, objective, theta))
        return found


def minimise(
    law: LossLaw,
    starts: Floats,
    *,
    delta: float = math.inf,
    weights: Floats | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Optima:
    """Return the minimum from each start, by a trust region with the analytic Jacobian.

    Args:
        law: the law at the runs.
        starts: start vectors, shape (starts, parameters).
        delta: Huber threshold in ln L; infinite: least squares.
        weights: weight of each run in the sum, shape (n,); 0 leaves a run out.
        fixed: values of parameters that are not fitted.
    """
    free = np.array([name not in (fixed or {}) for name in law.names])
    values = np.array([(fixed or {}).get(name, 0.0) for name in law.names])
    scale = np.ones(len(law.y)) if weights is None else np.sqrt(weights)
    low, high = law.low[free], law.high[free]

    def full(part: Floats) -> Floats:
        theta = values.copy()
        theta[free] = part
        return theta

    found = [
        least_squares(
            lambda part: -law.residuals(full(part)) * scale,
            np.clip(start[free], low + 1e-9, high - 1e-9),
            lambda part: law.predict(full(part))[1][:, free] * scale[:, None],
            bounds=(low, high),
            x_scale="jac",
            loss="huber" if math.isfinite(delta) else "linear",
            f_scale=delta if math.isfinite(delta) else 1.0,
            ftol=TOLERANCE,
            xtol=TOLERANCE,
            gtol=TOLERANCE,
            max_nfev=1000,
        )
        for start in np.atleast_2d(starts)
    ]
    return Optima(np.array([full(one.x) for one in found]), np.array([one.cost for one in found]))
