"""Compare a deep and a wide family: all estimates, and the verdict.

The rules of the verdict are in `analysis.compare.verdict`; the estimates are in the other modules of
`analysis.compare` and in `analysis.learning_rate.audit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.aspect_ratio import MIN_ASPECTS, ShapeCurve, fit_shape_curve
from analysis.compare.compute_multiplier import Kappa, compute_multiplier
from analysis.compare.exponents import ExponentDifference, exponent_difference_of, shape_misfit
from analysis.compare.holdout import HoldOut, hold_out
from analysis.compare.matched_pairs import Contrast, endpoint_text, paired_differences
from analysis.compare.verdict import Findings, Verdict, decide
from analysis.design.identifiability import comparison_refusals, design_warnings, labels
from analysis.formatting import power_of_ten
from analysis.learning_rate.audit import Audit, parse_audit
from analysis.runs.study import Columns, Study, prepare
from slm.errors import DataError
from slm.rounding import exceeds, snap_to_zero
from slm.summary import Summarized

EXTRAPOLATION = 3.0  # times the largest measured FLOPs


@dataclass(frozen=True, repr=False)
class Comparison(Summarized):
    """Results of a study for two families.

    Attributes:
        deep: name of the deep family.
        wide: name of the wide family.
        verdict: word, sentence and reasons.
        exponents: exponent difference for the primary definition of N.
        by_definition: exponent difference for every definition of N in the table.
        matched: paired loss differences at equal FLOPs (primary endpoint); None if there are no pairs.
        kappa: compute multiplier, FLOPs of wide / FLOPs of deep at equal loss.
        hold_out: prediction of the largest size from the smaller ones.
        audit: learning-rate audit that was given.
        shape_curve: loss against aspect ratio; None below three aspect ratios.
        warnings: weaknesses of the data and of the design.
        runs: number of runs.
        sigma: seed standard deviation in nats; None without repeated seeds.
        tau: standard deviation of the random effect of a shape in nats; None if the fit was refused.
        tokens_per_param: smallest and largest D / N.
        largest_flops: largest training FLOPs of a run.
    """

    deep: str
    wide: str
    verdict: Verdict
    exponents: ExponentDifference
    by_definition: dict[str, ExponentDifference]
    matched: Contrast | None
    kappa: Kappa | None
    hold_out: HoldOut
    audit: Audit | None
    shape_curve: ShapeCurve | None
    warnings: tuple[str, ...]
    runs: int
    sigma: float | None
    tau: float | None
    tokens_per_param: tuple[float, float]
    largest_flops: float

    @property
    def status(self) -> str:
        """Status of the exponents: OK, WEAK, UNIDENTIFIED or REFUSED."""
        return self.exponents.status

    @property
    def estimates(self) -> dict[str, float]:
        """Return alpha per family; empty if refused."""
        return self.exponents.alpha

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the 95% interval of alpha per family."""
        return self.exponents.alpha_intervals

    @property
    def difference(self) -> float | None:
        """Return alpha_deep - alpha_wide; None if refused."""
        return self.exponents.difference

    @property
    def jackknife_se(self) -> float | None:
        """Return the jackknife standard error of `difference` over shapes."""
        return self.exponents.standard_error

    @property
    def jackknife_interval(self) -> tuple[float, float] | None:
        """Return the 95% jackknife interval of `difference`."""
        return self.exponents.interval

    @property
    def permutation_p(self) -> float | None:
        """Return the p-value of the permutation test for a difference of exponents, given the levels."""
        return None if self.exponents.permutation is None else self.exponents.permutation.p

    def is_extrapolation(self, flops: float) -> bool:
        """Return whether these FLOPs exceed three times the largest measured ones."""
        return bool(exceeds(flops, EXTRAPOLATION * self.largest_flops))

    def title(self) -> str:
        return self.verdict.title()

    def details(self) -> Iterator[tuple[str, str]]:
        if self.matched is not None and self.matched.by_flops:
            difference = endpoint_text(self.matched.by_flops[-1])
            yield f"loss of {self.deep} minus loss of {self.wide}", difference
        for name, one in self.by_definition.items():
            yield (
                f"alpha {self.deep} minus alpha {self.wide}, N = {name}",
                f"{one.difference_text} ({one.status})",
            )
        for family in self.estimates:
            yield f"alpha {family}", self.exponents.alpha_text(family)
        if self.kappa is not None:
            yield (
                f"FLOPs of {self.wide} / FLOPs of {self.deep} at equal loss",
                f"{self.kappa.text} at {power_of_ten(self.kappa.at_flops)} FLOPs",
            )
        yield "hold-out of the largest size", self.hold_out.status
        audit = self.audit
        status = "passed" if audit and audit.passed(self.deep, self.wide) else "FAILED"
        yield "learning-rate audit", "not given" if audit is None else status
        for reason in self.verdict.reasons:
            yield "reason", reason
        for warning in self.warnings:
            yield "note", warning

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON, in which numbers that are not finite are null."""
        content = {
            key: getattr(self, key)
            for key in (
                "deep",
                "wide",
                "warnings",
                "runs",
                "sigma",
                "tau",
                "tokens_per_param",
                "largest_flops",
            )
        }
        content["verdict"] = asdict(self.verdict)
        content["exponents"] = {name: one.to_dict() for name, one in self.by_definition.items()}
        content["matched"] = None if self.matched is None else self.matched.to_dict()
        content["kappa"] = None if self.kappa is None else asdict(self.kappa)
        content["hold_out"] = asdict(self.hold_out)
        content["audit"] = None if self.audit is None else asdict(self.audit)
        content["shape_curve"] = None if self.shape_curve is None else asdict(self.shape_curve)
        return plain(content)


def plain(value: Any) -> Any:
    """Convert a value to builtin types for JSON; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def compare_families(
    table: pd.DataFrame,
    *,
    n_column: str = "n_flop",
    tokens_column: str = "tokens",
    loss_column: str = "loss_nats_per_token",
    family_column: str = "family",
    shape_column: str = "shape",
    deep: str | None = None,
    wide: str | None = None,
    flops_column: str | None = None,
    rung_column: str | None = None,
    seed_column: str | None = None,
    audit: pd.DataFrame | Mapping[str, Mapping[str, Any]] | Audit | None = None,
    vocab_size: int | None = None,
    bootstrap: int = 999,
    seed: int = 0,
) -> Comparison:
    """Compare two families of a table with one row per finished run.

    An estimate that the design cannot identify has status REFUSED in the result; this is not an error.

    Args:
        table: one row per finished run, such as `load_runs(...).table`.
        n_column: column with N of the primary definition, normally FLOPs per token / 6. The exponents
            are also estimated for the columns n_flop, params_non_embedding and params_total if present.
        tokens_column: column with the training tokens D, equal for both families of a rung.
        loss_column: column with the final loss in nats per token, after decay.
        family_column: column with the family.
        shape_column: column with the shape: one family at one size, for any tokens and seed.
        deep: family to compare as deep; None: the one with the smallest `aspect_ratio`, or by name.
        wide: family to compare as wide; None: the one with the largest `aspect_ratio`, or by name.
        flops_column: column with the training FLOPs; None: `flops` if present, else 6 N D.
        rung_column: column with a label that paired shapes share; None: `rung` if present, else by N.
        seed_column: column with the seed; None: `seed` if present.
        audit: runs of a learning-rate audit, or {family: {"interior": bool, "penalty": nats}}.
        vocab_size: if known, losses above its logarithm are an error.
        bootstrap: number of bootstrap replicates for the interval of kappa; 0: no such interval.
        seed: seed of the resampling.

    Raises:
        DataError: if a column is missing or has invalid values, or the two families are not defined.
    """
    if not isinstance(table, pd.DataFrame):
        raise DataError(
            f"compare_families takes a table with a row a run, not {type(table).__name__}: "
            "load_runs(...).table, or pandas.DataFrame(rows)"
        )

    def present(asked: str | None, usual: str) -> str | None:
        return asked if asked is not None else usual if usual in table else None

    columns = Columns(
        n_column,
        tokens_column,
        loss_column,
        family_column,
        shape_column,
        flops=present(flops_column, "flops"),
        rung=present(rung_column, "rung"),
        seed=present(seed_column, "seed"),
        aspect=present(None, "aspect_ratio"),
    )
    return compare_study(
        prepare(table, columns, deep, wide, vocab_size),
        parse_audit(audit),
        bootstrap=bootstrap,
        seed=seed,
    )


