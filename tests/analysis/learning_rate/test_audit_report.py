"""The gate that a study of learning rates leaves for another study's verdict."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.learning_rate import audit_report
from analysis.learning_rate.audit import audit_of, audit_rates
from analysis.learning_rate.audit_report import _worst, markdown
from analysis.learning_rate.gate import gate_of_recipe, read_gate
from slm.errors import DataError
from slm.files import write_json

RATES = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]


def runs(optima: dict[str, float], curvature: float = 0.05) -> pd.DataFrame:
    rows = [
        {
            "family": family, "shape": "L2-d8 at tokens_per_param 4", "peak_lr": rate,
            "loss_nats_per_token": 2 + curvature / 2 * math.log(rate / optimum) ** 2,
        }
        for family, optimum in optima.items()
        for rate in RATES
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_mistuned_family_fails_and_the_file_says_so(tmp_path: Path) -> None:
    table = runs({"deep": 5e-3, "wide": 1.2e-2, "edge": 0.5})
    audit = audit_rates(table, 4e-3)
    families = {name: _worst(audit, name) for name in audit.families}
    assert {name: found["passed"] for name, found in families.items()} == {
        "deep": True, "wide": False, "edge": False,
    }  # fmt: skip
    assert families["deep"]["penalty"] == pytest.approx(0.025 * math.log(1.25) ** 2)
    assert families["deep"]["cost_of_2x"] == pytest.approx(0.025 * math.log(2) ** 2)
    write_json(tmp_path / "lr_audit.json", {"recipe_id": "r", "families": families})
    gate = audit_of(read_gate(tmp_path / "lr_audit.json")["families"])
    assert gate is not None
    assert gate.passed("deep") and not gate.passed("wide") and not gate.passed("edge")
    told = markdown(audit, families, 4e-3, len(table), pd.Series(dtype=int).to_dict())  # type: ignore[arg-type]
    assert "| deep | passed |" in told and "| wide | FAILED: " in told


@pytest.mark.parametrize("content", [None, "{", "[]", '{"families": 3}'])
def test_what_is_no_audit_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "lr_audit.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match="no audit of learning rates"):
        read_gate(path)


def test_an_audit_of_another_recipe_is_no_gate(tmp_path: Path) -> None:
    path = tmp_path / "lr_audit.json"
    write_json(path, {"recipe_id": "theirs", "families": {}})
    assert gate_of_recipe(path, "theirs")["families"] == {}
    with pytest.raises(DataError, match="made in recipe theirs, and this study's is ours"):
        gate_of_recipe(path, "ours")


def test_the_middle_rate_of_the_grid_is_judged_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = runs({"deep": 5e-3, "wide": 1.2e-2}).assign(
        shape="L2-d8", recipe_id="r", tokens_per_param=4.0
    )
    monkeypatch.setattr(audit_report, "collect_runs", lambda *_: (table, Counter()))
    command = ["analysis", str(tmp_path), "--of", "lr_audit", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    gate = read_gate(tmp_path / "out" / "lr_audit.json")
    assert gate["common_lr"] == 4e-3 and not gate["families"]["wide"]["passed"]
    assert gate["families"]["deep"]["passed"]
