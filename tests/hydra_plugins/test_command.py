"""The command of a job, and the signals that reach its process; real processes without clusters."""

from __future__ import annotations

import _thread
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hydra_plugins.slm_study._command import (
    Outcome,
    ProcessKilled,
    TrainCommand,
    describe_exit,
    is_interrupted,
    run_lines,
)
from hydra_plugins.slm_study._slurm_task import SlurmTask
from hydra_plugins.slm_study.ray import run_task
from tests.clusters.slurm import wait_until
from tests.conftest import PATIENCE_SECONDS, ROOT

# A run that saves its state at a signal, as train.py does, and leaves a file for each event.
SAVING_RUN = """
import os, pathlib, signal, sys, time
received = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: received.append(number))
pathlib.Path("pid").write_text(str(os.getpid()))
pathlib.Path("started").touch()
while not received:
    time.sleep(0.01)
time.sleep(0.3)
pathlib.Path("saved").write_text(signal.Signals(received[0]).name)
print("saved", flush=True)
sys.exit(128 + received[0])
"""
# A run without handlers, as while train.py still imports its modules.
IMPORTING_RUN = """
import os, pathlib, time
pathlib.Path("pid").write_text(str(os.getpid()))
pathlib.Path("started").touch()
time.sleep(600)
"""
STUCK_RUN = f"import signal\nsignal.signal(signal.SIGUSR2, signal.SIG_IGN){IMPORTING_RUN}"


@pytest.fixture
def command_of(tmp_path: Path) -> Callable[[str], TrainCommand]:
    return lambda code: TrainCommand((sys.executable, "-c", code), str(tmp_path))


def test_command_is_what_a_user_would_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "sweep.py"), "study=smoke"])
    monkeypatch.chdir(tmp_path)
    command = TrainCommand.of(["study=smoke", "seed=1"])
    script = str(tmp_path / "train.py")
    assert command.arguments == (sys.executable, script, "study=smoke", "seed=1")
    assert command.folder == str(tmp_path)
    torchrun = TrainCommand.of(["seed=1"], processes=2).arguments
    assert torchrun[1:3] == ("-m", "torch.distributed.run") and torchrun[-2:] == (script, "seed=1")
    assert "--nproc-per-node=2" in torchrun


def test_each_start_of_a_command_has_the_same_submission_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Slm's launchers pickle the command; Slurm and Ray start it again after a requeue or a node failure."""
    (tmp_path / "train.py").write_text("import os; print(os.environ['SLM_SUBMISSION_ID'])")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "sweep.py")])
    first, second = (TrainCommand.of(["rerun=true"]) for _ in range(2))
    again = pickle.loads(pickle.dumps(first))
    ids = [command.run().lines for command in (first, again, second)]
    assert ids[0] == ids[1] != ids[2]


def test_output_without_the_lines_of_torchrun() -> None:
    output = """steps
Traceback (most recent call last):
    a crash of the run
ZeroDivisionError
E1124 14:52:04.024000 25703 torch/distributed/elastic/multiprocessing/api.py:1002] failed
Traceback (most recent call last):
ChildFailedError"""
    assert run_lines(output)[-1] == "ZeroDivisionError" and len(run_lines(output)) == 4


@pytest.mark.parametrize(
    ("code", "line", "interrupted"),
    [
        (130, "interrupted by SIGINT after step 3", True),
        (1, "interrupted by SIGINT after step 3", True),  # torchrun has a code of its own
        (-signal.SIGINT, "", True),
        (143, "", True),
        (1, "RuntimeError", False),
        (137, "", False),
        (None, "", False),
    ],
)
def test_exit_codes_of_interrupted_runs(code: int | None, line: str, interrupted: bool) -> None:
    assert is_interrupted(Outcome(code, (line,))) == interrupted


def test_exit_codes_in_words() -> None:
    assert describe_exit(3) == "exit code 3" and describe_exit(-9) == "killed by SIGKILL"


def test_outcome_has_the_exit_code_and_the_output(
    command_of: Callable[[str], TrainCommand],
) -> None:
    code = "import os, sys; print('one'); print(os.environ['KEY'], file=sys.stderr); sys.exit(3)"
    outcome = command_of(code).run(env={**os.environ, "KEY": "two"}, outlives_launcher=True)
    assert outcome.exit_code == 3 and sorted(outcome.lines) == ["one", "two"]


def test_process_of_a_cluster_dies_with_its_parent(tmp_path: Path) -> None:
    """Otherwise it would hold the lease of a run that Ray starts again."""
    parent_code = (
        "from hydra_plugins.slm_study._command import TrainCommand\n"
        f"TrainCommand(({sys.executable!r}, '-c', {IMPORTING_RUN!r}), {str(tmp_path)!r}).run()"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code], cwd=ROOT, env=python_env())
    wait_until((tmp_path / "started").exists, PATIENCE_SECONDS)
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(child), PATIENCE_SECONDS)


def test_cancelled_ray_task_waits_until_the_run_has_saved(
    command_of: Callable[[str], TrainCommand], tmp_path: Path
) -> None:
    """ray.cancel raises KeyboardInterrupt without a signal, and Ray's workers block SIGINT."""

    def cancel() -> None:
        wait_until((tmp_path / "started").exists, PATIENCE_SECONDS)
        _thread.interrupt_main()

    threading.Thread(target=cancel).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with pytest.raises(KeyboardInterrupt):
            run_task(command_of(SAVING_RUN), tmp_path / "stop")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert (tmp_path / "saved").read_text() == "SIGINT"


