"""Fit a parabola to losses and return its minimum, for example over a grid of learning rates in ln(lr)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slm.rounding import ROUNDING_TOLERANCE, first_argmin


@dataclass(frozen=True)
class Minimum:
    """Minimum (x, y) of the parabola y + curvature / 2 * (x' - x)^2, with curvature > 0."""

    x: float
    y: float
    curvature: float

    def cost(self, distance: float) -> float:
        """Return the rise of the parabola above its minimum at a distance from x, in units of y."""
        return self.curvature / 2 * distance**2

    @property
    def cost_of_two(self) -> float:
        """Rise above the minimum at twice the optimal value, if x is a natural logarithm."""
        return self.cost(math.log(2))


def parabola_minimum(x: Iterable[float], y: Iterable[float]) -> Minimum | None:
    """Return the minimum of the least-squares parabola through 3 or more points, in any order.

    Return None if there is no minimum: the parabola opens downwards or is straight up to rounding, x has fewer
    than 3 distinct values, or a value is not finite.
    """
    xs, ys = [float(value) for value in x], [float(value) for value in y]
    if not all(map(math.isfinite, (*xs, *ys))) or len(set(xs)) < 3:
        return None
    n = len(xs)
    centre, level = math.fsum(xs) / n, math.fsum(ys) / n
    u, v = [value - centre for value in xs], [value - level for value in ys]
    # Orthogonal polynomials of degree 1 and 2: u, and u^2 - skew * u - variance.
    squares = _dot(u, u)
    skew, variance = math.fsum(a**3 for a in u) / squares, squares / n
    quadratic = [a**2 - skew * a - variance for a in u]
    norm = math.sqrt(_dot(quadratic, quadratic))
    if norm <= ROUNDING_TOLERANCE * squares:
        return None
    slope, half = _dot(u, v) / squares, _dot(quadratic, v) / norm**2
    if half * norm <= ROUNDING_TOLERANCE * max(map(abs, ys)):
        return None
    at = skew / 2 - slope / (2 * half)
    value = level + slope * at + half * (at**2 - skew * at - variance)
    return Minimum(centre + at, value, 2 * half)


def minimum_on_grid(x: Sequence[float], y: Sequence[float]) -> Minimum | None:
    """Return the minimum of the parabola through the lowest point of an ascending grid and its two neighbours.

    Return None if the lowest point is at an end of the grid, or a neighbour is not finite.
    """
    lowest = first_argmin(y)
    near = slice(lowest - 1, lowest + 2)
    return parabola_minimum(x[near], y[near]) if 0 < lowest < len(y) - 1 else None


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))
