"""train.py, sweep.py and python -m slm as a user runs them; in processes where the process is tested."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from slm.config.hydra import compose_config
from slm.tracking.checkpoints import newest_checkpoint
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory
from slm.training.execute import train_all
from tests.conftest import PATIENCE_SECONDS, ROOT, Cli, cli_command, cli_env
from tests.in_process import run_here
from tests.running import assert_same_run, counted_steps

# 160 steps of some milliseconds each: long enough to be interrupted by a signal.
LONG = (
    "experiment=smoke",
    "optimizer.global_batch_tokens=512",
    "budget.tokens=81920",
    "trainer.checkpoint_every_steps=25",
    "trainer.log_every_steps=1",
    "tracking=disabled",
)


def only_run(runs: Path) -> RunDirectory:
    """Return the run directory of a folder that has exactly one."""
    (status,) = runs.glob("*/*/status.json")
    return RunDirectory(status.parent)


def finished(run: RunDirectory) -> RunResult:
    """Return the result of a run; fail if the run is not finished."""
    result = run.result()
    assert run.state() == "finished" and result is not None
    return result


def test_second_call_skips_a_finished_run(cli: Cli, cli_process: Cli, tmp_path: Path) -> None:
    first = cli_process("train.py", "experiment=smoke")
    assert first.returncode == 0, first.stderr
    run = only_run(tmp_path / "runs")
    assert f"run directory: {run.path}" in first.stderr.splitlines()[-1]
    result = finished(run)
    assert result.wandb_id == run.path.name == result.run_id
    assert list(run.path.glob(f"wandb/offline-run-*/run-{result.run_id}.wandb"))
    assert [row["progress/step"] for row in run.read_metrics() if "val/loss" in row] == [20, 40]
    for name in ("config.yaml", "env.json", "log.txt", "metrics.jsonl"):
        assert (run.path / name).stat().st_size > 0
    env = json.loads((run.path / "env.json").read_text())
    assert env["threads"] == 1 and env["versions"]["torch"]

    again = cli("train.py", "experiment=smoke")
    assert again.returncode == 0 and "already finished" in again.stderr
    assert run.result() == result


def interrupt(tmp_path: Path, cache_dir: Path, number: int, after_step: int) -> tuple[int, str]:
    """Start the long run, send it a signal after a step, and return (exit code, stderr)."""
    command = cli_command("train.py", tmp_path, cache_dir, *LONG)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=cli_env(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if any(
            row["progress/step"] >= after_step
            for metrics in (tmp_path / "runs").glob("*/*/metrics.jsonl")
            for row in RunDirectory(metrics.parent).read_metrics()
        ):
            break
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, stderr


def train_in_process(folder: Path, cache_dir: Path, *arguments: str) -> RunDirectory:
    """Train as train.py does, but in this process, which has imported torch; return the only run."""
    places = [f"runs_dir={folder / 'runs'}", f"cache_dir={cache_dir}"]
    train_all(compose_config([*arguments, *places]))
    return only_run(folder / "runs")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> RunDirectory:
    return train_in_process(tmp_path_factory.mktemp("uninterrupted"), cache_dir, *LONG)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_resumed_run_is_bit_identical_to_an_uninterrupted_one(
    tmp_path: Path,
    cache_dir: Path,
    uninterrupted: RunDirectory,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, stderr = interrupt(tmp_path, cache_dir, number, after_step=60)
    run = only_run(tmp_path / "runs")
    assert run.state() == "interrupted"
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 128 + number
        assert f"interrupted by {number.name}" in stderr and "the same command" in stderr
    with counted_steps(monkeypatch) as taken:
        train_in_process(tmp_path, cache_dir, *LONG)
    assert taken[0] >= 50 and taken == list(range(taken[0], 160))
    assert finished(run).steps == 160
    assert_same_run(run, uninterrupted)


def test_run_in_use_exits_with_75(cli_process: Cli, tmp_path: Path, cache_dir: Path) -> None:
    command = cli_command("train.py", tmp_path, cache_dir, *LONG)
    process = subprocess.Popen(command, cwd=ROOT, env=cli_env(), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not list((tmp_path / "runs").glob("*/*/status.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        second = cli_process("train.py", *LONG)
        assert second.returncode == 75  # EX_TEMPFAIL: try again later
        assert f"in use by process {process.pid}" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_jobs_of_a_multirun_do_not_affect_each_other(cli: Cli, tmp_path: Path) -> None:
    """Run two valid jobs and one impossible job in one process: the valid ones equal single runs."""
    grid = cli("train.py", "-m", "experiment=smoke", "family=deep_thin,wide_shallow", "size=80k,30")
    assert grid.returncode != 0
    assert grid.stderr.count("finished: validation") == 2
    assert "size=30: the families (aspect ratios 4, 11, 32;" in grid.stderr
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
    ("arguments", "code", "message"),
    [
        (["model.n_layer=3", "+model.typo=1", "seed=-1"], 2, "3 problems"),
        (["family=deep_thn"], 2, "did you mean deep_thin?"),
        (["family=aspect_4"], 2, "use family=aspect family.aspect_ratio=4"),
        (["data.column=a=b"], 2, "data.column=a=b: not a valid override"),
        (["study.anchor_sizes.sub=1"], 2, "in one of: study.anchor_sizes.sub=1"),
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
def test_wrong_input_prints_a_message_without_traceback(
    arguments: list[str], code: int, message: str, cli: Cli
) -> None:
    if "trainer=gpu" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = cli("train.py", *arguments)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


def test_help_lists_keys_and_groups_and_cfg_job_lists_values(cli: Cli) -> None:
    shown = cli("train.py", "--help")
    assert shown.returncode == 0
    assert "optimizer.lr=0.004" in shown.stdout and "Peak learning rate" in shown.stdout
    assert re.search(r"^  ladder +micro, sub1b$", shown.stdout, re.MULTILINE)
    config = cli("train.py", "--cfg", "job")
    assert config.returncode == 0 and "tokens_per_param: 10" in config.stdout
    wrong = cli("train.py", "--cfg", "job", "optimzer.lr=1")
    assert wrong.returncode == 2 and "optimzer:" in wrong.stdout
    assert "optimzer={'lr': 1}: unknown key (did you mean optimizer?)" in wrong.stderr


def test_plan_starts_no_run_and_rejects_keys_of_the_study(cli: Cli, tmp_path: Path) -> None:
    plan = cli("sweep.py", "study=demo", "action=plan")
    assert plan.returncode == 0, plan.stderr
    assert "16 cells" in plan.stdout and "L6-d32" in plan.stdout
    assert not (tmp_path / "runs" / "demo").exists()
    grid = cli("sweep.py", "study=demo", "optimizer.lr=1e-3,2e-3", "action=plan")
    assert grid.returncode == 2 and "a key has one value" in grid.stderr
    rejected = cli("sweep.py", "study=demo", "seed=5", "family=balanced", "action=plan")
    assert rejected.returncode == 2
    assert "set study.seeds" in rejected.stderr and "set study.families" in rejected.stderr


def test_plans_list_matched_shapes(cli: Cli) -> None:
    """Check `micro` (13k to 190k), `sub1b` (26M to 1B) and the MobileLLM shapes with their counterparts."""
    for study, rungs, count in (("micro", 7, 25), ("sub1b", 14, 92), ("mobilellm", 5, 15)):
        plan = cli("sweep.py", f"study={study}", "action=plan")
        assert plan.returncode == 0, plan.stderr
        shapes = re.findall(r"^.* L\d+-d\d+ .*$", plan.stdout, re.MULTILINE)
        assert len(shapes) == count
        differences = [float(row.split()[-1].rstrip("%")) for row in shapes if row.endswith("%")]
        assert len(differences) == rungs and max(differences) <= 3
        assert "the ratio of the family" not in plan.stdout  # no shape is far from it
        if study == "sub1b":
            assert "REFUSED" not in plan.stdout
            assert "device-hours at the assumed" in " ".join(plan.stdout.split())
            assert "power of the verdict" in plan.stdout


def test_describe_reports_config_errors_and_prints_json() -> None:
    done = run_here(["python", "-m", "slm", "describe", "size=35k", "model.seq_len=64"])
    assert done.returncode == 2 and "nearest: 20,500 or" in done.stderr
    counterpart = ["model=mobilellm_125m", "family=wide_shallow", "--json"]
    done = run_here(["python", "-m", "slm", "describe", *counterpart])
    assert json.loads(done.stdout)["label"] == "L7-d1152"


@pytest.mark.slow
def test_study_waits_for_runs_of_other_processes_and_repeats_none(
    cli: Cli, tmp_path: Path, cache_dir: Path
) -> None:
    # Without shared trunks each cell is one job, and the same run as that of train.py.
    study = ("study=smoke", "study.sizes=[80k]", "study.share_trunks=false")
    status = cli("sweep.py", *study, "action=status")
    assert status.returncode == 3 and "smoke: 4 planned; 0% of the FLOPs" in status.stdout
    cell = ("study=smoke", "family=deep_thin", "size=80000", "budget.tokens_per_param=0.2")
    busy = train_in_process(tmp_path, cache_dir, *cell)
    single_loss = finished(busy).val_loss_nats_per_token
    (busy.path / "status.json").write_text('{"state": "interrupted"}')
    (busy.path / "result.json").unlink()

    # Another process holds the lease of one run. The sweep runs the other cells and waits for this one; after
    # the process is killed, the sweep runs it.
    code = "import sys, time; from pathlib import Path; from slm.tracking.lease import Lease\n"
    code += "Lease(Path(sys.argv[1])).take(); print('held', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code, str(busy.path / "lock")]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    sweep = subprocess.Popen(
        cli_command("sweep.py", tmp_path, cache_dir, *study, "action=run"),
        cwd=ROOT,
        env=cli_env(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert sweep.stderr is not None
    stderr = ""
    while f"of other processes: process {holder.pid} " not in stderr:
        line = sweep.stderr.readline()
        assert line, stderr  # the sweep has exited
        stderr += line
    assert len(list((tmp_path / "runs").glob("smoke/*/result.json"))) == 3
    assert sweep.poll() is None
    holder.kill()
    holder.wait()
    stderr += sweep.stderr.read()
    assert sweep.wait(timeout=PATIENCE_SECONDS) == 0, stderr
    assert "4 to run" in stderr
    assert finished(busy).val_loss_nats_per_token == single_loss

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("smoke/*/result.json")}
    assert len(before) == 4
    second = cli("sweep.py", *study)
    assert second.returncode == 0 and "0 to run" in second.stderr, second.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (tmp_path / "runs" / "smoke" / "report" / "report.md").exists()

    done = cli("sweep.py", *study, "action=status")
    assert done.returncode == 0 and "smoke: 4 finished; 100% of the FLOPs" in done.stdout


@pytest.mark.slow
def test_ctrl_c_stops_a_study_and_saves_its_runs(tmp_path: Path, cache_dir: Path) -> None:
    long = ("study=smoke", "study.sizes=[80k]", "study.tokens_per_param=[20]", "action=run")
    command = cli_command("sweep.py", tmp_path, cache_dir, *long)
    process = subprocess.Popen(
        command, cwd=ROOT, env=cli_env(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        metrics = list((tmp_path / "runs").glob("smoke/*/metrics.jsonl"))
        if len(metrics) == 2 and all(
            len(RunDirectory(p.parent).read_metrics()) > 2 for p in metrics
        ):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130 and "2 runs save their state" in stderr
    for path in metrics:
        run = RunDirectory(path.parent)
        assert run.state() == "interrupted" and newest_checkpoint(run.checkpoints) is not None
