"""The W&B mirror: one complete W&B run per run, offline and online, also after kills and without a host."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import wandb

from slm.config.schema import to_tree
from slm.errors import RunError
from slm.run.spec import RunSpec
from slm.studies.cells import Cell
from slm.studies.sync import sync_study
from slm.tracking import wandb as tracking
from slm.tracking.run_dir import STEP, TOKENS, TRAIN_LOSS, VAL_LOSS, RunDirectory
from slm.tracking.wandb import mirror
from tests.conftest import PATIENCE_SECONDS, ROOT, Cli, cli_command, cli_env
from tests.fake_wandb import FakeWandb, fake_wandb
from tests.offline_wandb import OfflineRun, assert_same_history, offline_files, read_offline_run
from tests.ranks import Job, train_on_ranks
from tests.running import power_cut, run_to_end

Spec = Callable[..., RunSpec]
Logs = pytest.LogCaptureFixture
OFFLINE = {"wandb": "offline"}
# Checkpoints at steps 5, 10, ...; validations at steps 4, 8, ...
TRAINER = {"checkpoint_every_steps": 5, "validate_every_steps": 4}


@pytest.fixture
def log_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that sets the W&B host, with a made-up API key; wandb reads both once per session."""

    def set_host(url: str) -> None:
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        wandb.teardown()

    yield set_host
    monkeypatch.undo()
    wandb.teardown()


@pytest.fixture
def server(log_in: Callable[[str], None]) -> Iterator[FakeWandb]:
    with fake_wandb() as fake:
        log_in(fake.url)
        yield fake


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def finished_offline(file: Path) -> OfflineRun:
    """Read an offline run when it is complete: W&B writes it in another process."""
    for _ in range(300):
        run = read_offline_run(file)
        if run.exit_code is not None:
            return run
        time.sleep(0.1)
    raise AssertionError(f"{file} is not complete")


def assert_mirrored(run: RunDirectory, spec: RunSpec, starts: int = 1) -> None:
    """Assert that the last of some starts has written the complete W&B run of a finished run."""
    files = offline_files(run)
    assert len(files) == starts
    found, result = finished_offline(files[-1]), run.result()
    assert result is not None and found.id == spec.run_id == result.wandb_id
    assert found.exit_code == 0 and found.artifacts == [f"run-{spec.run_id}"]
    assert_same_history(found.rows, run)
    assert {key: found.summary[key] for key in asdict(result)} == asdict(result)
    config = {key: found.config[key] for key in to_tree(spec.config)}
    assert config == to_tree(spec.config)
    assert found.config["run"]["run_id"] == spec.run_id


def test_jobs_of_one_process_get_one_wandb_run_each(tiny_spec: Spec) -> None:
    deep = tiny_spec(tracking=OFFLINE, trainer=TRAINER, budget={"tokens": 8 * 256})
    wide = tiny_spec(tracking=OFFLINE, budget={"tokens": 6 * 256}, family={"name": "wide"}, seed=3)
    # A run that an earlier job of the process left open
    wandb.init(mode="offline", id="open", dir=str(deep.config.runs_dir), settings={"silent": True})
    for spec in (deep, wide):
        run, _ = run_to_end(spec)
        assert_mirrored(run, spec)
    found = finished_offline(offline_files(RunDirectory.of(wide))[0])
    assert (found.name, found.group, found.job_type) == (
        "wide L2-d32, 1.54k tokens, s3, seq_len 32, val_tokens 2048, batch 256",
        "single",
        "train",
    )
    assert sorted(found.tags) == ["budget 1.54k", "rung L2-d32", "seed 3", "wide"]
    assert found.config["run"]["family"] == "wide" and found.config["run"]["tokens"] == 1536
    assert found.step_metrics["train/*"] == found.step_metrics["val/*"] == TOKENS


