"""From run directories to reports: pairs with known differences, dropped runs, refusals, command line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import FAMILIES, REPORTS, main
from analysis.block.pooled_law import PooledLaw
from analysis.compare.matched_pairs import paired_differences
from analysis.controls.khop import write_khop_report
from analysis.report.by_kind import Kind
from analysis.report.write import write_report
from analysis.runs.load import load_runs
from slm.errors import DataError
from slm.run.spec import RunSpec
from slm.tracking.result import SCHEMA_VERSION, RunResult
from slm.tracking.run_dir import RunDirectory

pytestmark = pytest.mark.numeric

SIZES = (50_000, 100_000, 200_000, 400_000, 800_000)
BUDGETS = (4.0, 16.0)


def simulated(
    alpha: dict[str, float], gap: float = 0.0, noise: float = 0.0, sizes: tuple[int, ...] = SIZES
) -> pd.DataFrame:
    """Simulate runs with ln L = 3 - alpha ln N - 0.1 ln D; the loss of `deep` is lower by `gap` nats."""
    generator = np.random.default_rng(0)
    rows = []
    for family, exponent in alpha.items():
        for size in sizes:
            for budget in BUDGETS:
                n_flop = size * 1.3 * (1.01 if family == "deep" else 1.0)
                tokens = budget * size * 1.3
                loss = math.exp(3 - exponent * math.log(n_flop) - 0.1 * math.log(tokens))
                loss += generator.normal(0, noise) - (gap if family == "deep" else 0)
                rows.append(
                    {
                        "family": family,
                        "rung": str(size),
                        "size": size,
                        "tokens_per_param": budget,
                        "tokens": tokens,
                        "seed": 0,
                        "n_flop": n_flop,
                        "flops": 6 * n_flop * tokens,
                        "loss_nats_per_token": loss,
                    }
                )
    return pd.DataFrame(rows)


def test_differences_are_corrected_to_equal_flops() -> None:
    """The deep runs have 1% more FLOPs; the law gives the loss that this is worth."""
    law = PooledLaw(E=1.0, A=10.0, B=20.0, alpha=0.3, beta=0.3)
    table = simulated({"deep": 0.0, "wide": 0.0})
    loss = law.loss(table["n_flop"].to_numpy(), table["tokens"].to_numpy())
    gap = 0.05 * (table["family"] == "deep")
    contrast = paired_differences(table.assign(loss_nats_per_token=loss - gap), "deep", "wide", law)
    assert len(contrast.pairs) == 10 and contrast.matched
    assert (contrast.pairs["flops_mismatch"] - 0.01).abs().max() < 1e-12
    assert contrast.pairs["difference_at_equal_flops"].to_numpy() == pytest.approx(-0.05, abs=1e-9)
    assert (contrast.pairs["difference"] < -0.05).all()
    assert contrast.summary["deep_lower"].tolist() == [5, 5]


@pytest.fixture
def written(tiny_spec: Callable[..., RunSpec], tmp_path: Path) -> Callable[..., RunDirectory]:
    """Write a run directory with a given result, as training does."""

    def write(
        family: str, size: int, run_tokens: int, loss: float | None, **changes: object
    ) -> RunDirectory:
        spec = tiny_spec(family={"name": family}, budget={"tokens": run_tokens})
        run = RunDirectory.of(spec)
        result = RunResult(
            schema_version=SCHEMA_VERSION, run_id=spec.run_id, study="single", recipe_id="r", status="finished",
            family=family, tokens_per_param=float(f"{run_tokens / size:.2g}"),
            size=size, rung=str(size), shape=spec.shape.as_dict(), parametrization="mup", params_total=2 * size,
            params_non_embedding=size, params_embedding=size, flops_per_token=6 * size,
            flops_convention="c", reference_flops_per_token=6 * size, tokens=run_tokens, epochs=0.1,
            flops=6 * size * run_tokens, steps=1, batch_tokens=256, seed=0, peak_lr=1e-2,
            schedule={"kind": "wsd"}, trunk_id=None, taken_over_steps=0, loss_spikes=[], divergence=None, precision="fp32", val_loss_nats_per_token=loss,
            val_bits_per_byte=1.0, val_perplexity=1.0, val_errors=None, val_tokens=9, val_bytes=9, val_fingerprint="v",
            data_fingerprint="d", tokenizer_fingerprint="t", train_loss_nats_per_token=1.0,
            wall_seconds=1.0, tokens_per_second=1.0, mfu=None, peak_memory_bytes=1, commit=None,
            wandb_id=None,
        )  # fmt: skip
        with run.claim(spec):
            run.write_result(replace(result, **changes))  # type: ignore[arg-type]
        return run

    return write


def test_dropped_runs_are_counted_by_reason(
    written: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    for tokens in (512, 1024, 1536):
        written("deep", 100, tokens, 2.0)
    written("deep", 100, 2048, 2.0, val_fingerprint="other")
    written("deep", 100, 2560, 2.0).write_status("failed")
    written("deep", 100, 3072, None, status="diverged").write_status("diverged")
    (written("deep", 100, 3584, 2.0).path / "result.json").write_text("{")
    runs = load_runs(tmp_path / "runs")
    assert len(runs.table) == 3
    assert runs.dropped == {
        "other validation set": 1,
        "not finished (failed)": 1,
        "not finished (diverged)": 1,
        "unreadable result.json": 1,
    }


def test_one_recipe_is_kept_for_the_whole_table(
    written: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    for tokens in (512, 1024, 1536):
        written("deep", 100, tokens, 2.0)
    for tokens in (2048, 2560):
        written("wide", 100, tokens, 1.0, recipe_id="another learning rate")
    runs = load_runs(tmp_path / "runs")
    assert runs.table["loss_nats_per_token"].tolist() == [2.0, 2.0, 2.0]
    assert runs.dropped == {"other recipe": 2}


def test_one_architecture_is_kept_per_family(
    written: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    shape = json.loads((written("deep", 100, 512, 2.0).path / "result.json").read_text())["shape"]
    written("deep", 100, 1024, 2.0)
    written("deep", 100, 1536, 2.0, shape={**shape, "tied": False})
    written("wide", 100, 512, 2.0, shape={**shape, "tied": False})
    runs = load_runs(tmp_path / "runs")
    assert runs.dropped == {"other architecture in its family": 1}
    assert sorted(runs.table["family"]) == ["deep", "deep", "wide"]


def test_a_run_in_two_studies_counts_once(
    written: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    run = written("deep", 100, 512, 2.0)
    shutil.copytree(run.path, tmp_path / "runs" / "copy" / run.path.name)
    runs = load_runs(tmp_path / "runs")
    assert len(runs.table) == 1 and runs.dropped == {"same run in another study": 1}


def test_report_of_families_without_a_common_cell(
    written: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    written("deep", 100, 512, 2.0)
    written("wide", 200, 1024, 2.0)
    write_report(tmp_path / "runs", tmp_path / "out")
    assert "No comparison" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(DataError, match="did you mean deep"):
        write_report(tmp_path / "runs", tmp_path / "out", deep="dep", wide="wide")


def test_report_files_are_written(written: Callable[..., RunDirectory], tmp_path: Path) -> None:
    for family, gap in (("deep", -0.1), ("wide", 0.0)):
        for size in (100, 200, 400, 800):
            for budget in (5.12, 10.24):
                written(family, size, int(budget * size) // 256 * 256 or 256, 3 - size / 1000 + gap)
    write_report(tmp_path / "runs", tmp_path / "out", deep="deep", wide="wide")
    text = (tmp_path / "out" / "report.md").read_text()
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (tmp_path / "out" / "loss_vs_flops.png").stat().st_size > 10_000
    assert "## Limitations" in text and "## Robustness" in text
    found = saved["comparison"]
    assert found["matched"]["summary"][0]["mean"] == pytest.approx(-0.1, abs=1e-6)
    assert set(found["by_definition"]) == {"n_flop", "params_non_embedding", "params_total"}


def test_sources_without_finished_runs_are_errors(
    written: Callable[..., RunDirectory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(DataError, match="no such file or folder; train some"):
        load_runs(tmp_path / "nowhere")
    written("deep", 100, 512, 2.0).write_status("failed")
    with pytest.raises(DataError, match=r"1 not finished \(failed\)"):
        load_runs(tmp_path / "runs")
    monkeypatch.setattr(
        "sys.argv", ["analysis", str(tmp_path / "runs"), "--out", str(tmp_path / "o")]
    )
    assert main() == 1
    assert "no finished run" in capsys.readouterr().err


def test_report_of_a_single_family_has_no_comparison(
    written: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    run = written("deep", 100, 512, 2.0)
    write_report(tmp_path / "runs", tmp_path / "out")
    assert "No comparison" in (tmp_path / "out" / "report.md").read_text()
    assert asdict(run.result())["family"] == "deep"  # type: ignore[arg-type]


def test_validation_sets_are_pooled_only_on_request(
    written: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    for tokens in (512, 1024):
        written("deep", 100, tokens, 2.0)
    written("deep", 100, 1536, 2.0, val_fingerprint="other")
    default = load_runs(tmp_path / "runs")
    assert len(default.table) == 2
    assert any("--pool-validation-sets" in warning for warning in default.warnings)
    pooled = load_runs(tmp_path / "runs", pool_validation_sets=True)
    assert len(pooled.table) == 3 and not pooled.dropped
    assert any("differ in val_fingerprint" in warning for warning in pooled.warnings)


def test_khop_report_names_the_family_with_the_lower_error(
    written: Callable[..., RunDirectory],
    tiny_spec: Callable[..., RunSpec],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shapes = {"deep": {"n_layers": 6, "d_model": 64}, "wide": {"n_layers": 2, "d_model": 112}}
    for seed, (family, error) in enumerate(
        [("deep", 0.0), ("wide", 0.2), ("deep", 0.1), ("wide", 0.3)]
    ):
        shape = {**tiny_spec().shape.as_dict(), **shapes[family]}
        written(
            family,
            100,
            1024 * (1 + seed),
            1.0,
            seed=seed // 2,
            shape=shape,
            tokens=1024,
            flops=10,
            run_id=f"{family}{seed}",
            val_errors={"k=1": 0.0, "k=2": error},
        )
    write_khop_report(tmp_path / "runs", tmp_path / "report")
    out = capsys.readouterr().out
    assert "the error rate is 5.00% for deep and 25.00% for wide" in out
    assert "positive control passed" in out
    saved = json.loads((tmp_path / "report" / "results.json").read_text())
    assert [shape["k=2"] for shape in saved["shapes"]] == pytest.approx([0.05, 0.25])
    assert "k=2" in (tmp_path / "report" / "report.md").read_text()


def test_failed_learning_rate_audit_overrides_the_verdict(
    written: Callable[..., RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in ("deep", "wide"):
        for index, size in enumerate((100, 200, 400, 800)):
            written(family, size, 1024 * (1 + index), 3 - size / 1000)
    (tmp_path / "runs").rename(tmp_path / "study")
    best = {"deep": 1e-2, "wide": 4e-3}  # the study uses 1e-2 for both
    for family, optimum in best.items():
        for step in range(-3, 4):
            rate = 1e-2 * 2.0**step
            loss = 2 + 0.02 * math.log(rate / optimum) ** 2
            run_id = f"{family}{step}"
            written(family, 100, 1024 * (5 + step), loss, peak_lr=rate, run_id=run_id, tokens=1024)
    arguments = [
        str(tmp_path / "study"),
        "--audit",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "o"),
    ]
    monkeypatch.setattr("sys.argv", ["analysis", *arguments])
    assert main() == 0
    saved = json.loads((tmp_path / "o" / "results.json").read_text())["comparison"]
    assert saved["verdict"]["word"] == "audit_failed" and list(saved["audit"]["failed"]) == ["wide"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either RUNS or --wandb"),
        (["x", "--wandb", "a/b"], "give either RUNS or --wandb"),
        (["--wandb", "a/b", "--of", "khop"], "--of khop cannot read --wandb; give a folder"),
        (["x", "--contrast", "a,b", "--deep", "a"], "give either --contrast, or --deep and --wide"),
        (["x", "--contrast", "a"], "'a' must be two family names"),
        (["x", "--of", "khp"], "'khp' is not a report; did you mean khop?"),
        (
            ["x", "--of", "khop", "--audit", "a", "--wide", "w"],
            "--wide, --audit: --of khop has no such option; only families does",
        ),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["analysis", *arguments, "--out", "o"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_help_lists_every_report() -> None:
    assert set(REPORTS) == {FAMILIES, *get_args(Kind)}
