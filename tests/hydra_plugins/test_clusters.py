"""Cluster launchers: checks that need neither a cluster nor an extra."""

from __future__ import annotations

import dataclasses
import pickle
import signal
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.slm_study.ray import RayLauncher, check_reachable
from hydra_plugins.slm_study.slurm import SlurmLauncher
from slm.config.schema import TrainerConfig
from slm.errors import ConfigError, Diverged, Interrupted, PeerFailed, Problem, RunError, SlmError
from tests.conftest import ROOT

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    "error",
    [
        ConfigError([Problem("size", 3, "too small", "128k"), Problem("seed", None, "missing")]),
        Interrupted("stopped", signal.SIGTERM),
        Diverged("nan", {"step": 5}),
        PeerFailed("another", 3),
        RunError("busy"),
    ],
)
def test_errors_can_be_pickled(error: SlmError) -> None:
    error.was_shown = True
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error)
    assert vars(copy) == vars(error) and copy.exit_code == error.exit_code


@pytest.mark.parametrize(("launcher", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_error_names_the_missing_extra(launcher: str, module: str, cli: Cli) -> None:
    """action=plan works without the extra, action=run does not."""
    if find_spec(module) is not None:
        pytest.skip(f"the extra {launcher} is installed")
    study = ("sweep.py", "study=smoke", f"hydra/launcher={launcher}")
    plan, run = cli(*study, "action=plan"), cli(*study, "action=run")
    assert (plan.returncode, run.returncode) == (0, 2)
    assert f"pip install -e '.[{launcher}]'" in run.stderr and "Traceback" not in run.stderr


def slurm_settings(**trainer: Any) -> dict[str, Any]:
    """Return the launcher's settings of a study with this trainer."""
    settings = OmegaConf.load(ROOT / "conf" / "hydra" / "launcher" / "slurm.yaml")
    assert isinstance(settings, DictConfig)
    names = "cpus_per_task", "gpus_per_node"
    launcher = SlurmLauncher(**{name: settings[name] for name in names})
    launcher.setup(
        hydra_context=None,  # type: ignore[arg-type]
        task_function=None,  # type: ignore[arg-type]
        config=OmegaConf.create({"trainer": dataclasses.asdict(TrainerConfig(**trainer))}),
    )
    return launcher.settings


def test_slurm_tasks_have_cores_and_end_together() -> None:
    assert slurm_settings(accelerator="cpu") == {"cpus_per_task": None, "gpus_per_node": None}
    assert slurm_settings(accelerator="gpu") == {"cpus_per_task": 8, "gpus_per_node": 1}
    assert slurm_settings(accelerator="cpu", threads=3)["cpus_per_task"] == 3
    several = slurm_settings(accelerator="gpu", threads=6, strategy="ddp", devices=4)
    assert several == {
        "cpus_per_task": 6,
        "gpus_per_node": 4,
        "srun_args": ["--kill-on-bad-exit=1"],
    }


def ray_launcher(num_gpus: float | None, num_cpus: int | None, **trainer: Any) -> RayLauncher:
    remote = {"num_gpus": num_gpus, "num_cpus": num_cpus}
    launcher = RayLauncher(OmegaConf.create({}), OmegaConf.create(remote))
    launcher.setup(
        hydra_context=None,  # type: ignore[arg-type]
        task_function=None,  # type: ignore[arg-type]
        config=OmegaConf.create({"trainer": dataclasses.asdict(TrainerConfig(**trainer))}),
    )
    launcher._share({"CPU": 16.0, "GPU": 4.0})
    return launcher


@pytest.mark.parametrize(
    ("num_gpus", "num_cpus", "cpus", "shares"),
    [
        (None, 8, 4, ["++trainer.threads=4"]),
        (None, None, 4, ["++trainer.threads=4"]),
        (0.5, 8, 2, ["++trainer.threads=2", "++trainer.gpu_memory_fraction=0.5"]),
        (0.1, 8, 1, ["++trainer.threads=1", "++trainer.gpu_memory_fraction=0.1"]),
    ],
)
def test_ray_jobs_on_gpus_share_cores_and_memory(
    num_gpus: float | None, num_cpus: int | None, cpus: int, shares: list[str]
) -> None:
    launcher = ray_launcher(num_gpus, num_cpus, accelerator="gpu")
    assert launcher.remote["num_cpus"] == cpus and launcher.shares == shares


def test_ray_jobs_on_cpus_keep_their_threads() -> None:
    launcher = ray_launcher(None, 3, accelerator="cpu", threads=3)
    assert launcher.remote == {"num_gpus": 0, "num_cpus": 3} and launcher.shares == []


def test_unreachable_ray_cluster_is_reported() -> None:
    check_reachable(None)
    check_reachable("auto")
    with pytest.raises(RunError, match=r"127\.0\.0\.1:9"):
        check_reachable("127.0.0.1:9")
