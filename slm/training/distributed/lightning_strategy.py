"""What Lightning is told of a run over several processes: to each of them, nothing.

Its own strategies for several wait for the device in every step (to hear of signals), meet in places
where an error of one leaves the others waiting, and start the script anew. Here each process is a
trainer of one device, and the module and `slm.training.distributed.workers` see to the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.optim import Optimizer

from slm.training.distributed.parallelize import Sharded
from slm.training.module import LanguageModule


class OneOfSeveral(SingleDeviceStrategy):
    """Checkpoints are those of one process: whole tensors, written by the leader."""

    def __init__(self, device: torch.device, *, leads: bool):
        super().__init__(device=device)
        self._leads = leads

    @property
    def is_global_zero(self) -> bool:
        return self._leads

    @property
    def _module(self) -> LanguageModule:
        assert isinstance(self.lightning_module, LanguageModule)
        return self.lightning_module

    def model_to_device(self) -> None:
        with self.precision_plugin.forward_context():
            self._module.spread(self.root_device)
        super().model_to_device()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        state = self._module.state_dict(keep_vars=True)
        return self._module.parallel.to_whole(state, keep=self._leads)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self._module.parallel.to_whole(super().optimizer_state(optimizer), keep=self._leads)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Mapped, not read: processes of one machine share its memory, and of shards take their own."""
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=weights_only)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        pairs = zip(checkpoint["optimizer_states"], self.optimizers, strict=True)
        parts = [self._module.parallel.to_parts(state, optimizer) for state, optimizer in pairs]
        super().load_optimizer_state_dict({"optimizer_states": parts})

    def teardown(self) -> None:
        """Shards stay on their devices: a last validation may follow, and puts them together there."""
        if isinstance(self._module.parallel, Sharded):
            self.precision_plugin.teardown()
        else:
            super().teardown()
