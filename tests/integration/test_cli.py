"""train.py and sweep.py as a person uses them: in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.tracking.checkpoints import newest_checkpoint
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory
from tests.conftest import ROOT, cli_command, cli_env

Cli = Callable[..., subprocess.CompletedProcess[str]]
# Long enough to be hit in the middle: 160 steps of some milliseconds each.
LONG = (
    "experiment=smoke", "optimizer.global_batch_tokens=512", "budget.tokens=81920",
    "trainer.checkpoint_every_steps=25", "trainer.log_every_steps=1", "tracking=disabled",
)  # fmt: skip


def the_run(runs: Path) -> RunDirectory:
    (status,) = runs.glob("*/*/status.json")
    return RunDirectory(status.parent)


def finished(run: RunDirectory) -> RunResult:
    result = run.result()
    assert run.state() == "finished" and result is not None
    return result


def test_smoke_runs_and_a_second_call_does_not(cli: Cli, tmp_path: Path) -> None:
    first = cli("train.py", "experiment=smoke")
    assert first.returncode == 0, first.stderr
    run = the_run(tmp_path / "runs")
    assert f"run directory: {run.path}" in first.stderr.splitlines()[-1]
    result = finished(run)
    assert result.wandb_id == run.path.name == result.run_id
    assert list(run.path.glob(f"wandb/offline-run-*/run-{result.run_id}.wandb"))
    assert [row["progress/step"] for row in run.read_metrics() if "val/loss" in row] == [20, 40]
    for name in ("config.yaml", "env.json", "log.txt", "metrics.jsonl"):
        assert (run.path / name).stat().st_size > 0
    env = json.loads((run.path / "env.json").read_text())
    assert env["threads"] == 1 and env["versions"]["torch"]

    start = time.monotonic()
    again = cli("train.py", "experiment=smoke")
    assert again.returncode == 0 and "already finished" in again.stderr
    assert run.result() == result and time.monotonic() - start < 20


def interrupt(tmp_path: Path, cache_dir: Path, number: int, after_step: int) -> tuple[int, str]:
    """Start the long run, send it a signal once it is past a step, return (exit code, stderr)."""
    command = cli_command("train.py", tmp_path, cache_dir, *LONG)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=cli_env(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(
            row["progress/step"] >= after_step
            for metrics in (tmp_path / "runs").glob("*/*/metrics.jsonl")
            for row in RunDirectory(metrics.parent).read_metrics()
        ):
            break
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> RunDirectory:
    path = tmp_path_factory.mktemp("undisturbed")
    command = cli_command("train.py", path, cache_dir, *LONG)
    subprocess.run(command, cwd=ROOT, env=cli_env(), check=True, capture_output=True)
    return the_run(path / "runs")


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    cli: Cli, tmp_path: Path, cache_dir: Path, undisturbed: RunDirectory, number: signal.Signals
) -> None:
    code, said = interrupt(tmp_path, cache_dir, number, after_step=60)
    run = the_run(tmp_path / "runs")
    assert run.state() == "interrupted"
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 128 + number
        assert f"interrupted by {number.name}" in said and "the same command goes on" in said
    resumed = cli("train.py", *LONG)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step" in resumed.stderr
    ours, theirs = finished(run), finished(undisturbed)
    assert ours.val_loss_nats_per_token == theirs.val_loss_nats_per_token
    losses = [[row["train/loss"] for row in r.read_metrics()] for r in (run, undisturbed)]
    assert losses[0] == losses[1] and len(losses[0]) == 160
    for ours_saved, theirs_saved in zip(saved(run), saved(undisturbed), strict=True):
        assert torch.equal(ours_saved, theirs_saved)


def saved(run: RunDirectory) -> list[torch.Tensor]:
    """Weights and optimizer state of the newest checkpoint."""
    found = newest_checkpoint(run.checkpoints)
    assert found is not None
    checkpoint: dict[str, Any] = torch.load(found[0], weights_only=True)
    moments = checkpoint["optimizer_states"][0]["state"].values()
    return [*checkpoint["state_dict"].values(), *(t for state in moments for t in state.values())]


def test_a_run_in_use_is_left_alone(cli: Cli, tmp_path: Path, cache_dir: Path) -> None:
    command = cli_command("train.py", tmp_path, cache_dir, *LONG)
    process = subprocess.Popen(command, cwd=ROOT, env=cli_env(), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "runs").glob("*/*/status.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        second = cli("train.py", *LONG)
        assert second.returncode == 75  # EX_TEMPFAIL: it may be free later
        assert f"in use by process {process.pid}" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_jobs_of_a_multirun_do_not_meet(cli: Cli, tmp_path: Path) -> None:
    """Two good jobs and an impossible one in one process: the good ones equal single runs."""
    grid = cli("train.py", "-m", "experiment=smoke", "family=deep_thin,wide_shallow", "size=80k,30")
    assert grid.returncode != 0
    assert grid.stderr.count("finished: validation") == 2
    assert "size=30: families of aspect ratio 4, 11, 32" in grid.stderr
    runs = [
        RunDirectory(p.parent) for p in sorted((tmp_path / "runs").glob("single/*/result.json"))
    ]
    together = {run.path.name: finished(run).val_loss_nats_per_token for run in runs}
    assert len(together) == 2
    for run in runs:
        assert [p.name for p in run.path.glob("wandb/offline-run-*/*.wandb")] == [
            f"run-{run.path.name}.wandb"
        ]
    alone = cli("train.py", "experiment=smoke", "family=wide_shallow", "rerun=true")
    assert alone.returncode == 0, alone.stderr
    for run in runs:
        assert finished(run).val_loss_nats_per_token == together[run.path.name]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["model.n_layer=3", "+model.typo=1", "seed=-1"], 2, "3 problems"),
        (["family=deep_thn"], 2, "did you mean deep_thin?"),
        (["family=3"], 2, "Config group override must be a string"),
        (
            ["model=tiny", "model.d_model=63"],
            2,
            "model.d_model=63: must be a multiple of n_heads=8",
        ),
        (["model=tiny", "size=80k"], 2, "conflicts with size=80000, from which"),
        (["budget.tokens=5"], 2, "more than one budget"),
        (["budget.tokens_per_param=null"], 2, "no budget is given"),
        (["budget=tokens", "budget.tokens=1,2"], 2, "Ambiguous value"),
        (["runs_dir=/proc/version/x"], 1, "cannot read or write /proc/version"),
        (["experiment=smoke", "budget.tokens=1b"], 2, "data.max_epochs"),
        (["experiment=smoke", "trainer=gpu"], 2, "torch sees no CUDA device"),
    ],
)
def test_bad_input_gets_one_clear_message(
    arguments: list[str], code: int, said: str, tmp_path: Path, cache_dir: Path
) -> None:
    if "trainer=gpu" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    command = cli_command("train.py", tmp_path, cache_dir, *arguments)
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=cli_env(), timeout=120, check=False
    )
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_config_are_worth_reading(cli: Cli) -> None:
    shown = cli("train.py", "--help")
    assert shown.returncode == 0
    assert "optimizer.lr=0.004" in shown.stdout and "Peak learning rate" in shown.stdout
    assert "ladder: micro, sub1b" in shown.stdout
    config = cli("train.py", "--cfg", "job")
    assert config.returncode == 0 and "tokens_per_param: 10" in config.stdout


def test_a_study_is_planned_without_running(cli: Cli, tmp_path: Path) -> None:
    plan = cli("sweep.py", "study=demo", "action=plan")
    assert plan.returncode == 0, plan.stderr
    assert "16 cells" in plan.stdout and "L6-d32" in plan.stdout
    assert not (tmp_path / "runs" / "demo").exists()
    grid = cli("sweep.py", "study=demo", "optimizer.lr=1e-3,2e-3", "action=plan")
    assert grid.returncode == 2 and "a key has one value" in grid.stderr
    decided = cli("sweep.py", "study=demo", "seed=5", "family=balanced", "action=plan")
    assert decided.returncode == 2
    assert "set study.seeds" in decided.stderr and "set study.families" in decided.stderr


def test_the_ladders_are_printed_and_paired(cli: Cli) -> None:
    """25k to 800k at 4/11/32, 32M to 1B at 24/64/192, and MobileLLM's own shapes with their partners."""
    for study, rungs in (("micro", 8), ("sub1b", 8), ("mobilellm", 5)):
        plan = cli("sweep.py", f"study={study}", "action=plan")
        assert plan.returncode == 0, plan.stderr
        ladder = plan.stdout.partition("cells in their order")[0]
        shapes = [line.split("│")[1:-1] for line in ladder.splitlines() if line.startswith("│")]
        assert len(shapes) == 3 * rungs
        differences = [float(row[-1].strip(" %")) for row in shapes if row[-1].strip()]
        assert len(differences) == rungs and max(differences) <= 3
        assert "aspect ratio" not in plan.stdout  # the warning about a shape off its family's


