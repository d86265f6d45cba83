"""The cells of a study."""

from __future__ import annotations

import dataclasses
from typing import Literal

from slm.config.schema.types import (
    Count,
    Fraction,
    Index,
    Name,
    NonNegative,
    Positive,
    Scalar,
    Size,
    section,
)


@section
class StudyConfig:
    name: Name = "single"
    """Folder under runs_dir, and the W&B group."""
    question: str = ""
    """What the study asks, in a sentence; its plan and its report begin with it."""
    families: tuple[Name, ...] = ()
    """Families compared on every rung; names of files in conf/family."""
    contrast: tuple[Name, ...] = ()
    """The two of them whose difference is tested, the deeper first; none takes the thinnest and the widest."""
    claim: Literal["exponents", "differences", "none"] = "differences"
    """What the design must be able to estimate, else it is refused: exponents per family, differences at matched FLOPs, or nothing."""
    sizes: tuple[Size, ...] = ()
    """Rungs, each a `size`."""
    models: tuple[Name, ...] = ()
    """Rungs, each a preset in conf/model; families with an aspect ratio give its counterparts."""
    tokens_per_param: tuple[Positive, ...] = ()
    """Token budgets of every rung, as budget.tokens_per_param."""
    tokens: tuple[Size, ...] = ()
    """Or token budgets as budget.tokens, the same for all rungs."""
    flops: tuple[Positive, ...] = ()
    """Or training FLOPs, the same for all rungs: each gets the tokens that they buy at its FLOPs per token, equal in all families."""
    seeds: tuple[Index, ...] = (0,)
    """Seeds of every cell."""
    anchor_seeds: tuple[Index, ...] = ()
    """Further seeds of the smallest, the middle and the largest rung, for the noise between seeds."""
    min_steps: Count | None = None
    """Halve a rung's global batch, from optimizer.global_batch_tokens down to a sequence, until its shortest budget takes so many optimizer steps; null keeps one batch for all."""
    share_trunks: bool = True
    """Decay all budgets of a shape and seed from one wsd trunk, instead of training each from its first step."""
    grid: dict[str, tuple[Scalar, ...]] = dataclasses.field(default_factory=dict)
    """Further keys to vary, each with its values; every combination makes cells of its own."""
    lr_policy: Literal["fixed", "transfer", "tuned"] = "fixed"
    """Where a cell's learning rate comes from: optimizer.lr for all as it is; the same, carried over shapes by completep, to be verified by study=lr_audit; or the best of each shape, found on a grid of factor 2 at the shortest budget."""
    lr_audit: str | None = None
    """lr_audit.json of a study of learning rates in this recipe; the report takes a verdict only behind it."""
    results: str | None = None
    """File of results, a JSON line each, whose cells count as finished here; action=collect adds to it those that finished here."""
    max_failures: Count | None = None
    """Start no further cell once so many have failed; null runs them all."""
    retry_failed: bool = False
    """Run cells again that failed in an earlier call."""
    analysis: Literal["families", "lr_transfer", "lr_audit", "khop"] = "families"
    """What the report answers: which family is better, where each shape's best learning rate lies, whether one rate serves each family, or how many hops each follows."""


@section
class PlanConfig:
    probe: bool = False
    """Measure the throughput of every shape first, some seconds each; it is stored with the study."""
    probe_seconds: Positive = 2.0
    """Training time per shape of a probe."""
    device_flops: Positive | None = None
    """Dense peak FLOP/s of one device, from which hours follow where no throughput is stored; an H100 has 989e12 in bf16."""
    mfu: Fraction = 0.4
    """Share of device_flops that training is assumed to reach."""
    devices: Count | None = None
    """Jobs at once that the hours are for; null takes what the local launcher would run here."""
    sigma: NonNegative | None = None
    """Seed standard deviation of the final loss, nats; null takes .005 below a loss of 4, .01 below 5, .02 above."""
    law: dict[Literal["E", "A", "B", "alpha", "beta"], Positive] = dataclasses.field(
        default_factory=dict
    )
    """The law L = E + A N_flop^-alpha + B D^-beta, in nats per token, that power is worked out around; what is not given is that of 2404.10102."""
    tau: NonNegative = 0.01
    """Random effect of a shape, nats: the standard deviation of what all its runs share beyond the law."""
