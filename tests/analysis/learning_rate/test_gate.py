"""An audit belongs to a recipe and to learning rates."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.learning_rate import gate
from analysis.learning_rate.audit import Audit, parse_audit
from analysis.learning_rate.gate import load_audit
from analysis.runs.load import Runs
from slm.errors import DataError
from slm.files import write_json

pytestmark = pytest.mark.numeric

FAMILIES = {"deep": {"interior": True, "penalty": 0.001, "passed": True}}


def loaded(**columns: Any) -> Runs:
    """Runs of one family at two budgets, with the rates of 1e-3 * (tokens / 1M)^-0.5."""
    table = pd.DataFrame({"family": "deep", "tokens": [1_000_000, 4_000_000], "recipe_id": "r"})
    return Runs(table.assign(peak_lr=[1e-3, 5e-4]).assign(**columns), Counter(), ())


def written(tmp_path: Path, **keys: Any) -> Path:
    rule = {"common_lr": 1e-3, "lr_tokens_exponent": 0.5, "lr_reference_tokens": 1_000_000}
    path = tmp_path / "lr_audit.json"
    write_json(path, {"recipe_id": "r", "families": FAMILIES, **rule, **keys})
    return path


def test_an_audit_of_the_rates_in_use_is_accepted(tmp_path: Path) -> None:
    assert load_audit(written(tmp_path), loaded()).passed("deep")
    rounded = loaded(peak_lr=[1e-3, 5.02e-4])
    assert load_audit(written(tmp_path), rounded).passed("deep")


@pytest.mark.parametrize("keys", [{"common_lr": 2e-3}, {"lr_tokens_exponent": 0.0}])
def test_an_audit_of_other_rates_is_an_error(tmp_path: Path, keys: dict[str, float]) -> None:
    with pytest.raises(DataError, match=r"the audit is of the learning rate .* the study has"):
        load_audit(written(tmp_path, **keys), loaded())


def test_the_rates_of_all_families_are_checked(tmp_path: Path) -> None:
    """Both orders of two families with another rate at the same tokens: no row hides the other."""
    for rates in ([1e-3, 2e-3], [2e-3, 1e-3]):
        two = loaded(family=["deep", "wide"], tokens=1_000_000, peak_lr=rates)
        with pytest.raises(DataError, match=r"the study has 0\.002"):
            load_audit(written(tmp_path), two)


def folder_of(optima: dict[int, float]) -> pd.DataFrame:
    """Audit runs whose losses are parabolas in ln(rate), with an optimum by tokens."""
    return pd.DataFrame(
        {
            "family": "deep",
            "shape": "L2-d8",
            "recipe_id": "r",
            "tokens": tokens,
            "tokens_per_param": tokens / 1e5,
            "peak_lr": lr,
            "loss_nats_per_token": 2 + 0.03 * math.log(lr / best) ** 2,
        }
        for tokens, best in optima.items()
        for lr in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
    )


def test_a_folder_is_audited_by_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rate of 2e-3 is between the optima of two budgets and suits neither."""
    audited = folder_of({1_000_000: 4e-3, 4_000_000: 1e-3})
    monkeypatch.setattr(gate, "collect_runs", lambda _: (audited, Counter()))
    audit = load_audit(tmp_path, loaded(peak_lr=2e-3))
    assert not audit.passed("deep")
    assert [one.penalty for one in audit.shapes] == pytest.approx([0.03 * math.log(2) ** 2] * 2)
    near = loaded(
        tokens=[1_003_000, 3_990_000], peak_lr=[4e-3, 1e-3]
    )  # other rounding of the tokens
    assert load_audit(tmp_path, near).passed("deep")
    with pytest.raises(DataError, match="recipe"):
        load_audit(tmp_path, loaded(recipe_id="other"))
    bare = loaded()
    with pytest.raises(DataError, match="--columns peak_lr=NAME"):
        load_audit(tmp_path, replace(bare, table=bare.table.drop(columns="peak_lr")))


def covered(*cells: tuple[float, float]) -> Audit:
    summary = {"interior": True, "cells": [{"n_flop": n, "tokens": tokens} for n, tokens in cells]}
    audit = parse_audit({"deep": summary})
    assert audit is not None
    return audit


def test_an_audit_needs_two_sizes_and_the_extreme_budgets_of_the_study() -> None:
    cells = [(n, ratio * n) for n in (1e5, 2e5, 4e5) for ratio in (8, 24, 72)]
    runs = pd.DataFrame(
        {"family": "deep", "tokens": [d for _, d in cells], "flops": [6 * n * d for n, d in cells]}
    )
    assert covered((1e5, 8e5), (1.05e5, 7.2e6), (4e5, 3.2e6)).gaps(runs, "deep") == []
    (one_size,) = covered((1e5, 8e5), (1e5, 7.2e6)).gaps(runs, "deep")
    assert one_size == "deep: only one size is audited, 2 are needed"
    (short,) = covered((1e5, 8e5), (1e5, 2.4e6), (4e5, 2.88e7)).gaps(runs, "deep")
    assert "smallest and largest token budget (tokens_per_param 8 and 72)" in short
    one_budget = runs[::3]
    assert covered((1e5, 8e5), (4e5, 3.2e6)).gaps(one_budget, "deep") == []
    assert covered().gaps(runs, "deep") == []  # written by hand
    with pytest.raises(DataError, match="audit of deep: cells is"):
        parse_audit({"deep": {"interior": True, "cells": [{"n": 1e5}]}})
