"""Expansion of a study into cells, design warnings, and validation of the study section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import yaml

from slm.config.schema import BudgetConfig, Config
from slm.errors import ConfigError
from slm.run.spec import branch_specs, resolve
from slm.studies.cells import Cell, jobs_of
from slm.studies.checks import check_study
from slm.studies.expand import Compose, arms_of, cells_of, with_rung_batch
from slm.studies.plan_tables import design_warnings, rung_mismatch
from tests.conftest import merged

FAMILIES = {
    "deep_thin": {"name": "deep_thin", "aspect_ratio": 4.0},
    "wide_shallow": {"name": "wide_shallow", "aspect_ratio": 32.0},
    "published": {"name": "published", "aspect_ratio": None},
}
PRESETS = {
    "preset": {
        "size": None,
        "model": {"preset": "preset", "n_layers": 8, "d_model": 64, "n_heads": 8, "d_ff": 176},
    }
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


def composer(tiny_config: Callable[..., Config], **study: Any) -> Compose:
    """Compose the study's config with overrides, as Hydra does for the sweeper."""

    def compose(overrides: Sequence[str], varied: Mapping[str, Any]) -> Config:
        changes = merged(STUDY, {"study": study})
        pairs = [tuple(override.split("=", 1)) for override in overrides]
        for key, value in [*((k, yaml.safe_load(v)) for k, v in pairs), *varied.items()]:
            if key == "budget":
                continue
            if key == "family":
                changes["family"] = dict(FAMILIES[value])
            elif key == "model":
                changes = merged(changes, PRESETS[value])
            else:
                nested: Any = value
                for part in reversed(key.split(".")):
                    nested = {part: nested}
                changes = merged(changes, nested)
        return tiny_config(**changes)

    return compose


@pytest.fixture
def cells(tiny_config: Callable[..., Config]) -> list[Cell]:
    return cells_of(tiny_config(**STUDY), composer(tiny_config))


def test_each_combination_is_one_cell(cells: list[Cell]) -> None:
    assert len(cells) == len({cell.spec.run_id for cell in cells}) == 2 * 4 * 2 * 2
    assert [c.spec.flops for c in cells] == sorted(c.spec.flops for c in cells)


def test_families_of_a_rung_have_equal_tokens_and_matched_flops(cells: list[Cell]) -> None:
    assert max(rung_mismatch(cells).values()) <= 0.03
    tokens: dict[tuple[int | str, float], set[int]] = {}
    for cell in cells:
        tokens.setdefault((cell.rung, cell.spec.tokens_per_param), set()).add(cell.spec.tokens)
        expected = cell.spec.tokens_per_param * cell.spec.reference_flops_per_token / 6
        assert abs(cell.spec.tokens - expected) <= cell.spec.batch_tokens / 2
    assert all(len(values) == 1 for values in tokens.values())


def test_overrides_reproduce_the_run_id(
    cells: list[Cell], tiny_config: Callable[..., Config]
) -> None:
    compose = composer(tiny_config)
    for cell in cells[::5]:
        assert resolve(compose(cell.overrides, {})).run_id == cell.spec.run_id


def test_design_warnings(cells: list[Cell]) -> None:
    assert design_warnings(cells) == ["WARN 24 of 32 cells take fewer than 1000 optimizer steps"]
    twin = replace(cells[0], rung=81_000)
    assert any("are both L2-d56" in line for line in design_warnings([*cells, twin]))
    renamed = replace(cells[0], family="renamed")
    assert any("are the same shape" in line for line in design_warnings([*cells, renamed]))


def test_error_of_an_empty_study_lists_missing_keys(tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError) as raised:
        check_study(tiny_config())
    assert "study.sizes" in str(raised.value) and "try study=demo" in str(raised.value)


def test_families_match_the_flops_of_a_preset(tiny_config: Callable[..., Config]) -> None:
    study = {"sizes": [], "models": ["preset"], "families": ["published", "wide_shallow"]}
    compose = composer(tiny_config, **study)
    cells = cells_of(compose(["model=preset", "family=published"], {}), compose)
    shapes = {cell.family: cell.spec.shape for cell in cells}
    assert shapes["published"].label == "L8-d64"
    assert shapes["wide_shallow"].depth < 8 and shapes["wide_shallow"].d_head == 8
    assert max(rung_mismatch(cells).values()) <= 0.03
    assert len({(c.spec.tokens_per_param, c.spec.tokens) for c in cells}) == 2
    assert all(c.overrides[:2] == ["model=preset", f"family={c.family}"] for c in cells)


