"""Keys of a study and of its plan."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from slm.config.schema.types import (
    Count,
    Index,
    Mfu,
    ModelSize,
    Name,
    NonNegative,
    Positive,
    Ratio,
    Scalar,
    Size,
    section,
)


@section
class StudyConfig:
    name: Name = "single"
    """Name of the study: its folder under runs_dir, and its W&B group."""
    question: str = ""
    """Research question in one sentence; printed at the top of the plan and the report."""
    families: tuple[Name, ...] = ()
    """Families to compare on every rung; names of files in conf/family."""
    aspect_ratios: tuple[Ratio, ...] = ()
    """Aspect ratios to compare as families that need no file; 13 is the family aspect_13. Every rung has
    matched shapes for all of them. Without study.families they replace ladder.aspect_ratios."""
    skip_missing_shapes: bool = False
    """Leave a family out of a rung where it has no matched shape, and a family of study.aspect_ratios where another
    family has its shape, if two families remain; action=plan lists them. false: a missing shape is an error."""
    contrast: tuple[Name, ...] = ()
    """The two families whose difference is tested, the deeper one first; if empty, the families with the
    lowest and the highest aspect ratio."""
    claim: Literal["exponents", "differences", "none"] = "differences"
    """What the design must be able to estimate: scaling exponents per family, loss differences at matched
    FLOPs, or nothing. A design that cannot is refused (exit code 4)."""
    sizes: tuple[ModelSize, ...] = ()
    """Rungs of the study as values of `size`."""
    models: tuple[Name, ...] = ()
    """Rungs of the study as presets in conf/model. A family with an aspect ratio takes its own shape at the
    FLOPs per token of the preset."""
    tokens_per_param: tuple[Positive, ...] = ()
    """Budgets of every rung as values of budget.tokens_per_param."""
    tokens: tuple[Size, ...] = ()
    """Alternative to tokens_per_param: budgets as values of budget.tokens, the same for all rungs."""
    flops: tuple[Positive, ...] = ()
    """Alternative to tokens_per_param: budgets in training FLOPs, the same for all rungs. Each rung trains on
    FLOPs / (FLOPs per token) tokens, the same number in all families."""
    seeds: tuple[Index, ...] = (0,)
    """Seeds of every rung, family and budget."""
    anchor_seeds: tuple[Index, ...] = ()
    """Additional seeds of the rungs of anchor_sizes, to estimate the seed standard deviation."""
    anchor_sizes: tuple[ModelSize, ...] = ()
    """Sizes that are also trained with anchor_seeds, where they are in study.sizes; empty: the smallest, the
    middle and the largest rung."""
    min_steps: Count | None = None
    """Minimum number of optimizer steps: the global batch of a rung is halved, from
    optimizer.global_batch_tokens down to one sequence, until the shortest budget has this many steps. null
    uses one batch size for all rungs."""
    share_trunks: bool = True
    """Train the constant-learning-rate part (trunk) of a wsd schedule once per shape and seed, and decay every
    budget from it, instead of training each budget from step 0."""
    grid: dict[str, tuple[Scalar, ...]] = dataclasses.field(default_factory=dict)
    """Additional keys to vary, each with its list of values; every combination adds cells."""
    lr_policy: Literal["fixed", "transfer", "tuned"] = "fixed"
    """How the learning rate of a cell is chosen. fixed: optimizer.lr, scaled by the parametrization; the plan does not
    ask for an audit. transfer: the same rates; needs parametrization=completep, and the plan warns without
    study.lr_audit. tuned: the best rate of each shape at the shortest budget, found on a grid of rates a factor of 2
    apart."""
    lr_tokens_exponent: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Exponent x of a rule for the peak learning rate of a cell of D tokens, the same in all families:
    lr_reference * (D / lr_reference_tokens)^-x (arXiv 2409.19913). 0: optimizer.lr for all cells. Above 0 every
    budget has a rate of its own, so budgets share no trunk. Rates in study.grid are used as they are."""
    lr_reference: Positive | None = None
    """Peak learning rate at lr_reference_tokens; null means optimizer.lr."""
    lr_reference_tokens: Size = 1_000_000
    """Tokens at which the rule of lr_tokens_exponent gives lr_reference."""
    lr_audit: str | None = None
    """Path of the lr_audit.json that a learning-rate study with the same recipe wrote; if the audit failed, the
    report gives the verdict audit_failed."""
    results: str | None = None
    """JSON-lines file of results, whose cells count as finished; action=collect adds the results of the
    study's finished runs to it."""
    max_failures: Count | None = None
    """Start no further cell after this many failures in this call; null runs all cells."""
    retry_failed: bool = False
    """Retry cells that failed in an earlier call."""
    analysis: Literal["families", "lr_transfer", "lr_audit", "khop"] = "families"
    """Type of report. families: comparison of the families. lr_transfer: best learning rate of each shape.
    lr_audit: whether one learning rate is near the best one of every family. khop: error by number of
    hops."""

    @property
    def ratio_families(self) -> dict[str, float]:
        """Return the aspect ratio of each family made from study.aspect_ratios, by name."""
        return {f"aspect_{ratio:g}": ratio for ratio in self.aspect_ratios}

    @property
    def all_families(self) -> tuple[str, ...]:
        return (*self.families, *self.ratio_families)


