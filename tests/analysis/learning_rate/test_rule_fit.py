"""Rule for the learning rate, fitted to the best rates of an audit."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.learning_rate.audit_report import write_lr_audit
from analysis.learning_rate.rule_fit import fit_rate_rule
from slm.files import read_json
from slm.studies.rate_rule import RateRule

pytestmark = pytest.mark.numeric

TOKENS = (3e5, 1e6, 3e6, 1e7)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def best_rates(
    exponent: float, noise: float, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Best rates of two shapes at four budgets around the rule 1e-3 * (tokens / 1M)^-exponent."""
    return [
        (tokens, 1e-3 * (tokens / 1e6) ** -exponent * math.exp(noise * rng.standard_normal()))
        for tokens in TOKENS
        for _ in range(2)
    ]


def test_recovers_an_exact_rule(rng: np.random.Generator) -> None:
    rates = best_rates(0.32, 0.0, rng)
    fit = fit_rate_rule(rates, 1_000_000)
    assert fit is not None and fit.falls
    assert fit.rule == RateRule(1e-3, 1_000_000, 0.32)
    assert fit.interval == pytest.approx((0.32, 0.32), abs=1e-9)
    assert fit.scatter == pytest.approx(1.0)
    shuffled = fit_rate_rule([rates[i] for i in rng.permutation(len(rates))], 1_000_000)
    assert shuffled is not None and shuffled.rule == fit.rule
    other = fit_rate_rule(rates, 4_000_000)
    assert other is not None
    assert [other.rule.rate(n) for n in TOKENS] == pytest.approx(
        [fit.rule.rate(n) for n in TOKENS], rel=0.002
    )


def test_the_interval_covers_the_true_exponent(rng: np.random.Generator) -> None:
    covered = falls = 0
    for _ in range(400):
        fit = fit_rate_rule(best_rates(0.3, 0.3, rng), 1_000_000)
        assert fit is not None
        covered += fit.interval[0] <= 0.3 <= fit.interval[1]
        constant = fit_rate_rule(best_rates(0.0, 0.3, rng), 1_000_000)
        assert constant is not None
        falls += constant.falls
    assert 0.91 <= covered / 400 <= 0.985  # 95%, and three standard errors
    assert falls / 400 <= 0.05  # 2.5% of constant rates


@pytest.mark.parametrize(
    "rates", [[], [(1e6, 1e-3), (4e6, 5e-4)], [(1e6, 1e-3), (1e6, 2e-3), (1.9e6, 1e-3)]]
)
def test_few_rates_or_a_short_range_give_no_rule(rates: list[tuple[float, float]]) -> None:
    assert fit_rate_rule(rates, 1_000_000) is None


def audited(exponent: float) -> pd.DataFrame:
    """Runs over a grid, whose losses are parabolas in ln(rate) around the best rates of a rule."""
    return pd.DataFrame(
        {
            "family": family,
            "shape": "L2-d8",
            "recipe_id": "r",
            "tokens": tokens,
            "tokens_per_param": tokens / 1e5,
            "peak_lr": lr,
            "loss_nats_per_token": 2
            + 0.02 * math.log(lr / (1.1e-3 * (tokens / 1e6) ** -exponent)) ** 2,
        }
        for family in ("deep", "wide")
        for tokens in (5e5, 4e6)
        for lr in (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
    )


def test_the_report_of_one_rate_names_the_settings_of_the_rule(tmp_path: Path) -> None:
    write_lr_audit(audited(0.4), Counter(), tmp_path)
    fitted = read_json(tmp_path / "lr_audit.json")["fitted_rule"]
    assert (fitted["lr_reference"], fitted["lr_tokens_exponent"]) == (1.1e-3, 0.4)
    text = (tmp_path / "lr_audit.md").read_text()
    assert "4 best rates inside the grid: 0.0011 * (tokens / 1M)^-0.4" in text
    assert "`study.lr_reference=0.0011 study.lr_tokens_exponent=0.4" in text


def test_a_rule_that_passes_is_not_replaced(tmp_path: Path) -> None:
    write_lr_audit(audited(0.4), Counter(), tmp_path, RateRule(1e-3, 1_000_000, 0.4))
    text = (tmp_path / "lr_audit.md").read_text()
    assert "^-0.4" in text and "study.lr_reference" not in text


def test_constant_best_rates_need_no_rule(tmp_path: Path) -> None:
    table = audited(0.0)
    table.loc[table["tokens"] > 1e6, "loss_nats_per_token"] += 0.1
    write_lr_audit(table, Counter(), tmp_path)
    text = (tmp_path / "lr_audit.md").read_text()
    assert "not shown to fall with the tokens" in text and "study.lr_reference" not in text