def test_grid_varies_other_keys(tiny_config: Callable[..., Config]) -> None:
    grid = {"optimizer.lr": [1e-3, 4e-3], "model.tied": [True, False]}
    compose = composer(tiny_config, grid=grid, sizes=["80k"], tokens_per_param=[2], seeds=[0])
    cells = cells_of(compose([], {}), compose)
    assert len({cell.spec.run_id for cell in cells}) == 2 * 2 * 2
    settings = {(c.spec.config.optimizer.lr, c.spec.shape.tied) for c in cells}
    assert settings == {(1e-3, True), (1e-3, False), (4e-3, True), (4e-3, False)}
    assert "optimizer.lr=0.001" in cells[0].overrides


@pytest.mark.parametrize("numbers", [[0], [1], [0, 1], [2], []], ids=str)
def test_recorded_branches_are_not_trained_again(
    tiny_config: Callable[..., Config], numbers: list[int]
) -> None:
    """The run ids of the other branches stay, also if the shortest one, which sets the warmup, is recorded."""
    budgets = {"sizes": ["80k"], "tokens_per_param": [2, 6, 18], "seeds": [0]}
    compose = composer(tiny_config, families=["deep_thin"], **budgets)
    cells = cells_of(compose([], {}), compose)
    assert all(cell.has_trunk for cell in cells)
    results: Any = {cells[number].spec.run_id: object() for number in numbers}
    (job,) = jobs_of(cells_of(compose([], {}), compose, recorded=results))
    trained = branch_specs(override_budget(compose(job.overrides, {}), job.overrides))
    expected = [cell.spec.run_id for cell in cells if cell.spec.run_id not in results]
    assert [spec.run_id for spec in trained] == expected
    assert all(spec.config.trainer.share_trunk for spec in trained)


