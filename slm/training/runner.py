"""Train one run and write its run directory: data, training step, checkpoint to start from, loop, result."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from slm.data.examples import Examples, open_examples
from slm.data.tokenizers.hf_files import TOKENIZER_FILE
from slm.errors import ConfigError, Diverged, Problem, RunError
from slm.files import atomic_write, read_object, write_json
from slm.run.micro_batch import MicroBatch
from slm.run.spec import RunSpec
from slm.tracking.checkpoints import newest_checkpoint, step_of
from slm.tracking.environment import describe_environment
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory
from slm.tracking.trunk import Trunk
from slm.tracking.wandb import Mirror, mirror
from slm.training.batches import count_epochs
from slm.training.checkpoint import (
    CheckpointWriter,
    load_checkpoint,
    restore_training_state,
    unusable_reported,
)
from slm.training.device.accelerator import (
    Machine,
    describe_gpu,
    peak_memory_bytes,
    prepare_machine,
)
from slm.training.device.compile import decide_compile
from slm.training.device.memory import advise_on_oom, free_bytes, settle_micro_batch
from slm.training.device.rng import restore_random_states, seed_random_states
from slm.training.distributed.workers import SINGLE_PROCESS, Workers
from slm.training.loop import TrainingLoop
from slm.training.metrics import Metrics
from slm.training.result import result_of
from slm.training.step import build_step
from slm.training.stop_on_signal import StopSignal

log = logging.getLogger(__name__)
DATA_IDENTITY = "data.json"


def train(
    spec: RunSpec,
    run: RunDirectory,
    workers: Workers = SINGLE_PROCESS,
    stop: StopSignal | None = None,
    *,
    saves_checkpoints: bool = True,
) -> RunResult | None:
    """Train or resume a run that the caller has claimed; return its result on rank 0, else None.

    Without `saves_checkpoints` the run cannot be continued, and must not share a trunk.

    Raises:
        Interrupted, Diverged: with the state saved and, after a divergence, the result.
        ConfigError, DataError, RunError: before the first step.
    """
    config = spec.config
    with workers.sync_errors():
        machine = prepare_machine(config.trainer, workers)
        decide_compile(spec, machine.accelerator)  # raises if it must compile and cannot
    free = free_bytes(machine.accelerator, config.trainer.gpu_memory_fraction)
    least = workers.all_reduce_min(free)
    micro_batch = workers.broadcast_from_rank0(
        lambda: settle_micro_batch(spec, run, machine.accelerator, least)
    )
    env = _environment(spec, machine, workers, micro_batch)
    workers.broadcast_from_rank0(lambda: run.write_env(env))
    examples = workers.rank_zero_first(lambda: open_examples(config, spec.shape.seq_len, log.info))
    start = workers.broadcast_from_rank0(lambda: _find_start(spec, run))
    workers.broadcast_from_rank0(lambda: _check_data(run.path, examples, start))
    with workers.sync_errors():
        _check_epochs(spec, examples)
    stop, trunk = stop or StopSignal(workers), Trunk.of(spec)
    with (
        _opened_outputs(spec, run, workers, start.step) as (stream, mirrored),
        ThreadPoolExecutor(1) as thread,
        stop.listening(),
        advise_on_oom(spec, machine.accelerator, micro_batch, workers),
    ):
        # May wait for other ranks (FSDP, DDP), so that an error here ends its process.
        training_step = build_step(spec, workers, micro_batch.sequences)
        checkpoints = CheckpointWriter(
            run.checkpoints,
            workers,
            thread if machine.accelerator == "gpu" else None,
            saved_step=start.step if start.is_own else None,
            is_enabled=saves_checkpoints,
        )
        taken_over_steps = 0 if start.is_own else start.step
        known = machine.peak_flops, examples.val.text_bytes
        metrics = Metrics(spec, stream, mirrored, *known, taken_over_steps)
        loop = TrainingLoop(
            spec,
            examples,
            training_step,
            metrics,
            checkpoints,
            stop,
            workers,
            on_trunk_saved=None if trunk is None else partial(_store, trunk, run, workers),
        )
        _restore(loop, start)
        write_result = partial(_write_result, loop, run, machine.accelerator, env["commit"])
        try:
            loop.run(start.step)
        except Diverged as diverged:
            write_result(diverged.evidence)
            raise
        return write_result()


def _environment(
    spec: RunSpec, machine: Machine, workers: Workers, micro_batch: MicroBatch
) -> dict[str, Any]:
    """Return the content of env.json."""
    env = describe_environment(
        device=machine.device,
        threads=machine.threads,
        processes=workers.world_size,
        gpu=describe_gpu() if machine.accelerator == "gpu" else None,
        attention=spec.config.model.attention,
        compilation=decide_compile(spec, machine.accelerator).as_dict(),
    )
    return {**env, "memory": micro_batch.as_dict()}


@dataclass(frozen=True)
class StartPoint:
    """Step to start at, and the checkpoint of the run or of its trunk to load; None: initial weights."""

    step: int = 0
    checkpoint: Path | None = None
    is_own: bool = True


def _find_start(spec: RunSpec, run: RunDirectory) -> StartPoint:
    """Return the newest checkpoint; for one of the trunk, copy its rows to the run's metrics.jsonl."""
    found = newest_checkpoint(run.checkpoints)
    if found is not None:
        log.info("continuing after step %d of %d", found[1], spec.steps)
        return StartPoint(found[1], found[0])
    trunk = Trunk.of(spec)
    start = None if trunk is None else trunk.find_start(spec.trunk_steps)
    if start is None:
        return StartPoint()
    with atomic_write(run.path / "metrics.jsonl") as temporary:
        shutil.copyfile(start.rows, temporary)
    share = 100 * start.step / spec.steps
    log.info(
        "starting at step %d of %d from its trunk: %.0f%% saved", start.step, spec.steps, share
    )
    return StartPoint(start.step, start.checkpoint, is_own=False)


