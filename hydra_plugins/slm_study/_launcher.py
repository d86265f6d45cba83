"""Base of the launchers that run each job as a process of train.py.

A job counts as done if its exit code is 0; its result is read from its run directories.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any, NoReturn, TypeVar

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.slm_study._command import Outcome, describe_exit, is_interrupted
from slm.config.hydra import CONF_DIR, add_force_prefix, load_composed_config
from slm.errors import ConfigError, InUse, Problem, RunError, SlmError, nearest
from slm.run.spec import branch_specs
from slm.tracking.run_dir import RunDirectory

log = logging.getLogger("slm")
SHOWN_LINES = 20  # of the output of a failed job
Settings = TypeVar("Settings")


@dataclass
class TrainReturn(JobReturn):
    """Return of a job that ran in its own process; the result is read from its run directory on demand."""

    error: RunError | None = None
    read_loss: Callable[[], float | None] = lambda: None

    @property
    def return_value(self) -> float | None:
        """Validation loss of the job's longest run in nats per token, for sweepers that minimize it.

        Raises:
            RunError: if the job failed.
        """
        if self.error is not None:
            raise self.error
        return self.read_loss()


class TrainLauncher(Launcher):
    """Base of the launchers that run each job as a process of train.py."""

    def __init__(self, **settings: Any):
        self._given = {key: _to_plain(value) for key, value in settings.items()}
        self._stopping = threading.Event()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.config = config
        sweeper = config.hydra.runtime.choices["hydra/sweeper"]
        if config.hydra.job.config_name == "sweep" and sweeper != "study":
            fix = "for other sweepers run train.py -m"
            raise ConfigError([Problem("hydra/sweeper", sweeper, "sweep.py needs study", fix)])

    def read_settings(self, kind: type[Settings]) -> Settings:
        """Return the settings of the launcher, a dataclass.

        Raises:
            ConfigError: listing unknown keys.
        """
        known = [field.name for field in fields(kind) if field.name != "_target_"]  # type: ignore[arg-type]
        problems = [
            Problem(f"hydra.launcher.{key}", value, "unknown key", nearest(key, known))
            for key, value in self._given.items()
            if key not in known
        ]
        if problems:
            raise ConfigError(problems)
        return kind(**self._given)

    def finish_job(self, place: str, overrides: Sequence[str], outcome: Outcome) -> JobReturn:
        """Log the end of a job and return its status; `place` identifies it in the log."""
        name = " ".join(override for override in overrides if not override.endswith("=null"))
        code, line = outcome.exit_code, outcome.last_line
        if code == 0 or (code is None and self._is_finished(overrides)):
            log.info("%s %s: %s", place, name, line)
            done = TrainReturn(list(overrides), status=JobStatus.COMPLETED)
            done.read_loss = lambda: self._read_loss(overrides)
            return done
        if code == InUse.exit_code:
            log.info("%s %s: %s", place, name, line)
        elif self._stopping.is_set() and is_interrupted(outcome):
            log.info("%s %s: interrupted; the same command continues from there", place, name)
        else:
            shown = "\n".join(f"    {line}" for line in outcome.lines[-SHOWN_LINES:])
            reason = "" if code is None else f" with {describe_exit(code)}"
            log.error("%s %s: FAILED%s\n%s", place, name, reason, shown)
        return failed_return(overrides, line)

    def _runs(self, overrides: Sequence[str]) -> list[RunDirectory]:
        """Return the run directories of a job, the longest run last."""
        forced = [add_force_prefix(override, CONF_DIR) for override in overrides]
        config = load_composed_config(compose_job(self.hydra_context, self.config, forced))
        return [RunDirectory.of(spec) for spec in branch_specs(config)]

    def _is_finished(self, overrides: Sequence[str]) -> bool:
        try:
            return all(run.state() == "finished" for run in self._runs(overrides))
        except (SlmError, HydraException):
            return False  # the job has failed because of its overrides or its data

    def _read_loss(self, overrides: Sequence[str]) -> float | None:
        result = self._runs(overrides)[-1].result()
        return None if result is None else result.val_loss_nats_per_token


def compose_job(context: HydraContext, config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Compose the config of one job of a sweep, without the section of Hydra."""
    job = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(job):
        del job["hydra"]
    return job


def failed_return(overrides: Sequence[str], message: str) -> JobReturn:
    """Return the status of a failed job whose error has been logged."""
    error = RunError(message)
    error.was_shown = True
    return TrainReturn(list(overrides), status=JobStatus.FAILED, error=error)


def check_extra(launcher: str, module: str) -> None:
    """Raise a ConfigError that names the extra to install, unless the module is installed."""
    if find_spec(module) is None:
        fix = f"pip install -e '.[{launcher}]'"
        raise ConfigError([Problem("hydra/launcher", launcher, f"{module} is not installed", fix)])


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGINT and SIGTERM inside the block."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # SIGINT too: a shell sets it to be ignored in jobs that it starts in the background.
    old = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _to_plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
