"""The cells of a study and the rules its plan checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from slm.errors import ConfigError
from slm.schema import Config, FamilyConfig
from slm.sweeps.plan import design_warnings, rung_mismatch
from slm.sweeps.study import Cell, cells_of, check_study

FAMILIES = {
    "deep_thin": FamilyConfig(name="deep_thin", aspect_ratio=4.0),
    "wide_shallow": FamilyConfig(name="wide_shallow", aspect_ratio=32.0),
}
STUDY: dict[str, Any] = {
    "model": dict.fromkeys(("n_layers", "d_model", "n_heads", "n_kv_heads"), None)
    | {"seq_len": 128},
    "size": "80k",
    "family": {"aspect_ratio": 4.0},
    "ladder": {"aspect_ratios": {"deep_thin": 4.0, "wide_shallow": 32.0}},
    "optimizer": {"global_batch_tokens": 1024},
    "study": {
        "families": ["deep_thin", "wide_shallow"],
        "sizes": ["80k", "128k", "256k", "400k"],
        "tokens_per_param": [2, 6],
        "seeds": [0, 1],
    },
}


@pytest.fixture
def cells(tiny_config: Callable[..., Config]) -> list[Cell]:
    return cells_of(tiny_config(**STUDY), FAMILIES)


def test_every_combination_is_one_cell(cells: list[Cell]) -> None:
    assert len(cells) == len({cell.spec.run_id for cell in cells}) == 2 * 4 * 2 * 2
    assert [c.spec.flops for c in cells] == sorted(c.spec.flops for c in cells)


def test_a_rung_has_equal_tokens_and_matched_flops(cells: list[Cell]) -> None:
    assert max(rung_mismatch(cells).values()) <= 0.03
    tokens: dict[tuple[int, float], set[int]] = {}
    for cell in cells:
        tokens.setdefault((cell.size, cell.tokens_per_param), set()).add(cell.spec.tokens)
        wanted = cell.tokens_per_param * cell.spec.reference_flops_per_token / 6
        assert abs(cell.spec.tokens - wanted) <= cell.spec.batch_tokens / 2
    assert all(len(values) == 1 for values in tokens.values())


def test_overrides_make_the_same_run(cells: list[Cell]) -> None:
    for cell in cells[:4]:
        settings = dict(override.split("=") for override in cell.overrides)
        assert settings["family"] == cell.spec.config.family.name
        assert int(settings["size"]) == cell.spec.config.size
        assert float(settings["budget.tokens_per_param"]) == cell.tokens_per_param


def test_design_rules_speak(cells: list[Cell]) -> None:
    assert design_warnings(cells) == ["WARN 24 of 32 cells take fewer than 1000 optimizer steps"]
    one_budget = [c for c in cells if c.tokens_per_param == 2]
    assert any("one token budget" in line for line in design_warnings(one_budget))
    one_family = [c for c in cells if c.family == "deep_thin"]
    assert any("one family" in line for line in design_warnings(one_family))
    twin = replace(cells[0], size=81_000)
    assert any("are both L2-d64" in line for line in design_warnings([*cells, twin]))
    named_twice = replace(cells[0], family="renamed")
    assert any("are the same shape" in line for line in design_warnings([*cells, named_twice]))
    small = [c for c in cells if c.size <= 128_000]
    assert "REFUSED exponents: 2 sizes, at least 4 are needed" in design_warnings(small)


def test_an_empty_study_says_what_it_lacks(tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_study(tiny_config())
    assert "study.sizes" in str(caught.value) and "try study=demo" in str(caught.value)
