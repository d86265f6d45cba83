"""The content of result.json, field by field. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from slm.errors import DataError
from slm.formatting import format_duration
from slm.summary import Summarized

SCHEMA_VERSION = 4  # 4: what branches take over from their trunk, loss spikes, divergence
OLDEST_VERSION = 4  # that can be read

State = Literal["planned", "running", "finished", "failed", "diverged", "interrupted"]


@dataclass(frozen=True, kw_only=True, repr=False)
class RunResult(Summarized):
    """The content of result.json. A field that is added later has a default, so that older results load.

    Validation losses are measured after the whole schedule, on the same tokens for all runs of a study.
    If the run diverged they are null, and steps, tokens and flops count the completed steps. `recipe_id` is a
    hash of everything but shape, budget and seed; runs are comparable if they share it. Runs that share
    `trunk_id` took the same first steps, so they are not independent; the first `taken_over_steps` were
    not computed again but start from a checkpoint of such a run. `val_errors` are error rates by group (null
    for data without groups). `wall_seconds` is the time of the training loop over all restarts, including
    the steps taken over, data loading and checkpoints, without start-up and validation;
    `tokens_per_second` is averaged over that time. `loss_spikes` lists the steps whose logged training loss
    is far above its neighbours (`slm.tracking.spikes`): a reason to repeat the run with another seed, never
    to exclude it. `divergence` describes the step that failed: its batch, and the gradient norm of each
    tensor group, with non-finite numbers as text. If the validation loss is not finite, `batch_id` is
    `validation`, `step` counts the completed steps, and no gradient norm is given. `val_perplexity` is null if it
    is too large for a float.
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

    def title(self) -> str:
        return f"{self.run_id}: {self.status}"

    def details(self) -> Iterator[tuple[str, str]]:
        for name, loss in (
            ("validation loss", self.val_loss_nats_per_token),
            ("training loss", self.train_loss_nats_per_token),
        ):
            yield name, "none" if loss is None else f"{loss:.4f} nats/token"
        for name, rate in (self.val_errors or {}).items():
            yield f"error rate, {name}", f"{rate:.2%}"
        yield (
            "parameters",
            f"{self.params_total:,}, {self.params_non_embedding:,} without embeddings",
        )
        yield "training", f"{self.tokens:,} tokens in {self.steps:,} steps, {self.flops:.4g} FLOPs"
        yield (
            "recipe",
            f"peak lr {self.peak_lr:.3g}, {self.parametrization}, {self.precision}, seed {self.seed}",
        )
        duration = format_duration(self.wall_seconds)
        yield "speed", f"{self.tokens_per_second:,.0f} tokens/s over {duration}"
        if self.loss_spikes:
            yield "loss spikes", f"{len(self.loss_spikes)}, first at step {self.loss_spikes[0]}"


def result_from(saved: Any) -> RunResult:
    """Build a result from its JSON: unknown fields are ignored, missing ones take their default.

    Raises:
        DataError: if it is no object, is older than `OLDEST_VERSION`, or lacks a field without a default.
    """
    if not isinstance(saved, Mapping):
        raise DataError(f"not a result: {type(saved).__name__} instead of an object")
    version = saved.get("schema_version")
    if not isinstance(version, int) or version < OLDEST_VERSION:
        raise DataError(
            f"schema_version {version!r} is not supported; the oldest supported version is {OLDEST_VERSION}"
        )
    required = [
        field.name
        for field in fields(RunResult)
        if field.default is MISSING and field.default_factory is MISSING
    ]
    if missing := [name for name in required if name not in saved]:
        raise DataError(f"schema_version {version}: missing fields {', '.join(missing)}")
    known = {field.name for field in fields(RunResult)}
    return RunResult(**{name: value for name, value in saved.items() if name in known})
