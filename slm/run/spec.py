"""Resolution of a config into one run: shape, steps, tokens, FLOPs and identity.

Torch-free, so that planning a study or skipping a finished run takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from slm.architecture.flops import flop_equivalent_params, training_flops_per_token
from slm.architecture.ladder import largest_matched_set, solve_rung
from slm.architecture.shape_solver import ShapeFrame, solve_shape
from slm.architecture.shapes import MLP_MATRICES, ModelShape
from slm.config.schema import BudgetConfig, Config
from slm.data.corpus.identity import data_identity, tokenizer_identity
from slm.data.tokenizers.tokenizer import resolve_vocabulary
from slm.errors import ConfigError, Problem, ShapeNotFound
from slm.files import canonical_hash
from slm.run.lr_schedule import steps_before_decay

ID_HASH_LENGTH = 8
DRAW_STRIDE = 1_000_003  # larger than any seed in use
# Default d_ff / d_model of an explicit shape (arXiv 2302.13971, section 2.2).
MLP_RATIO = 8 / 3


@dataclass(frozen=True)
class RunSpec:
    """A fully resolved run: everything that is fixed before training starts."""

    config: Config
    shape: ModelShape
    reference_flops_per_token: int
    """FLOPs per token of the rung (or of an explicit shape); they convert tokens_per_param to tokens."""
    rung_shift: float | None
    """Relative deviation of the rung from the requested size, in the matched quantity; None for a preset."""
    steps: int
    batch_sequences: int
    """Sequences of seq_len tokens in a global batch."""

    @property
    def batch_tokens(self) -> int:
        return self.batch_sequences * self.shape.seq_len

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens

    @property
    def flops_per_token(self) -> int:
        return training_flops_per_token(self.shape)

    @property
    def flops(self) -> int:
        return self.flops_per_token * self.tokens

    @property
    def rung(self) -> str | None:
        """Size or preset shared by the shapes that are compared; None for an explicit shape."""
        config = self.config
        return config.model.preset if config.size is None else str(config.size)

    @property
    def eot_id(self) -> int | None:
        """Id of the token that starts each document; None for a task without documents."""
        return resolve_vocabulary(self.config).eot_id

    @property
    def warmup_tokens(self) -> int:
        """Warmup tokens, at most one per parameter: longer warmups distort small runs (arXiv 2406.19146)."""
        schedule = self.config.schedule
        requested = schedule.warmup_fraction * (schedule.warmup_budget_tokens or self.tokens)
        return round(min(requested, flop_equivalent_params(self.flops_per_token)))

    @property
    def init_seed(self) -> int:
        """Seed of the initial weights; families that differ in `draw` alone get different weights."""
        return self.config.seed + DRAW_STRIDE * self.config.family.draw

    @property
    def trunk_steps(self) -> int:
        """Number of leading steps that do not depend on the token budget: warmup and constant rate of wsd."""
        return steps_before_decay(self.steps, self.batch_tokens, self.config.schedule)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The scientific config: every value that can change the result, and no other.

        Raises:
            DataError: if the corpus or the tokenizer file is missing.
        """
        config = self.config
        return {
            "family": config.family.name,
            "shape": self.shape.as_dict(),
            "parametrization": self._parametrization,
            "rope_theta": config.model.rope_theta,
            "norm_eps": config.model.norm_eps,
            "attention": config.model.attention,
            "document_mask": config.model.document_mask,
            "data": data_identity(config),
            "tokenizer": tokenizer_identity(config),
            "optimizer": asdict(config.optimizer),
            "schedule": self._schedule,
            "tokens": self.tokens,
            "precision": config.trainer.precision,
            "seed": config.seed,
            # Left out at their default, so that runs made before these keys existed keep their ids.
            **({"dropout": config.model.dropout} if config.model.dropout else {}),
            **({"draw": config.family.draw} if config.family.draw else {}),
        }

    @property
    def _parametrization(self) -> dict[str, Any]:
        """Parametrization with the base values that its kind uses, without the others."""
        config = self.config.parametrization
        used = {"standard": (), "mup": ("base_width",), "completep": ("base_width", "base_depth")}
        return {"kind": config.kind, **{key: getattr(config, key) for key in used[config.kind]}}

    @property
    def _schedule(self) -> dict[str, Any]:
        schedule = asdict(self.config.schedule)
        del schedule["warmup_budget_tokens"]  # replaced by the resulting warmup_tokens
        if self.config.schedule.kind == "cosine":
            del schedule["decay_fraction"]  # unused
        return {**schedule, "warmup_tokens": self.warmup_tokens}

    @property
    def recipe_id(self) -> str:
        """Hash of the identity without architecture, budget and seed; comparable runs share it.

        The peak learning rate and the batch size are left out too: a study may set them per shape or rung.
        """
        varied = {"family", "shape", "tokens", "seed", "draw"}
        recipe = {key: value for key, value in self.identity.items() if key not in varied}
        recipe["optimizer"] = _without(recipe["optimizer"], "lr", "global_batch_tokens")
        recipe["schedule"] = _without(recipe["schedule"], "warmup_tokens")  # depends on the budget
        context = {key: getattr(self.shape, key) for key in ("vocab_size", "seq_len")}
        return canonical_hash({**recipe, **context})[:ID_HASH_LENGTH]

    @property
    def trunk_id(self) -> str | None:
        """Slug and hash of everything that determines the first `trunk_steps`; None for cosine.

        Runs with the same trunk_id take the same steps until the decay of the shorter one, whether or not
        they share a checkpoint, so their losses are not independent.
        """
        if self.config.schedule.kind != "wsd":
            return None
        schedule = _without(self.identity["schedule"], "decay_fraction", "final_lr_fraction")
        digest = canonical_hash({**_without(self.identity, "tokens"), "schedule": schedule})
        return f"{self._slug}-s{self.config.seed}-{digest[:ID_HASH_LENGTH]}"

    @property
    def _slug(self) -> str:
        return f"{self.config.family.name}-{self.shape.label}"

    @property
    def tokens_per_param(self) -> float:
        """The configured tokens_per_param, or the one that results from a budget in another unit."""
        requested = self.config.budget.tokens_per_param
        return requested or self.tokens / flop_equivalent_params(self.reference_flops_per_token)

    @property
    def run_id(self) -> str:
        """Readable slug and hash of the identity: the name of the run directory and id of the W&B run."""
        digest = canonical_hash(self.identity)[:ID_HASH_LENGTH]
        tokens = f"{self.tokens / 1e6:.3g}Mtok"
        return f"{self._slug}-{tokens}-s{self.config.seed}-{digest}"


