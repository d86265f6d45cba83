"""Results do not depend on the last bits of a loss, nor on the order of the rows of a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.compare.families import compare_families
from analysis.design.identifiability import (
    comparison_refusals,
    count_distinct,
    design_warnings,
    exponent_refusals,
)
from analysis.fit import resampling
from analysis.fit.isoflop import fit_isoflop
from analysis.fit.levenberg_marquardt import start_grid
from analysis.fit.power_law import fit_power_law
from analysis.learning_rate.audit import audit_learning_rates
from analysis.learning_rate.transfer import common_rate, curves, loss_grid
from analysis.report.study_report import analyze_study
from analysis.report.write import results
from analysis.runs.load import Runs, load_runs
from analysis.runs.study import Columns, prepare
from slm.rounding import (
    exceeds,
    first_argmin,
    merge_close,
    round_to_three_digits,
    snap_to_zero,
    stable_argsort,
)
from slm.studies import lr_tuning
from slm.tracking.spikes import loss_spikes
from tests.analysis.block.studies import CENTRE, loss_at
from tests.conftest import ROOT

pytestmark = pytest.mark.numeric

CHANGE = 1e-13  # relative; far more than the difference between the kernels of two CPUs
MICRO = ROOT / "analysis" / "examples" / "micro_first" / "results.jsonl"


def change_last_bits(values: Any, seed: int) -> Any:
    """Multiply each value by 1 + CHANGE or 1 - CHANGE, at random."""
    return values * (1 + CHANGE * np.random.default_rng(seed).choice([-1, 1], np.shape(values)))


def perturb(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Change the last bits of the losses and shuffle the rows."""
    losses = change_last_bits(table["loss_nats_per_token"].to_numpy(), seed)
    order = np.random.default_rng(seed).permutation(len(table))
    return table.assign(loss_nats_per_token=losses).iloc[order].reset_index(drop=True)


def study(
    *,
    level: float = 0.0,
    d_alpha: float = 0.0,
    sizes: int = 4,
    budgets: tuple[float, ...] = (5.0, 20.0, 80.0),
    tau: float = 0.0,
    sigma: float = 0.0,
    seeds: int = 1,
    mismatch: float = 0.0,
) -> pd.DataFrame:
    """Two families of known law. Without a mismatch their shapes tie in N, FLOPs and all that follows."""
    generator = np.random.default_rng(1)
    rows = []
    for family, side in (("deep", 0.5), ("wide", -0.5)):
        for rung, size in enumerate(CENTRE * np.geomspace(1 / 6, 6, sizes)):
            n = size * (1 + generator.uniform(-mismatch, mismatch))
            misfit = generator.normal(0, tau)
            for budget in budgets:
                loss = loss_at(n, budget * size, side, level, d_alpha)
                loss += misfit + generator.normal(0, sigma)
                rows += [
                    {
                        "family": family, "shape": f"{family}{rung}", "rung": rung, "n_flop": n,
                        "tokens": budget * size, "flops": 6 * n * budget * size, "seed": seed,
                        "run_id": f"{family}{rung}-{budget:g}-{seed}", "loss_nats_per_token": loss,
                    }
                    for seed in range(seeds)
                ]  # fmt: skip
    return pd.DataFrame(rows)


def tied() -> pd.DataFrame:
    """Families whose losses are equal in every cell."""
    table = study()
    return table.assign(loss_nats_per_token=30 * table["flops"] ** -0.05)


ENDS = (5.0, 80.0)
STUDIES: dict[str, tuple[Callable[[], pd.DataFrame], str | None]] = {
    "exponents differ": (
        lambda: study(d_alpha=0.08, sizes=6, budgets=ENDS, tau=0.003, sigma=0.002, mismatch=0.01),
        "depth_level_better",
    ),
    "levels differ": (
        lambda: study(level=-0.08, sizes=5, budgets=ENDS, tau=0.002, sigma=0.002, mismatch=0.01),
        "depth_level_better",
    ),
    "no noise": (study, None),
    "no noise, mismatch": (lambda: study(mismatch=0.01), None),
    "exponents, no noise": (lambda: study(d_alpha=0.05), None),
    "equal losses of families": (tied, None),
    "equal losses of seeds": (lambda: study(budgets=ENDS, tau=0.01, seeds=2), None),
    "one loss": (lambda: study(budgets=ENDS).assign(loss_nats_per_token=3.0), None),
    "one family": (lambda: study().query("family == 'deep'"), "refused"),
    "one budget": (lambda: study(budgets=(20.0,), tau=0.002), None),
}


