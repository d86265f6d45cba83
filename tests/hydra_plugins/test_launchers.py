"""Settings and outcomes of the launchers; no test needs a cluster."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from hydra_plugins.slm_study._command import Outcome
from hydra_plugins.slm_study._launcher import TrainLauncher, TrainReturn, found_in_use
from hydra_plugins.slm_study.local import LocalLauncher
from hydra_plugins.slm_study.ray import RayLauncher, check_reachable
from hydra_plugins.slm_study.slurm import SlurmLauncher, read_outcome
from slm.config.hydra import CONF_DIR, compose_config
from slm.config.schema import TrainerConfig
from slm.errors import ConfigError, Diverged, InUse, RunError
from slm.run.display_name import display_name
from slm.run.spec import RunSpec, resolve
from slm.tracking.run_dir import RunDirectory
from slm.tracking.submission import VARIABLE
from tests.conftest import Cli
from tests.running import run_to_end

Configured = TypeVar("Configured", bound=TrainLauncher)


def configured(launcher: Configured, sweeper: str = "study", **trainer: Any) -> Configured:
    """Return the launcher after its setup by sweep.py with this trainer."""
    hydra = {"runtime": {"choices": {"hydra/sweeper": sweeper}}, "job": {"config_name": "sweep"}}
    settings = {"trainer": dataclasses.asdict(TrainerConfig(**trainer)), "hydra": hydra}
    launcher.setup(
        hydra_context=None,  # type: ignore[arg-type]
        task_function=None,  # type: ignore[arg-type]
        config=OmegaConf.create(settings),
    )
    return launcher


def test_sweep_py_needs_its_sweeper() -> None:
    with pytest.raises(ConfigError, match="hydra/sweeper=basic: sweep"):
        configured(LocalLauncher(), sweeper="basic")


@pytest.mark.parametrize("settings", [{"n_jobs": 0}, {"jobs_per_gpu": -1}])
def test_numbers_of_jobs_are_positive(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        configured(LocalLauncher(**settings))


@pytest.mark.parametrize(
    ("launcher", "problem"),
    [
        (SlurmLauncher(partion="gpu"), "hydra.launcher.partion=gpu: unknown key (did you mean"),
        (LocalLauncher(jobs_per_gpus=2), "did you mean jobs_per_gpu?"),
        (RayLauncher(num_gpus=1), "choose one of: init, remote"),
    ],
)
def test_unknown_keys_are_reported_with_the_nearest_name(
    launcher: TrainLauncher, problem: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        configured(launcher)


def test_keys_are_checked_before_anything_runs(cli: Cli) -> None:
    slurm = ("sweep.py", "study=smoke", "action=run", "hydra/launcher=slurm")
    unknown = cli(*slurm, "hydra.launcher.timout_min=5")
    wrong = cli(*slurm, "hydra.launcher.timeout_min=long")
    assert unknown.returncode == wrong.returncode == 2
    assert "did you mean timeout_min?" in unknown.stderr and "'long' of type 'str'" in wrong.stderr


def shown_keys(cli: Cli, *overrides: str) -> dict[str, Any]:
    shown = cli("sweep.py", "--cfg", "hydra", "-p", "hydra.launcher", "study=smoke", *overrides)
    assert shown.returncode == 0, shown.stderr
    return yaml.safe_load(shown.stdout)


def test_keys_without_a_default_can_be_added(cli: Cli) -> None:
    added = "hydra.launcher.additional_parameters.nice=5"
    keys = shown_keys(cli, "hydra/launcher=slurm", "hydra.launcher.partition=p", f"+{added}")
    assert keys["partition"] == "p"
    assert keys["additional_parameters"] == {"requeue": True, "nice": 5}


@pytest.mark.cluster
def test_our_ray_launcher_replaces_that_of_another_plugin(cli_process: Cli) -> None:
    """hydra-ray-launcher registers an option of the same name with other keys."""
    if find_spec("hydra_plugins.hydra_ray_launcher") is None:
        pytest.skip("hydra-ray-launcher is not installed: make clusters")
    keys = shown_keys(cli_process, "hydra/launcher=ray", "hydra.launcher.init.address=a:1")
    assert keys["_target_"] == "hydra_plugins.slm_study.ray.RayLauncher"
    assert keys["init"]["address"] == "a:1" and keys["remote"]["max_retries"] == 3


@pytest.mark.parametrize(("launcher", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_error_names_the_missing_extra(launcher: str, module: str, cli: Cli) -> None:
    """action=plan works without the extra, action=run does not."""
    if find_spec(module) is not None:
        pytest.skip(f"the extra {launcher} is installed")
    study = ("sweep.py", "study=smoke", f"hydra/launcher={launcher}")
    plan, run = cli(*study, "action=plan"), cli(*study, "action=run")
    assert (plan.returncode, run.returncode) == (0, 2)
    assert f"pip install -e '.[{launcher}]'" in run.stderr


def test_local_jobs_are_numbered_by_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first job ends last."""
    launcher = configured(LocalLauncher(n_jobs=3), accelerator="cpu", threads=1)
    launcher.config.study = {"max_failures": None}
    others_ended = threading.Semaphore(0)
    logged: list[tuple[str, str]] = []

    def run(overrides: Sequence[str], gpus: str | None) -> Outcome:
        if overrides == ["a"]:
            others_ended.acquire(timeout=10)
            others_ended.acquire(timeout=10)
        return Outcome(0, ())

    def finish(place: str, overrides: Sequence[str], outcome: Outcome) -> TrainReturn:
        logged.append((place, overrides[0]))
        others_ended.release()
        return TrainReturn(list(overrides), status=JobStatus.COMPLETED)

    monkeypatch.setattr(launcher, "_run_process", run)
    monkeypatch.setattr(launcher, "finish_job", finish)
    launcher.launch([["a"], ["b"], ["c"]], 0)
    assert [place for place, _ in logged] == ["[1/3]", "[2/3]", "[3/3]"] and logged[2][1] == "a"


