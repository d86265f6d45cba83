"""Runs of others, and our own committed ones, against independent fits. The data are not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from analysis.compare.families import compare_families
from analysis.compare.fit_block import fit_block_model
from analysis.fit.joint import fit_joint
from analysis.runs.load import load_runs
from tests.conftest import ROOT

pytestmark = pytest.mark.numeric

MICRO = ROOT / "analysis" / "examples" / "micro_first" / "results.jsonl"


@pytest.fixture(scope="module")
def gemstones() -> pd.DataFrame:
    """Cooldown runs of Gemstones (arXiv 2502.06857): 199 runs of 20 shapes that share a grid of tokens."""
    folder = Path(os.environ.get("SLM_TEST_DATA", ROOT / "../shared/data"))
    file = folder / "scaling" / "gemstones_cooldown.csv"
    if not file.exists():
        pytest.skip(f"{file} is absent; set SLM_TEST_DATA to the folder of published data")
    return pd.read_csv(file)


@pytest.mark.parametrize(
    ("n", "d_alpha", "alphas"),
    [
        ("N_total", -0.050, (0.3434, 0.3917)),
        ("N_nonembed", 0.007, (0.1350, 0.1276)),
        ("N_flop", -0.002, (0.2162, 0.2163)),
    ],
)
def test_gemstones_do_not_tell_deep_from_wide(
    gemstones: pd.DataFrame, n: str, d_alpha: float, alphas: tuple[float, float]
) -> None:
    for rung in (None, "size_class"):
        found = compare_families(
            gemstones, n_column=n, loss_column="loss", shape_column="run_id", rung_column=rung, bootstrap=0,
            deep="deep", wide="wide",
        )  # fmt: skip
        assert found.verdict.word == "inconclusive" and not found.block.is_matched
        assert found.block.d_alpha == pytest.approx(d_alpha, abs=0.0025)
    pair = gemstones[gemstones["family"].isin(["deep", "wide"])]
    fit = fit_joint(pair[n], pair["tokens"], pair["loss"], list(pair["family"]))
    assert [fit.of_family(side)["alpha"] for side in ("deep", "wide")] == pytest.approx(
        alphas, abs=0.002
    )


def test_micro_by_two_and_three_families() -> None:
    """54 runs. Independent fits of the block model: -.030 +- .022 with curvature, -.020 +- .021 without."""
    table = load_runs(MICRO).table
    three = fit_block_model(table, deep="deep_thin", wide="wide_shallow")
    two = fit_block_model(
        table[table["family"] != "balanced"], deep="deep_thin", wide="wide_shallow"
    )
    assert (three.d_alpha, three.d_alpha_se) == pytest.approx((-0.030, 0.022), abs=0.004)
    assert (two.d_alpha, two.d_alpha_se) == pytest.approx((-0.020, 0.021), abs=0.002)
    assert three.df == 9 and two.df == 4
    assert three.is_curved and three.p_curvature is not None and three.p_curvature < 0.01
    assert not (three.is_exponent_significant or three.is_level_significant)
