"""Rank and world size of this process, read from the environment of torchrun or Slurm. Torch-free."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from slm.config.schema import TrainerConfig
from slm.errors import ConfigError, LaunchError, Problem

REPORT_SECONDS = 1.5
FIRST_PORT, PORTS = 15_000, 15_000  # below the ports that systems assign themselves
LAST_PORT = 65_535
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


@dataclass(frozen=True)
class Placement:
    """`init_method` is the address where torch.distributed.init_process_group meets the other ranks."""

    rank: int
    world_size: int
    local_rank: int
    init_method: str

    @property
    def variables(self) -> tuple[str, str, str]:
        """Names of the variables of rank, world size and local rank in the environment."""
        return TORCHRUN if self.init_method == "env://" else SRUN


def find_placement(environ: Mapping[str, str]) -> Placement | None:
    """Return the placement that torchrun or srun gave to this process; None for a single process.

    Raises:
        LaunchError: if a variable has an invalid value, or only some of those of torchrun are set.
    """
    if all(environ.get(key) for key in TORCHRUN):  # empty counts as not set
        placement = Placement(*_read_ranks(environ, TORCHRUN), "env://")
    elif environ.get("SLURM_STEP_NUM_TASKS"):  # set in tasks of srun, not in a batch script
        placement = Placement(*_read_ranks(environ, SRUN), _slurm_init_method(environ))
    else:
        _check_incomplete(environ)
        return None
    return placement if placement.world_size > 1 else None


def _read_ranks(environ: Mapping[str, str], keys: tuple[str, str, str]) -> tuple[int, int, int]:
    """Return rank, world size and local rank; raise a LaunchError for impossible values."""
    world_size = _integer(environ, keys[1], least=1)
    rank, local_rank = (_integer(environ, key) for key in (keys[0], keys[2]))
    if rank >= world_size:
        raise LaunchError(
            f"{keys[0]}={rank}: must be less than {keys[1]}={world_size}; torchrun and srun set both, unset them otherwise"
        )
    return rank, world_size, local_rank


def _check_incomplete(environ: Mapping[str, str]) -> None:
    """Raise a LaunchError if one variable announces several processes and another one is missing, as in a pod."""
    given = [key for key in TORCHRUN if environ.get(key)]
    least = {key: int(key == "WORLD_SIZE") for key in given}
    values = {key: _integer(environ, key, least[key]) for key in given}
    if any(value > least[key] for key, value in values.items()):
        shown = " ".join(f"{key}={environ[key]}" for key in given)
        missing = " and ".join(key for key in TORCHRUN if key not in given)
        raise LaunchError(
            f"{shown} without {missing}: torchrun sets all three for every process; start the run with torchrun, or for "
            f"a single process unset {' '.join(given)}"
        )


def drop_empty_variables(environ: MutableMapping[str, str]) -> None:
    """Unset variables of torchrun that are empty, which torchmetrics and lightning would read as a number."""
    for key in (*TORCHRUN, "NODE_RANK", "GROUP_RANK"):
        if environ.get(key) == "":
            del environ[key]


def _integer(environ: Mapping[str, str], key: str, least: int = 0) -> int:
    try:
        value = int(environ[key])
    except (KeyError, ValueError):
        rule = "a number"
    else:
        if value >= least:
            return value
        rule = f"{least} or more"
    raise LaunchError(
        f"{key}={environ.get(key, '')}: must be {rule}; it is set by torchrun or srun, unset it otherwise"
    )


def _check_port(environ: Mapping[str, str]) -> None:
    if _integer(environ, "MASTER_PORT", least=1) > LAST_PORT:
        raise LaunchError(
            f"MASTER_PORT={environ['MASTER_PORT']}: must be a port from 1 to {LAST_PORT}; unset it to use the one of the "
            "launcher"
        )


def _slurm_init_method(environ: Mapping[str, str]) -> str:
    """Choose a port on the first node by job and step; MASTER_ADDR and MASTER_PORT take precedence."""
    step = 97 * _integer(environ, "SLURM_JOB_ID") + _integer(environ, "SLURM_STEP_ID")
    host = environ.get("MASTER_ADDR") or first_node(environ.get("SLURM_STEP_NODELIST", ""))
    if not host:
        raise LaunchError(
            "SLURM_STEP_NODELIST is not set: srun sets it; or set MASTER_ADDR to the first node"
        )
    if environ.get("MASTER_PORT"):
        _check_port(environ)
    return f"tcp://{host}:{environ.get('MASTER_PORT') or FIRST_PORT + step % PORTS}"


def first_node(nodes: str) -> str:
    """`gpu[003-006,9],big1` -> `gpu003`."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def check_single_process(environ: Mapping[str, str]) -> None:
    """Raise a LaunchError if this process, which starts runs itself, is one of several."""
    placement = find_placement(environ)
    if placement is None:
        return
    let_rank_zero_report(placement, LaunchError.exit_code)
    keys = placement.variables
    raise LaunchError(
        f"{' '.join(f'{key}={environ[key]}' for key in keys)}: sweep.py and multiruns start trainer.devices processes "
        "for each run themselves; start one process, without torchrun or srun tasks; if these variables are leftovers "
        f"of an earlier launch, unset {' '.join(keys)}"
    )


