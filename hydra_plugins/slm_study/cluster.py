"""What the launchers of clusters share: is their extra there, and what became of a job."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from slm.errors import ConfigError, Problem, RunError, SlmError

log = logging.getLogger("slm")


def check_extra(launcher: str, *modules: str) -> None:
    """Raise a ConfigError that says what to install, unless these modules are there."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        rule = f"{missing[0].rpartition('.')[2]} is not installed"
        fix = f"pip install -e '.[{launcher}]'"
        raise ConfigError([Problem("hydra/launcher", launcher, rule, fix)])


def plain(settings: Any) -> Any:
    """A setting without OmegaConf around it."""
    return (
        OmegaConf.to_container(settings, resolve=True)
        if OmegaConf.is_config(settings)
        else settings
    )


def failed_job(overrides: Sequence[str], error: BaseException) -> JobReturn:
    """The return of a job that could not give one itself."""
    job = JobReturn(overrides=list(overrides))
    job.status, job.return_value = JobStatus.FAILED, error
    return job


def tell(place: str, overrides: Sequence[str], job: JobReturn) -> None:
    """One line for a job that has ended."""
    if job.status == JobStatus.COMPLETED:
        log.info("%s %s: done", place, " ".join(overrides))
        return
    error = job._return_value  # its property raises it
    log.error("%s %s: FAILED\n    %s", place, " ".join(overrides), last_line(error))
    if isinstance(error, SlmError):
        error.was_shown = True


def last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def died(where: str, said: str) -> RunError:
    return RunError(f"its process died ({where}); it last said: {said or 'nothing'}")
