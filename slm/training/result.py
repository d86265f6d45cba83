"""The RunResult of a run, from its spec and its measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from slm.data.examples import Examples
from slm.model.loss import perplexity
from slm.run.facts import run_counts
from slm.run.spec import RunSpec
from slm.tracking import run_dir
from slm.tracking.result import SCHEMA_VERSION, RunResult, State
from slm.tracking.spikes import loss_spikes
from slm.training.batches import count_epochs
from slm.training.metrics import Metrics
from slm.training.validation import Measurement, val_losses


def result_of(
    spec: RunSpec,
    *,
    examples: Examples,
    measured: Measurement | None,
    divergence: Mapping[str, Any] | None,
    metrics: Metrics,
    rows: Sequence[Mapping[str, float]],
    peak_memory_bytes: int,
    commit: str | None,
    wandb_id: str | None,
) -> RunResult:
    """Build the result from the final validation or, if `measured` is None, from the divergence.

    `rows` are the rows of metrics.jsonl.
    """
    status: State = "diverged" if measured is None else "finished"
    steps = spec.steps if divergence is None else int(divergence["step"])
    done = steps * spec.batch_tokens
    logged = [row for row in rows if run_dir.TRAIN_LOSS in row]
    spikes = loss_spikes([row[run_dir.TRAIN_LOSS] for row in logged])
    return RunResult(
        schema_version=SCHEMA_VERSION,
        status=status,
        **_requested(spec),
        **{
            **run_counts(spec),
            "steps": steps,
            "tokens": done,
            "flops": done * spec.flops_per_token,
        },
        epochs=count_epochs(examples, spec) * steps / spec.steps,
        taken_over_steps=metrics.taken_over_steps,
        **_validation(examples, measured),
        data_fingerprint=examples.fingerprint,
        tokenizer_fingerprint=examples.tokenizer_fingerprint,
        train_loss_nats_per_token=metrics.last_train_loss,
        loss_spikes=[int(logged[i][run_dir.STEP]) for i in spikes],
        divergence=None if divergence is None else dict(divergence),
        wall_seconds=metrics.training_seconds,
        tokens_per_second=metrics.tokens_per_second(done),
        mfu=metrics.mfu(metrics.tokens_per_second(done)),
        peak_memory_bytes=peak_memory_bytes,
        commit=commit,
        wandb_id=wandb_id,
    )


def _requested(spec: RunSpec) -> dict[str, Any]:
    config, schedule = spec.config, spec.config.schedule
    decay_tokens = (
        schedule.decay_fraction * spec.tokens
        if schedule.kind == "wsd"
        else spec.tokens - spec.warmup_tokens
    )
    return {
        "run_id": spec.run_id,
        "study": config.study.name,
        "recipe_id": spec.recipe_id,
        "trunk_id": spec.trunk_id,
        "family": config.family.name,
        "size": config.size,
        "rung": spec.rung,
        "shape": spec.shape.as_dict(),
        "parametrization": config.parametrization.kind,
        "seed": config.seed,
        "peak_lr": config.optimizer.lr,
        "schedule": {
            "kind": schedule.kind,
            "warmup_tokens": spec.warmup_tokens,
            "decay_tokens": decay_tokens,
            "final_lr_fraction": schedule.final_lr_fraction,
        },
        "precision": config.trainer.precision,
    }


def _validation(examples: Examples, measured: Measurement | None) -> dict[str, Any]:
    val = examples.val
    loss, bits_per_byte = (None, None) if measured is None else val_losses(measured, val.text_bytes)
    val_perplexity = math.inf if loss is None else perplexity(loss)
    return {
        "val_loss_nats_per_token": loss,
        "val_bits_per_byte": bits_per_byte,
        "val_perplexity": val_perplexity if math.isfinite(val_perplexity) else None,
        "val_errors": (measured.errors or None) if measured else None,
        "val_tokens": val.tokens,
        "val_bytes": val.text_bytes,
        "val_fingerprint": val.fingerprint,
    }
