"""Trains one run from its spec and writes its record: data, model, trainer, result, in that order."""

from __future__ import annotations

import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment

from slm.data.datamodule import TokenData
from slm.data.examples import Examples, open_examples
from slm.data.tokenizers.tokenizer import FILE_NAME as TOKENIZER_FILE
from slm.errors import ConfigError, Diverged, Problem, RunError
from slm.files import atomic_write, read_json, write_json
from slm.model.build import build_model
from slm.model.parametrization import Parametrization, initialize
from slm.run.micro_batch import MicroBatch, requested_sequences
from slm.run.spec import RunSpec
from slm.tracking.checkpoints import newest_checkpoint
from slm.tracking.environment import describe_environment
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory
from slm.tracking.trunk import Trunk
from slm.tracking.wandb import Mirror, mirror
from slm.training.callbacks.checkpoint import Checkpoints
from slm.training.callbacks.interruption import StopOnSignal
from slm.training.callbacks.metrics import Metrics
from slm.training.callbacks.progress import ProgressDisplay
from slm.training.callbacks.validation import Validation
from slm.training.device.accelerator import (
    Machine,
    peak_memory_bytes,
    prepare_machine,
    resolve_accelerator,
)
from slm.training.device.compile import compile_blocks
from slm.training.device.memory import out_of_memory_told, settle_micro_batch
from slm.training.distributed.lightning_strategy import OneOfSeveral
from slm.training.distributed.workers import ALONE, Team
from slm.training.module import LanguageModule
from slm.training.result import counts_of, result_of

log = logging.getLogger(__name__)
LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}
DATA_IDENTITY = "data.json"


def train(spec: RunSpec, run: RunDirectory, team: Team = ALONE) -> RunResult | None:
    """Train, or go on training, the run that the caller has claimed; None where another one leads.

    Raises:
        Interrupted, Diverged: with the state saved, and for a divergence its result.
        ConfigError, DataError, RunError: before any step is taken.
    """
    config = spec.config
    with team.together():
        machine = prepare_machine(config.trainer, team)
    micro_batch = team.decide(lambda: settle_micro_batch(spec, run, machine.accelerator))
    env = team.decide(lambda: _record_environment(run, machine, team, micro_batch))

    examples = team.in_turn(lambda: open_examples(config, spec.shape.seq_len, log.info))
    begin = team.decide(lambda: _beginning(spec, run))
    is_resumed = begin is not None and begin.is_own
    team.decide(lambda: _check_same_data(run.path, examples, resumed=is_resumed))
    first_step = 0 if begin is None else begin.step
    tokens = TokenData(examples, spec, first_step, rank=team.rank, world_size=team.world_size)
    with team.together():
        _check_epochs(spec, tokens)
        module = build_module(spec, team, micro_batch.sequences)

    with _outputs(spec, run, team) as (stream, mirrored):
        taken_over = None if begin is None or begin.is_own else begin.step
        for row in run.read_metrics() if taken_over and team.leads else ():
            mirrored.log(row)
        known = machine.peak_flops, examples.val.text_bytes
        metrics = Metrics(spec, stream, mirrored, *known, begun_at_steps=taken_over)
        loop = _loop(spec, run, tokens, metrics, team)
        module.stop_asked = loop.stop.is_asked

        def conclude(divergence: Mapping[str, Any] | None) -> RunResult | None:
            if not team.leads:
                return None
            result = result_of(
                spec,
                examples=examples,
                epochs=tokens.epochs,
                measured=loop.validation.last if divergence is None else None,
                divergence=divergence,
                metrics=metrics,
                rows=run.read_metrics(),
                peak_memory_bytes=peak_memory_bytes(machine.accelerator),
                commit=env["commit"],
                wandb_id=mirrored.id,
            )
            run.write_result(result)
            mirrored.summarize({**counts_of(spec), "val/loss": result.val_loss_nats_per_token})
            return result

        trainer = build_trainer(spec, run, machine.accelerator, loop, team)
        told = out_of_memory_told(spec, machine.accelerator, micro_batch, team)
        try:
            with loop.stop.listening(), told:
                _fit(trainer, module, tokens, loop, begin)
        except Diverged as diverged:
            conclude(diverged.evidence)
            raise
        return conclude(None)


