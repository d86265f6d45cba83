"""Keys of hydra.launcher and hydra.sweeper.

Hydra does not scan modules with a leading underscore: its scanner executes a module again, before it is in
sys.modules, and dataclasses cannot be defined there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import II


@dataclass
class LocalSettings:
    """Keys of hydra/launcher=local."""

    _target_: str = "hydra_plugins.slm_study.local.LocalLauncher"
    n_jobs: int | None = None
    """Number of concurrent jobs; null: as many as the GPUs or, on CPUs, the cores allow."""
    gpus: list[Any] | None = None
    """Ids as in CUDA_VISIBLE_DEVICES; null: those that this process sees, none for trainer.accelerator=cpu."""
    jobs_per_gpu: int = 1
    """Number of concurrent jobs on the same GPUs, which share their memory equally."""


@dataclass
class RaySettings:
    """Keys of hydra/launcher=ray."""

    _target_: str = "hydra_plugins.slm_study.ray.RayLauncher"
    init: dict[str, Any] = field(
        default_factory=lambda: {
            # Address of the cluster; null: RAY_ADDRESS, else the cluster of `ray start`, else a new local one.
            "address": None,
            "include_dashboard": False,
            "log_to_driver": False,  # each run has its own log.txt
        }
    )
    """Arguments of ray.init; add others with hydra.launcher.init.KEY=..."""
    remote: dict[str, Any] = field(
        default_factory=lambda: {
            # On GPUs at most the job's share of the cluster's cores.
            "num_cpus": II("trainer.threads"),
            # null: 1 if trainer.accelerator=gpu, else 0; 0.5 runs two jobs per GPU, each with half of its memory.
            "num_gpus": None,
            "max_calls": 1,  # a new worker process for each job
            # Limit for a job whose process or node died; it resumes from its last checkpoint.
            "max_retries": 3,
        }
    )
    """Arguments of ray.remote; add others with hydra.launcher.remote.KEY=..."""


@dataclass
class SlurmSettings:
    """Keys of hydra/launcher=slurm; null uses the default of the cluster.

    Set other options of sbatch with hydra.launcher.additional_parameters.KEY=VALUE. For the defaults of a site, add
    a file conf/hydra/launcher/SITE.yaml that begins with `defaults: [slurm]`, and choose hydra/launcher=SITE.
    """

    _target_: str = "hydra_plugins.slm_study.slurm.SlurmLauncher"
    submitit_folder: str = "${runs_dir}/${study.name}/.slurm"
    """Logs and pickles of the jobs; must be on a shared file system."""
    name: str = "slm-${study.name}"

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    comment: str | None = None

    nodes: int = II("trainer.num_nodes")
    tasks_per_node: int = II("trainer.devices")
    """A run on several GPUs has one task per GPU; the ranks find each other through Slurm's environment."""
    cpus_per_task: int | None = None
    """null: trainer.threads; if that is null too, 8 if trainer.accelerator=gpu, else Slurm's default."""
    gpus_per_node: int | None = None
    """null: trainer.devices if trainer.accelerator=gpu, else none."""
    gpus_per_task: int | None = None
    cpus_per_gpu: int | None = None
    mem_gb: float | None = None
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None

    timeout_min: int = 240
    """Time limit in minutes. Before it, a signal makes the job save its state, and the job is requeued. Jobs with
    short limits often start earlier, because the scheduler fits them into gaps."""
    signal_delay_s: int = 120
    """Seconds between the signal and the limit; Slurm may send the signal up to 60 s earlier."""
    max_num_timeout: int = 100
    """Maximum number of requeues; to continue after that, run the same command again."""
    array_parallelism: int = 256
    """Maximum number of jobs that run at the same time."""
    stderr_to_stdout: bool = True
    setup: list[str] | None = None
    """Commands before srun, such as [module load cuda]."""
    srun_args: list[str] | None = None
    """null: --kill-on-bad-exit=1 for runs over several tasks."""
    additional_parameters: dict[str, Any] = field(default_factory=lambda: {"requeue": True})
    """With requeue, a preempted job, or one whose node died, resumes from its last checkpoint."""


@dataclass
class SweeperSettings:
    """Keys of hydra.sweeper."""

    _target_: str = "hydra_plugins.slm_study.sweeper.StudySweeper"
    max_batch_size: int | None = None
