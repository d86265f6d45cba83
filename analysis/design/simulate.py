"""The verdict on exponents in a linear model: how often jackknife and permutation both reject.

In y = J theta every estimator is a linear map of y, so a whole set of simulated studies, deletions
and labelings is a few matrix products.
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

ALL_LABELINGS_UP_TO = 12  # pairs; above, a random sample of 4095 labelings and the observed one
LEVEL = 0.05


def sign_patterns(pairs: int, generator: np.random.Generator) -> Floats:
    """Signs (labelings, pairs), the observed one (all +1) first; all 2^pairs of them if few."""
    if pairs <= ALL_LABELINGS_UP_TO:
        bits = (np.arange(2**pairs)[:, None] >> np.arange(pairs)) & 1
        return 1.0 - 2.0 * bits.astype(np.float64)
    drawn = generator.choice([-1.0, 1.0], size=(2**ALL_LABELINGS_UP_TO, pairs))
    drawn[0] = 1.0
    return drawn


class LinearVerdict:
    """Both tests of alpha_deep = alpha_wide as linear maps of ln L, ready for many studies at once.

    The jackknife deletes one shape at a time. The permutation flips the signs of the pairs' residuals
    from the law with a common exponent (Freedman and Lane 1983), and refits.
    """

    def __init__(self, design: LinearDesign, generator: np.random.Generator):
        jacobian, contrast, shape = design.jacobian, design.contrast, design.shape
        self.estimator = contrast @ pseudoinverse(jacobian)
        self.shapes = int(shape.max()) + 1
        self.df = self.shapes - (1 + 2 * design.families)
        self.deletions = np.zeros((self.shapes, len(jacobian)))
        for one in range(self.shapes):
            keep = shape != one
            self.deletions[one, keep] = contrast @ pseudoinverse(jacobian[keep])
        deep, wide = int(np.argmax(contrast)), int(np.argmin(contrast))
        common = np.delete(jacobian, wide, axis=1)
        common[:, deep - (wide < deep)] = jacobian[:, deep] + jacobian[:, wide]
        self.residual = np.eye(len(jacobian)) - common @ pseudoinverse(common)
        self.swaps = np.array(list(self._pair_maps(design)))
        self.signs = sign_patterns(len(self.swaps), generator)
        self.deep_effect = jacobian[:, deep]

    def _pair_maps(self, design: LinearDesign) -> Iterator[Floats]:
        """Per pair, the map from residuals to the part of the estimate whose sign it flips."""
        label = design.tokens_per_param
        for name in design.common_rungs:
            rung = design.rung == name
            row = np.zeros(len(label))
            for one in np.unique(label[rung]):
                cell = rung & (label == one)
                sides = [np.flatnonzero(cell & side) for side in (design.is_deep, design.is_wide)]
                if not all(len(side) for side in sides):
                    continue
                reach = self.estimator[sides[0]].sum() - self.estimator[sides[1]].sum()
                for side, sign in zip(sides, (1, -1), strict=True):
                    row[side] += sign * reach / 2 / len(side)
            yield row

    def power(self, effect: float, noise: Floats) -> float:
        """Share of studies with both tests significant at 5%; noise (runs, studies)."""
        y = noise + (effect * self.deep_effect)[:, None]
        return float((self._jackknife_rejects(y) & self._permutation_rejects(y)).mean())

    def _jackknife_rejects(self, y: Floats) -> Mask:
        without = self.deletions @ y
        spread = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
        error = np.sqrt((self.shapes - 1) / self.shapes * spread)
        return np.abs(self.estimator @ y) > special.stdtrit(self.df, 1 - LEVEL / 2) * error

    def _permutation_rejects(self, y: Floats) -> Mask:
        residuals = self.residual @ y
        observed = self.estimator @ residuals
        flipped = self.swaps @ residuals
        values = np.abs(observed - flipped.sum(axis=0) + self.signs @ flipped)
        as_extreme = values >= np.abs(observed) * (1 - ROUNDING_TOLERANCE)
        return as_extreme.mean(axis=0) < LEVEL