def _record_environment(
    run: RunDirectory, machine: Machine, team: Team, micro_batch: MicroBatch
) -> dict[str, Any]:
    env = describe_environment(
        device=machine.device, threads=machine.threads, processes=team.world_size
    )
    env["memory"] = micro_batch.as_dict()
    run.write_env(env)
    return env


@dataclass(frozen=True)
class Beginning:
    """A checkpoint to begin at: the run's own, or one of its trunk's."""

    checkpoint: Path
    step: int
    is_own: bool


def _beginning(spec: RunSpec, run: RunDirectory) -> Beginning | None:
    """The newest there is; the metrics up to one of the trunk become the run's own."""
    found = newest_checkpoint(run.checkpoints)
    if found is not None:
        log.info("going on after step %d of %d", found[1], spec.steps)
        return Beginning(*found, is_own=True)
    trunk = Trunk.of(spec)
    start = None if trunk is None else trunk.find_start(spec.trunk_steps)
    if start is None:
        return None
    with atomic_write(run.path / "metrics.jsonl") as temporary:
        shutil.copyfile(start.rows, temporary)
    share = start.step / spec.steps
    log.info(
        "beginning at step %d of %d, where its trunk is: %.0f%% saved", start.step, spec.steps,
        100 * share,
    )  # fmt: skip
    return Beginning(start.checkpoint, start.step, is_own=False)


@dataclass(frozen=True)
class Loop:
    """The callbacks of a run, in the order in which a step goes through them.

    A checkpoint holds the metrics of its own step; a validation is not part of it, and is made up for
    after an interruption.
    """

    metrics: Metrics
    checkpoints: Checkpoints
    validation: Validation
    stop: StopOnSignal

    def callbacks(self) -> list[Callback]:
        return [self.metrics, self.checkpoints, self.validation, self.stop]


def _loop(
    spec: RunSpec, run: RunDirectory, tokens: TokenData, metrics: Metrics, team: Team
) -> Loop:
    config, trunk = spec.config.trainer, Trunk.of(spec)

    def keep(checkpoint: Path) -> None:
        if trunk is not None and team.leads:
            trunk.store(checkpoint, run.metrics_until(spec.trunk_steps))

    checkpoints = Checkpoints(
        run.checkpoints,
        spec.config.seed,
        config.checkpoint_every_steps,
        None if trunk is None else spec.trunk_steps,
        keep,
        team=team,
    )
    stop = StopOnSignal(checkpoints, team)
    validation = Validation(
        tokens.val_batches(),
        tokens.val.groups,
        config.validate_every_steps,
        stop.stop_if_asked,
        metrics.log_validation,
        team=team,
    )
    return Loop(metrics, checkpoints, validation, stop)


@contextmanager
def _outputs(spec: RunSpec, run: RunDirectory, team: Team) -> Iterator[tuple[IO[str], Mirror]]:
    """The leader's metrics.jsonl and mirror; what others say goes nowhere."""
    with ExitStack() as opened:
        if team.leads:
            stream = opened.enter_context(run.open_metrics())
            yield stream, opened.enter_context(_mirror(spec, run))
        else:
            yield opened.enter_context(Path(os.devnull).open("w", encoding="utf-8")), Mirror()


def _mirror(spec: RunSpec, run: RunDirectory) -> AbstractContextManager[Mirror]:
    config = spec.config
    return mirror(
        config.tracking,
        run_id=spec.run_id,
        folder=run.path,
        group=config.study.name,
        tags=[config.family.name, "explicit" if config.size is None else f"size-{config.size}"],
        content={**spec.identity, "run": counts_of(spec)},
    )