def test_describe_refuses_what_train_would(cli: Cli) -> None:
    command = [sys.executable, "-m", "slm", "describe", "size=35k", "model.seq_len=64"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 2 and "nearest: 20,500 or" in told.stderr
    counterpart = ["model=mobilellm_125m", "family=wide_shallow", "--json"]
    command = [sys.executable, "-m", "slm", "describe", *counterpart]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(told.stdout)["label"] == "L7-d1152"


@pytest.mark.slow
def test_a_study_waits_for_what_others_run_and_repeats_nothing(
    cli: Cli, tmp_path: Path, cache_dir: Path
) -> None:
    # Each cell a job of its own, and the same run as train.py's by itself.
    study = ("study=smoke", "study.share_trunks=false")
    status = cli("sweep.py", *study, "action=status")
    assert status.returncode == 3 and "smoke: 8 planned; 0% of the FLOPs" in status.stdout
    single = cli(
        "train.py", "study=smoke", "family=deep_thin", "size=80000", "budget.tokens_per_param=0.2"
    )
    assert single.returncode == 0, single.stderr
    busy = the_run(tmp_path / "runs")
    single_loss = finished(busy).val_loss_nats_per_token
    (busy.path / "status.json").write_text('{"state": "interrupted"}')
    (busy.path / "result.json").unlink()

    # In the hands of a process that lives: the sweep runs the others and waits for this one, until it is
    # dropped unfinished, and then does it.
    code = "import sys, time; from pathlib import Path; from slm.tracking.lease import Lease\n"
    code += "Lease(Path(sys.argv[1])).take(); print('held', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code, str(busy.path / "lock")]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    sweep = subprocess.Popen(
        cli_command("sweep.py", tmp_path, cache_dir, *study, "action=run"),
        cwd=ROOT, env=cli_env(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while len(list((tmp_path / "runs").glob("smoke/*/result.json"))) < 7:
        assert sweep.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(3)
    assert sweep.poll() is None
    holder.kill()
    holder.wait()
    _, said = sweep.communicate(timeout=120)
    assert sweep.returncode == 0, said
    assert "8 to run" in said and f"run elsewhere: process {holder.pid}" in said
    assert finished(busy).val_loss_nats_per_token == single_loss

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("smoke/*/result.json")}
    assert len(before) == 8
    second = cli("sweep.py", *study)
    assert second.returncode == 0 and "0 to run" in second.stderr, second.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (tmp_path / "runs" / "smoke" / "report" / "report.md").exists()

    done = cli("sweep.py", *study, "action=status")
    assert done.returncode == 0 and "smoke: 8 finished; 100% of the FLOPs" in done.stdout


@pytest.mark.slow
def test_launchers_agree(cli: Cli, tmp_path: Path, cache_dir: Path) -> None:
    """The basic launcher runs the cells in one process, ours in one each: the same losses."""
    small = ("study=smoke", "study.sizes=[80k]", "study.tokens_per_param=[0.1]", "action=run")
    losses = []
    for place, launcher in (("basic", "basic"), ("local", "local")):
        done = cli("sweep.py", *small, f"hydra/launcher={launcher}", f"runs_dir={tmp_path / place}")
        assert done.returncode == 0, done.stderr
        results = sorted((tmp_path / place).glob("smoke/*/result.json"))
        losses.append([finished(RunDirectory(p.parent)).val_loss_nats_per_token for p in results])
    assert losses[0] == losses[1] and len(losses[0]) == 2


@pytest.mark.slow
def test_ctrl_c_stops_a_study_and_keeps_its_work(tmp_path: Path, cache_dir: Path) -> None:
    long = ("study=smoke", "study.sizes=[80k]", "study.tokens_per_param=[20]", "action=run")
    command = cli_command("sweep.py", tmp_path, cache_dir, *long)
    process = subprocess.Popen(
        command, cwd=ROOT, env=cli_env(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = list((tmp_path / "runs").glob("smoke/*/metrics.jsonl"))
        if len(metrics) == 2 and all(
            len(RunDirectory(p.parent).read_metrics()) > 2 for p in metrics
        ):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "2 runs save their state" in said
    for path in metrics:
        run = RunDirectory(path.parent)
        assert run.state() == "interrupted" and newest_checkpoint(run.checkpoints) is not None