def _without(table: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in keys}


def resolve(config: Config) -> RunSpec:
    """Resolve a config into its run.

    Raises:
        ConfigError: if no shape of that size exists, the embedding table is smaller than the vocabulary,
            or the warmup budget exceeds the run's token budget.
    """
    shape, reference_flops, shift = _resolve_shape(config)
    batch_tokens = config.optimizer.global_batch_tokens
    steps = max(1, round(_budget_tokens(config, shape, reference_flops) / batch_tokens))
    warmup_budget = config.schedule.warmup_budget_tokens
    if warmup_budget is not None and warmup_budget > steps * batch_tokens:
        rule = f"exceeds the token budget of the run, {steps * batch_tokens:,} tokens"
        fix = "use null for the run's own budget"
        raise ConfigError([Problem("schedule.warmup_budget_tokens", warmup_budget, rule, fix)])
    return RunSpec(config, shape, reference_flops, shift, steps, batch_tokens // shape.seq_len)


def branch_specs(config: Config) -> list[RunSpec]:
    """Resolve the runs of a config, shortest first: one per `budget.branches` and one for the full budget.

    Branches share one trunk; its warmup is that of `schedule.warmup_budget_tokens`, by default of the shortest branch.
    """
    if not config.budget.branches:
        return [resolve(config)]
    ends = sorted({*config.budget.branches, config.budget.amount})
    budgets = [BudgetConfig.of(config.budget.unit, end) for end in ends]
    trainer = replace(config.trainer, share_trunk=True)
    schedule = config.schedule
    if schedule.warmup_budget_tokens is None:
        shortest = resolve(replace(config, budget=budgets[0]))
        schedule = replace(schedule, warmup_budget_tokens=shortest.tokens)
    return [
        resolve(replace(config, budget=budget, schedule=schedule, trainer=trainer))
        for budget in budgets
    ]


def _resolve_shape(config: Config) -> tuple[ModelShape, int, float | None]:
    """Return shape, reference_flops_per_token and rung_shift of `RunSpec`."""
    ladder, aspect_ratio = config.ladder, config.family.aspect_ratio
    if config.size is None or aspect_ratio is None:
        shape = _explicit_shape(config)
        flops = training_flops_per_token(shape)
        if aspect_ratio is not None:
            frame = ShapeFrame.of(shape, ladder.d_ff_multiple)
            with _relabel_errors("model.preset", config.model.preset):
                shape = solve_shape(frame, aspect_ratio, flops)
        return shape, flops, None
    frame = _frame(config)
    aspect_ratios = _matched_aspect_ratios(config)
    reference = ladder.reference_aspect_ratio
    if config.study.skip_missing_shapes:
        required = aspect_ratios
        aspect_ratios = largest_matched_set(
            frame, reference, required, config.size, ladder.size_counts
        )
        if aspect_ratio in required and aspect_ratio not in aspect_ratios:
            listed = ", ".join(f"{ratio:g}" for ratio in aspect_ratios)
            rule = f"aspect ratio {aspect_ratio:g} has no shape of this size that matches those of {listed}"
            raise ShapeNotFound([Problem("size", config.size, rule, "use another size")])
    rung = solve_rung(frame, reference, aspect_ratios, config.size, ladder.size_counts)
    with _relabel_errors("size", config.size):
        shape = solve_shape(frame, aspect_ratio, rung.target, rung.measure)
    return shape, rung.flops_per_token, rung.shift


def _matched_aspect_ratios(config: Config) -> tuple[float, ...]:
    """Return the aspect ratios for which every rung must have matched shapes, sorted."""
    study = config.study
    has_only_ratios = study.aspect_ratios and not study.families
    ladder = () if has_only_ratios else config.ladder.aspect_ratios.values()
    return tuple(sorted({ratio for ratio in (*study.aspect_ratios, *ladder) if ratio is not None}))


@contextmanager
def _relabel_errors(key: str, value: object) -> Iterator[None]:
    """Replace key and value in the solver's errors by those that the user set."""
    try:
        yield
    except ConfigError as error:
        raise type(error)([replace(p, key=key, value=value) for p in error.problems]) from None


def _frame(config: Config) -> ShapeFrame:
    ladder = config.ladder
    return ShapeFrame(
        d_head=ladder.d_head,
        gqa_ratio=ladder.gqa_ratio,
        ff_ratio=ladder.ff_ratio,
        d_ff_multiple=ladder.d_ff_multiple,
        **_shared_shape_fields(config),
    )


def _shared_shape_fields(config: Config) -> dict[str, Any]:
    """Return the fields that explicit and solved shapes both read from the config."""
    keys = ("seq_len", "tied", "mlp", "qk_norm", "layer_sharing")
    return {"vocab_size": _vocab_size(config), **{k: getattr(config.model, k) for k in keys}}


def _explicit_shape(config: Config) -> ModelShape:
    model = config.model
    if model.n_layers is None or model.d_model is None or model.n_heads is None:
        rule = "an explicit shape needs n_layers, d_model and n_heads"
        raise ConfigError(
            [Problem("model", None, rule, "set all three, or a size such as size=128k")]
        )
    swiglu_d_ff = model.d_ff or max(8, round(MLP_RATIO * model.d_model / 8) * 8)
    return ModelShape(
        n_layers=model.n_layers,
        d_model=model.d_model,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads or model.n_heads,
        d_head=model.d_head or model.d_model // model.n_heads,
        d_ff=round(swiglu_d_ff * MLP_MATRICES["swiglu"] / MLP_MATRICES[model.mlp]),
        **_shared_shape_fields(config),
    )


def _vocab_size(config: Config) -> int:
    needed = resolve_vocabulary(config).size
    rows = config.model.vocab_size or needed
    if rows < needed:
        rule = f"is smaller than the tokenizer's vocabulary of {needed} tokens"
        raise ConfigError([Problem("model.vocab_size", rows, rule, f"use {needed} or null")])
    return rows


def _budget_tokens(config: Config, shape: ModelShape, reference_flops: int) -> float:
    unit, amount = config.budget.unit, config.budget.amount
    if unit == "tokens_per_param":
        return amount * flop_equivalent_params(reference_flops)
    return amount if unit == "tokens" else amount / training_flops_per_token(shape)