def _fit(
    trainer: Trainer,
    module: LanguageModule,
    tokens: TokenData,
    loop: Loop,
    begin: Beginning | None,
) -> None:
    """Train to the last step, or go on to it, and validate there."""
    with warnings.catch_warnings():
        # The order of data is a function of the step, so a resumed loader starts where it should.
        warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")
        # Lightning 2.6 asks torch 2.13 in a way that torch is about to drop.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        # Workers are a config choice; memory-mapped tokens need none.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # A run is started by whom its launcher chooses; that there is an `srun` here is no matter.
        warnings.filterwarnings("ignore", message=".*`srun` command.*")
        resume = None if begin is None else begin.checkpoint
        trainer.fit(module, tokens, ckpt_path=resume, weights_only=True)
    if loop.validation.last is None or loop.validation.last.step != trainer.max_steps:
        # All steps were taken before; only their measurement was cut off.
        module.to(trainer.strategy.root_device)
        loop.validation.measure(trainer, module)


def build_module(
    spec: RunSpec, team: Team = ALONE, micro_sequences: int | None = None
) -> LanguageModule:
    """The initialised model of a spec, ready to train; without `micro_sequences` in the config's."""
    config = spec.config
    model = build_model(config, spec.shape)
    parametrization = Parametrization.of(config.parametrization, spec.shape)
    initialize(model, parametrization, spec.init_seed)
    compile_blocks(model, spec, resolve_accelerator(config.trainer))
    micro_sequences = micro_sequences or requested_sequences(spec)
    return LanguageModule(model, parametrization, spec, team, micro_sequences)


def build_trainer(
    spec: RunSpec, run: RunDirectory, accelerator: str, loop: Loop, team: Team
) -> Trainer:
    config = spec.config.trainer
    callbacks = loop.callbacks()
    if config.progress and team.leads:
        callbacks.append(ProgressDisplay(spec))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    own = f"cuda:{team.local_rank}" if accelerator == "gpu" else "cpu"
    return Trainer(
        accelerator=accelerator,
        devices=[team.local_rank] if accelerator == "gpu" else 1,
        strategy="auto"
        if team.world_size == 1
        else OneOfSeveral(torch.device(own), leads=team.leads),
        # To Lightning a run is one process, also inside of a Slurm job: how jobs are requeued is the
        # launcher's business, and nothing of Lightning's may be written or looked for outside of the run.
        plugins=[LightningEnvironment()],
        default_root_dir=run.path,
        precision=LIGHTNING_PRECISION[config.precision],
        max_steps=spec.steps,
        max_epochs=-1,
        callbacks=callbacks,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _check_same_data(folder: Path, examples: Examples, *, resumed: bool) -> None:
    """A run goes on only over the tokens that it began with."""
    path = folder / DATA_IDENTITY
    if resumed and path.exists():
        began_with = read_json(path)["fingerprint"]
        if began_with != examples.fingerprint:
            raise RunError(
                f"{folder} was trained on data {began_with}, but {examples.folder or 'the task'} now "
                f"holds {examples.fingerprint}; start over with rerun=true"
            )
    place = None if examples.folder is None else str(examples.folder.resolve())
    write_json(path, {"fingerprint": examples.fingerprint, "folder": place})
    if examples.folder is not None:
        shutil.copy(examples.folder / TOKENIZER_FILE, folder / TOKENIZER_FILE)


def _check_epochs(spec: RunSpec, tokens: TokenData) -> None:
    limit = spec.config.data.max_epochs
    if tokens.epochs > limit:
        rule = f"{spec.tokens:,} tokens are {tokens.epochs:.2f} passes over the training text"
        fix = f"data.max_epochs={math.ceil(tokens.epochs)} allows it"
        raise ConfigError([Problem("data.max_epochs", limit, rule, fix)])
