"""Rank and world size of a process, and the GPUs that the local launcher assigns to jobs."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf

from hydra_plugins.slm_study import local
from hydra_plugins.slm_study.local import LocalLauncher
from slm.config.schema import Config, TrainerConfig, to_tree
from slm.errors import ConfigError, LaunchError
from slm.tracking.concurrency import visible_gpus
from slm.training.distributed import rank as rank_module
from slm.training.distributed.rank import (
    check_address,
    check_launch,
    check_single_process,
    drop_empty_variables,
    find_placement,
    first_node,
)
from tests.conftest import PATIENCE_SECONDS, ROOT, cli_command, cli_env

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


def test_rank_and_world_size_from_the_environment() -> None:
    assert find_placement({}) is None
    assert find_placement({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}) is None
    elastic = find_placement({**SRUN, **TORCHRUN})  # torchrun started by srun
    assert elastic is not None and elastic.init_method == "env://"
    assert (elastic.rank, elastic.world_size, elastic.local_rank) == (5, 8, 1)
    task = find_placement(SRUN)
    assert task is not None and (task.rank, task.world_size, task.local_rank) == (3, 4, 1)
    assert task.init_method.startswith("tcp://gpu07:")
    # Concurrent steps of one Slurm job use different ports.
    other = find_placement({**SRUN, "SLURM_STEP_ID": "1"})
    assert other is not None and other.init_method != task.init_method
    configured = find_placement({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert configured is not None and configured.init_method == "tcp://10.0.0.1:4000"


def test_missing_address_of_rank_zero_is_an_error(tmp_path: Path) -> None:
    for key, value in (("SLURM_JOB_ID", ""), ("SLURM_STEP_NODELIST", ""), ("SLURM_STEP_ID", "x")):
        with pytest.raises(LaunchError, match=key):
            find_placement({**SRUN, key: value})
    environ = {**cli_env(), "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    environ = {k: v for k, v in environ.items() if k not in ("MASTER_ADDR", "MASTER_PORT")}
    two = ("trainer.strategy=ddp", "trainer.devices=2")
    done = subprocess.run(
        cli_command("train.py", tmp_path, tmp_path, "experiment=smoke", *two),
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "WORLD_SIZE=2 without MASTER_ADDR and MASTER_PORT" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be 1 or more"),
        ({"RANK": "-1"}, "RANK=-1: must be 0 or more"),
        ({"LOCAL_RANK": "one"}, "LOCAL_RANK=one: must be a number"),
        ({"RANK": "8"}, "RANK=8: must be less than WORLD_SIZE=8"),
    ],
)
def test_invalid_variables_are_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=f"^{message}"):
        find_placement({**TORCHRUN, **changes})
    (key,) = changes
    if "less" not in message:  # one variable alone, such as a leftover of a shell
        with pytest.raises(LaunchError, match=f"^{message}"):
            find_placement(changes)
    slurm = dict(zip(rank_module.TORCHRUN, rank_module.SRUN, strict=True))
    with pytest.raises(LaunchError, match=f"^{slurm[key]}="):
        find_placement({**SRUN, slurm[key]: changes[key]})


@pytest.mark.parametrize("port", ["0", "-1", "http", "65536"])
def test_invalid_port_is_named(port: str) -> None:
    environ = {**TORCHRUN, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    placement = find_placement(environ)
    assert placement is not None
    with pytest.raises(LaunchError, match=f"^MASTER_PORT={port}: must be"):
        check_address(placement, environ)
    with pytest.raises(LaunchError, match=f"^MASTER_PORT={port}: must be"):
        find_placement({**SRUN, "MASTER_PORT": port})


def test_variables_of_a_slurm_task_are_named() -> None:
    task = find_placement(SRUN)
    assert task is not None
    with pytest.raises(ConfigError, match="unset SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID"):
        check_launch(TrainerConfig(), task.world_size, task.local_rank, task.variables)


def test_slurm_batch_script_is_not_a_task() -> None:
    assert find_placement({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n7", "n7"), ("a1,b2", "a1"), ("gpu[003-006,9],big1", "gpu003"), ("n[12]-ib", "n12-ib")],
)
def test_first_node_of_a_nodelist(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("trainer", "world_size", "local_rank", "message"),
    [
        (
            {"strategy": "ddp", "devices": 2},
            1,
            0,
            r"start a run over 2 processes with torchrun.* \(torchrun --nproc-per-node=2 train.py trainer=ddp trainer.devices=2",
        ),
        ({"strategy": "fsdp", "devices": 4, "num_nodes": 2}, 1, 0, "--nnodes=2 --nproc-per-node=4"),
        ({"strategy": "ddp", "devices": 2}, 3, 0, "make 2 processes; 3 were started"),
        ({"strategy": "ddp", "devices": 2, "num_nodes": 2}, 4, 3, "4 or more on this node"),
        (
            {},
            2,
            0,
            "trainer.strategy=single: strategy single trains in one process, 2 were started",
        ),
    ],
)
def test_error_for_wrong_number_of_processes(
    trainer: dict[str, object], world_size: int, local_rank: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_launch(TrainerConfig(**trainer), world_size, local_rank)


def test_several_processes_of_a_launcher_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(rank_module.time, "sleep", waits.append)
    before = signal.getsignal(signal.SIGTERM)
    check_single_process({})
    try:
        for rank in ("0", "1"):
            named = f"RANK={rank} WORLD_SIZE=8 LOCAL_RANK=1: .* unset RANK WORLD_SIZE LOCAL_RANK"
            with pytest.raises(LaunchError, match=named):
                check_single_process({**TORCHRUN, "RANK": rank})
            assert waits == [rank_module.REPORT_SECONDS] * int(rank), "rank 0 prints it first"
    finally:
        signal.signal(signal.SIGTERM, before)


SCRIPT = """
import json, os, sys, time
began = time.time()
time.sleep(0.3)
gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
with open(sys.argv[1], "w") as stream:
    names = "OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"
    threads = [os.environ.get(name) for name in names]
    job = {"overrides": sys.argv[2:], "threads": threads}
    json.dump({**job, "gpus": gpus, "began": began, "ended": time.time()}, stream)
