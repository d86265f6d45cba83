"""Linear mixed model y = M m + X c + Z b + Zt w + e by REML, for many vectors y at once.

M (blocks) is removed by orthogonal contrasts. One eigendecomposition turns the restricted likelihood into a function
of the ratio of variances tau^2 / sigma^2 alone (Patterson and Thompson 1971), which is then searched in one
dimension for all y. With several seeds a shape also has effects of its trunks; their ratio of variances is searched
on a grid, with one eigendecomposition each, because the two matrices do not commute in general.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.arrays import Floats, Ints
from slm.rounding import ITERATION_TOLERANCE, ROUNDING_TOLERANCE

NOISE_FLOOR = ITERATION_TOLERANCE**2  # variance of a contrast in nats^2: below any measured noise
TRUNK_RATIOS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # sigma_c^2 / sigma^2
GRID = 160
GOLDEN_STEPS = 40
GOLDEN = (np.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class MixedFit:
    """Estimates for `samples` vectors y.

    Attributes:
        coef: shape (samples, p).
        covariance: of coef, shape (samples, p, p).
        ratio: tau^2 / sigma^2, shape (samples,); negative only if the design is complete.
        sigma: residual standard deviation, shape (samples,).
    """

    coef: Floats
    covariance: Floats
    ratio: Floats
    sigma: Floats


class MixedModel:
    """One design, for any number of vectors y.

    `nuisance` (n, m) are fixed effects without interest, `x` (n, p) those to estimate, `shape` and `trunk` the codes
    of the random effects. `allow_negative` lets tau^2 be negative as long as the covariance is positive definite: in
    a complete design the t test is then exact whatever happens inside a shape.
    """

    def __init__(
        self,
        nuisance: Floats,
        x: Floats,
        shape: Ints,
        trunk: Ints | None = None,
        *,
        trunk_ratio: float = 0.0,
        weights: Floats | None = None,
        allow_negative: bool = False,
    ):
        weights = np.ones(len(x)) if weights is None else weights
        contrasts = complement(nuisance * weights[:, None])
        z: Floats = contrasts.T @ indicator(shape)
        root = np.asarray(np.eye(contrasts.shape[1]))
        self._log_det = 0.0
        if trunk is not None and trunk_ratio > 0:
            effects = contrasts.T @ indicator(trunk)
            root = np.asarray(np.linalg.cholesky(root + trunk_ratio * effects @ effects.T))
            self._log_det = 2 * float(np.log(np.diag(root)).sum())
        # y in contrasts free of the nuisance, with independent residuals, of which shape effects are diagonal.
        self.map = np.linalg.solve(root, contrasts.T * weights)
        z = np.asarray(np.linalg.solve(root, z))
        values, vectors = np.linalg.eigh(z @ z.T)
        self.values: Floats = np.maximum(values, 0.0)
        self.map = vectors.T @ self.map
        self.x = self.map @ x
        self.rank_shapes = rank(z)
        free = complement(self.x)
        inner = free.T @ (self.values[:, None] * free)
        inner_values, inner_vectors = np.linalg.eigh(inner)
        self._free_values = np.maximum(inner_values, 0.0)
        self._free = inner_vectors.T @ free.T
        self._log_det += float(np.linalg.slogdet(self.x.T @ self.x)[1])
        self._top = float(self.values.max(initial=0.0))
        self._lowest = ITERATION_TOLERANCE if allow_negative else 1.0

    @property
    def df(self) -> int:
        """Rank of [nuisance, shapes] minus rank of [nuisance, X]."""
        return self.rank_shapes - self.x.shape[1]

    def fit(self, y: Floats) -> MixedFit:
        """Fit y of shape (n,) or (n, samples)."""
        return self.fit_rotated(self.map @ y.reshape(len(y), -1))

    def fit_rotated(self, rotated: Floats) -> MixedFit:
        """Fit y in the model's own coordinates, map @ y, shape (contrasts, samples): independent, of variance
        sigma^2 + tau^2 * values.
        """
        ratio = self._ratio((self._free @ rotated) ** 2)
        return self._gls(rotated, ratio)

    def criterion(self, y: Floats) -> float:
        """Return -2 ln of the restricted likelihood of one y, up to a constant of the design and weights."""
        squares = (self._free @ (self.map @ y)) ** 2
        ratio = self._ratio(squares[:, None])
        return float(self._profile(ratio, squares[:, None])[0]) + self._log_det

    def coefficients(self, y: Floats, ratio: float, x: Floats | None = None) -> Floats:
        """Return the GLS coefficients of one y at a ratio of variances, for this or another X."""
        columns = self.x if x is None else self.map @ x
        weights = 1 / (1 + ratio * self.values)
        normal = columns.T @ (weights[:, None] * columns)
        return np.asarray(np.linalg.solve(normal, columns.T @ (weights * (self.map @ y))))

    def covariance(self, sigma: float, tau: float) -> Floats:
        """Return the covariance of the coefficients at known standard deviations."""
        weights = 1 / (sigma**2 + tau**2 * self.values)
        return np.asarray(np.linalg.inv(self.x.T @ (weights[:, None] * self.x)))

    def _gls(self, rotated: Floats, ratio: Floats) -> MixedFit:
        weights = 1 / (1 + ratio[:, None] * self.values)
        normal = np.einsum("ip,bi,iq->bpq", self.x, weights, self.x, optimize=True)
        right = np.einsum("ip,bi,ib->bp", self.x, weights, rotated, optimize=True)
        inverse = np.linalg.inv(normal)
        coef = np.einsum("bpq,bq->bp", inverse, right)
        residual = rotated - self.x @ coef.T
        squares = (weights.T * residual**2).sum(axis=0)
        variance = squares / max(len(self._free), 1) + NOISE_FLOOR
        return MixedFit(coef, inverse * variance[:, None, None], ratio, np.sqrt(variance))

    def _ratio(self, squares: Floats) -> Floats:
        """Minimise the criterion over tau^2 / sigma^2 for each column of `squares` (free contrasts, samples)."""
        samples = squares.shape[1]
        if not len(squares) or np.ptp(self.values) <= ROUNDING_TOLERANCE * max(self._top, 1.0):
            return np.zeros(samples)  # one run per shape: the data do not separate sigma and tau
        grid = np.log(np.geomspace(self._lowest, 1e8, GRID))
        scale = 1 + (np.exp(grid)[:, None] - 1) / self._top * self._free_values
        total = (1 / scale) @ squares + len(squares) * NOISE_FLOOR
        at = np.log(scale).sum(axis=1)[:, None] + len(squares) * np.log(total)
        best = np.argmin(at, axis=0)
        low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, GRID - 1)]
        for _ in range(GOLDEN_STEPS):
            left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
            is_left = self._at(left, squares) <= self._at(right, squares)
            low, high = np.where(is_left, low, left), np.where(is_left, right, high)
        middle = (low + high) / 2
        edge = np.full(samples, grid[0])
        middle = np.where(self._at(edge, squares) <= self._at(middle, squares), edge, middle)
        return (np.exp(middle) - 1) / self._top

    def _at(self, log_v: Floats, squares: Floats) -> Floats:
        return self._profile((np.exp(log_v) - 1) / self._top, squares)

    def _profile(self, ratio: Floats, squares: Floats) -> Floats:
        scale = 1 + self._free_values[:, None] * ratio
        total = (squares / scale).sum(axis=0) + len(squares) * NOISE_FLOOR
        return np.log(scale).sum(axis=0) + len(squares) * np.log(total)


def best_trunk_ratio(
    nuisance: Floats,
    x: Floats,
    effects: tuple[Ints, Ints],
    y: Floats,
    *,
    weights: Floats | None = None,
) -> float:
    """Return sigma_c^2 / sigma^2 by REML; `effects` are the codes of shapes and trunks."""
    from scipy.optimize import minimize_scalar  # late: planning must start fast

    def criterion(ratio: float) -> float:
        model = MixedModel(nuisance, x, *effects, trunk_ratio=ratio, weights=weights)
        return model.criterion(y)

    at = [criterion(ratio) for ratio in TRUNK_RATIOS]
    best = int(np.argmin(at))
    last = len(TRUNK_RATIOS) - 1
    ends = TRUNK_RATIOS[max(best - 1, 0)], TRUNK_RATIOS[min(best + 1, last)]
    found = minimize_scalar(criterion, bounds=ends, method="bounded", options={"xatol": 1e-3})
    return float(found.x) if found.fun < at[0] else 0.0


def complement(matrix: Floats) -> Floats:
    """Return an orthonormal basis of the vectors that are orthogonal to the columns, shape (n, n - rank)."""
    u, values, _ = np.linalg.svd(_scaled(matrix), full_matrices=True)
    return u[:, _rank_of(values) :]


def rank(matrix: Floats) -> int:
    """Return the rank of a matrix with scaled columns."""
    return _rank_of(np.asarray(np.linalg.svd(_scaled(matrix), compute_uv=False)))


def _scaled(matrix: Floats) -> Floats:
    norms = np.linalg.norm(matrix, axis=0)
    return matrix / np.where(norms > ROUNDING_TOLERANCE, norms, 1.0)


def _rank_of(values: Floats) -> int:
    if not len(values):
        return 0
    return int((values > ROUNDING_TOLERANCE * max(values[0], 1.0)).sum())


def indicator(codes: Ints) -> Floats:
    """Return a column per group, 1 in its rows and 0 elsewhere; `codes` number the groups from 0."""
    return (codes[:, None] == np.arange(codes.max() + 1)).astype(float)