def test_every_start_writes_the_complete_history(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut after steps 7 and 13: the next starts repeat steps 6 and 7, and 11 to 13."""
    spec = tiny_spec(tracking=OFFLINE, trainer=TRAINER)
    run = RunDirectory.of(spec)
    for cut in (7, 13):
        with power_cut(monkeypatch, before_step=cut):
            run_to_end(spec)
    cut_short = [finished_offline(file) for file in offline_files(run)]
    assert [found.exit_code for found in cut_short] == [1, 1]
    assert [row["_step"] for row in cut_short[1].rows] == list(range(1, 14))
    run_to_end(spec)
    assert_mirrored(run, spec, starts=3)
    assert [row[STEP] for row in run.read_metrics() if VAL_LOSS in row] == [4, 8, 12, 16, 20]


def test_diverged_run_keeps_its_rows(tiny_spec: Spec) -> None:
    from slm.errors import Diverged

    spec = tiny_spec(tracking=OFFLINE, optimizer={"lr": 1e9, "grad_clip": None})
    run = RunDirectory.of(spec)
    with pytest.raises(Diverged):
        run_to_end(spec)
    found, result = finished_offline(offline_files(run)[0]), run.result()
    assert result is not None and found.exit_code == 1
    assert found.summary["status"] == "diverged"
    assert found.summary["divergence"] == result.divergence
    assert_same_history(found.rows, run)


def test_online_run_is_uploaded_once_with_every_row(
    server: FakeWandb, tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch, caplog: Logs
) -> None:
    spec = tiny_spec(tracking={"wandb": "auto"}, trainer=TRAINER)
    run, cell = RunDirectory.of(spec), Cell(spec, "tiny", "L2-d32")
    caplog.set_level(logging.INFO, "slm")
    with power_cut(monkeypatch, before_step=13):
        run_to_end(spec)
    run_to_end(spec)
    (uploaded,) = server.runs.values()
    result = run.result()
    assert result is not None and list(server.runs) == [spec.run_id]
    assert (uploaded.starts, uploaded.exit_code) == (2, 0)
    assert uploaded.artifacts == [f"run-{spec.run_id}"]
    assert_same_history(uploaded.history, run)
    known = {key: value for key, value in asdict(result).items() if value is not None}
    assert {key: uploaded.summary[key] for key in known} == known
    assert f"W&B run: {server.url}/me/slm/runs/{spec.run_id}" in caplog.text
    sync_study([cell])
    assert uploaded.starts == 2 and caplog.text.count("unchanged") == 2


def test_sync_uploads_new_and_changed_runs(
    server: FakeWandb, tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch, caplog: Logs
) -> None:
    """Three runs: not mirrored, interrupted, and not started. The second call uploads the one that has changed."""
    specs = [tiny_spec(trainer=TRAINER, budget={"tokens": steps * 256}) for steps in (6, 10, 14)]
    cells = [Cell(spec, "tiny", "L2-d32") for spec in reversed(specs)]
    plain, resumed, _ = (RunDirectory.of(spec) for spec in specs)
    caplog.set_level(logging.INFO, "slm")
    run_to_end(specs[0])
    with power_cut(monkeypatch, before_step=9):
        run_to_end(specs[1])
    sync_study(cells)
    assert list(server.runs) == [plain.path.name, resumed.path.name]  # the cheapest first
    assert_same_history(server.runs[plain.path.name].history, plain)
    assert_same_history(server.runs[resumed.path.name].history, resumed)
    assert [run.exit_code for run in server.runs.values()] == [0, 1]
    assert f"2 uploaded, 1 not started; {server.url}/me/slm" in caplog.text
    run_to_end(specs[1])
    sync_study(cells)
    assert [run.starts for run in server.runs.values()] == [1, 2]
    assert_same_history(server.runs[resumed.path.name].history, resumed)
    assert server.runs[resumed.path.name].exit_code == 0
    assert "1 unchanged, 1 uploaded, 1 not started" in caplog.text
    collected = Cell(tiny_spec(seed=9), "tiny", "L2-d32", recorded=plain.result())
    with resumed.claim(specs[1]):
        sync_study([*cells, collected])
    assert "1 unchanged, 1 running, 1 not started, 1 without run directory" in caplog.text
    server.stop()
    with pytest.raises(RunError, match="nothing was uploaded"):
        sync_study(cells)


def test_sync_needs_a_login_and_a_host(
    tiny_spec: Spec, log_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cells = [Cell(tiny_spec(), "tiny", "L2-d32")]
    with pytest.raises(RunError, match="nothing was uploaded to W&B: WANDB_MODE=offline"):
        sync_study(cells)
    log_in(closed_port())
    with pytest.raises(RunError, match=r"does not answer .*refused"):
        sync_study(cells)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()
    with pytest.raises(
        RunError, match=r"not logged in to W&B \(http://127\.0\.0\.1:.*\); run `wandb login`"
    ):
        sync_study(cells)


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_host_a_run_is_mirrored_offline(
    tiny_spec: Spec, log_in: Callable[[str], None], mode: str, caplog: Logs
) -> None:
    log_in(closed_port())
    caplog.set_level(logging.INFO, "slm.tracking.wandb")
    spec = tiny_spec(tracking={"wandb": mode}, study={"name": "mine"}, budget={"tokens": 4 * 256})
    run, _ = run_to_end(spec)
    assert_mirrored(run, spec)
    (line,) = (record for record in caplog.records if record.name == tracking.__name__)
    assert line.levelname == {"auto": "INFO", "online": "WARNING"}[mode]
    assert "repeat the sweep.py command of study mine with action=sync" in line.message


def test_host_that_fails_after_the_probe(
    tiny_spec: Spec, log_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: Logs
) -> None:
    log_in(closed_port())
    monkeypatch.setattr(tracking, "_probe", lambda host: None)
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_SECONDS", 1.0)
    spec = tiny_spec(tracking={"wandb": "auto"}, budget={"tokens": 4 * 256})
    run, _ = run_to_end(spec)
    assert_same_history(finished_offline(offline_files(run)[-1]).rows, run)


def test_host_that_dies_during_a_run(
    server: FakeWandb, tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch, caplog: Logs
) -> None:
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_SECONDS", 2.0)
    spec = tiny_spec(tracking={"wandb": "auto"}, budget={"tokens": 4 * 256})
    run = RunDirectory.of(spec)
    with run.claim(spec), mirror(spec, run, 0) as mirrored:
        server.stop()
        mirrored.log({STEP: 1, TOKENS: 1, TRAIN_LOSS: 1.0})
    assert "W&B finish failed; the run continues without W&B" in caplog.text
    assert not (run.path / tracking.UPLOADED).exists()


class BrokenWandb:
    """Replacement of the wandb module in which every call fails."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("no route to host")


def test_wandb_failure_does_not_stop_a_run(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", BrokenWandb())
    spec = tiny_spec(tracking={"wandb": "online"})
    with mirror(spec, RunDirectory.of(spec), 0) as mirrored:
        mirrored.log({STEP: 1})
        assert mirrored.id is None


@pytest.mark.slow
def test_host_that_accepts_and_never_replies(
    tiny_spec: Spec, log_in: Callable[[str], None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:
        log_in(f"http://127.0.0.1:{hole.getsockname()[1]}")
        spec = tiny_spec(tracking={"wandb": "auto"}, budget={"tokens": 4 * 256})
        start_seconds = time.monotonic()
        with mirror(spec, RunDirectory.of(spec), 0):
            assert time.monotonic() - start_seconds < 45
        run, _ = run_to_end(spec)
    assert_mirrored(run, spec, starts=2)


LONG = (
    "experiment=smoke",
    "optimizer.global_batch_tokens=512",
    "budget.tokens=81920",
    "trainer.checkpoint_every_steps=25",
    "trainer.validate_every_steps=20",
)


@pytest.mark.slow
def test_run_killed_twice(tmp_path: Path, cache_dir: Path, cli: Cli) -> None:
    command = cli_command("train.py", tmp_path, cache_dir, *LONG)
    for kill_at in (45, 95):
        kill_after_step(command, tmp_path / "runs", kill_at)
    assert cli("train.py", *LONG).returncode == 0
    (status,) = tmp_path.glob("runs/*/*/status.json")
    run = RunDirectory(status.parent)
    assert_mirrored(run, run.spec(), starts=3)


def kill_after_step(command: list[str], runs: Path, step: int) -> None:
    process = subprocess.Popen(command, cwd=ROOT, env=cli_env(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        rows = [row for file in runs.glob("*/*/") for row in RunDirectory(file).read_metrics()]
        if any(row[STEP] >= step for row in rows):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_four_processes_at_once(tmp_path: Path, cache_dir: Path) -> None:
    command = cli_command("train.py", tmp_path, cache_dir, "experiment=smoke")
    processes = [
        subprocess.Popen([*command, f"seed={seed}"], cwd=ROOT, env=cli_env()) for seed in range(4)
    ]
    assert [process.wait(PATIENCE_SECONDS) for process in processes] == [0] * 4
    runs = [RunDirectory(file.parent) for file in tmp_path.glob("runs/*/*/result.json")]
    assert len(runs) == 4
    for run in runs:
        assert_mirrored(run, run.spec())


@pytest.mark.slow
def test_two_ranks_get_one_wandb_run(tiny_spec: Spec, tmp_path: Path) -> None:
    spec = tiny_spec(tracking=OFFLINE, trainer={"strategy": "ddp", "devices": 2})
    ((ending, _),) = train_on_ranks(tmp_path / "ranks", [Job(spec.config)])
    assert not ending.error, ending
    assert_mirrored(RunDirectory.of(spec), spec)
