"""How fast a shape trains here: a short run through the whole loop, in a folder that is thrown away."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from tempfile import TemporaryDirectory

from slm.config.schema import BudgetConfig
from slm.run.micro_batch import planned_accelerator
from slm.run.spec import RunSpec, resolve
from slm.tracking.run_dir import TOKENS, TOKENS_PER_SECOND, RunDirectory
from slm.training.runner import train

LIKELY_FLOPS = {"cpu": 2e10, "gpu": 5e13}  # per second, to choose the number of steps by
MIN_STEPS, MAX_STEPS = 12, 2000
ROWS = 6  # of metrics, the first of which is left out


def measure_tokens_per_second(spec: RunSpec, seconds: float) -> float:
    """Tokens/s of the training loop after its first steps, over about `seconds`."""
    step_flops = spec.flops_per_token * spec.batch_tokens
    likely = seconds * LIKELY_FLOPS[planned_accelerator(spec.config)] / step_flops
    steps = max(MIN_STEPS, min(MAX_STEPS, round(likely)))
    config = spec.config
    with TemporaryDirectory(prefix="slm-probe-") as folder:
        own = replace(
            config,
            runs_dir=folder,
            budget=BudgetConfig(tokens=steps * spec.batch_tokens),
            data=replace(config.data, val_tokens=spec.shape.seq_len),
            schedule=replace(config.schedule, warmup_budget_tokens=None),
            tracking=replace(config.tracking, wandb="disabled"),
            trainer=replace(
                config.trainer,
                share_trunk=False,
                progress=False,
                log_every_steps=steps // ROWS,
                checkpoint_every_steps=steps,
            ),
        )
        short = resolve(own)
        run = RunDirectory.of(short)
        level = logging.getLogger("slm").level
        logging.getLogger("slm").setLevel(logging.ERROR)
        try:
            with run.claim(short):
                train(short, run)
        finally:
            logging.getLogger("slm").setLevel(level)
        rows = [row for row in run.read_metrics() if TOKENS_PER_SECOND in row]
    pairs = list(itertools.pairwise(rows))
    tokens = sum(row[TOKENS] - before[TOKENS] for before, row in pairs)
    spent = sum((row[TOKENS] - before[TOKENS]) / row[TOKENS_PER_SECOND] for before, row in pairs)
    return tokens / spent
