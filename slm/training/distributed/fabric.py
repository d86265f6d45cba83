"""Lightning Fabric for one process of a run: its device, and the strategy that wraps the module."""

from __future__ import annotations

import logging
from inspect import signature
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.plugins import Precision
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from slm.config.schema import TrainerConfig
from slm.training.distributed.workers import Workers


def build_fabric(config: TrainerConfig, accelerator: str, workers: Workers) -> Fabric:
    """Return the Fabric of this process; an existing process group is used.

    The base class of `Precision` leaves inputs and outputs as they are: the module applies autocast itself,
    and its float64 sums stay float64.
    """
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    is_gpu = accelerator == "gpu"
    environment = LightningEnvironment()
    strategy: str | Strategy = "auto"
    devices: int | list[int] = [workers.local_rank] if is_gpu else 1
    if workers.world_size > 1:
        environment = LaunchedEnvironment(workers, config.devices)
        devices = config.devices
        strategy = (
            fsdp_strategy(workers.world_size) if config.strategy == "fsdp" else ddp_strategy()
        )
    fabric = Fabric(
        accelerator="cuda" if is_gpu else "cpu",
        devices=devices,
        num_nodes=config.num_nodes,
        strategy=strategy,
        plugins=[Precision(), environment],
    )
    fabric.launch()
    return fabric


def ddp_strategy() -> DDPStrategy:
    """Copy the model to every rank; its only buffer, the RoPE table, is constant and never synchronised."""
    renamed = "forward_sync_buffers"  # of torch 2.13
    known = signature(DistributedDataParallel).parameters
    name = renamed if renamed in known else "broadcast_buffers"
    return DDPStrategy(gradient_as_bucket_view=True, **{name: False})


def fsdp_strategy(world_size: int) -> ModelParallelStrategy:
    """Shard every block and the rest of the model over all ranks.

    Weights are gathered in fp32: a bf16 gather would round norm gains and the residual path, and losses
    would differ from those of one process by more than the order of sums.
    """

    def shard(module: Any, mesh: DeviceMesh) -> nn.Module:
        mesh = mesh["data_parallel"]
        for block in module.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module.model, mesh=mesh)
        return module

    return ModelParallelStrategy(shard, data_parallel_size=world_size, tensor_parallel_size=1)


class LaunchedEnvironment(LightningEnvironment):
    """Processes that torchrun or srun has started and that have joined a process group."""

    def __init__(self, workers: Workers, devices_per_node: int):
        super().__init__()
        self._local_rank = workers.local_rank
        self._node_rank = workers.rank // devices_per_node

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self._local_rank

    def node_rank(self) -> int:
        return self._node_rank


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor, and any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def reshard(module: nn.Module) -> None:
    """Free the weights that a forward pass without a backward pass has gathered."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
