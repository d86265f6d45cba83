"""The page on Gemstones: conversion of the authors' file, and its numbers against a fresh computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import fit_block_model
from analysis.examples.published import gemstones_estimates as estimates
from analysis.examples.published import gemstones_table
from analysis.examples.published.claims import HERE
from analysis.examples.published.shape_laws import (
    accepted_range,
    change_of_best,
    fit_aspect_law,
    fit_terms,
    planned_errors,
)
from slm.errors import DataError

pytestmark = pytest.mark.numeric

PAGE = HERE / "gemstones" / "results.json"
TOKENS = 99027517440
CLOSE = 2e-3  # relative: 6 digits, and other CPUs


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    try:
        return gemstones_table.read_gemstones()
    except DataError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(PAGE.read_text(encoding="utf-8"))
    return content


def raw_run(width: int, depth: int, parameters: int, tokens: int = 10**10) -> dict[str, Any]:
    """Return a made-up row with the columns of the authors' file."""
    return {
        "run_name": f"PyGemma-{width}x{depth}_pretrain",
        "params_active_precise": parameters,
        "width": width,
        "depth": depth,
        "tokens": tokens,
        "step": 2622,
        "num_nodes": 32,
        "seconds_per_step": 1.5,
        "final_loss": 3.25,
    }


def write_raw(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "raw.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class TestConversion:
    def test_sizes_and_families_of_the_raw_file(self, tmp_path: Path) -> None:
        """Parameters as the model cards count them; 384 has three heads, so one key-value head."""
        raw = write_raw(
            tmp_path,
            raw_run(1024, 28, 543482880),
            raw_run(384, 13, 66758784),
            raw_run(3072, 12, 2007837696),
        )
        runs = gemstones_table.read_runs(raw)
        assert list(runs["shape"]) == ["1024x28", "384x13", "3072x12"]
        assert list(runs["family"]) == ["mid", "deep", "wide"]
        assert list(runs["params_non_embedding"]) == [440460288, 28125312, 1698769920]
        assert runs["n_flop"][0] == pytest.approx(596358144)
        assert list(runs["flops"] / runs["tokens"]) == pytest.approx(list(6 * runs["n_flop"]))
        assert set(runs["loss_nats_per_token"]) == {3.25}

    def test_other_parameter_counts_and_columns_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="this architecture has 543482880"):
            gemstones_table.read_runs(write_raw(tmp_path, raw_run(1024, 28, 500_000_000)))
        row = raw_run(1024, 28, 543482880)
        del row["final_loss"]
        with pytest.raises(DataError, match="no column 'loss_nats_per_token'"):
            gemstones_table.read_runs(write_raw(tmp_path, row))

    def test_the_runs_are_those_of_the_authors_fit(self, runs: pd.DataFrame) -> None:
        assert len(runs) == 199 and runs["shape"].nunique() == 20
        found = estimates.published_objective(runs)
        assert found == pytest.approx(estimates.PUBLISHED_OBJECTIVE, rel=1e-5)


class TestLawsOfShapes:
    N = np.geomspace(1e8, 2e9, 5).repeat(4)
    ASPECT = np.tile([5.0, 20.0, 80.0, 320.0], 5)

    def test_the_aspect_law_is_recovered(self) -> None:
        x = np.log(self.N) - np.log(self.N).mean()
        v = np.log(self.ASPECT / 40) - 0.1 * x  # the best ratio is 40 at x = 0, and grows
        base = 2.0 + 0.7 * np.exp(-0.3 * x)
        law = fit_aspect_law(
            self.N, self.ASPECT, base + 0.02 * np.exp(-0.3 * x) * (v**2 - 0.01 * x**2)
        )
        assert law.alpha.value == pytest.approx(0.3, abs=1e-4)
        assert law.drift.value == pytest.approx(0.1, abs=1e-3)
        assert np.exp(law.log_best.value) == pytest.approx(40, rel=1e-3)
        assert law.twice.value == pytest.approx(0.02 * np.log(2) ** 2, rel=1e-3)

    def test_a_change_of_the_best_ratio_is_recovered(self) -> None:
        x, u = np.log(self.N) - np.log(self.N).mean(), np.log(self.ASPECT)
        before, after = (
            2.0 + np.exp(-0.3 * x) * (0.7 + 0.02 * (u - np.log(best)) ** 2) for best in (60, 40)
        )
        change = change_of_best(self.N, self.ASPECT, before, after)
        assert np.exp(change.value) == pytest.approx(40 / 60, rel=1e-3)
        assert change.se < 0.01

    def test_exponents_and_their_ranges_are_recovered(self) -> None:
        width, depth = np.sqrt(self.N * self.ASPECT), np.sqrt(self.N / self.ASPECT)
        terms = {"width": width, "depth": depth}
        noise = np.random.default_rng(0).normal(0, 0.003, len(width))
        loss = 1.5 + (width / width.mean()) ** -0.4 + 0.5 * (depth / depth.mean()) ** -0.2 + noise
        fit = fit_terms(terms, loss)
        errors = planned_errors(fit, terms)
        for name, truth in (("width", 0.4), ("depth", 0.2)):
            low, high = accepted_range(terms, loss, name, fit)
            assert low < truth < high
            assert high - low == pytest.approx(2 * 2.13 * errors[name], rel=0.3)  # t with 15 df


