"""Result of a fit of the joint law."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from analysis.arrays import Floats
from analysis.fit.diagnostics import Evidence, Status
from analysis.fit.resampling import Solution
from analysis.formatting import count, format_interval, format_range
from slm.errors import DataError
from slm.summary import Rows, Summarized


class Parameters(dict[str, Any]):
    """Fitted parameters: `params["E"]`, and A, alpha, B, beta indexed as `params[family][name]` or `params[name][family]`.

    `params["deep"]["alpha"]` and `params["alpha"]["deep"]` are equal; in a fit without family labels,
    `params["alpha"]` is a number. A and B are in raw units: A N^-alpha is in nats.
    """

    def __missing__(self, key: str) -> Any:
        families = {
            name: values[key]
            for name, values in self.items()
            if isinstance(values, dict) and key in values
        }
        if not families:
            raise KeyError(key)
        return families


@dataclass(frozen=True, repr=False)
class JointFit(Summarized):
    """A fitted joint law. If the fit is refused, `params` is empty and every number is None.

    Attributes:
        model: family-specific parameters, M0 to M4.
        loss_fn: lsq or huber.
        delta: Huber threshold in ln L; infinite for least squares.
        families: names of the families.
        status: OK, WEAK, UNIDENTIFIED or REFUSED.
        reasons: why the status is not OK.
        warnings: suspicious values in the data.
        runs: number of runs.
        n_range: smallest and largest N.
        d_range: smallest and largest D.
        params: fitted parameters in raw units, `params["deep"]["alpha"]` or `params["alpha"]["deep"]`.
        objective: sum of the loss function over the residuals of ln L.
        rss: sum of the squared residuals of ln L.
        standard_errors: by parameter name, such as `alpha[deep]`.
        error_kind: method of the standard errors and intervals.
        intervals: 95% intervals by parameter name, by profile likelihood; with clusters the cut is inflated
            to match the jackknife over clusters. For Huber fits: the estimate plus and minus t standard errors.
        n0: geometric mean of N.
        d0: geometric mean of D.
        reducible: A N0^-alpha per family in nats, the loss that a larger model could save at N0.
        evidence: convergence diagnostics.
        vpnls: parameters by variable projection, as a check.
        by_delta: E and exponents at other Huber thresholds; inf is least squares.
        solution: the minimum, as starting point of refits; not in `to_dict`.
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
        """Predict the loss in nats per token; `family` is required if there are several.

        Raises:
            DataError: if the fit was refused, or has no such family.
        """
        p = self.of_family(family)
        n, d = np.asarray(n, float), np.asarray(d, float)
        return p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"]

    def of_family(self, family: Hashable = None) -> dict[str, float]:
        """Return E, A, alpha, B and beta of one family; raise DataError if refused or unknown."""
        if not self.params:
            raise DataError(f"the joint law was refused: {'; '.join(self.reasons)}")
        if "alpha" in self.params:
            return {key: self.params[key] for key in ("E", "A", "alpha", "B", "beta")}
        name = str(family) if family is not None or len(self.families) > 1 else self.families[0]
        if name not in self.families:
            raise DataError(
                f"family={family!r}: pass one of the fitted families, {', '.join(self.families)}"
            )
        e = self.params["E"]
        return {"E": e if isinstance(e, float) else e[name], **self.params[name]}

    def title(self) -> str:
        return f"joint law {self.model}, {self.loss_fn}, {count(self.runs, 'run')}: {self.status}"

    def details(self) -> Iterator[tuple[str, str]]:
        for reason in self.reasons:
            yield "reason", reason
        for name in self.intervals:
            yield name, self._text(name)
        if self.evidence is not None:
            starts = f"{self.evidence.agreeing} of {self.evidence.starts} starts agree"
            yield "95% intervals", f"{self._interval_kind}; loss in nats per token"
            yield "fit", f"residual sd {self.evidence.residual_sd:.4f} in ln L; {starts}"
        for warning in self.warnings:
            yield "note", warning
        for delta, values in self.by_delta.items() if self.status != "UNIDENTIFIED" else ():
            estimates = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            yield f"Huber delta {delta:g}", estimates

    def rows(self) -> Rows:
        """Return one row per parameter."""
        return [
            {"parameter": name, "estimate [95% CI]": self._text(name)} for name in self.intervals
        ]

    @property
    def _interval_kind(self) -> str:
        if math.isfinite(self.delta):
            return f"estimate ± t x standard error, {self.error_kind}"
        if self.error_kind.startswith("profile"):
            return self.error_kind
        return f"profile likelihood, widened to match the {self.error_kind}"

    def _text(self, name: str) -> str:
        low, high = self.intervals[name]
        if self.status == "UNIDENTIFIED":
            return f"not identified: {format_range((low, high))} is accepted"
        return format_interval(self._value(name), low, high, signed=False)

    def _value(self, name: str) -> float:
        role, _, family = name.rstrip("]").partition("[")
        return float(self.of_family(family or self.families[0])[role])

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON, without `solution` and with infinities as text."""
        content = {
            key: getattr(self, key) for key in self.__dataclass_fields__ if key != "solution"
        }
        content["params"] = dict(self.params)
        content["evidence"] = None if self.evidence is None else vars(self.evidence)
        content["by_delta"] = {f"{delta:g}": values for delta, values in self.by_delta.items()}
        content["delta"] = self.delta if math.isfinite(self.delta) else "inf"
        return content
