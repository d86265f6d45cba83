"""Which process this is, and what the local launcher gives each job."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf

from hydra_plugins.slm_study.local import LocalLauncher, said_by_the_run, visible_gpus
from slm.config.schema import Config, TrainerConfig, to_tree
from slm.errors import ConfigError, RunError
from slm.training.launch import check_alone, check_launch, find_place, first_node

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {
    "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip


def test_a_process_finds_its_place() -> None:
    assert find_place({}) is None
    assert find_place({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}) is None
    elastic = find_place({**SRUN, **TORCHRUN})  # torchrun started by srun
    assert elastic is not None and elastic.meeting_point == "env://"
    assert (elastic.rank, elastic.world_size, elastic.local_rank) == (5, 8, 1)
    task = find_place(SRUN)
    assert task is not None and (task.rank, task.world_size, task.local_rank) == (3, 4, 1)
    assert task.meeting_point.startswith("tcp://gpu07:")
    # Steps that run at the same time in one job meet at different ports.
    other = find_place({**SRUN, "SLURM_STEP_ID": "1"})
    assert other is not None and other.meeting_point != task.meeting_point
    own = find_place({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert own is not None and own.meeting_point == "tcp://10.0.0.1:4000"


def test_a_batch_script_of_slurm_is_no_task() -> None:
    assert find_place({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n7", "n7"), ("a1,b2", "a1"), ("gpu[003-006,9],big1", "gpu003"), ("n[12]-ib", "n12-ib")],
)
def test_the_first_node(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("trainer", "world_size", "local_rank", "said"),
    [
        (
            {"strategy": "ddp", "devices": 2}, 1, 0,
            r"started by torchrun.* \(torchrun --nproc-per-node=2 train.py trainer=ddp trainer.devices=2",
        ),
        ({"strategy": "fsdp", "devices": 4, "num_nodes": 2}, 1, 0, "--nnodes=2 --nproc-per-node=4"),
        ({"strategy": "ddp", "devices": 2}, 3, 0, "make 2 processes; 3 were started"),
        ({"strategy": "ddp", "devices": 2, "num_nodes": 2}, 4, 3, "4 or more on this node"),
        ({}, 2, 0, "trainer.strategy=single: one process trains alone, 2 were started"),
    ],
)  # fmt: skip
def test_too_many_or_too_few_processes(
    trainer: dict[str, object], world_size: int, local_rank: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_launch(TrainerConfig(**trainer), world_size, local_rank)


def test_what_starts_runs_is_started_once() -> None:
    check_alone({})
    for rank in ("0", "1"):
        with pytest.raises(RunError, match="start one") as caught:
            check_alone({**TORCHRUN, "RANK": rank})
        assert caught.value.was_shown == (rank == "1"), "the first tells of it"


SCRIPT = """
import json, os, sys, time
began = time.time()
time.sleep(0.3)
gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
with open(sys.argv[1], "w") as stream:
    json.dump({"gpus": gpus, "began": began, "ended": time.time()}, stream)
print("done")
"""
Launched = Callable[..., list[dict[str, object]]]


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launched:
    """What jobs of the launcher saw; a train.py of ours stands where the launcher looks for one."""
    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "sweep.py")])

    def launch(launcher: LocalLauncher, n_jobs: int, **trainer: object) -> list[dict[str, object]]:
        config = to_tree(Config(trainer=TrainerConfig(**trainer)))  # type: ignore[arg-type]
        launcher.setup(
            hydra_context=None,  # type: ignore[arg-type]
            task_function=None,  # type: ignore[arg-type]
            config=OmegaConf.create(config),
        )
        reports = [tmp_path / f"job-{index}.json" for index in range(n_jobs)]
        jobs = launcher.launch([[str(report)] for report in reports], 0)
        assert all(job.status == JobStatus.COMPLETED for job in jobs)
        return [json.loads(report.read_text()) for report in reports]

    return launch


def most_at_once(jobs: Sequence[dict[str, object]], gpu: str) -> int:
    mine = [job for job in jobs if gpu in str(job["gpus"]).split(",")]
    return max(
        sum(job["began"] <= other["began"] < job["ended"] for job in mine)  # type: ignore[operator]
        for other in mine
    )


@pytest.mark.parametrize(("jobs_per_gpu", "at_once"), [(1, 2), (2, 4)])
def test_each_job_has_a_gpu(launched: Launched, jobs_per_gpu: int, at_once: int) -> None:
    jobs = launched(LocalLauncher(gpus=[4, "GPU-abc"], jobs_per_gpu=jobs_per_gpu), 8)
    assert {job["gpus"] for job in jobs} == {"4", "GPU-abc"}
    assert most_at_once(jobs, "4") == most_at_once(jobs, "GPU-abc") == jobs_per_gpu
    assert sum(most_at_once(jobs, gpu) for gpu in ("4", "GPU-abc")) == at_once


def test_n_jobs_is_the_most_at_once(launched: Launched) -> None:
    jobs = launched(LocalLauncher(n_jobs=1, gpus=[0, 1], jobs_per_gpu=3), 3)
    assert all(a["ended"] <= b["began"] for a, b in itertools.pairwise(jobs))  # type: ignore[operator]


def test_without_gpus_nothing_is_said_of_them(
    launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert launched(LocalLauncher(n_jobs=2), 2, accelerator="cpu")[0]["gpus"] == "1,2"
    seen = {job["gpus"] for job in launched(LocalLauncher(), 4, accelerator="auto")}
    assert seen == {"1", "2"}


def places(launcher: LocalLauncher, devices: int) -> list[str | None]:
    trainer = TrainerConfig(strategy="ddp", devices=devices)
    launcher.setup(
        hydra_context=None,  # type: ignore[arg-type]
        task_function=None,  # type: ignore[arg-type]
        config=OmegaConf.create(to_tree(Config(trainer=trainer))),
    )
    free = launcher._places()
    return [free.get() for _ in range(free.qsize())]


def test_a_run_over_several_gpus_has_them_to_itself() -> None:
    gpus = [0, 1, 2, 3, 4]
    assert places(LocalLauncher(gpus=gpus), 2) == ["0,1", "2,3"]
    assert places(LocalLauncher(gpus=gpus, jobs_per_gpu=2), 4) == ["0,1,2,3"] * 2
    with pytest.raises(ConfigError, match=r"trainer.devices=8: .* there are 5: 0, 1, 2, 3, 4"):
        places(LocalLauncher(gpus=gpus), 8)


def test_gpus_are_those_of_the_environment_or_of_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-1")
    assert visible_gpus() == ["3", "GPU-1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    listing = (
        "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-1)\nGPU 1: NVIDIA\n"
    )
    (tmp_path / "nvidia-smi").write_text(f"#!{sys.executable}\nprint({listing!r})\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus() == ["0", "1"]


def test_torchruns_own_lines_are_left_out() -> None:
    output = """steps
Traceback (most recent call last):
    a crash of the run
ZeroDivisionError
E1124 14:52:04.024000 25703 torch/distributed/elastic/multiprocessing/api.py:1002] failed
Traceback (most recent call last):
ChildFailedError"""
    assert said_by_the_run(output)[-1] == "ZeroDivisionError"
    assert len(said_by_the_run(output)) == 4
