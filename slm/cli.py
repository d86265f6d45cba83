"""Entry points of train.py and sweep.py: start Hydra, print errors and set exit codes."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from slm.config.hydra import (
    compose_config,
    convert_overrides,
    load_composed_config,
    register_schema,
)
from slm.config.schema import Config
from slm.errors import (
    ConfigError,
    Interrupted,
    Problem,
    SlmError,
    describe_os_error,
    nearest_name,
)
from slm.logs import log, log_to_console
from slm.stdout import exit_when_stdout_closes
from slm.training.distributed.rank import (
    Placement,
    check_address,
    check_launch,
    drop_empty_variables,
    find_placement,
    let_rank_zero_report,
)
from slm.training.distributed.workers import joined_workers
from slm.training.execute import train_all

SHOW_CONFIG = re.compile(r"(?:^| )(?:--cfg|-c)[ =]job(?: |$)")
COMPOSERS = {"hydra", "omegaconf", "antlr4"}


def run_app(main: Callable[[], Any]) -> NoReturn:
    """Run a Hydra app and exit the process.

    Exit codes: 0 done, 1 failed, 2 wrong config, 3 status unfinished, 4 refused design, 75 run in use,
    128 + n stopped by signal n.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints errors and exits itself
    sys.argv[1:] = convert_overrides(sys.argv[1:])
    register_schema()
    run_and_exit(partial(_run_or_check, main))


def run_and_exit(main: Callable[[], Any]) -> NoReturn:
    """Run `main` and exit with code 0; on an error print its message and exit with its code."""
    log_to_console()
    drop_empty_variables(os.environ)
    try:
        with exit_when_stdout_closes():
            main()
    except SlmError as error:
        _exit("" if error.was_shown else str(error), error.exit_code)
    except yaml.YAMLError as error:
        _exit(f"a file in conf/ is not valid YAML: {error}", ConfigError.exit_code)
    except MissingConfigException as error:
        _exit(_missing_option(error), ConfigError.exit_code)
    except OverrideParseException as error:
        _exit(_invalid_override(error), ConfigError.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        reason = f": {error.__cause__}".partition("\n")[0] if error.__cause__ else ""
        message = "; ".join(str(error).splitlines()).replace("'++", "'")
        _exit(f"the configuration cannot be composed: {message}{reason}", ConfigError.exit_code)
    except OSError as error:
        _exit(
            f"{describe_os_error(error)}; check the key that names it: runs_dir, cache_dir, out, ...",
            1,
        )
    except Exception as error:
        # Hydra and OmegaConf raise many types for wrong overrides: such as a ValueError for family=3.
        if not _is_raised_by_hydra(error):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        _exit(
            f"the configuration cannot be composed: {reason} (in one of: {_shown_overrides()})",
            ConfigError.exit_code,
        )
    except KeyboardInterrupt as stop:
        # A job of a multirun exits with the code of its signal: schedulers requeue by exit code.
        cause = stop.__cause__
        _exit("stopped", cause.exit_code if isinstance(cause, Interrupted) else 130)
    sys.exit(0)


def _run_or_check(main: Callable[[], Any]) -> None:
    """Run a Hydra app; after `--cfg job`, which only prints the config, report its problems as a run would."""
    main()
    if SHOW_CONFIG.search(" ".join(sys.argv[1:])):
        shown = HydraConfig.get()
        compose_config(shown.overrides.task, shown.job.config_name)


def train_job(cfg: DictConfig) -> float | None:
    """Train the runs of a composed config, skip finished ones, and log the run directories.

    Returns the validation loss of the longest run in nats per token, for sweepers that minimize it.

    In a multirun an error is logged and raised, so that the other jobs continue; a signal stops all jobs.
    """
    try:
        placement = find_placement(os.environ)
        config = _load_config_of_launch(cfg, placement)
        with joined_workers(placement, log.error) as workers:
            if not workers.is_rank_zero:
                log.setLevel(logging.CRITICAL)
            is_multirun = HydraConfig.get().mode == RunMode.MULTIRUN
            return train_all(config, workers, more_jobs=is_multirun)
    except SlmError as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            _exit("" if error.was_shown else str(error), error.exit_code)
        if not error.was_shown:
            log.error("%s", error)
        error.was_shown = True
        if isinstance(error, Interrupted):
            raise KeyboardInterrupt from error
        raise


def _load_config_of_launch(cfg: DictConfig, placement: Placement | None) -> Config:
    """Load the config and check the number of processes, before the process group waits for the others.

    Variables of an earlier torchrun may announce processes that were never started. Every process finds the
    same error; rank 0 reports it at once, and the launcher then ends the others before they report it too.
    """
    try:
        config = load_composed_config(cfg)
        if placement is not None:
            check_launch(
                config.trainer, placement.world_size, placement.local_rank, placement.variables
            )
            check_address(placement, os.environ)
    except SlmError as error:
        if placement is not None:
            let_rank_zero_report(placement, error.exit_code)
        raise
    return config


def _exit(message: str, code: int) -> NoReturn:
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)


def _invalid_override(error: OverrideParseException) -> str:
    # The lines of the parser repeat the override and point to a column of it.
    reason, *_ = error.message.splitlines()
    cause = "" if error.override in reason else f" ({reason})"
    shown = error.override.removeprefix("++") or error.override
    rule = "not a valid override" + cause
    shown = " ".join(shown.split())  # in one line
    return (
        f"{shown}: {rule}; close quotes and brackets, and quote special characters: 'key=\"a=b\"'"
    )


def _is_raised_by_hydra(error: BaseException) -> bool:
    """Return whether the innermost frame of the error belongs to the libraries that compose the config."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in COMPOSERS


def _shown_overrides() -> str:
    return " ".join(argument.removeprefix("++") for argument in sys.argv[1:])


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or [])
    ratio = option.removeprefix("aspect_")
    if group == "family" and ratio != option and ratio.replace(".", "", 1).isdecimal():
        fix = f"use family=aspect family.aspect_ratio={ratio}"
    else:
        near = nearest_name(option, options)
        fix = (f"did you mean {near}? " if near else "") + f"options: {', '.join(options)}"
    return str(ConfigError([Problem(group or "config", option, "unknown option", fix)]))