def test_file_stops_a_ray_task(command_of: Callable[[str], TrainCommand], tmp_path: Path) -> None:
    def stop() -> None:
        wait_until((tmp_path / "started").exists, PATIENCE_SECONDS)
        (tmp_path / "stop").touch()

    threading.Thread(target=stop).start()
    assert run_task(command_of(SAVING_RUN), tmp_path / "stop").exit_code == 128 + signal.SIGINT
    assert (tmp_path / "saved").read_text() == "SIGINT"
    assert run_task(command_of("raise SystemExit(1)"), tmp_path / "stop").last_line == "not started"


def test_killed_process_fails_the_ray_task_for_a_retry(
    command_of: Callable[[str], TrainCommand], tmp_path: Path
) -> None:
    stop_file = tmp_path / "stop"
    with pytest.raises(ProcessKilled, match=r"killed by SIGKILL; last line of its output: step 3"):
        code = "import os; print('step 3', flush=True); os.kill(os.getpid(), 9)"
        run_task(command_of(code), stop_file)
    assert run_task(command_of("raise SystemExit(1)"), stop_file).exit_code == 1


class SlurmJob:
    """A job as submitit starts it in a task of srun; `scontrol` on its PATH records the requeue."""

    def __init__(self, folder: Path, code: str, rank: int = 0):
        from submitit.helpers import DelayedSubmission

        self.folder, self.submission = folder, folder / "1_submitted.pkl"
        command = TrainCommand((sys.executable, "-c", code), str(folder))
        submission = DelayedSubmission(SlurmTask(saving_seconds=2), command)
        submission.set_timeout(timeout_min=240, max_num_timeout=3)
        submission.dump(self.submission)
        scontrol = folder / "scontrol"
        scontrol.write_text(f'#!/bin/sh\necho "$@" > {folder}/requeued\n')
        scontrol.chmod(0o755)
        slurm = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": str(rank)}
        path = f"{folder}:{os.environ['PATH']}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "submitit.core._submit", str(folder)],
            cwd=ROOT,
            env={**python_env(), **slurm, "SUBMITIT_EXECUTOR": "slurm", "PATH": path},
        )

    def wait_for_start(self) -> int:
        """Return the process id of the run."""
        wait_until((self.folder / "started").exists, PATIENCE_SECONDS)
        return int((self.folder / "pid").read_text())

    def exit_code(self) -> int:
        return self.process.wait(timeout=PATIENCE_SECONDS)

    @property
    def requeued(self) -> str:
        path = self.folder / "requeued"
        return path.read_text().strip() if path.exists() else ""


@pytest.fixture
def slurm_job(tmp_path: Path) -> Callable[..., SlurmJob]:
    if find_spec("submitit") is None:
        pytest.skip("pip install -e '.[slurm]'")
    return lambda code, **rank: SlurmJob(tmp_path, code, **rank)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("code", "saved"), [(SAVING_RUN, True), (IMPORTING_RUN, False), (STUCK_RUN, False)]
)
def test_slurm_job_is_requeued_before_its_time_limit(
    slurm_job: Callable[..., SlurmJob], code: str, saved: bool
) -> None:
    job = slurm_job(code)
    run = job.wait_for_start()
    job.process.send_signal(signal.SIGUSR2)
    assert job.exit_code() != 0 and job.requeued == "requeue 1"
    assert (job.folder / "saved").exists() == saved and not is_running(run)
    again = load_submission(job.submission)
    assert again.args[0].arguments[2] == code, "the requeued job runs the same command"


@pytest.mark.cluster
def test_slurm_job_is_requeued_if_the_signal_ends_its_run_first(
    slurm_job: Callable[..., SlurmJob],
) -> None:
    job = slurm_job(IMPORTING_RUN)
    os.kill(job.wait_for_start(), signal.SIGUSR2)
    assert job.exit_code() != 0 and job.requeued == "requeue 1"


@pytest.mark.cluster
def test_other_ranks_leave_the_requeue_to_rank_0(slurm_job: Callable[..., SlurmJob]) -> None:
    """An exit code other than 0 would make srun end rank 0 before it requeues the job."""
    job = slurm_job(SAVING_RUN, rank=1)
    job.wait_for_start()
    job.process.send_signal(signal.SIGUSR2)
    assert job.exit_code() == 0 and not job.requeued
    assert (job.folder / "saved").read_text() == "SIGUSR2"


@pytest.mark.cluster
def test_preempted_slurm_job_saves_its_state(slurm_job: Callable[..., SlurmJob]) -> None:
    job = slurm_job(SAVING_RUN)
    job.wait_for_start()
    job.process.send_signal(signal.SIGTERM)
    assert job.exit_code() == 128 + signal.SIGTERM and not job.requeued  # Slurm requeues it itself
    assert (job.folder / "saved").read_text() == "SIGTERM"


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("code", "expected", "rank"),
    [
        ("raise SystemExit(3)", 3, 0),
        ("raise SystemExit(3)", 3, 1),
        ("import os; os.kill(os.getpid(), 9)", 137, 0),
        ("print('done')", 0, 1),
    ],
)
def test_slurm_task_has_the_exit_code_of_its_run(
    slurm_job: Callable[..., SlurmJob], code: str, expected: int, rank: int
) -> None:
    assert slurm_job(code, rank=rank).exit_code() == expected


def python_env() -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def load_submission(path: Path) -> Any:
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission.load(path)
