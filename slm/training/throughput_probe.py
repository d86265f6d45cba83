"""Measurement of training throughput: a short run through the whole loop, in a temporary folder."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from tempfile import TemporaryDirectory

from slm.config.schema import BudgetConfig, Config
from slm.run.micro_batch import count_rank_sequences, planned_accelerator
from slm.run.spec import RunSpec, resolve
from slm.tracking.run_dir import TOKENS, TOKENS_PER_SECOND, RunDirectory
from slm.training.device.accelerator import resolve_accelerator
from slm.training.device.compile import decide_compile
from slm.training.runner import train

LIKELY_FLOPS = {"cpu": 2e10, "gpu": 5e13}  # per second, to choose the number of steps by
MIN_STEPS, MAX_STEPS = 12, 2000
UNLIMITED_EPOCHS = 1e9
ROWS = 6  # intervals of steps that get a row of metrics


def measure_tokens_per_second(spec: RunSpec, seconds: float) -> float:
    """Return the tokens/s of one device of a run after its first steps, measured over about `seconds`.

    In a run over several devices each trains on its share of the global batch; the time of their communication is not
    measured. The first two rows of metrics are left out: they contain the compilation and the allocation of memory.
    """
    with TemporaryDirectory(prefix="slm-probe-") as folder:
        short = resolve(probe_config(spec, seconds, folder))
        run = RunDirectory.of(short)
        level = logging.getLogger("slm").level
        logging.getLogger("slm").setLevel(logging.ERROR)
        try:
            with run.claim(short):
                train(short, run, saves_checkpoints=False)
        finally:
            logging.getLogger("slm").setLevel(level)
        rows = [row for row in run.read_metrics() if TOKENS_PER_SECOND in row]
    pairs = list(itertools.pairwise(rows[1:]))
    tokens = sum(row[TOKENS] - before[TOKENS] for before, row in pairs)
    spent = sum((row[TOKENS] - before[TOKENS]) / row[TOKENS_PER_SECOND] for before, row in pairs)
    return tokens / spent


def probe_config(spec: RunSpec, seconds: float, folder: str) -> Config:
    """Return the config of a short run of one rank's work, compiled if and only if the whole run is."""
    config = spec.config
    batch_tokens = count_rank_sequences(spec) * spec.shape.seq_len
    step_flops = spec.flops_per_token * batch_tokens
    likely = seconds * LIKELY_FLOPS[planned_accelerator(config)] / step_flops
    steps = max(MIN_STEPS, min(MAX_STEPS, round(likely)))
    trainer = replace(config.trainer, strategy="single", devices=1, num_nodes=1)
    # auto would not compile so short a run.
    is_compiled = decide_compile(spec, resolve_accelerator(trainer)).compiles
    return replace(
        config,
        runs_dir=folder,
        budget=BudgetConfig(tokens=steps * batch_tokens),
        optimizer=replace(config.optimizer, global_batch_tokens=batch_tokens),
        # The number of steps is that of the probe, so it may repeat a small corpus.
        data=replace(config.data, val_tokens=spec.shape.seq_len, max_epochs=UNLIMITED_EPOCHS),
        schedule=replace(config.schedule, warmup_budget_tokens=None),
        tracking=replace(config.tracking, wandb="disabled"),
        trainer=replace(
            trainer,
            compile="on" if is_compiled else "off",
            share_trunk=False,
            progress=False,
            log_every_steps=steps // ROWS,
            checkpoint_every_steps=steps,
        ),
    )
