"""A recorded run is repeated from what is committed, with equal digits."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from slm.config.schema import Config
from slm.errors import DataError
from slm.run.facts import saved_config
from slm.run.spec import RunSpec, resolve
from slm.tracking.results_file import read_results
from slm.tracking.run_dir import RunDirectory
from slm.training.repeat import repeat
from tests.conftest import Cli
from tests.in_process import run_here
from tests.running import run_to_end

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


def test_run_of_several_processes_is_repeated_in_one(
    tiny_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Micro-batches of 4 of 10 sequences suit the 4 sequences of one of three processes, and not one process.

    The recorded result is made by one process.
    """
    alone = tiny_config(optimizer={"global_batch_tokens": 320}, budget={"tokens": 3 * 320})
    run, _ = run_to_end(resolve(alone))
    several = {"devices": 3, "strategy": "ddp", "micro_batch_sequences": 4}
    config = replace(alone, trainer=replace(alone.trainer, **several))
    run.path.joinpath("config.yaml").write_text(yaml.safe_dump(saved_config(resolve(config))))
    repeat(run.path, None, runs_dir=tmp_path / "again", cache_dir=Path(alone.cache_dir))
    assert "repeated: " in capsys.readouterr().out
    (again,) = (tmp_path / "again").glob("*/*")
    trainer = RunDirectory(again).spec().config.trainer
    assert (trainer.strategy, trainer.devices, trainer.micro_batch_sequences) == ("single", 1, 2)


def test_diverged_run_is_refused_before_it_is_trained(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    run, result = run_to_end(tiny_spec(budget={"tokens": 256}))
    run.write_result(replace(result, status="diverged", val_loss_nats_per_token=None))
    with pytest.raises(DataError, match="diverged, so it has no validation loss"):
        repeat(run.path, None, runs_dir=tmp_path / "again", cache_dir=tmp_path)
    assert not (tmp_path / "again").exists()


def test_missing_configuration_is_named(tmp_path: Path) -> None:
    source = Path("analysis/notebooks/data/aa.jsonl")
    copy = tmp_path / "aa.jsonl"
    shutil.copy(source, copy)
    run_id = next(iter(read_results(source)))
    done = run_here([sys.executable, "-m", "slm", "repeat", str(copy), run_id])
    assert done.returncode == 1
    assert f"aa.configs.yaml: no configuration of {run_id}" in done.stderr
