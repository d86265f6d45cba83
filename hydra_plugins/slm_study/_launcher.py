"""Base of the launchers that run each job as a process of train.py.

A job counts as done if its exit code is 0; its result is read from its run directories.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any, NoReturn, TypeVar

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.slm_study._command import Outcome, describe_exit, is_in_use, is_interrupted
from slm.config.hydra import CONF_DIR, add_force_prefix, load_composed_config
from slm.errors import ConfigError, Diverged, InUse, Problem, RunError, SlmError, nearest
from slm.formatting import count, format_duration
from slm.run.display_name import display_name
from slm.run.spec import RunSpec, branch_specs
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory

log = logging.getLogger("slm")
SHOWN_LINES = 20  # of the output of a failed job
Settings = TypeVar("Settings")


@dataclass
class TrainReturn(JobReturn):
    """Return of a job that ran in its own process; the result is read from its run directory on demand."""

    error: RunError | None = None
    failure: str = ""
    """Last line of the output of a job that failed; empty if it finished, diverged or was interrupted."""
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
        self._composing = threading.Lock()

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

    def finish_job(self, place: str, overrides: Sequence[str], outcome: Outcome) -> TrainReturn:
        """Log the end of a job and return its status; `place` identifies it in the log."""
        code, line = outcome.exit_code, outcome.last_line
        specs = self._specs(overrides)
        runs = [RunDirectory.of(spec) for spec in specs]
        is_rerun = bool(specs) and specs[-1].config.rerun
        # In a rerun, the run directories of a job that did not start have the states of the earlier runs.
        begun = [run for run in runs if not is_rerun or run.is_of_submission(outcome.submission_id)]
        states = {run.state() for run in begun} | ({"planned"} if begun != runs else set())
        name = f"{place} {self._name(specs, overrides)}"
        if code == 0 or (code is None and states == {"finished"}):
            log.info("%s: %s", name, _describe_result(runs) or line)
            done = TrainReturn(list(overrides), status=JobStatus.COMPLETED)
            done.read_loss = lambda: _read_loss(runs)
            return done
        if is_in_use(outcome):
            log.info("%s: %s", name, line)
            return failed_return(overrides, line, kind=InUse)
        if (
            "diverged" in states
            and states <= {"finished", "diverged"}
            and code in (Diverged.exit_code, None)
        ):
            log.warning("%s: diverged -> %s", name, runs[-1].path)
        elif self._stopping.is_set() and is_interrupted(outcome):
            command = "the same command" + (" without rerun=true" if is_rerun else "")
            log.info("%s: interrupted; %s continues from there", name, command)
        else:
            shown = "\n".join(f"    {line}" for line in outcome.lines[-SHOWN_LINES:])
            reason = "" if code is None else f" with {describe_exit(code)}"
            log.error("%s: FAILED%s\n%s", name, reason, shown)
            return failed_return(overrides, line, failure=line)
        return failed_return(overrides, line)

    def _specs(self, overrides: Sequence[str]) -> list[RunSpec]:
        """Return the runs of a job, the longest one last; empty if the job's overrides or data are wrong."""
        forced = [add_force_prefix(override, CONF_DIR) for override in overrides]
        try:
            with self._composing:  # Hydra has one global state; jobs end in several threads
                composed = compose_job(self.hydra_context, self.config, forced)
            return branch_specs(load_composed_config(composed))
        except (SlmError, HydraException):
            return []

    def _name(self, specs: Sequence[RunSpec], overrides: Sequence[str]) -> str:
        """Return the display name of a study's job, else its overrides, which name what a multirun varies."""
        if not specs or (not specs[-1].config.study.sizes and not specs[-1].config.study.models):
            return " ".join(override for override in overrides if not override.endswith("=null"))
        shorter = count(len(specs) - 1, "shorter branch", "shorter branches")
        return display_name(specs[-1]) + (f" and {shorter}" if len(specs) > 1 else "")


def _describe_result(runs: Sequence[RunDirectory]) -> str:
    """Return loss, time and run directory of a finished job; empty if there is no result."""
    found: list[RunResult] = []
    with suppress(RunError):  # an unreadable result.json; the report names it
        found = [result for run in runs if (result := run.result()) is not None]
    if not found:
        return ""
    loss = found[-1].val_loss_nats_per_token
    if loss is None:
        return ""
    seconds = format_duration(sum(result.wall_seconds for result in found))
    return f"{loss:.3f} nats/token, {seconds} -> {runs[-1].path}"


def _read_loss(runs: Sequence[RunDirectory]) -> float | None:
    result = runs[-1].result() if runs else None
    return None if result is None else result.val_loss_nats_per_token


def compose_job(context: HydraContext, config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Compose the config of one job of a sweep, without the section of Hydra."""
    job = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(job):
        del job["hydra"]
    return job


def found_in_use(done: JobReturn) -> bool:
    """Return whether a job did not run because another process held one of its runs."""
    # Hydra's own launcher, which runs jobs in this process, keeps the exception of a failed job in this field.
    error = done.error if isinstance(done, TrainReturn) else done._return_value
    return isinstance(error, InUse)


def failed_return(
    overrides: Sequence[str], message: str, failure: str = "", kind: type[RunError] = RunError
) -> TrainReturn:
    """Return the status of a job that did not finish, whose error has been logged."""
    error = kind(message)
    error.was_shown = True
    return TrainReturn(list(overrides), status=JobStatus.FAILED, error=error, failure=failure)


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
