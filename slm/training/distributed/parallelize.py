"""A model that is whole in one process, copied to several, or cut into shards over them.

A process calls it with its rows of a global batch. DDP and FSDP average gradients over the processes,
after the last of several backward passes alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce, get_world_size, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from slm.model.loss import IGNORED
from slm.model.transformer import Transformer


class Whole:
    """The model in its only process."""

    def __init__(self, model: Transformer):
        self.call: nn.Module = model

    def passes(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Holds a forward and a backward pass; after the last ones gradients are averaged."""
        return nullcontext()

    def parts(self, tensors: list[Tensor]) -> list[Tensor]:
        """What this process has of each, to be changed in place."""
        return tensors

    def norms(self, parts: list[Tensor]) -> Tensor:
        """The norm of each whole tensor: (tensors,)."""
        return torch.stack(torch._foreach_norm(parts))

    def release(self) -> None:
        """Let go of what a forward pass put together and no backward pass will need."""

    def to_whole(self, state: Any, *, keep: bool) -> Any:
        """A state dict with whole tensors, for a checkpoint; nobody reads them unless `keep`."""
        return _each_tensor(state, Tensor.detach)

    def to_parts(self, state: Mapping[str, Any], optimizer: Optimizer) -> Mapping[str, Any]:
        """What this process needs of an optimizer's state dict with whole tensors; none is shared."""
        return _each_tensor(state, Tensor.clone)


class Copied(Whole):
    """DDP."""

    def __init__(self, model: Transformer, device: torch.device):
        super().__init__(model.to(device))
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*broadcast_buffers.*"
            )  # torch 2.13 renames it
            self.call = self._replica = DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        self._settle_buckets(device)

    def _settle_buckets(self, device: torch.device) -> None:
        """Go through the passes once, with gradients of zero.

        After its first backward pass DDP puts gradients into other buckets, and their place there
        decides how sums over three and more processes are rounded. A run that goes on from a
        checkpoint is to take its first step like one that was never interrupted.
        """
        nothing = torch.full((1, 1), IGNORED, device=device)
        with torch.compiler.set_stance("force_eager"):
            self.call(torch.zeros_like(nothing), targets=nothing).objective.backward()
        self.call.zero_grad()

    def passes(self, *, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext() if is_last else self._replica.no_sync()


class Sharded(Whole):
    """FSDP2: the tensors of a block are put together while it runs, and cut again."""

    def __init__(self, model: Transformer, device: torch.device):
        mesh = init_device_mesh(device.type, (get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        super().__init__(model)

    def passes(self, *, is_last: bool) -> AbstractContextManager[None]:
        assert isinstance(self.call, FSDPModule)
        self.call.set_requires_gradient_sync(is_last)
        return nullcontext()

    def parts(self, tensors: list[Tensor]) -> list[Tensor]:
        return [_part_of(tensor) for tensor in tensors]

    def norms(self, parts: list[Tensor]) -> Tensor:
        squares = super().norms(parts).double().square()
        all_reduce(squares)
        return squares.sqrt().float()

    def release(self) -> None:
        for module in self.call.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def to_whole(self, state: Any, *, keep: bool) -> Any:
        known: dict[int, Tensor] = {}  # a tied table is one tensor under two names

        def whole(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, DTensor):
                return tensor.detach()
            if id(tensor) not in known:
                gathered = tensor.full_tensor().detach()
                known[id(tensor)] = gathered.cpu() if keep else gathered.new_empty(0)
            return known[id(tensor)]

        return _each_tensor(state, whole)

    def to_parts(self, state: Mapping[str, Any], optimizer: Optimizer) -> Mapping[str, Any]:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        parts = {
            number: {key: _cut_like(parameters[number], value) for key, value in values.items()}
            for number, values in state["state"].items()
        }
        return {**state, "state": parts}


def _each_tensor(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(state, dict):
        return {key: _each_tensor(member, change) for key, member in state.items()}
    return change(state) if isinstance(state, Tensor) else state


def _cut_like(parameter: Tensor, value: Any) -> Any:
    """The shard that belongs to that of the parameter, if the value is of its shape."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    cut = distribute_tensor(value, mesh, placements, src_data_rank=None)
    shard = torch.empty_like(parameter.detach())
    _part_of(shard).copy_(_part_of(cut))  # a copy, or it would keep all of the value in memory
    return shard


def _part_of(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread(
    model: Transformer, strategy: Literal["single", "ddp", "fsdp"], device: torch.device
) -> Whole:
    """Put the model on the devices of all processes, which hold the same weights and call this alike."""
    if strategy == "single":
        return Whole(model.to(device))
    return Copied(model, device) if strategy == "ddp" else Sharded(model, device)
