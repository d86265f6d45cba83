"""Train the run of a config, or all branches of its trunk, and skip finished runs."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import ExitStack

from slm.config.schema import Config
from slm.errors import Diverged, Interrupted, SlmError
from slm.formatting import scientific
from slm.logs import log, log_to_file
from slm.run.display_name import display_name
from slm.run.spec import RunSpec, branch_specs
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory
from slm.tracking.trunk import Trunk
from slm.training.distributed.rank import check_launch
from slm.training.distributed.workers import SINGLE_PROCESS, Workers, is_shared
from slm.training.stop_on_signal import StopSignal


def train_all(
    config: Config, workers: Workers = SINGLE_PROCESS, *, more_jobs: bool = False
) -> float | None:
    """Train the run of a config, or all branches of its trunk; a failed branch does not stop the others.

    With `more_jobs` to follow in this process, a signal that came too late to stop the last run stops them.
    Returns the validation loss of the longest run in nats per token on rank 0, else None.

    Raises:
        InUse: if another process holds the lease of the run or of the trunk.
        SlmError: the first failure, raised after all branches.
    """
    with workers.sync_errors():
        check_launch(config.trainer, workers.world_size, workers.local_rank)
        specs = branch_specs(config)
        runs = [RunDirectory.of(spec) for spec in specs]
    trunk = Trunk.of(specs[0])
    with ExitStack() as leases:
        if trunk is not None and len(specs) > 1:
            workers.broadcast_from_rank0(lambda: _acquire_trunk(trunk, leases))
        if trunk is not None and config.rerun:
            workers.broadcast_from_rank0(lambda: _delete_old_trunk(trunk, runs))
        _train_each(specs, runs, workers, more_jobs=more_jobs)
    result = runs[-1].result() if workers.is_rank_zero else None
    return None if result is None else result.val_loss_nats_per_token


def _acquire_trunk(trunk: Trunk, leases: ExitStack) -> None:
    leases.callback(trunk.lease.take().release)


def _delete_old_trunk(trunk: Trunk, runs: Sequence[RunDirectory]) -> None:
    if not any(run.is_of_this_submission() for run in runs):
        trunk.delete()


def _train_each(
    specs: Sequence[RunSpec], runs: Sequence[RunDirectory], workers: Workers, *, more_jobs: bool
) -> None:
    failures: list[SlmError] = []
    for spec, run in zip(specs, runs, strict=True):
        try:
            stop = StopSignal(workers)
            _train(spec, run, workers, stop)
            number = stop.received() if more_jobs or spec is not specs[-1] else None
            if number is not None:
                name = signal.Signals(number).name
                raise Interrupted(f"stopped by {name} after the end of {spec.run_id}", number)
        except Interrupted:
            raise
        except SlmError as error:
            if workers.world_size > 1 and not is_shared(error):
                raise  # the other ranks still train this branch
            if len(specs) > 1 and str(error) not in map(str, failures):
                log.error("%s: %s", spec.run_id, error)
                error.was_shown = True
            failures.append(error)
    if failures:
        raise failures[0]


def _train(spec: RunSpec, run: RunDirectory, workers: Workers, stop: StopSignal) -> None:
    if not workers.broadcast_from_rank0(lambda: _needs_training(spec, run)):
        return
    from slm.training.device.accelerator import check_device  # imports torch, which takes seconds

    with workers.sync_errors():
        check_device(spec.config.trainer)
    with ExitStack() as resources:
        workers.broadcast_from_rank0(lambda: _claim(spec, run, resources))
        from slm.training.runner import train  # imports lightning

        result = train(spec, run, workers, stop)
    if result is not None:
        log.info("finished: validation %s; run directory: %s", _format_scores(result), run.path)


def _needs_training(spec: RunSpec, run: RunDirectory) -> bool:
    state, starts_over = run.state(), _starts_over(spec, run)
    # An unreadable result.json raises; without one, the run continues from its last checkpoint.
    if state == "finished" and not starts_over and run.result() is not None:
        log.info("already finished: %s (set rerun=true to train it again)", run.path)
        return False
    if state == "diverged" and not starts_over:
        raise Diverged(f"already diverged: {run.path} (set rerun=true to train it again)")
    return True


def _starts_over(spec: RunSpec, run: RunDirectory) -> bool:
    """Return whether an existing run is set aside: with rerun=true, unless this job itself has begun it.

    A job that is requeued or retried runs its first command again, which has rerun=true.
    """
    return spec.config.rerun and not run.is_of_this_submission()


def _claim(spec: RunSpec, run: RunDirectory, resources: ExitStack) -> None:
    resources.enter_context(run.claim(spec, rerun=_starts_over(spec, run)))
    resources.enter_context(log_to_file(run.path / "log.txt"))
    size = f"{spec.steps:,} steps, {scientific(spec.flops)} FLOPs"
    log.info("%s: %s, run id %s", display_name(spec), size, spec.run_id)


def _format_scores(result: RunResult) -> str:
    scores = [f"{result.val_loss_nats_per_token:.4f} nats/token"]
    if result.val_bits_per_byte is not None:
        scores.append(f"{result.val_bits_per_byte:.4f} bits/byte")
    errors = result.val_errors or {}
    return ", ".join(
        [*scores, *(f"error {share:.2%} at {group}" for group, share in errors.items())]
    )
