"""Which process of its run this one is, as torchrun or Slurm tells in the environment. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from slm.config.schema import TrainerConfig
from slm.errors import ConfigError, Problem, RunError

FIRST_PORT, PORTS = 15_000, 15_000  # below those that systems hand out by themselves


@dataclass(frozen=True)
class Place:
    """`meeting_point` is where the processes find each other, as an `init_method` of torch."""

    rank: int
    world_size: int
    local_rank: int
    meeting_point: str


def find_place(environ: Mapping[str, str]) -> Place | None:
    """Where a launcher has put this process; None if it is by itself."""
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= environ.keys():
        rank, world_size, local_rank = (
            int(environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        )
        place = Place(rank, world_size, local_rank, "env://")
    elif "SLURM_STEP_NUM_TASKS" in environ:  # of srun's tasks; a batch script has none
        rank, world_size, local_rank = (
            int(environ[key]) for key in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        )
        place = Place(rank, world_size, local_rank, _slurm_meeting_point(environ))
    else:
        return None
    return place if place.world_size > 1 else None


def _slurm_meeting_point(environ: Mapping[str, str]) -> str:
    """A port of the step's first node, one for each step; MASTER_ADDR and MASTER_PORT override it."""
    step = 97 * int(environ["SLURM_JOB_ID"]) + int(environ["SLURM_STEP_ID"])
    host = environ.get("MASTER_ADDR") or first_node(environ["SLURM_STEP_NODELIST"])
    return f"tcp://{host}:{environ.get('MASTER_PORT') or FIRST_PORT + step % PORTS}"


def first_node(nodes: str) -> str:
    """`gpu[003-006,9],big1` -> `gpu003`."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def check_alone(environ: Mapping[str, str]) -> None:
    """Raise a RunError in what starts runs itself, if it is one of several processes."""
    place = find_place(environ)
    if place is None:
        return
    error = RunError(
        "several of these would start every run several times; start one, without torchrun or srun's "
        "tasks: it starts as many processes for each run as trainer.devices says"
    )
    error.was_shown = place.rank > 0
    raise error


def check_launch(config: TrainerConfig, world_size: int, local_rank: int = 0) -> None:
    """Raise a ConfigError unless as many processes were started as the config asks for."""
    asked = config.devices * config.num_nodes
    if asked == world_size and local_rank < config.devices:
        return
    if world_size == 1:
        rule = f"a run over {asked} processes is started by torchrun, or by srun as that many tasks"
    elif config.strategy == "single":
        rule = f"one process trains alone, {world_size} were started"
        problem = Problem("trainer.strategy", "single", rule, "trainer=ddp or trainer=fsdp")
        raise ConfigError([problem])
    else:
        started = f"{world_size} were started, and {local_rank + 1} or more on this node"
        rule = f"and trainer.num_nodes={config.num_nodes} make {asked} processes; {started}"
    raise ConfigError([Problem("trainer.devices", config.devices, rule, _command(config))])


def _command(config: TrainerConfig) -> str:
    asked = f"train.py trainer={config.strategy} trainer.devices={config.devices}"
    if config.num_nodes == 1:
        return f"torchrun --nproc-per-node={config.devices} {asked} ..."
    return (
        f"on each node torchrun --nnodes={config.num_nodes} --nproc-per-node={config.devices} "
        "--rdzv-backend=c10d --rdzv-endpoint=FIRST_NODE:29500 "
        f"{asked} trainer.num_nodes={config.num_nodes} ..."
    )
