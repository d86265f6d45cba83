"""A recorded run is repeated from what is committed, with equal digits."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from slm.tracking.results_file import read_results
from slm.tracking.run_dir import RunDirectory
from tests.conftest import Cli
from tests.in_process import run_here

BRANCHES = (
    "study=smoke",
    "study.families=[deep_thin]",
    "study.sizes=[80k]",
    "study.tokens_per_param=[0.05,0.1]",
    "tracking=disabled",
    "hydra/launcher=basic",
)  # two branches of one trunk


@pytest.mark.slow
def test_branch_is_repeated_alone_from_the_collected_files(
    cli: Cli, tmp_path: Path, cache_dir: Path
) -> None:
    results = tmp_path / "results" / "smoke.jsonl"
    done = cli("sweep.py", *BRANCHES, "action=run")
    assert done.returncode == 0, done.stderr
    done = cli("sweep.py", *BRANCHES, f"study.results={results}", "action=collect")
    assert done.returncode == 0, done.stderr
    recorded = max(read_results(results).values(), key=lambda result: result.tokens)
    assert recorded.taken_over_steps > 0  # it started from a checkpoint of the trunk
    original = RunDirectory(tmp_path / "runs" / "smoke" / recorded.run_id).read_metrics()
    shutil.rmtree(tmp_path / "runs")

    folders = (f"runs_dir={tmp_path / 'again'}", f"cache_dir={cache_dir}")
    command = [sys.executable, "-m", "slm", "repeat", str(results), *folders]
    repeated = run_here([*command, recorded.run_id])
    assert repeated.returncode == 0, repeated.stderr
    assert "equal in all digits" in repeated.stdout
    assert f"recorded: {recorded.val_loss_nats_per_token!r} nats/token" in repeated.stdout
    run = RunDirectory(tmp_path / "again" / "smoke" / recorded.run_id)
    result = run.result()
    assert result is not None and result.taken_over_steps == 0
    assert result.val_loss_nats_per_token == recorded.val_loss_nats_per_token
    losses = [[row["train/loss"] for row in rows if "train/loss" in row] for rows in (original, run.read_metrics())]  # fmt: skip
    assert losses[0] == losses[1]

    # From a run directory; its own folder is refused, and an unknown run is named.
    command = [sys.executable, "-m", "slm", "repeat", str(run.path), f"cache_dir={cache_dir}"]
    itself = run_here([*command, f"runs_dir={tmp_path / 'again'}"])
    assert itself.returncode == 1 and "the recorded run itself" in itself.stderr
    unknown = run_here([sys.executable, "-m", "slm", "repeat", str(results), "zzz", *folders])
    assert unknown.returncode == 1 and "no run of" in unknown.stderr


def test_missing_configuration_is_named(tmp_path: Path) -> None:
    source = Path("analysis/notebooks/data/aa.jsonl")
    copy = tmp_path / "aa.jsonl"
    shutil.copy(source, copy)
    run_id = next(iter(read_results(source)))
    done = run_here([sys.executable, "-m", "slm", "repeat", str(copy), run_id])
    assert done.returncode == 1
    assert f"aa.configs.yaml: no configuration of {run_id}" in done.stderr
