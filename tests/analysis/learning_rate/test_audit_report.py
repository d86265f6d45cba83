"""Learning-rate audit: penalties per family, lr_audit.json and its recipe."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.learning_rate.audit import audit_learning_rates, parse_audit
from analysis.learning_rate.audit_report import _worst_case, markdown, write_lr_audit
from analysis.learning_rate.gate import read_lr_audit, read_lr_audit_of_recipe
from analysis.report import by_kind
from slm.errors import DataError
from slm.files import write_json
from slm.studies.rate_rule import RateRule

pytestmark = pytest.mark.numeric

LEARNING_RATES = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]


def runs(optima: dict[str, float], curvature: float = 0.05) -> pd.DataFrame:
    """Audit runs whose losses are parabolas in ln lr with the given optimal learning rates."""
    columns = ["family", "shape", "peak_lr", "loss_nats_per_token"]
    rows = [
        (family, "L2-d8 at tokens_per_param 4", lr, 2 + curvature / 2 * math.log(lr / optimum) ** 2)
        for family, optimum in optima.items()
        for lr in LEARNING_RATES
    ]
    return pd.DataFrame(rows, columns=columns)


def test_families_with_a_large_penalty_or_an_edge_optimum_fail(tmp_path: Path) -> None:
    table = runs({"deep": 5e-3, "wide": 1.2e-2, "edge": 0.5})
    audit = audit_learning_rates(table, 4e-3)
    families = {name: _worst_case(audit, name) for name in audit.families}
    passed = {name: worst["passed"] for name, worst in families.items()}
    assert passed == {"deep": True, "wide": False, "edge": False}
    assert families["deep"]["penalty"] == pytest.approx(0.025 * math.log(1.25) ** 2)
    assert families["deep"]["cost_of_2x"] == pytest.approx(0.025 * math.log(2) ** 2)
    write_json(tmp_path / "lr_audit.json", {"recipe_id": "r", "families": families})
    gate = parse_audit(read_lr_audit(tmp_path / "lr_audit.json")["families"])
    assert gate is not None
    assert gate.passed("deep") and not gate.passed("wide") and not gate.passed("edge")
    rule = RateRule(4e-3, 1_000_000, 0.0)
    text = markdown(audit, families, rule, len(table), pd.Series(dtype=int).to_dict())  # type: ignore[arg-type]
    assert "| deep | passed |" in text and "| wide | FAILED: " in text


def test_the_common_rate_was_run_by_all_shapes() -> None:
    """Only one family ran the lowest rate, and it is best there."""
    table = runs({"deep": 2e-3, "wide": 8e-3})
    table = table[(table["family"] == "deep") | (table["peak_lr"] > 1e-3)]
    used = {one.used_lr for one in audit_learning_rates(table).shapes}
    assert used == {4e-3}
    apart = table[(table["family"] == "deep") != (table["peak_lr"] > 4e-3)]
    with pytest.raises(DataError, match="no learning rate was run by all shapes"):
        audit_learning_rates(apart)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"families": 3}'])
def test_a_missing_or_malformed_file_is_an_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "lr_audit.json"
    if content is not None:
        path.write_text(content)
    problem = "no such file" if content is None else "not a learning-rate audit"
    with pytest.raises(DataError, match=problem):
        read_lr_audit(path)


def test_an_audit_with_another_recipe_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lr_audit.json"
    write_json(path, {"recipe_id": "theirs", "families": {}})
    assert read_lr_audit_of_recipe(path, "theirs")["families"] == {}
    with pytest.raises(DataError, match="the audit has recipe theirs, the study has recipe ours"):
        read_lr_audit_of_recipe(path, "ours")


def test_the_middle_learning_rate_is_audited_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = runs({"deep": 5e-3, "wide": 1.2e-2}).assign(
        shape="L2-d8", recipe_id="r", tokens_per_param=4.0, tokens=1e6
    )
    monkeypatch.setattr(by_kind, "collect_runs", lambda *_: (table, Counter()))
    command = ["analysis", str(tmp_path), "--of", "lr_audit", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    gate = read_lr_audit(tmp_path / "out" / "lr_audit.json")
    assert gate["common_lr"] == 4e-3 and not gate["families"]["wide"]["passed"]
    assert gate["families"]["deep"]["passed"]


def test_a_rule_is_audited_at_the_tokens_of_each_run(tmp_path: Path) -> None:
    """The optima halve when the tokens grow by a factor of 4, and the rule follows them, off by a factor of 1.25."""
    short = runs({"deep": 4e-3}).assign(tokens=1e6, tokens_per_param=4.0)
    long = runs({"deep": 2e-3}).assign(tokens=4e6, tokens_per_param=16.0)
    table = pd.concat([short, long], ignore_index=True).assign(recipe_id="r", shape="L2-d8")
    rule = RateRule(5e-3, 1_000_000, 0.5)
    audit = write_lr_audit(table, Counter(), tmp_path, rule)
    assert [shape.used_lr for shape in audit.shapes] == [2.5e-3, 5e-3]  # by name: 16, then 4
    penalty = 0.025 * math.log(1.25) ** 2
    assert [shape.penalty for shape in audit.shapes] == pytest.approx([penalty, penalty])
    assert read_lr_audit(tmp_path / "lr_audit.json")["lr_tokens_exponent"] == 0.5
    assert "5e-03" in (tmp_path / "lr_audit.md").read_text().replace("5.00e-03", "5e-03")