def compare_study(
    study: Study, audit: Audit | None = None, *, bootstrap: int = 999, seed: int = 0
) -> Comparison:
    """Compare the families of a prepared study."""
    table = study.table
    family = labels(list(table["family"]))
    per_token = table["flops"] / table["tokens"]
    refusals = tuple(comparison_refusals(family, per_token, study.deep, study.wide))
    primary = exponent_difference_of(study, seed=seed)
    others = {
        name: exponent_difference_of(study, name, permutations=False)
        for name in study.n_definitions
    }
    contrast, kappa, held_out, tau = None, None, HoldOut(), None
    if not refusals:
        contrast = paired_differences(table, study.deep, study.wide, _saved(primary))
        if contrast.pairs.empty:
            contrast = None
            refusals = ("no rung and token count is common to both families; run the same ones",)
    known = primary.fitted
    if known is not None and not refusals:
        kappa = compute_multiplier(known, bootstrap, seed)
        held_out = hold_out(study, seed)
        tau = shape_misfit(known) * float(table["loss_nats_per_token"].mean())
    found = Findings(
        study.deep,
        study.wide,
        refusals,
        primary,
        tuple(others.values()),
        contrast,
        kappa,
        held_out,
        audit,
    )
    ratio = table["tokens"] / table["n"]
    return Comparison(
        deep=study.deep,
        wide=study.wide,
        verdict=decide(found),
        exponents=primary,
        by_definition={study.n_name: primary, **others},
        matched=contrast,
        kappa=kappa,
        hold_out=held_out,
        audit=audit,
        shape_curve=_shape_curve(study),
        warnings=(*study.warnings, *_design_warnings(study)),
        runs=len(table),
        sigma=_seed_noise(table),
        tau=tau,
        tokens_per_param=(float(ratio.min()), float(ratio.max())),
        largest_flops=float(table["flops"].max()),
    )