@pytest.fixture
def few_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit from every tenth start."""
    monkeypatch.setattr(resampling, "start_grid", lambda *a, **k: start_grid(*a, **k)[::10])


def leaves_of_report(runs: Runs | pd.DataFrame) -> dict[str, Any]:
    """Return every value of a report by its path; numbers in texts are masked."""
    found = results(analyze_study(runs, bootstrap=19))
    found["residuals"].sort(key=lambda row: row["run_id"])
    return dict(_leaves(found, ""))


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}/{key}")
    elif isinstance(value, list | tuple):
        yield f"{place}/length", len(value)
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{place}/{index}")
    else:
        yield place, re.sub(r"[+-]?\d[\d.e+-]*", "0", value) if isinstance(value, str) else value


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for place, value in ours.items():
        is_number = isinstance(value, float)
        # The spread of refits, each of which stops within its own tolerance of the minimum.
        tolerance = 1e-3 if place.endswith("monte_carlo_error") else 1e-6
        expected = pytest.approx(value, rel=tolerance, abs=tolerance) if is_number else value
        assert theirs[place] == expected, place


@pytest.mark.usefixtures("few_starts")
@pytest.mark.parametrize(("seed", "kind"), enumerate(STUDIES))
def test_report_does_not_depend_on_rounding_or_row_order(seed: int, kind: str) -> None:
    make, word = STUDIES[kind]
    table = make()
    first = leaves_of_report(table)
    assert word in (None, first["/comparison/verdict/word"])
    assert_same(first, leaves_of_report(perturb(table, seed)))


@pytest.mark.usefixtures("few_starts")
def test_report_of_micro_does_not_depend_on_rounding_or_row_order() -> None:
    runs = load_runs(MICRO)
    families = runs.table["family"].isin(["deep_thin", "wide_shallow"])
    table = runs.table[families].drop(columns=["params_non_embedding", "params_total"])
    reports = [
        leaves_of_report(Runs(one, runs.dropped, runs.warnings))
        for one in (table, perturb(table, seed=19))
    ]
    assert_same(*reports)


RATES = (1e-3, 2e-3, 4e-3, 8e-3)


@pytest.mark.parametrize("losses", [(3, 2, 2, 3), (2, 2, 2, 2), (3, 3, 2, 2), (2, 2, 3, 3)])
def test_the_lowest_of_equally_good_learning_rates_is_chosen(losses: tuple[int, ...]) -> None:
    lowest = losses.index(2)
    for seed in range(20):
        table = pd.DataFrame(
            {
                "family": "deep", "shape": "L2-d8", "n_layers": 2, "d_model": 8, "peak_lr": RATES,
                "parametrization": "mup", "loss_nats_per_token": change_last_bits(np.array(losses), seed),
            }
        )  # fmt: skip
        (audited,), (curve,) = audit_learning_rates(table).shapes, curves(table)
        assert audited.interior == curve.interior == (lowest in (1, 2))
        assert audited.best_lr == pytest.approx(curve.best_lr)
        if not curve.interior:
            assert curve.best_lr == pytest.approx(RATES[lowest])
        assert common_rate(loss_grid(table, "mup")) == RATES[lowest]


def test_tuning_chooses_the_lowest_of_equally_good_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(
        optimizer=SimpleNamespace(lr=4e-3),
        rerun=False,
        runs_dir=tmp_path,
        study=SimpleNamespace(name="s"),
    )
    arm = SimpleNamespace(
        key="arm",
        family="deep",
        rung=1,
        varied=(),
        config=config,
        with_optimizer=lambda keys: keys["lr"],
    )
    for seed in range(20):
        losses = dict(zip(RATES, change_last_bits(np.array([3, 2, 2, 3]), seed), strict=True))

        def cell(rate: float, _: Any, losses: dict[float, float] = losses) -> SimpleNamespace:
            spec = SimpleNamespace(shape=SimpleNamespace(label="L2-d8"))
            result = SimpleNamespace(val_loss_nats_per_token=losses[rate])
            return SimpleNamespace(is_done=True, spec=spec, result=result)

        monkeypatch.setattr(lr_tuning, "shortest_cell", cell)
        (tuned,) = lr_tuning.tune([arm], {}, lambda cells: None)  # type: ignore[list-item]
        assert tuned.lr == 2e-3


def test_duplicate_runs_and_other_learning_rates_are_dropped(tmp_path: Path) -> None:
    table = study(budgets=(20.0,)).drop(columns=["seed", "run_id"]).assign(peak_lr=4e-3)
    for seed in range(3):
        pd.concat([table, perturb(table, seed)]).to_csv(tmp_path / "runs.csv", index=False)
        runs = load_runs(tmp_path / "runs.csv")
        assert len(runs.table) == len(table) and runs.dropped["duplicate"] == len(table)
        tried = perturb(table, seed).assign(peak_lr=2e-3)
        pd.concat([table, tried]).to_csv(tmp_path / "tried.csv", index=False)
        assert set(load_runs(tmp_path / "tried.csv").table["peak_lr"]) == {2e-3}


def test_designs_exactly_at_a_limit_are_accepted() -> None:
    """Sizes over one decade, pairs 3% apart, budgets over a factor of 8, ranges that overlap by 70%."""
    deep = np.repeat(np.geomspace(1e6, 1e7, 6), 3)
    tokens = deep * np.tile([8.0, 24.0, 64.0], 6)
    family, rung = np.repeat(["deep", "wide"], 18), np.tile(np.repeat(np.arange(6), 3), 2)
    for seed in range(20):
        n = change_last_bits(np.concatenate([deep, deep / 1.03]), seed)
        per_token = change_last_bits(np.concatenate([tokens, tokens / 1.03]), seed + 20)
        assert design_warnings(family, rung, n, per_token, [0, 1] * 18) == []
        steps = 10 ** (np.concatenate([np.arange(18), np.arange(3, 21)]) / 10)
        assert not comparison_refusals(family, change_last_bits(steps, seed), "deep", "wide")
        assert count_distinct(change_last_bits(np.array([1000.0, 1001.0]), seed)) == 1
        same = change_last_bits(np.full(36, 1e7), seed)
        assert "undefined" in exponent_refusals(family, None, same, tokens.repeat(2))[-1]


def test_pairs_and_budgets_do_not_depend_on_rounding() -> None:
    """Sizes that differ by exactly a quarter are apart; ratios of tokens that differ by 30% are one."""
    table = study(budgets=(10.0, 13.0)).drop(columns=["rung"]).assign(aspect_ratio=64.0)
    quarter = table.assign(n_flop=table["n_flop"] * table["family"].map({"deep": 1, "wide": 1.25}))
    for seed in range(20):
        rungs, budgets = (
            prepare(
                one.assign(**{name: change_last_bits(one[name], seed) for name in ("n_flop", "aspect_ratio")}),
                Columns(aspect="aspect_ratio"), None, None,
            )
            for one in (quarter, table)
        )  # fmt: skip
        assert rungs.table["rung"].nunique() == 8
        assert (
            budgets.table["rung"].nunique() == 4
            and budgets.table["tokens_per_param"].nunique() == 1
        )
        assert (budgets.deep, budgets.wide) == ("deep", "wide")  # whose aspect ratios are the same


def test_parabolas_do_not_depend_on_rounding() -> None:
    for seed in range(20):
        n = 1e8 * 10 ** (np.arange(-2, 3) / 4)  # ends half a decade from the minimum
        curve, flat = 2 + 0.1 * np.log(n / 1e8) ** 2, np.full(5, 2.0)
        (best,) = fit_isoflop(change_last_bits(n, seed), np.full(5, 1e18), curve).parabolas
        assert best.points == 5 and best.n_best == pytest.approx(1e8)
        (none,) = fit_isoflop(n, np.full(5, 1e18), change_last_bits(flat, seed)).parabolas
        assert none.n_best is None and none.points == 3


def test_renaming_families_and_shapes_changes_names_only() -> None:
    make, _ = STUDIES["levels differ"]
    table = make()
    renamed = table.assign(
        family=table["family"].map({"deep": "z-deep", "wide": "a-wide"}),
        shape="model " + table["shape"],
    )
    ours, theirs = (compare_families(one, bootstrap=19).to_dict() for one in (table, renamed))
    assert theirs["verdict"]["word"] == ours["verdict"]["word"]
    for key in ("level", "level_ci", "d_alpha", "d_alpha_ci", "ln_kappa", "sigma", "df"):
        assert theirs["block"][key] == pytest.approx(ours["block"][key], rel=1e-6, abs=1e-9)


def test_equal_losses_have_no_spread_and_no_spikes() -> None:
    for seed in range(20):
        assert loss_spikes(change_last_bits(np.full(100, 3.0), seed).tolist()) == []
        fit = fit_power_law([1e6, 1e7, 1e8, 1e9], change_last_bits(np.full(4, 3.0), seed))
        assert fit.alpha == 0 and fit.residual_sd == 0 and np.isnan(fit.r_squared)
        assert (fit.p_value(0.0), fit.p_value(0.1)) == (1.0, 0.0)


def test_comparisons_up_to_rounding() -> None:
    close = 1 + np.array([3e-13, -2e-13, 1e-13, 0.0])
    assert first_argmin(close) == 0 and first_argmin([2.0, *close]) == 1
    assert set(merge_close([5.0, *close])) == {5.0, close.min()}
    assert stable_argsort([5.0, *close, 0.5]).tolist() == [5, 1, 2, 3, 4, 0]
    assert np.isnan(merge_close([np.nan, 1.0])[0]) and merge_close([]).size == 0
    assert not exceeds(0.03 * (1 + 1e-12), 0.03) and exceeds(0.03 * (1 + 1e-6), 0.03)
    assert (
        snap_to_zero(-1e-12) == 0
        and snap_to_zero(0.1) == 0.1
        and snap_to_zero(np.array([1e-12, 1])).sum() == 1
    )
    assert round_to_three_digits(20.25) == round_to_three_digits(20.25 * (1 - 1e-12)) == 20.3