@pytest.mark.parametrize(
    ("lines", "max_failures", "stop"),
    [
        (["same"] * 4, None, (2, "the first 2 jobs failed with the same error")),
        (["one", "another", "third", "fourth"], None, (4, "")),
        (["one", "another", "third", "fourth"], 3, (3, "study.max_failures=3 reached")),
        (["", "same", "same", "same"], None, (4, "")),
    ],
)
def test_an_error_of_the_first_jobs_stops_the_others(
    lines: list[str],
    max_failures: int | None,
    stop: tuple[int, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An empty line is a job that succeeds."""
    launcher = configured(LocalLauncher(n_jobs=1), accelerator="cpu", threads=1)
    launcher.config.study = {"max_failures": max_failures}
    (started, reason), outcomes = stop, iter(lines)

    def finish(place: str, overrides: Sequence[str], outcome: Outcome) -> TrainReturn:
        line = outcome.last_line
        status = JobStatus.FAILED if line else JobStatus.COMPLETED
        return TrainReturn(list(overrides), status=status, failure=line)

    monkeypatch.setattr(launcher, "_run_process", lambda *_: Outcome(0, (next(outcomes),)))
    monkeypatch.setattr(launcher, "finish_job", finish)
    with caplog.at_level(logging.ERROR, logger="slm"):
        assert len(launcher.launch([["a"]] * len(lines), 0)) == len(lines)
    assert len(list(outcomes)) == len(lines) - started
    assert reason in caplog.text and bool(reason) == ("not started" in caplog.text)


class StubLauncher(TrainLauncher):
    """Launcher that starts nothing: for the outcomes of jobs."""

    def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
        raise NotImplementedError


def test_result_of_a_job_is_read_from_its_run_directory(
    tmp_path: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ["experiment=smoke", "tracking=disabled", "budget.tokens=10240"]
    overrides += [f"runs_dir={tmp_path}", f"cache_dir={cache_dir}"]
    spec = resolve(compose_config(overrides))
    launcher = StubLauncher()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", [], RunMode.MULTIRUN)
        context: Any = SimpleNamespace(config_loader=loader)
        launcher.setup(hydra_context=context, task_function=lambda config: None, config=config)
        lost = launcher.finish_job("[1/1]", overrides, Outcome(None, ("Slurm state FAILED",)))
        _, result = run_to_end(spec)
        with caplog.at_level(logging.INFO, logger="slm"):
            done = launcher.finish_job("[1/1]", overrides, Outcome(0, ("finished",)))
        loss = f"{result.val_loss_nats_per_token:.3f} nats/token, "
        line = caplog.messages[-1]
        assert line.startswith("[1/1] experiment=smoke") and loss in line
        assert line.endswith(f" -> {RunDirectory.of(spec).path}")
        found = launcher.finish_job("[1/1]", overrides, Outcome(None, ("no longer listed",)))
        failed = launcher.finish_job("[1/1]", overrides, Outcome(1, ("steps", "out of memory")))
        assert done.return_value == found.return_value == result.val_loss_nats_per_token
    assert (lost.status, failed.status) == (JobStatus.FAILED, JobStatus.FAILED)
    with pytest.raises(RunError, match="out of memory"):
        _ = failed.return_value


@pytest.mark.parametrize(
    ("outcome", "state", "is_rerun", "message"),
    [
        (Outcome(1, ("diverged",), "old"), "diverged", False, "diverged"),
        (Outcome(1, ("already diverged",), "new"), "diverged", False, "diverged"),
        (Outcome(None, ("Slurm state FAILED",), "old"), "diverged", True, "diverged"),
        (Outcome(2, ("torch sees no CUDA device",), "new"), "finished", True, "FAILED"),
        (Outcome(1, ("torch is missing",), "new"), "diverged", True, "FAILED"),
        (Outcome(None, ("Slurm state FAILED",), "new"), "finished", True, "FAILED"),
        (Outcome(1, ("disk is full",), "old"), "finished", False, "FAILED"),
        (Outcome(-9, ("steps",), "old"), "diverged", False, "FAILED"),
    ],
    ids=["now", "earlier", "in_slurm", "no_gpu", "no_torch", "lost", "after_end", "killed"],
)
def test_job_diverged_only_if_its_own_run_did(
    outcome: Outcome,
    state: str,
    is_rerun: bool,
    message: str,
    *,
    tiny_spec: Callable[..., RunSpec],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run directory has the state that the job with the id `old` left."""
    spec = tiny_spec(rerun=is_rerun)
    monkeypatch.setenv(VARIABLE, "old")
    run = RunDirectory.of(spec)
    with suppress(Diverged), run.claim(spec):
        if state == "diverged":
            raise Diverged("loss is nan")
    launcher = StubLauncher()
    monkeypatch.setattr(launcher, "_specs", lambda overrides: [spec])
    done = launcher.finish_job("[1/1]", ["seed=0"], outcome)
    assert message in caplog.messages[-1] and done.status == JobStatus.FAILED
    assert done.failure == (outcome.last_line if message == "FAILED" else "")


IN_USE = (
    "runs/a is in use by process 7 on node (heartbeat 3 s ago); wait until it finishes, or stop it"
)


@pytest.mark.parametrize(
    ("outcome", "is_held"),
    [
        (Outcome(75, ("any text",)), True),
        (Outcome(1, (IN_USE,)), True),  # torchrun
        (Outcome(None, (IN_USE, "Slurm state FAILED; output: 1_0_log.out")), True),
        (Outcome(1, (IN_USE, "another line", "out of memory")), False),
        (Outcome(0, (IN_USE,)), False),
    ],
)
def test_job_whose_run_is_in_use_is_reported_as_such(
    outcome: Outcome, is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = StubLauncher()
    monkeypatch.setattr(launcher, "_specs", lambda overrides: [])
    done = launcher.finish_job("[1/1]", ["seed=0"], outcome)
    assert found_in_use(done) == is_held
    assert not (is_held and done.failure)


def test_job_whose_run_is_in_use_is_reported_by_the_basic_launcher_too() -> None:
    for error, is_held in ((InUse("in use"), True), (RunError("no space"), False)):
        done = JobReturn(status=JobStatus.FAILED)
        done.return_value = error
        assert found_in_use(done) == is_held


def test_job_of_a_study_has_the_display_name_of_its_longest_run(
    tiny_spec: Callable[..., RunSpec],
) -> None:
    study = {"name": "mine", "sizes": ["20k"]}
    specs = [tiny_spec(study=study, budget={"tokens": 256 * steps}) for steps in (20, 60)]
    launcher, overrides = StubLauncher(), ["size=20000", "seed=0"]
    assert launcher._name(specs[:1], overrides) == display_name(specs[0])
    name = launcher._name(specs, overrides)
    assert name == f"{display_name(specs[1])} and 1 shorter branch"
    assert launcher._name([tiny_spec()], overrides) == "size=20000 seed=0"  # of a multirun


def test_outcome_of_a_slurm_job_is_its_state_and_the_output_of_its_run(tmp_path: Path) -> None:
    output = tmp_path / "1_0_log.out"
    output.write_text(
        "submitit INFO (2026-11-28 12:00:00,000) - Starting with JobEnvironment(job_id=1)\n"
        "finished: validation 5.0 nats/token\nsrun: error: node: task 0: Exited\n"
    )
    assert read_outcome(output, "COMPLETED") == Outcome(0, ("finished: validation 5.0 nats/token",))
    killed = read_outcome(output, "OUT_OF_MEMORY")
    assert killed.exit_code is None and "Slurm state OUT_OF_MEMORY" in killed.last_line
    assert read_outcome(tmp_path / "absent", "COMPLETED") == Outcome(0, ())


def test_slurm_tasks_have_cores_and_end_together() -> None:
    def resources(**trainer: Any) -> tuple[object, ...]:
        settings = configured(SlurmLauncher(), **trainer).settings
        return settings.cpus_per_task, settings.gpus_per_node, settings.srun_args

    assert resources(accelerator="cpu") == (None, None, None)
    assert resources(accelerator="gpu") == (8, 1, None)
    assert resources(accelerator="cpu", threads=3) == (3, None, None)
    several = resources(accelerator="gpu", threads=6, strategy="ddp", devices=4)
    assert several == (6, 4, ["--kill-on-bad-exit=1"])


def ray_launcher(num_gpus: float | None, num_cpus: int | None, **trainer: Any) -> RayLauncher:
    remote = {"num_gpus": num_gpus, "num_cpus": num_cpus}
    launcher = configured(RayLauncher(init={}, remote=remote), **trainer)
    launcher.share_resources({"CPU": 16.0, "GPU": 4.0})
    return launcher


@pytest.mark.parametrize(
    ("num_gpus", "num_cpus", "cpus", "shares"),
    [
        (None, 8, 4, ["trainer.threads=4"]),
        (None, None, 4, ["trainer.threads=4"]),
        (0.5, 8, 2, ["trainer.threads=2", "trainer.gpu_memory_fraction=0.5"]),
        (0.1, 8, 1, ["trainer.threads=1", "trainer.gpu_memory_fraction=0.1"]),
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
