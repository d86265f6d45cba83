"""Families of `study.aspect_ratios`: names, overrides, matched rungs, and `study.skip_missing_shapes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from analysis.study_actions.plan import show_plan
from slm.architecture.shape_solver import is_within_aspect_tolerance
from slm.config.hydra import (
    CONF_DIR,
    Composer,
    convert_overrides,
    load_composed_config,
    register_schema,
)
from slm.config.schema import Config
from slm.errors import ConfigError
from slm.run.spec import branch_specs, resolve
from slm.studies.cells import Cell, contrast_of, jobs_of
from slm.studies.checks import check_study
from slm.studies.expand import cells_of
from slm.studies.plan_tables import design_warnings, rung_mismatch

ONLY_RATIOS = ["study.families=[]", "study.aspect_ratios=[4,8,16,32]", "model.seq_len=64"]
SKIP = "study.skip_missing_shapes=true"


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    register_schema()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


def composed(*overrides: str, name: str = "train") -> Config:
    return load_composed_config(compose(name, convert_overrides(["study=smoke", *overrides])))


def cells_with(*overrides: str) -> list[Cell]:
    def compose_study(further: list[str]) -> DictConfig:
        return compose("sweep", convert_overrides(["study=smoke", *overrides, *further]))

    config = composed(*overrides, name="sweep")
    check_study(config)
    return cells_of(config, Composer(compose_study))


def families_by_rung(cells: list[Cell]) -> dict[int | str, set[str]]:
    found: dict[int | str, set[str]] = {}
    for cell in cells:
        found.setdefault(cell.rung, set()).add(cell.family)
    return found


def test_each_ratio_is_a_family_with_matched_shapes() -> None:
    cells = cells_with(*ONLY_RATIOS, "study.aspect_ratios=[2.5,7,20,40]", "study.sizes=[128k,300k]")
    names = {"aspect_2.5", "aspect_7", "aspect_20", "aspect_40"}
    assert families_by_rung(cells) == {128_000: names, 300_000: names}
    assert max(rung_mismatch(cells).values()) <= 0.03
    for cell in cells:
        family = cell.spec.config.family
        assert cell.spec.identity["family"] == cell.family == f"aspect_{family.aspect_ratio:g}"
        assert is_within_aspect_tolerance(cell.spec.shape, family.aspect_ratio)
    assert contrast_of(cells) == ("aspect_2.5", "aspect_40")


@pytest.mark.parametrize(
    "overrides",
    [
        [*ONLY_RATIOS, "study.sizes=[80k]"],
        ["study.aspect_ratios=[7]", "study.sizes=[80k]", "study.grid={model.tied:[false]}"],
        [*ONLY_RATIOS, SKIP, "study.sizes=[36k]"],
        [
            *("tokenizer=bpe", "tokenizer.vocab_size=32000", "optimizer.global_batch_tokens=4096"),
            *("study.families=[mobilellm]", "study.aspect_ratios=[60]", "study.sizes=[]"),
            "study.models=[mobilellm_125m]",
        ],
    ],
)
def test_overrides_of_a_cell_give_its_run(overrides: list[str]) -> None:
    cells = cells_with(*overrides)
    for cell in {cell.family: cell for cell in cells}.values():
        assert resolve(composed(*overrides, *cell.overrides)).run_id == cell.spec.run_id
    job = next(job for job in jobs_of(cells) if job.cells[0].family.startswith("aspect_"))
    branches = branch_specs(composed(*overrides, *job.overrides))
    assert [spec.run_id for spec in branches] == [cell.spec.run_id for cell in job.cells]


def test_overrides_of_other_families_are_unchanged() -> None:
    cells = cells_with("study.aspect_ratios=[7]", "study.sizes=[80k]")
    chosen = {cell.family: cell.arm_overrides[1:] for cell in cells}
    assert chosen == {
        "deep_thin": ["family=deep_thin", "seed=0"],
        "wide_shallow": ["family=wide_shallow", "seed=0"],
        "aspect_7": ["family=aspect", "family.aspect_ratio=7", "seed=0"],
    }
    assert contrast_of(cells) == ("deep_thin", "wide_shallow")


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"aspect_ratios": [4, 4.0]}, r"aspect_ratios=4: is listed more than once"),
        ({"aspect_ratios": [1.23456789]}, r"more than the 6 digits.*\(nearest: 1.23457\)"),
        ({"families": ["aspect_8"]}, "aspect_ratios=8: its family aspect_8 is in study.families"),
        ({"grid": {"family.aspect_ratio": [4]}}, "study.grid varies family.aspect_ratio too"),
        ({"contrast": ["aspect_4", "aspect_5"]}, "aspect_5 is not a family of the study"),
        ({"aspect_ratios": [0]}, "must be greater than or equal to 0.001"),
        ({"aspect_ratios": [20_000]}, "must be less than or equal to 10000"),
        ({"aspect_ratios": []}, "needs at least one family"),
    ],
)
def test_invalid_ratios_are_refused(
    tiny_config: Callable[..., Config], study: dict[str, Any], message: str
) -> None:
    valid = {"aspect_ratios": [4, 8], "sizes": ["80k"], "tokens": [1], "contrast": []}
    check_study(tiny_config(study={**valid, "contrast": ["aspect_4", "aspect_8"]}))
    with pytest.raises(ConfigError, match=message):
        check_study(tiny_config(study={**valid, **study}))


def test_rung_without_a_shape_names_the_ratio_and_sizes() -> None:
    with pytest.raises(ConfigError) as raised:
        cells_with(*ONLY_RATIOS, "study.sizes=[36k,80k]")
    (problem,) = raised.value.problems
    assert (problem.key, problem.value) == ("size", 36_000)
    assert problem.rule.endswith("without aspect ratio 32 there are such shapes")
    size = int(problem.fix.removeprefix("nearest: ").split()[-1].replace(",", ""))
    assert resolve(
        composed(*ONLY_RATIOS, f"size={size}", "family=aspect", "family.aspect_ratio=32")
    )


def test_families_without_a_shape_of_their_own_are_skipped() -> None:
    cells = cells_with(*ONLY_RATIOS, SKIP, "study.sizes=[36k,80k]")
    # At 36k 32 has no shape, and 8 and 16 have the same one, 3 layers of width 32.
    assert families_by_rung(cells) == {
        36_000: {"aspect_4", "aspect_8"},
        80_000: {"aspect_4", "aspect_8", "aspect_16", "aspect_32"},
    }
    assert max(rung_mismatch(cells).values()) <= 0.03
    assert design_warnings(cells)[0] == (
        "WARN size 36,000: left out, no matched shape of its own: aspect_16, aspect_32"
    )
    with pytest.raises(ConfigError, match="aspect ratio 32 has no shape of this size that matches"):
        resolve(composed(*ONLY_RATIOS, SKIP, "size=36k", "family=aspect", "family.aspect_ratio=32"))


def test_family_with_a_file_keeps_a_shape_that_a_ratio_has_too() -> None:
    overrides = ["study.families=[wide_shallow]", "study.aspect_ratios=[31,33,4]"]
    cells = cells_with(*overrides, SKIP, "study.sizes=[80k]")
    assert families_by_rung(cells) == {80_000: {"wide_shallow", "aspect_4"}}


def test_rung_where_one_family_remains_is_an_error() -> None:
    with pytest.raises(ConfigError, match="have no shapes of this size"):
        cells_with(*ONLY_RATIOS, SKIP, "study.aspect_ratios=[8,32]", "study.sizes=[36k]")


def test_plan_lists_the_families(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(cells_with(*ONLY_RATIOS, "study.sizes=[80k,128k,220k]"))
    shown = capsys.readouterr().out
    assert "Power: aspect_4 against aspect_32" in shown
    shapes = shown.partition("\nShapes\n")[2]
    families = [word for word in shapes.split() if word.startswith("aspect_")]
    assert families[:4] == ["aspect_4", "aspect_8", "aspect_16", "aspect_32"]
