"""The content of result.json, field by field. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

SCHEMA_VERSION = 4  # 4: what branches take over from their trunk, loss spikes, divergence

State = Literal["planned", "running", "finished", "failed", "diverged", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The content of result.json.

    Losses are taken after the whole schedule, on the same validation tokens for all runs of a study.
    If the run diverged they are null, and steps, tokens and flops are those it got to. `recipe_id` is
    a hash of what is not shape, budget or seed: runs compare if they share it. Runs that share
    `trunk_id` took the same first steps, so they are not independent; the first `taken_over_steps` were
    read from a checkpoint of such a run instead of being computed again. `val_errors` are shares of
    wrong answers by group, of a task that has groups. `wall_seconds` is the training loop's time over
    all restarts and over the steps taken over, with data and checkpoints but without start-up and
    validation; `tokens_per_second` is over that time. `loss_spikes` are the steps of logged training
    losses far above their neighbours (`slm.tracking.spikes`): a reason to run again with another seed,
    never one to leave the run out. `divergence` says which step could not be taken: its batch, and the
    gradient norm of each tensor group, numbers that are not finite as text.
    """

    schema_version: int
    run_id: str
    study: str
    recipe_id: str
    status: State
    family: str
    size: int | None
    rung: str | None
    shape: dict[str, Any]
    parametrization: str
    params_total: int
    params_non_embedding: int
    params_embedding: int
    flops_per_token: int
    flops_convention: str
    reference_flops_per_token: int
    tokens_per_param: float
    tokens: int
    epochs: float
    flops: int
    steps: int
    batch_tokens: int
    seed: int
    peak_lr: float
    schedule: dict[str, Any]
    trunk_id: str | None
    taken_over_steps: int
    precision: str
    val_loss_nats_per_token: float | None
    val_bits_per_byte: float | None
    val_perplexity: float | None
    val_errors: dict[str, float] | None
    val_tokens: int
    val_bytes: int | None
    val_fingerprint: str
    data_fingerprint: str
    tokenizer_fingerprint: str
    train_loss_nats_per_token: float | None
    loss_spikes: list[int]
    divergence: dict[str, Any] | None
    wall_seconds: float
    tokens_per_second: float
    mfu: float | None
    peak_memory_bytes: int
    commit: str | None
    wandb_id: str | None
