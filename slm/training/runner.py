"""Trains one run from its spec and writes its record: data, model, trainer, result, in that order."""

from __future__ import annotations

import logging
import math
import shutil
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment

from slm.architecture.compute import CONVENTION
from slm.architecture.shapes import count_parameters
from slm.data.datamodule import TokenData
from slm.data.examples import Examples, open_examples
from slm.data.tokenizer import FILE_NAME as TOKENIZER_FILE
from slm.errors import ConfigError, Diverged, Problem, RunError
from slm.files import read_json, write_json
from slm.model.build import build_model
from slm.model.parametrization import Parametrization, initialize
from slm.run_spec import RunSpec
from slm.tracking.checkpoints import newest_checkpoint
from slm.tracking.environment import describe_environment
from slm.tracking.record import SCHEMA_VERSION, RunDirectory, RunResult, State
from slm.tracking.wandb import Mirror, mirror
from slm.training.callbacks.checkpoint import Checkpoints
from slm.training.callbacks.interruption import StopOnSignal
from slm.training.callbacks.metrics import Metrics, val_losses
from slm.training.callbacks.progress import ProgressDisplay
from slm.training.hardware import (
    device_name,
    peak_flops,
    peak_memory_bytes,
    reset_peak_memory,
    resolve_accelerator,
    set_threads,
)
from slm.training.module import LanguageModule

log = logging.getLogger(__name__)
LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}
DATA_IDENTITY = "data.json"


def train(spec: RunSpec, run: RunDirectory) -> RunResult:
    """Train, or go on training, the run that the caller has claimed.

    Raises:
        Interrupted, Diverged: with the state saved, and for a divergence its result.
        ConfigError, DataError, RunError: before any step is taken.
    """
    config = spec.config
    accelerator = resolve_accelerator(config.trainer)
    threads = set_threads(config.trainer)
    device = device_name(accelerator)
    reset_peak_memory(accelerator)
    env = describe_environment(device=device, threads=threads)
    run.write_env(env)

    examples = open_examples(config, spec.shape.seq_len, log.info)
    resume = newest_checkpoint(run.checkpoints)
    _check_same_data(run.path, examples, resumed=resume is not None)
    first_step = 0 if resume is None else resume[1]
    tokens = TokenData(examples, spec, first_step)
    _check_epochs(spec, tokens)
    module = build_module(spec, examples.val.groups)

    peak = peak_flops(device, config.trainer.precision)

    with run.open_metrics() as stream, _mirror(spec, run) as mirrored:
        metrics = Metrics(spec, stream, mirrored, peak, examples.val.text_bytes)
        checkpoints = Checkpoints(run.checkpoints, config.trainer.checkpoint_every_steps)
        stop = StopOnSignal(checkpoints)
        # In this order a checkpoint holds the metrics of its own step, and a stop comes after both.
        trainer = build_trainer(spec, run, accelerator, [metrics, checkpoints, stop])

        def conclude(status: State) -> RunResult:
            result = _result(
                spec,
                examples=examples,
                epochs=tokens.epochs,
                module=module,
                metrics=metrics,
                mirrored=mirrored,
                peak_memory_bytes=peak_memory_bytes(accelerator),
                steps=trainer.global_step,
                commit=env["commit"],
                status=status,
            )
            run.write_result(result)
            mirrored.summarize({**_counts(spec), "val/loss": result.val_loss_nats_per_token})
            return result

        try:
            with stop.listening():
                _fit(trainer, module, tokens, None if resume is None else resume[0])
        except Diverged:
            conclude("diverged")
            raise
        return conclude("finished")


def _mirror(spec: RunSpec, run: RunDirectory) -> AbstractContextManager[Mirror]:
    config = spec.config
    return mirror(
        config.tracking,
        run_id=spec.run_id,
        folder=run.path,
        group=config.study.name,
        tags=[config.family.name, "explicit" if config.size is None else f"size-{config.size}"],
        content={**spec.identity, "run": _counts(spec)},
    )


def _fit(trainer: Trainer, module: LanguageModule, tokens: TokenData, resume: Path | None) -> None:
    """Train to the last step, or go on to it, and validate there."""
    if resume is not None:
        log.info("going on after step %d of %d", tokens.first_step, trainer.max_steps)
    with warnings.catch_warnings():
        # The order of data is a function of the step, so a resumed loader starts where it should.
        warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")
        # Lightning 2.6 asks torch 2.13 in a way that torch is about to drop.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        # Workers are a config choice; memory-mapped tokens need none.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.fit(module, tokens, ckpt_path=resume, weights_only=True)
        if module.validated_step != trainer.max_steps:
            trainer.validate(module, tokens, verbose=False)


