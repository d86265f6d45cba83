"""One optimizer step on a global batch: micro-batches, gradient clipping, finite check, AdamW."""

from __future__ import annotations

from typing import NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor

from slm.model.build import VOCAB_MULTIPLE_ON_GPU, build_model
from slm.model.loss import IGNORED
from slm.model.parametrization import Parametrization, initialize
from slm.run.micro_batch import requested_sequences
from slm.run.spec import RunSpec
from slm.training.device.accelerator import resolve_accelerator
from slm.training.device.compile import compile_blocks
from slm.training.device.rng import seed_step
from slm.training.distributed.fabric import build_fabric, local_part
from slm.training.distributed.workers import SINGLE_PROCESS, Workers
from slm.training.module import LanguageModule
from slm.training.nonfinite import NonFiniteCheck


class StepOutput(NamedTuple):
    """Scalars of one step, on the device."""

    loss: Tensor
    """Mean over the targets of the global batch in nats, float64."""
    grad_norm: Tensor
    """Global norm before clipping."""
    lr: float


class TrainingStep:
    """The module and its optimizer on their device, and the step that trains them.

    Gradients are averaged over ranks; loss and gradient norm are those of the global batch.
    """

    def __init__(
        self,
        module: LanguageModule,
        spec: RunSpec,
        fabric: Fabric,
        workers: Workers,
        micro_sequences: int,
    ):
        self.module = module
        self.fabric = fabric
        self._spec = spec
        self._workers = workers
        self.micro_sequences = micro_sequences
        self._wrapped = fabric.setup_module(module)  # in DDP, or with sharded parameters
        self.optimizer = module.build_optimizer()  # after sharding; takes `found_inf` and states
        self._fabric_optimizer = fabric.setup_optimizers(self.optimizer)
        # Group by group: walking through the modules takes longer than clipping.
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.is_sharded = any(local_part(p) is not p for p in self._parameters)
        name_of = {parameter: name for name, parameter in module.model.named_parameters()}
        names = [name_of[parameter] for parameter in self._parameters]
        self.finite_check = NonFiniteCheck(names, spec.config.seed, fabric.device)
        if workers.world_size > 1 and not self.is_sharded:
            self._rebuild_ddp_buckets()
        self.seek(0)

    def seek(self, step: int) -> None:
        """Set the learning rate of `step`, the next step to take."""
        self._schedule = self.module.build_schedule(self.optimizer, step)

    def lr_multiplier(self, step: int) -> float:
        """Return the learning rate of `step` as a fraction of its peak."""
        return self._schedule.lr_lambdas[0](step)

    def take(self, step: int, pairs: Tensor) -> StepOutput:
        """Take a step on this rank's rows of its global batch, pairs (rows, 2, seq_len) on the device.

        Raises:
            Diverged: on CPU, if the loss or a gradient is not finite. On a GPU the step is skipped as well, and
                `finite_check.check` raises the error.
        """
        workers, config = self._workers, self._spec.config
        if config.model.dropout:
            seed_step(config.seed, step, workers.rank, pairs.device)
        n_targets = workers.all_reduce_sum((pairs[:, 1] != IGNORED).sum()).clamp(min=1)
        # The mean of the ranks' gradients has to be the gradient of the sum over ranks.
        divisor = n_targets if workers.world_size == 1 else n_targets / workers.world_size
        nats = torch.zeros((), dtype=torch.float64, device=pairs.device)
        micro_batches = pairs.split(self.micro_sequences)
        for number, micro_batch in enumerate(micro_batches, start=1):
            inputs, targets = micro_batch.unbind(1)
            is_last = number == len(micro_batches)
            with self.fabric.no_backward_sync(self._wrapped, enabled=not is_last):
                sums = self._wrapped(inputs, targets)
                self.fabric.backward(sums.objective / divisor)
            nats += sums.nats
        norms = self._clip_gradients()
        loss = self._sum_nats(nats, norms) / n_targets
        self.finite_check.admit(step, loss, norms, self.optimizer)
        self._fabric_optimizer.step()
        self.optimizer.zero_grad()
        # The rate in the config's terms: each group has its own multiple of it.
        lr = config.optimizer.lr * self.lr_multiplier(step)
        self._schedule.step()
        return StepOutput(loss, torch.linalg.vector_norm(norms), lr)

    def _clip_gradients(self) -> Tensor:
        """Scale all gradients to the maximum global norm; return the norm of each tensor before that."""
        gradients = [local_part(p.grad) for p in self._parameters if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        if self.is_sharded:
            squares = self._workers.all_reduce_sum(norms.double().square())
            norms = squares.sqrt().float()
        clip = self._spec.config.optimizer.grad_clip
        if clip is not None:
            scale = clip / (torch.linalg.vector_norm(norms) + 1e-6)
            torch._foreach_mul_(gradients, scale.clamp(max=1.0))
        return norms

    def _sum_nats(self, nats: Tensor, norms: Tensor) -> Tensor:
        """Sum the nats of all ranks; not finite on any rank if a norm of one rank is not finite."""
        if self._workers.world_size == 1:
            return nats
        total, norm_sum = self._workers.all_reduce_sum(torch.stack([nats, norms.sum().double()]))
        return total + 0 * norm_sum  # 0 * inf and 0 * nan are nan

    def _rebuild_ddp_buckets(self) -> None:
        """Run one backward pass with gradients of zero.

        DDP assigns gradients to other buckets after its first backward pass, and the buckets decide the
        order of sums over three or more ranks. A resumed run has to take its first step with the same
        buckets as an uninterrupted run.
        """
        no_targets = torch.full((1, 1), IGNORED, device=self.fabric.device)
        with torch.compiler.set_stance("force_eager"):
            self.fabric.backward(self._wrapped(torch.zeros_like(no_targets), no_targets).objective)
        self.optimizer.zero_grad()


def build_module(spec: RunSpec) -> LanguageModule:
    """Return the initialised model of a spec on the CPU, compiled if the spec requires it."""
    accelerator = resolve_accelerator(spec.config.trainer)
    pad_vocab_to = VOCAB_MULTIPLE_ON_GPU if accelerator == "gpu" else 1
    model = build_model(spec.config, spec.shape, pad_vocab_to)
    initialize(model, Parametrization.of(spec.config.parametrization, spec.shape), spec.init_seed)
    compile_blocks(model, spec, accelerator)
    return LanguageModule(model, spec)


def build_step(
    spec: RunSpec, workers: Workers = SINGLE_PROCESS, micro_sequences: int | None = None
) -> TrainingStep:
    """Return the training step of a spec; by default with the configured micro-batch."""
    trainer = spec.config.trainer
    fabric = build_fabric(trainer, resolve_accelerator(trainer), workers)
    sequences = micro_sequences or requested_sequences(spec) or spec.batch_sequences
    return TrainingStep(build_module(spec), spec, fabric, workers, sequences)