def override_budget(config: Config, overrides: Sequence[str]) -> Config:
    """Return the config with the budget of the overrides."""
    given = dict(override.split("=", 1) for override in overrides)
    branches = tuple(yaml.safe_load(given.get("budget.branches", "[]")))
    amount = yaml.safe_load(given["budget.tokens_per_param"])
    return replace(config, budget=BudgetConfig.of("tokens_per_param", amount, branches))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"size": ["90k"]}, "study.grid.size"),
        ({"seed": [1]}, "study.grid cannot vary this key"),
        ({"budget.tokens": [5]}, "study.grid.budget.tokens"),
        ({"optimizer.lr": []}, "needs values"),
    ],
)
def test_invalid_grid_is_refused(
    tiny_config: Callable[..., Config], grid: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_study(tiny_config(**merged(STUDY, {"study": {"grid": grid}})))


@pytest.mark.parametrize("grid", [{"trainer.threads": [1, 2]}, {"optimizer.lr": [4e-3, 0.004]}])
def test_two_cells_with_the_same_run_id_are_refused(
    tiny_config: Callable[..., Config], grid: dict[str, Any]
) -> None:
    compose = composer(tiny_config, grid=grid)
    with pytest.raises(ConfigError, match="are the same run"):
        cells_of(compose([], {}), compose)


def test_sizes_and_models_together_are_refused(tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="set one of them to"):
        check_study(tiny_config(**merged(STUDY, {"study": {"models": ["preset"]}})))


def test_anchor_seeds_are_added_to_first_middle_and_last_rung_and_run_last(
    tiny_config: Callable[..., Config],
) -> None:
    compose = composer(tiny_config, seeds=[0], anchor_seeds=[1, 2])
    cells = cells_of(compose([], {}), compose)
    seeds: dict[int | str, set[int]] = {}
    for cell in cells:
        seeds.setdefault(cell.rung, set()).add(cell.spec.config.seed)
    assert seeds == {80_000: {0, 1, 2}, 128_000: {0}, 256_000: {0, 1, 2}, 400_000: {0, 1, 2}}
    jobs = jobs_of(cells)
    assert [job.is_replicate for job in jobs] == sorted(job.is_replicate for job in jobs)
    flops = [job.flops for job in jobs if not job.is_replicate]
    assert flops == sorted(flops) and len(flops) == 2 * 4


def test_batch_is_halved_until_the_shortest_budget_has_min_steps(
    tiny_config: Callable[..., Config],
) -> None:
    compose = composer(tiny_config, min_steps=300)
    cells = cells_of(compose([], {}), compose)
    batches = {}
    for cell in cells:
        batches.setdefault(cell.rung, set()).add(cell.spec.batch_tokens)
        assert cell.spec.steps >= 300
        assert f"optimizer.global_batch_tokens={cell.spec.batch_tokens}" in cell.overrides
        assert resolve(compose(cell.overrides, {})).run_id == cell.spec.run_id
    assert all(len(batch) == 1 for batch in batches.values())  # all families have the same batch
    sizes = [min(batches[rung]) for rung in sorted(batches)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] == 1024
    assert len({cell.spec.recipe_id for cell in cells}) == 1


@pytest.mark.parametrize(
    ("micro", "expected"),
    [(3, 3), (4, 3), (12, 6), ("auto", "auto"), (None, None)],
    ids=["divides", "between", "whole_batch", "auto", "null"],
)
def test_micro_batch_of_a_halved_batch_stays_below_its_limit(
    tiny_config: Callable[..., Config], micro: int | str | None, expected: int | str | None
) -> None:
    """A batch of 12 sequences is halved to 6."""
    tokens = 100 * 6 * 128
    compose = composer(tiny_config, tokens_per_param=[], tokens=[tokens], min_steps=100)
    (arm, *_) = arms_of(compose([], {}), compose)
    config = replace(
        arm.config,
        optimizer=replace(arm.config.optimizer, global_batch_tokens=12 * 128),
        trainer=replace(arm.config.trainer, micro_batch_sequences=micro),
    )
    config = with_rung_batch(replace(arm, config=config)).config
    assert config.optimizer.global_batch_tokens == 6 * 128
    assert config.trainer.micro_batch_sequences == expected


def test_flop_budget_gives_families_of_a_rung_equal_tokens(
    tiny_config: Callable[..., Config],
) -> None:
    compose = composer(tiny_config, tokens_per_param=[], flops=[2e11, 1e12])
    tokens: dict[tuple[int | str, float], set[int]] = {}
    for cell in cells_of(compose([], {}), compose):
        budget = min((2e11, 1e12), key=lambda flops: abs(cell.spec.flops - flops))
        assert abs(cell.spec.flops / budget - 1) < 0.03
        tokens.setdefault((cell.rung, budget), set()).add(cell.spec.tokens)
    assert len(tokens) == 4 * 2 and all(len(found) == 1 for found in tokens.values())


def test_rule_gives_each_budget_its_rate_and_no_trunk(tiny_config: Callable[..., Config]) -> None:
    """The rate is 1e-3 at 1M tokens and halves when the tokens grow by a factor of 4."""
    rule = {"lr_tokens_exponent": 0.5, "lr_reference": 1e-3}
    compose = composer(tiny_config, **rule)
    cells = cells_of(compose([], {}), compose)
    assert not any(cell.has_trunk for cell in cells)
    rates: dict[tuple[int | str, int], set[float]] = {}
    for cell in cells:
        lr, tokens = cell.spec.config.optimizer.lr, cell.spec.tokens
        assert lr == pytest.approx(1e-3 * (tokens / 1e6) ** -0.5, rel=0.005)  # 3 digits
        assert f"optimizer.lr={lr:g}" in " ".join(cell.arm_overrides)
        rates.setdefault((cell.rung, tokens), set()).add(lr)
    assert len(rates) == 4 * 2 and all(
        len(found) == 1 for found in rates.values()
    )  # of all families


def test_rates_of_a_grid_replace_the_rule_and_share_trunks(
    tiny_config: Callable[..., Config],
) -> None:
    grid = {"optimizer.lr": [1e-3, 2e-3]}
    compose = composer(tiny_config, lr_tokens_exponent=0.5, lr_reference=1e-3, grid=grid)
    cells = cells_of(compose([], {}), compose)
    assert {cell.spec.config.optimizer.lr for cell in cells} == {1e-3, 2e-3}
    assert any(cell.has_trunk for cell in cells)


def test_anchor_seeds_are_added_to_the_anchor_sizes(tiny_config: Callable[..., Config]) -> None:
    for anchors, rungs in (([], {80_000, 256_000, 400_000}), (["90k", "128k"], {128_000})):
        compose = composer(tiny_config, seeds=[0], anchor_seeds=[7], anchor_sizes=anchors)
        cells = cells_of(compose([], {}), compose)
        assert {cell.rung for cell in cells if cell.spec.config.seed == 7} == rungs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study": {"contrast": ["deep_thin"]}}, "must list two families"),
        ({"study": {"contrast": ["deep_thin", "tall"]}}, "tall is not a family of the study"),
        ({"study": {"lr_policy": "transfer"}, "parametrization": {"kind": "mup"}}, "not mup"),
        (
            {"study": {"lr_policy": "tuned", "grid": {"optimizer.lr": [1e-3]}}},
            "study.grid varies optimizer.lr too",
        ),
        (
            {"study": {"lr_policy": "tuned", "lr_tokens_exponent": 0.4}},
            "study.lr_tokens_exponent sets it too",
        ),
        ({"study": {"lr_reference": 1e-3}}, "only with a rule for the learning rate"),
        (
            {
                "study": {"lr_reference": 1e-3, "lr_tokens_exponent": 0.4},
                "optimizer": {"lr": 3e-3},
            },
            "is not used, because study.lr_reference=0.001",
        ),
    ],
)
def test_contradictory_study_is_refused(
    tiny_config: Callable[..., Config], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_study(tiny_config(**merged(STUDY, changes)))