def build_module(spec: RunSpec, groups: Sequence[str] = ()) -> LanguageModule:
    """The initialised model of a spec, ready to train."""
    config = spec.config
    model = build_model(config, spec.shape)
    parametrization = Parametrization.of(config.parametrization, spec.shape)
    initialize(model, parametrization, config.seed)
    if config.trainer.compile:
        model.compile()  # in place, so that checkpoint keys stay as they are
    return LanguageModule(model, parametrization, spec, groups)


def build_trainer(
    spec: RunSpec, run: RunDirectory, accelerator: str, callbacks: list[Callback]
) -> Trainer:
    config = spec.config.trainer
    if config.progress:
        callbacks = [*callbacks, ProgressDisplay(spec)]
    never = spec.steps + 1
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return Trainer(
        accelerator=accelerator,
        devices=1,
        # One run is one process, also inside of a Slurm job: how jobs are requeued is the launcher's
        # business, and nothing of Lightning's may be written or looked for outside of the run.
        plugins=[LightningEnvironment()],
        default_root_dir=run.path,
        precision=LIGHTNING_PRECISION[config.precision],
        max_steps=spec.steps,
        max_epochs=-1,
        callbacks=callbacks,
        check_val_every_n_epoch=None,
        val_check_interval=config.validate_every_steps or never,
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


def _counts(spec: RunSpec) -> dict[str, Any]:
    counts = count_parameters(spec.shape)
    return {
        "params_total": counts.params_total,
        "params_non_embedding": counts.params_non_embedding,
        "params_embedding": counts.params_embedding,
        "flops_per_token": spec.flops_per_token,
        "flops_convention": CONVENTION,
        "reference_flops_per_token": spec.reference_flops_per_token,
        "tokens_per_param": spec.tokens_per_param,
        "tokens": spec.tokens,
        "flops": spec.flops,
        "steps": spec.steps,
        "batch_tokens": spec.batch_tokens,
    }


def _result(
    spec: RunSpec,
    *,
    examples: Examples,
    epochs: float,
    module: LanguageModule,
    metrics: Metrics,
    mirrored: Mirror,
    peak_memory_bytes: int,
    steps: int,
    commit: str | None,
    status: State,
) -> RunResult:
    config = spec.config
    done = steps * spec.batch_tokens
    finished = status == "finished"
    loss, bits_per_byte = val_losses(module, examples.val.text_bytes) if finished else (None, None)
    schedule = {
        "kind": config.schedule.kind,
        "warmup_tokens": spec.warmup_tokens,
        "decay_tokens": config.schedule.decay_fraction * spec.tokens
        if config.schedule.kind == "wsd"
        else spec.tokens - spec.warmup_tokens,
        "final_lr_fraction": config.schedule.final_lr_fraction,
    }
    return RunResult(
        schema_version=SCHEMA_VERSION,
        run_id=spec.run_id,
        study=config.study.name,
        recipe_id=spec.recipe_id,
        status=status,
        family=config.family.name,
        size=config.size,
        rung=spec.rung,
        shape=spec.shape.as_dict(),
        parametrization=config.parametrization.kind,
        **{**_counts(spec), "steps": steps, "tokens": done, "flops": done * spec.flops_per_token},
        epochs=epochs * steps / spec.steps,
        seed=config.seed,
        peak_lr=config.optimizer.lr,
        schedule=schedule,
        trunk_id=None,
        precision=config.trainer.precision,
        val_loss_nats_per_token=loss,
        val_bits_per_byte=bits_per_byte,
        val_perplexity=None if loss is None else math.exp(loss),
        val_errors=module.val_errors if finished and module.val_errors else None,
        val_tokens=examples.val.tokens,
        val_bytes=examples.val.text_bytes,
        val_fingerprint=examples.val.fingerprint,
        data_fingerprint=examples.fingerprint,
        tokenizer_fingerprint=examples.tokenizer_fingerprint,
        train_loss_nats_per_token=metrics.last_train_loss,
        wall_seconds=metrics.training_seconds,
        tokens_per_second=metrics.tokens_per_second(done),
        mfu=metrics.mfu(metrics.tokens_per_second(done)),
        peak_memory_bytes=peak_memory_bytes,
        commit=commit,
        wandb_id=mirrored.id,
    )
