"""An audit belongs to a recipe and to learning rates."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.learning_rate import gate
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