def let_rank_zero_report(placement: Placement, exit_code: int) -> None:
    """On other ranks, wait so that rank 0 reports an error that every rank finds; a SIGTERM then exits silently.

    torchrun and srun end all processes once one has exited, so that a faster rank would end rank 0 before it
    prints the error. After the wait the rank reports the error itself: a slow or missing rank 0 hides nothing.
    """
    if placement.rank > 0:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_code))
        time.sleep(REPORT_SECONDS)


def check_address(placement: Placement, environ: Mapping[str, str]) -> None:
    """Raise a LaunchError if torch.distributed could not find the address of rank 0 in the environment."""
    if placement.init_method != "env://":
        return
    missing = [key for key in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(key)]
    if missing:
        raise LaunchError(
            f"WORLD_SIZE={placement.world_size} without {' and '.join(missing)}: torchrun sets them for every "
            f"process; start the run with torchrun, or for a single process unset {' '.join(TORCHRUN)}"
        )
    _check_port(environ)


def check_launch(
    config: TrainerConfig,
    world_size: int,
    local_rank: int = 0,
    variables: tuple[str, ...] = TORCHRUN,
) -> None:
    """Raise a ConfigError unless the number of started processes is the configured one.

    `variables` are the names in the environment that announce the processes.
    """
    expected = config.processes
    if expected == world_size and local_rank < config.devices:
        return
    if world_size == 1:
        rule = (
            f"start a run over {expected} processes with torchrun, or with srun as that many tasks"
        )
    elif config.strategy == "single":
        rule = f"strategy single trains in one process, {world_size} were started"
        fix = f"trainer=ddp or trainer=fsdp; or, if these are leftovers of an earlier launch, unset {' '.join(variables)}"
        problem = Problem("trainer.strategy", "single", rule, fix)
        raise ConfigError([problem])
    else:
        started = f"{world_size} were started, and {local_rank + 1} or more on this node"
        rule = f"and trainer.num_nodes={config.num_nodes} make {expected} processes; {started}"
    raise ConfigError([Problem("trainer.devices", config.devices, rule, _command(config))])


def _command(config: TrainerConfig) -> str:
    trainer = f"trainer={config.strategy}"
    if config.accelerator == "cpu":  # trainer=ddp and trainer=fsdp are for GPUs
        trainer = f"trainer=cpu trainer.strategy={config.strategy}"
    overrides = f"train.py {trainer} trainer.devices={config.devices}"
    if config.num_nodes == 1:
        return f"torchrun --nproc-per-node={config.devices} {overrides} ..."
    return (
        f"on each node torchrun --nnodes={config.num_nodes} --nproc-per-node={config.devices} "
        "--rdzv-backend=c10d --rdzv-endpoint=FIRST_NODE:29500 "
        f"{overrides} trainer.num_nodes={config.num_nodes} ..."
    )