print("done")
"""
OF_SWEEP = {
    "hydra": {
        "runtime": {"choices": {"hydra/sweeper": "study"}},
        "job": {"config_name": "sweep"},
    }
}
Launched = Callable[..., list[dict[str, object]]]


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launched:
    """Launch jobs with a stub train.py; return the GPUs and times that each job reports."""
    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "sweep.py")])
    # The jobs are no runs of slm, so their overrides are not composed.
    monkeypatch.setattr(LocalLauncher, "_specs", lambda launcher, overrides: [])

    def launch(launcher: LocalLauncher, n_jobs: int, **trainer: object) -> list[dict[str, object]]:
        config = to_tree(Config(trainer=TrainerConfig(**trainer)))  # type: ignore[arg-type]
        launcher.setup(
            hydra_context=None,  # type: ignore[arg-type]
            task_function=None,  # type: ignore[arg-type]
            config=OmegaConf.create({**config, **OF_SWEEP}),
        )
        reports = [tmp_path / f"job-{index}.json" for index in range(n_jobs)]
        jobs = launcher.launch([[str(report)] for report in reports], 0)
        assert all(job.status == JobStatus.COMPLETED for job in jobs)
        return [json.loads(report.read_text()) for report in reports]

    return launch


def max_concurrent_jobs(jobs: Sequence[dict[str, object]], gpu: str) -> int:
    on_gpu = [job for job in jobs if gpu in str(job["gpus"]).split(",")]
    return max(
        sum(job["began"] <= other["began"] < job["ended"] for job in on_gpu)  # type: ignore[operator]
        for other in on_gpu
    )


@pytest.mark.parametrize(("jobs_per_gpu", "concurrent"), [(1, 2), (2, 4)])
def test_each_job_has_a_gpu(launched: Launched, jobs_per_gpu: int, concurrent: int) -> None:
    jobs = launched(LocalLauncher(gpus=[4, "GPU-abc"], jobs_per_gpu=jobs_per_gpu), 8)
    assert {job["gpus"] for job in jobs} == {"4", "GPU-abc"}
    assert max_concurrent_jobs(jobs, "4") == max_concurrent_jobs(jobs, "GPU-abc") == jobs_per_gpu
    assert sum(max_concurrent_jobs(jobs, gpu) for gpu in ("4", "GPU-abc")) == concurrent


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("eight_cores")
def test_jobs_on_one_gpu_share_its_memory_and_the_cores(launched: Launched) -> None:
    launcher = LocalLauncher(gpus=[0], jobs_per_gpu=4)
    for job in launched(launcher, 4, accelerator="gpu", threads=8):
        assert job["overrides"] == ["trainer.threads=2", "trainer.gpu_memory_fraction=0.25"]
        assert job["threads"] == ["2", "2"]
    (job,) = launched(launcher, 1, accelerator="gpu", gpu_memory_fraction=0.1)
    assert job["overrides"] == ["trainer.threads=8"], (
        "one job has all cores; the config's share stays"
    )


@pytest.mark.usefixtures("eight_cores")
def test_job_with_a_gpu_of_its_own_has_all_its_memory(launched: Launched) -> None:
    for job in launched(LocalLauncher(gpus=[0, 1]), 2, accelerator="gpu", threads=3):
        assert job["overrides"] == ["trainer.threads=3"] and job["threads"] == ["3", "3"]


@pytest.mark.usefixtures("eight_cores")
def test_cpu_jobs_keep_their_threads_but_share_the_compilers(launched: Launched) -> None:
    for job in launched(LocalLauncher(n_jobs=4), 4, accelerator="cpu", threads=3):
        assert job["overrides"] == [] and job["threads"] == [None, "2"]


def test_n_jobs_limits_concurrent_jobs(launched: Launched) -> None:
    jobs = launched(LocalLauncher(n_jobs=1, gpus=[0, 1], jobs_per_gpu=3), 3)
    assert all(a["ended"] <= b["began"] for a, b in itertools.pairwise(jobs))  # type: ignore[operator]


def test_cpu_jobs_keep_the_environments_visible_gpus(
    launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert launched(LocalLauncher(n_jobs=2), 2, accelerator="cpu")[0]["gpus"] == "1,2"
    seen = {job["gpus"] for job in launched(LocalLauncher(), 4, accelerator="auto")}
    assert seen == {"1", "2"}


def gpu_groups(launcher: LocalLauncher, devices: int) -> list[str | None]:
    """Return the GPUs that the launcher assigns to each of its concurrent jobs."""
    trainer = TrainerConfig(strategy="ddp", devices=devices)
    launcher.setup(
        hydra_context=None,  # type: ignore[arg-type]
        task_function=None,  # type: ignore[arg-type]
        config=OmegaConf.create({**to_tree(Config(trainer=trainer)), **OF_SWEEP}),
    )
    free = launcher._slots()
    return [free.get() for _ in range(free.qsize())]


def test_distributed_runs_get_disjoint_groups_of_gpus() -> None:
    gpus = [0, 1, 2, 3, 4]
    assert gpu_groups(LocalLauncher(gpus=gpus), 2) == ["0,1", "2,3"]
    assert gpu_groups(LocalLauncher(gpus=gpus, jobs_per_gpu=2), 4) == ["0,1,2,3"] * 2
    with pytest.raises(ConfigError, match=r"trainer.devices=8: .* there are 5: 0, 1, 2, 3, 4"):
        gpu_groups(LocalLauncher(gpus=gpus), 8)


def test_visible_gpus_from_the_environment_or_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-1")
    assert visible_gpus() == ["3", "GPU-1"]
    for none in ("", "-1", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, -1, 1")
    assert visible_gpus() == ["2"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    listing = (
        "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-1)\nGPU 1: NVIDIA\n"
    )
    (tmp_path / "nvidia-smi").write_text(f"#!{sys.executable}\nprint({listing!r})\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus() == ["0", "1"]


def test_empty_variables_count_as_not_set() -> None:
    environ = {**TORCHRUN, "RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""}
    assert find_placement(environ) is None
    drop_empty_variables(environ)
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & environ.keys()
    with pytest.raises(LaunchError, match="RANK=x: must be a number"):
        find_placement({**TORCHRUN, "RANK": "x"})


@pytest.mark.parametrize("kept", [["RANK"], ["WORLD_SIZE"], ["LOCAL_RANK"], ["RANK", "WORLD_SIZE"]])
def test_incomplete_variables_are_named(kept: list[str]) -> None:
    with pytest.raises(LaunchError, match=f"unset {' '.join(kept)}$"):
        find_placement({key: TORCHRUN[key] for key in kept})


def test_variables_of_an_earlier_launch_are_named_at_once(tmp_path: Path) -> None:
    """The process reports them instead of waiting for a second process that nobody started."""
    leftovers = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    done = subprocess.run(
        cli_command("train.py", tmp_path, tmp_path, "experiment=smoke"),
        cwd=ROOT,
        env={**cli_env(), **leftovers},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "unset RANK WORLD_SIZE LOCAL_RANK" in done.stderr