class TestPage:
    def test_laws_at_fixed_tokens(self, runs: pd.DataFrame, page: dict[str, Any]) -> None:
        points = estimates.at_tokens(runs, TOKENS)
        law, shown = estimates.aspect_law(points, "n_flop"), page["aspect_law"]["n_flop"]
        assert law.alpha.value == pytest.approx(shown["alpha"]["value"], rel=CLOSE)
        assert law.log_best.value == pytest.approx(shown["log_best"]["value"], rel=CLOSE)
        assert law.residual_sd == pytest.approx(shown["residual_sd"], rel=CLOSE)
        width, depth, loss = estimates.columns_of(points, "width", "depth", "loss_nats_per_token")
        fit = fit_terms({"width": width, "depth": depth}, loss)
        assert fit.exponents == pytest.approx(
            page["width_depth"]["width, depth"]["exponents"], rel=0.01
        )

    def test_other_boundaries(self, runs: pd.DataFrame) -> None:
        """Below a ratio of 20 the shapes have too few sizes in common with the wide ones."""
        for low, refused in ((20, True), (50, False)):
            named = runs.assign(family=gemstones_table.families(runs["aspect_ratio"], low, 75))
            block = fit_block_model(named.drop(columns="aspect_ratio"), deep="deep", wide="wide")
            assert block.refused == refused
            if refused:
                assert "overlap" in block.reasons[0]
            else:
                assert block.p_free_e is not None and not block.is_equal_e_rejected

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("n", "alphas"),
        [
            ("params_total", (0.3434, 0.3917)),
            ("params_non_embedding", (0.1350, 0.1276)),
            ("n_flop", (0.2162, 0.2163)),
        ],
    )
    def test_joint_law(
        self, runs: pd.DataFrame, page: dict[str, Any], n: str, alphas: tuple[float, float]
    ) -> None:
        found, shown = estimates.joint_exponents(runs, n), page["joint"][n]
        assert [found.alphas[side] for side in ("deep", "wide")] == pytest.approx(alphas, abs=0.002)
        assert found.alphas == pytest.approx(shown["alphas"], abs=0.002)
        assert found.by_row == pytest.approx(shown["by_row"], abs=0.001)
        assert found.by_shape == pytest.approx(shown["by_shape"], abs=0.003)

    @pytest.mark.slow
    def test_block_model(self, runs: pd.DataFrame, page: dict[str, Any]) -> None:
        for found, shown in (
            (estimates.compare_by_name(runs), page["by_name"]),
            (estimates.compare_by_aspect(runs), page["by_aspect"]),
        ):
            assert found.verdict.word == "inconclusive"
            for n, one in found.by_definition.items():
                assert one.d_alpha == pytest.approx(shown[n]["d_alpha"], abs=0.001)
                assert one.d_alpha_ci == pytest.approx(shown[n]["d_alpha_ci"], abs=0.003)
                assert one.level == pytest.approx(shown[n]["level"], abs=0.001)
        assert set(page["verdicts"].values()) == {"inconclusive"}