@section
class PlanConfig:
    cells: bool = False
    """List every cell of the study in action=plan, and in action=status of more than 40 cells; else the grid of sizes
    and families."""
    probe: bool = False
    """Measure and store the throughput of every shape before planning; takes some seconds per shape, and up to
    a minute if its blocks are compiled."""
    probe_seconds: Positive = 2.0
    """Measuring time of the probe per shape, in seconds."""
    device_flops: Positive | None = None
    """Dense peak FLOP/s of one device (H100 in bf16: 989e12), to estimate hours of shapes without a measured
    throughput; the throughput of study.results is not used then."""
    mfu: Mfu = 0.3
    """Assumed model FLOPs utilization: the share of device_flops that training reaches. One number, or a table
    of numbers by total parameters such as {125m: 0.23, 1b: 0.37}, interpolated in ln(parameters). A table on the
    command line replaces that of the group plan."""
    devices: Count | None = None
    """Number of jobs that run at the same time, for the estimate of hours. null: on a CPU as many as the local launcher
    would run, else 1; set the number of your GPUs, divided by those of one run."""
    sigma: NonNegative | None = None
    """Seed standard deviation of the final loss in nats; null means 0.005 for losses below 4, 0.01 below 5 and
    0.02 above."""
    law: dict[Literal["E", "A", "B", "alpha", "beta"], Positive] = dataclasses.field(
        default_factory=dict
    )
    """Parameters of the law L = E + A N_flop^-alpha + B D^-beta in nats per token, for the power of the
    design. A table on the command line is merged with that of the group plan; missing ones are those of the group plan,
    without one those of arXiv 2404.10102."""
    tau: NonNegative = 0.01
    """Standard deviation of the random effect of a shape (deviation from the law common to all runs of the shape)
    in nats."""


@section
class DesignConfig:
    flops: Positive | None = None
    """Cost of the study that action=design searches, in training FLOPs of all its trunks and branches."""
    hours: Positive | None = None
    """Alternative to design.flops: cost in device-hours, at the measured or assumed throughput of action=plan."""
    largest: ModelSize | None = None
    """Largest size that action=design considers; null takes the largest of study.sizes."""


@section
class WatchConfig:
    host: str = "127.0.0.1"
    """Address that the page of action=watch is served on. Any other than this machine's own (127.0.0.1) lets other
    machines read the study, and needs watch.access_token."""
    port: Annotated[Index, Field(le=65_535)] = 8642
    """Port of the page; 0 takes a free one."""
    access_token: str | None = None
    """Secret that a browser on another machine must send once, as in http://HOST:PORT/?token=SECRET."""


@section
class SpeedConfig:
    prompt_tokens: Count = 64
    """Length of the prompts of `python -m slm speed`, in tokens."""
    new_tokens: Annotated[Count, Field(ge=2)] = 128
    """Number of tokens that `python -m slm speed` generates greedily after each prompt."""
    batch_size: Count = 1
    """Number of sequences that are generated together."""
    rounds: Count = 5
    """Number of times that every shape is measured, in turn with the other shapes."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the weights and activations during generation; training takes trainer.precision."""
    training: bool = True
    """Measure the training tokens/s of every shape too; takes some seconds per shape and round."""
    file: str | None = None
    """File of the measured speeds; null is speed.json in the folder of the study, or beside study.results. The report
    compares families at equal latency if it exists."""