def _saved(one: ExponentDifference) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return a function of N: alpha A N^-alpha in nats per unit of ln N, mean of the two families."""
    fit = one.fit
    if fit is None:
        return None
    laws = [fit.of_family(name) for name in (one.deep, one.wide)]
    return lambda size: np.mean(
        [law["alpha"] * law["A"] * size ** -law["alpha"] for law in laws], axis=0
    )


def _shape_curve(study: Study) -> ShapeCurve | None:
    if "aspect_ratio" not in study.table or len(study.families) < MIN_ASPECTS:
        return None
    return fit_shape_curve(study.table)


def _design_warnings(study: Study) -> list[str]:
    pair = study.pair
    per_token = pair["flops"] / pair["tokens"] / 6
    family, rung = labels(list(pair["family"])), labels(list(pair["rung"]))
    return design_warnings(family, rung, per_token, pair["tokens"], pair["seed"])


def _seed_noise(table: pd.DataFrame) -> float | None:
    """Return the pooled standard deviation over the seeds of a cell in nats; None without repeated seeds."""
    cells = table.groupby(["family", "shape", "tokens"])["loss_nats_per_token"]
    squares, count = (
        float(((table["loss_nats_per_token"] - cells.transform("mean")) ** 2).sum()),
        cells.ngroups,
    )
    extra = len(table) - count
    return snap_to_zero(math.sqrt(squares / extra)) if extra else None
