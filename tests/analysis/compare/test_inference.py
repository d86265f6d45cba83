"""Inference over shapes: exactness, coverage on known truths, and the secondary estimators."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.compare import holdout
from analysis.compare.exponents import (
    equivalence_p,
    exponent_difference_of,
    fitted,
    shape_misfit,
    two_sided,
)
from analysis.compare.families import compare_families
from analysis.compare.holdout import hold_out
from analysis.fit.isoflop import fit_isoflop
from analysis.fit.resampling import (
    Replicates,
    cluster_bootstrap,
    cluster_weights,
    jackknife_error,
)
from analysis.learning_rate.audit import Audit, audit_learning_rates, parse_audit
from analysis.runs.study import Columns, Study, prepare
from slm.errors import DataError
from tests.analysis.block.studies import study as table_of

pytestmark = pytest.mark.numeric

SIGMA = 0.005


def study_of(d_alpha: float = 0.0, tau: float = 0.0, sigma: float = 0.0, seed: int = 0) -> Study:
    table = table_of(8, d_alpha=d_alpha, tau=tau, sigma=sigma, seed=seed)
    return prepare(table, Columns(flops="flops", rung="rung"), None, None)


def test_a_difference_without_noise_is_found_exactly() -> None:
    one = exponent_difference_of(study_of(0.05))
    assert one.difference == pytest.approx(0.05, abs=1e-6)
    assert one.standard_error == pytest.approx(0, abs=1e-6)
    assert one.alpha["wide"] == pytest.approx(0.3478 - 0.025, abs=1e-6)
    assert shape_misfit(fitted(study_of(0.05))) < 1e-8


def test_the_jackknife_is_over_shapes() -> None:
    study = study_of(tau=0.01, sigma=SIGMA)
    one = exponent_difference_of(study)
    assert (one.shapes, one.df, one.runs) == (16, 11, 48)
    known = fitted(study)
    without = known.contrast(known.deleted.theta)
    expected = math.sqrt(15 / 16 * ((without - without.mean()) ** 2).sum())
    assert one.standard_error == pytest.approx(expected)
    assert one.without is not None and one.without[0].split()[1] in set(study.table["shape"])
    # A direct refit without the first shape agrees with the warm-started one.
    kept = study.table[study.table["shape"] != "deep-0"].reset_index(drop=True)
    direct = fitted(Study(kept, "deep", "wide", "n_flop", ()))
    assert direct.contrast(direct.theta) == pytest.approx(without[0], abs=1e-6)
    assert one.profile is not None and one.profile[0] < one.difference < one.profile[1]  # type: ignore[operator]
    assert json.dumps(one.to_dict(), default=str)


def test_t_tests_and_intervals() -> None:
    assert two_sided(2.201, 1.0, 11) == pytest.approx(0.05, abs=1e-4)
    assert two_sided(0.0, 0.0, 11) == 1.0 and two_sided(0.1, 0.0, 11) == 0.0
    assert equivalence_p(0.0, 0.005, 11, 0.02) == pytest.approx(0.001, abs=5e-4)
    assert equivalence_p(0.03, 0.005, 11, 0.02) > 0.95
    assert equivalence_p(0.0, 0.0, 11, 0.02) == 0.0
    assert jackknife_error(np.array([1.0, 1.0, 1.0])) == 0


def test_a_resample_keeps_the_number_of_shapes_of_each_family() -> None:
    cluster = np.array([0, 0, 1, 1, 2, 3, 4])
    stratum = np.array([0, 0, 0, 0, 1, 1, 1])
    weights = cluster_weights(cluster, stratum, 50, seed=0)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 0] + weights[:, 2] == 2).all() and (weights[:, 4:].sum(axis=1) == 3).all()


def test_the_largest_size_is_predicted() -> None:
    exact = hold_out(study_of(0.05))
    assert exact.passed and len(exact.cells) == 6
    assert max(abs(cell.error_nats) for cell in exact.cells) < 1e-5
    noisy = hold_out(study_of(tau=0.01, sigma=SIGMA))
    assert noisy.passed and noisy.coverage == 1.0
    assert {row["family"] for row in noisy.forward} == {"deep", "wide"}
    study = study_of(tau=0.005, sigma=SIGMA)
    last = study.table["rung"] == 7
    study.table.loc[last & (study.table["family"] == "deep"), "loss_nats_per_token"] += 0.3
    bent = hold_out(study)
    assert bent.passed is False and "cells of deep are outside" in bent.reasons[0]
    few = study_of()
    small = Study(
        few.table[few.table["rung"] < 4].reset_index(drop=True), "deep", "wide", "n_flop", ()
    )
    assert hold_out(small).passed is None


def test_sizes_beyond_the_largest_common_one_are_no_hold_out() -> None:
    """A third family, or one of the two, has larger sizes: both are predicted at the largest size of both."""
    for removed in (["deep", "wide"], ["wide"]):
        table = table_of(8, (24, 64, 192), tau=0.004, sigma=SIGMA, seed=0)
        table = table[(table["rung"] < 7) | ~table["family"].isin(removed)].reset_index(drop=True)
        top = (table["rung"] == 6) & (table["family"] == "deep")
        table.loc[top, "loss_nats_per_token"] += 0.2
        found = hold_out(prepare(table, Columns(flops="flops", rung="rung"), "deep", "wide"))
        assert found.passed is False and "of deep are outside" in found.reasons[0]
        assert {cell.family for cell in found.cells} == {"deep", "wide", "aspect_64"}


def test_families_that_are_not_compared_do_not_block_the_joint_law() -> None:
    table = table_of(8, (24, 64, 192), tau=0.004, sigma=SIGMA, seed=0)
    few = table[(table["family"] != "aspect_64") | table["rung"].isin([0, 2, 7])]
    study = prepare(few.reset_index(drop=True), Columns(flops="flops", rung="rung"), "deep", "wide")
    pair = prepare(
        table[table["family"] != "aspect_64"].reset_index(drop=True),
        Columns(flops="flops", rung="rung"),
        "deep",
        "wide",
    )
    assert exponent_difference_of(study).difference == exponent_difference_of(pair).difference
    assert hold_out(study).passed == hold_out(pair).passed is not None
    note = next(x for x in compare_families(few, bootstrap=0).warnings if "hold-out without" in x)
    assert "aspect_64: 3 sizes" in note


def test_the_prediction_interval_has_the_noise_of_a_run() -> None:
    """New cells of the law, with the noise of the fitted ones, lie in the interval as often as it says."""
    inside = cells = 0
    for seed in range(12):
        found = hold_out(study_of(tau=0.003, sigma=0.02, seed=seed))
        inside += sum(cell.inside for cell in found.cells)
        cells += len(found.cells)
    assert inside / cells > 0.9


def test_a_hold_out_that_other_resamples_could_decide_otherwise_is_borderline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = study_of(tau=0.005, sigma=SIGMA)
    sizes: list[int] = []

    def counting(*arguments: Any, replicates: int, seed: int) -> Replicates:
        sizes.append(replicates)
        return cluster_bootstrap(*arguments, replicates=20, seed=seed)

    monkeypatch.setattr(holdout, "cluster_bootstrap", counting)
    monkeypatch.setattr(holdout, "MONTE_CARLO_ERRORS", 0.0)
    assert hold_out(study).status == "passed" and sizes == [200]
    monkeypatch.setattr(holdout, "MONTE_CARLO_ERRORS", 1e6)
    found = hold_out(study)
    assert sizes == [200, 200, 2000]
    assert (found.status, found.passed, found.is_borderline) == ("borderline", None, True)
    assert found.reasons[0].startswith("0 to 3 of 3 cells of deep are outside: a loss is ")
    assert "within the Monte-Carlo error of 2000 resamples" in found.reasons[1]
    last = study.table["rung"] == 7
    study.table.loc[last & (study.table["family"] == "deep"), "loss_nats_per_token"] += 0.3
    monkeypatch.setattr(holdout, "MONTE_CARLO_ERRORS", 3.0)
    assert hold_out(study).status == "FAILED" and sizes[3:] == [200]


def test_resamples_do_not_depend_on_codes_of_shapes_and_families() -> None:
    known = fitted(study_of(tau=0.005, sigma=SIGMA))
    clusters, family = known.shape, known.problem.points.family
    first, second = (
        cluster_bootstrap(known.problem, known.theta, one, two, replicates=20).theta
        for one, two in ((clusters, family), (clusters.max() - clusters, 1 - family))
    )
    assert first == pytest.approx(second, rel=1e-9)


def test_isoflop_parabolas() -> None:
    rows = []
    for flops in np.geomspace(1e18, 1e21, 6):
        best = 0.1 * flops**0.5
        for step in np.linspace(-1.1, 1.1, 7):
            rows.append((best * math.exp(step), flops, 2 + 0.05 * step**2))
    n, flops, loss = (np.array(column) for column in zip(*rows, strict=True))
    found = fit_isoflop(n, flops, loss)
    assert found.exponent == pytest.approx(0.5, abs=1e-6) and len(found.parabolas) == 6
    assert found.parabolas[0].n_best == pytest.approx(1e8, rel=1e-3)
    edge = fit_isoflop(n, flops, n)  # falls towards the smallest N: no minimum inside
    assert (
        edge.status == "REFUSED" and edge.exponent is None and "0 of 6 budgets" in edge.reasons[0]
    )


def audit(best: dict[str, float], used: float = 8e-3) -> pd.DataFrame:
    rates = [1e-3 * 2**step for step in range(7)]
    rows = [
        (family, f"{family}0", rate, 2 + 0.02 * math.log(rate / optimum) ** 2, used)
        for family, optimum in best.items()
        for rate in rates
    ]
    names = ["family", "shape", "peak_lr", "loss_nats_per_token", "used_lr"]
    return pd.DataFrame(rows, columns=names)


class TestAudit:
    def test_what_a_rate_costs(self) -> None:
        found = audit_learning_rates(audit({"deep": 8e-3, "wide": 4e-3}))
        assert found.passed("deep", "wide")
        deep, wide = found.shapes
        assert deep.best_lr == pytest.approx(8e-3) and deep.penalty == pytest.approx(0, abs=1e-9)
        assert deep.curvature == pytest.approx(0.04)
        assert wide.penalty == pytest.approx(0.02 * math.log(2) ** 2) == wide.cost_of_two

    def test_a_mistuned_family_fails(self) -> None:
        found = audit_learning_rates(audit({"deep": 8e-3, "wide": 3e-3}))
        assert found.passed("deep") and not found.passed("deep", "wide")
        assert "learning rate of wide0 costs 0.019 nats" in found.reasons("deep", "wide")[0]
        edge = audit_learning_rates(audit({"deep": 1e-4, "wide": 8e-3}))
        assert "edge of the grid" in edge.failed["deep"]
        assert "not in the audit" in found.reasons("mid")[0]
        assert audit_learning_rates(audit({"deep": 8e-3}), used_lr=1e-3).failed
        assert not audit_learning_rates(audit({"deep": 1.6e-2}), used_lr={"deep": 1.6e-2}).failed

    def test_a_summary_will_do(self) -> None:
        found = parse_audit(
            {"deep": {"interior": True, "penalty": 0.002}, "wide": {"interior": False}}
        )
        assert isinstance(found, Audit) and list(found.failed) == ["wide"]
        assert parse_audit(None) is None
        with pytest.raises(DataError, match="must have the keys interior"):
            parse_audit({"deep": {}})
        with pytest.raises(DataError, match="has no column shape"):
            audit_learning_rates(pd.DataFrame({"family": ["deep"]}))
        with pytest.raises(DataError, match="run at least 3"):
            audit_learning_rates(audit({"deep": 8e-3}).iloc[:2])