def _restore(loop: TrainingLoop, start: StartPoint) -> None:
    if start.checkpoint is None:
        seed_random_states(loop.spec.config.seed)
        return
    step, workers = loop.training_step, loop.workers
    with workers.sync_errors(), unusable_reported(start.checkpoint):
        saved = load_checkpoint(start.checkpoint, loop.spec, is_shared=workers.world_size > 1)
    # Sends tensors between ranks, so that an error of one rank here ends its process.
    with unusable_reported(start.checkpoint):
        restore_training_state(step.module.model, step.optimizer, saved)
        loop.restore(saved["progress"])
        restore_random_states(saved["random_states"])
    step.seek(start.step)


def _write_result(
    loop: TrainingLoop,
    run: RunDirectory,
    accelerator: str,
    commit: str | None,
    divergence: Mapping[str, Any] | None = None,
) -> RunResult | None:
    """Write and return the result on rank 0; return None on the other ranks."""
    if not loop.workers.is_rank_zero:
        return None
    mirrored = loop.metrics.mirror
    result = result_of(
        loop.spec,
        examples=loop.examples,
        measured=None if divergence else loop.last_validation,
        divergence=divergence,
        metrics=loop.metrics,
        rows=run.read_metrics(),
        peak_memory_bytes=peak_memory_bytes(accelerator),
        commit=commit,
        wandb_id=mirrored.id,
    )
    run.write_result(result)
    mirrored.summarize(result)
    return result


def _store(trunk: Trunk, run: RunDirectory, workers: Workers, checkpoint: Path) -> None:
    if workers.is_rank_zero:
        trunk.store(checkpoint, run.metrics_until(step_of(checkpoint)))


@contextmanager
def _opened_outputs(
    spec: RunSpec, run: RunDirectory, workers: Workers, first_step: int
) -> Iterator[tuple[IO[str], Mirror]]:
    """Yield metrics.jsonl and the W&B mirror on rank 0; the other ranks write nowhere."""
    with ExitStack() as opened:
        if not workers.is_rank_zero:
            yield opened.enter_context(Path(os.devnull).open("w", encoding="utf-8")), Mirror()
            return
        stream = opened.enter_context(run.open_metrics())
        yield stream, opened.enter_context(mirror(spec, run, first_step))


def _check_data(folder: Path, examples: Examples, start: StartPoint) -> None:
    """Record the data of a new run; raise a RunError if a resumed run was trained on other data."""
    path = folder / DATA_IDENTITY
    if start.is_own and start.step and path.exists():
        saved = read_object(path, "start over with rerun=true", ["fingerprint"])["fingerprint"]
        if saved != examples.fingerprint:
            raise RunError(
                f"{folder} was trained on data {saved}, but {examples.folder or 'the task'} now "
                f"holds {examples.fingerprint}; start over with rerun=true"
            )
    prepared = None if examples.folder is None else str(examples.folder.resolve())
    write_json(path, {"fingerprint": examples.fingerprint, "folder": prepared})
    if examples.folder is not None:
        shutil.copy(examples.folder / TOKENIZER_FILE, folder / TOKENIZER_FILE)


def _check_epochs(spec: RunSpec, examples: Examples) -> None:
    limit, epochs = spec.config.data.max_epochs, count_epochs(examples, spec)
    if epochs > limit:
        rule = f"{spec.tokens:,} tokens are {epochs:.2f} passes over the training text"
        fix = f"data.max_epochs={math.ceil(epochs)} allows it"
        raise ConfigError([Problem("data.max_epochs", limit, rule, fix)])
