"""What a fit of the joint law gives: frozen, printable, serialisable."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from analysis.arrays import Floats
from analysis.fit.diagnostics import Evidence, Status
from analysis.fit.resampling import Solution
from analysis.formatting import count
from slm.errors import DataError


class Parameters(dict[str, Any]):
    """`params["E"]`, and per family `params[family]["alpha"]` (A, alpha, B, beta); the same by parameter,
    `params["alpha"][family]`. Without families `params["alpha"]` is the number. A and B are in raw
    units: A N^-alpha nats.
    """

    def __missing__(self, key: str) -> Any:
        families = {
            name: own[key] for name, own in self.items() if isinstance(own, dict) and key in own
        }
        if not families:
            raise KeyError(key)
        return families


@dataclass(frozen=True)
class JointFit:
    """A fitted joint law. Of a refused one, `params` is empty and every number is None.

    `objective`: sum of the loss function over ln residuals; `rss`: sum of squared ln residuals.
    `intervals`: 95% by parameter name (`E` in nats, `alpha[deep]`), profile likelihood; with clusters the
    cut is inflated to their jackknife. `standard_errors` likewise; `error_kind` says which.
    `reducible`: nats that size could still save at n0, per family. `by_delta`: exponents and E under
    other thresholds of Huber's loss, inf being least squares. `solution`: the minimum itself, for refits
    that start from it; left out of `to_dict`.
    """

    model: str
    loss_fn: str
    delta: float
    families: tuple[str, ...]
    status: Status
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    runs: int
    n_range: tuple[float, float] | None = None
    d_range: tuple[float, float] | None = None
    params: Parameters = field(default_factory=Parameters)
    objective: float | None = None
    rss: float | None = None
    standard_errors: dict[str, float] = field(default_factory=dict)
    error_kind: str = ""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    n0: float | None = None
    d0: float | None = None
    reducible: dict[str, float] = field(default_factory=dict)
    evidence: Evidence | None = None
    vpnls: dict[str, float] = field(default_factory=dict)
    by_delta: dict[float, dict[str, float]] = field(default_factory=dict)
    solution: Solution | None = field(default=None, repr=False, compare=False)

    def predict(self, n: ArrayLike, d: ArrayLike, family: Hashable = None) -> Floats:
        """Loss in nats per token; `family` may be left out where there is one.

        Raises:
            DataError: if the fit was refused, or there are no such runs.
        """
        own = self.of_family(family)
        n, d = np.asarray(n, float), np.asarray(d, float)
        return own["E"] + own["A"] * n ** -own["alpha"] + own["B"] * d ** -own["beta"]

    def of_family(self, family: Hashable = None) -> dict[str, float]:
        """E, A, alpha, B, beta of one family."""
        if not self.params:
            raise DataError(f"the joint law was refused: {'; '.join(self.reasons)}")
        if "alpha" in self.params:
            return {key: self.params[key] for key in ("E", "A", "alpha", "B", "beta")}
        name = str(family) if family is not None or len(self.families) > 1 else self.families[0]
        if name not in self.families:
            raise DataError(f"family={family!r}: the fit has {', '.join(self.families)}")
        common = self.params["E"]
        return {"E": common if isinstance(common, float) else common[name], **self.params[name]}

    def summary(self) -> str:
        """A few lines for people: the estimates with their intervals, and what they are worth."""
        head = f"joint law {self.model}, {self.loss_fn}, {count(self.runs, 'run')}: {self.status}"
        lines = [head, *(f"  {reason}" for reason in self.reasons)]
        for name, (low, high) in self.intervals.items():
            lines.append(f"  {name} = {self._value(name):.4f} [{low:.4f}, {high:.4f}]")
        if self.evidence is not None:
            found = self.evidence
            lines.append(
                f"  loss in nats; 95% by {self.error_kind}; residual sd {found.residual_sd:.4f} in ln L; "
                f"{found.agreeing} of {found.starts} starts agree"
            )
        for delta, values in self.by_delta.items():
            said = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            lines.append(f"  delta {delta:g}: {said}")
        return "\n".join([*lines, *(f"  note: {warning}" for warning in self.warnings)])

    def _value(self, name: str) -> float:
        role, _, family = name.rstrip("]").partition("[")
        return float(self.of_family(family or self.families[0])[role])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: plain dictionaries, infinities as text."""
        content = {
            key: getattr(self, key) for key in self.__dataclass_fields__ if key != "solution"
        }
        content["params"] = dict(self.params)
        content["evidence"] = None if self.evidence is None else vars(self.evidence)
        content["by_delta"] = {f"{delta:g}": values for delta, values in self.by_delta.items()}
        content["delta"] = self.delta if math.isfinite(self.delta) else "inf"
        return content
