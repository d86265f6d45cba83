"""Simulate the power of the verdict on exponents: how often jackknife and permutation test both reject.

In the linearised model y = J theta + noise, every estimator is a linear map of y, so many simulated studies,
with all their jackknife deletions and permutations, are a few matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.arrays import Floats
from analysis.design.linear import LinearDesign
from slm.rounding import ROUNDING_TOLERANCE, pseudoinverse

Mask = NDArray[np.bool_]

ALL_LABELINGS_UP_TO = 12  # pairs; with more, 4095 random labelings and the observed one are used
LEVEL = 0.05


def sign_patterns(pairs: int, generator: np.random.Generator) -> Floats:
    """Return sign patterns, shape (labelings, pairs): the observed one (all +1) first, all 2^pairs if few pairs."""
    if pairs <= ALL_LABELINGS_UP_TO:
        bits = (np.arange(2**pairs)[:, None] >> np.arange(pairs)) & 1
        return 1.0 - 2.0 * bits.astype(np.float64)
    drawn = generator.choice([-1.0, 1.0], size=(2**ALL_LABELINGS_UP_TO, pairs))
    drawn[0] = 1.0
    return drawn


class LinearVerdict:
    """Both tests of alpha_deep = alpha_wide as linear maps of ln L, applied to many studies at once.

    The jackknife deletes one shape at a time. The permutation test fits the law with a common exponent, flips
    the signs of the residuals within pairs, and refits (Freedman and Lane 1983).
    """

    def __init__(self, design: LinearDesign, generator: np.random.Generator):
        jacobian, contrast, shape = design.jacobian, design.contrast, design.shape
        self.estimator = contrast @ pseudoinverse(jacobian)
        self.shapes = int(shape.max()) + 1
        self.df = self.shapes - (1 + 2 * design.families)
        self.deletions = np.zeros((self.shapes, len(jacobian)))
        for deleted in range(self.shapes):
            keep = shape != deleted
            self.deletions[deleted, keep] = contrast @ pseudoinverse(jacobian[keep])
        deep, wide = int(np.argmax(contrast)), int(np.argmin(contrast))
        common = np.delete(jacobian, wide, axis=1)
        common[:, deep - (wide < deep)] = jacobian[:, deep] + jacobian[:, wide]
        self.residual = np.eye(len(jacobian)) - common @ pseudoinverse(common)
        self.pair_maps = np.array(list(self._pair_maps(design)))
        self.signs = sign_patterns(len(self.pair_maps), generator)
        self.deep_effect = jacobian[:, deep]

    def _pair_maps(self, design: LinearDesign) -> Iterator[Floats]:
        """Yield, per pair, the map from residuals to the part of the estimate whose sign the pair's flip changes."""
        label = design.tokens_per_param
        for name in design.common_rungs:
            rung = design.rung == name
            row = np.zeros(len(label))
            for budget in np.unique(label[rung]):
                cell = rung & (label == budget)
                sides = [np.flatnonzero(cell & side) for side in (design.is_deep, design.is_wide)]
                if not all(len(side) for side in sides):
                    continue
                weight = self.estimator[sides[0]].sum() - self.estimator[sides[1]].sum()
                for side, sign in zip(sides, (1, -1), strict=True):
                    row[side] += sign * weight / 2 / len(side)
            yield row

    def power(self, effect: float, noise: Floats) -> float:
        """Return the share of studies in which both tests are significant at 5%; `noise` has shape (runs, studies)."""
        y = noise + (effect * self.deep_effect)[:, None]
        return float((self._jackknife_rejects(y) & self._permutation_rejects(y)).mean())

    def _jackknife_rejects(self, y: Floats) -> Mask:
        deleted = self.deletions @ y
        squares = ((deleted - deleted.mean(axis=0)) ** 2).sum(axis=0)
        error = np.sqrt((self.shapes - 1) / self.shapes * squares)
        return np.abs(self.estimator @ y) > special.stdtrit(self.df, 1 - LEVEL / 2) * error

    def _permutation_rejects(self, y: Floats) -> Mask:
        residuals = self.residual @ y
        observed = self.estimator @ residuals
        flipped = self.pair_maps @ residuals
        values = np.abs(observed - flipped.sum(axis=0) + self.signs @ flipped)
        as_extreme = values >= np.abs(observed) * (1 - ROUNDING_TOLERANCE)
        return as_extreme.mean(axis=0) < LEVEL
