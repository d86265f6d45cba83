"""A run that SIGTERM interrupts and the same command continues, against an uninterrupted run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import fields

from slm.config.hydra import compose_config
from slm.config.schema import TrainerConfig
from slm.run.spec import resolve
from slm.tracking.run_dir import STEP, TRAIN_LOSS, RunDirectory
from tests.benchmarks import engine
from tests.benchmarks.acceptance.corpus import corpus_overrides
from tests.benchmarks.acceptance.parity import BLOCKS, largest_difference
from tests.benchmarks.acceptance.rows import ROOT, Options, Rows

TOLERANCE = 1e-3  # largest relative difference of a logged or validation loss on a GPU
STOP_AFTER_STEP = 20
WAIT_SECONDS = 120.0
STEPS, BATCH_TOKENS = 300, 16_384
QUICK_STEPS, QUICK_BATCH_TOKENS = 200, 512
QUICK = ("model=tiny", "model.n_layers=2", "model.seq_len=64")


def run(options: Options, rows: Rows) -> None:
    deterministic = "deterministic" in {field.name for field in fields(TrainerConfig)}
    overrides = [*_overrides(options), *(["trainer.deterministic=true"] if deterministic else [])]
    whole, parts = (
        [*overrides, f"runs_dir={options.folder / name}"] for name in ("whole", "parts")
    )
    interrupted = RunDirectory.of(resolve(compose_config(parts)))
    command = [sys.executable, "train.py", *parts]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    _wait_for_step(interrupted, process)
    process.send_signal(signal.SIGTERM)
    code = process.wait(WAIT_SECONDS)
    expected = 128 + signal.SIGTERM
    done = max(_losses(interrupted), default=0)
    rows.holds(
        f"SIGTERM: exit code {expected}", code == expected, f"{code}, at step {done} or later"
    )
    continued = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    reference = engine.train_run(resolve(compose_config(whole)))
    rows.holds("the same command: exit code 0", continued.wait(WAIT_SECONDS) == 0)
    _compare(options, rows, reference, interrupted, deterministic)


def _overrides(options: Options) -> list[str]:
    steps, tokens = (QUICK_STEPS, QUICK_BATCH_TOKENS) if options.quick else (STEPS, BATCH_TOKENS)
    return [
        *(QUICK if options.quick else BLOCKS),
        *corpus_overrides(options.folder, documents=40, words=1500),
        f"trainer={options.accelerator}",
        "trainer.threads=1",
        "trainer.log_every_steps=1",
        "trainer.progress=false",
        "trainer.compile=off",
        f"optimizer.global_batch_tokens={tokens}",
        "optimizer.lr=1e-3",
        "budget=tokens",
        f"budget.tokens={steps * tokens}",
    ]


def _wait_for_step(run: RunDirectory, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while max(_losses(run), default=0) < STOP_AFTER_STEP:
        if process.poll() is not None:
            raise RuntimeError(f"train.py ended with exit code {process.returncode} too early")
        if time.monotonic() > deadline:
            raise TimeoutError(f"no step {STOP_AFTER_STEP} within {WAIT_SECONDS:.0f} s")
        time.sleep(0.01)


def _losses(run: RunDirectory) -> dict[int, float]:
    if not (run.path / "metrics.jsonl").exists():
        return {}
    return {int(row[STEP]): row[TRAIN_LOSS] for row in run.read_metrics() if TRAIN_LOSS in row}


def _compare(
    options: Options,
    rows: Rows,
    reference: RunDirectory,
    interrupted: RunDirectory,
    deterministic: bool,
) -> None:
    one, other = _losses(reference), _losses(interrupted)
    rows.holds("every step is logged once", one.keys() == other.keys(), f"{len(other)} steps")
    results = reference.result(), interrupted.result()
    final = [None if result is None else result.val_loss_nats_per_token for result in results]
    if final[0] is None or final[1] is None:
        rows.failed("validation loss", f"a run has no result: {final}")
        return
    steps = sorted(one.keys() & other.keys())
    difference = largest_difference(
        [*(other[step] for step in steps), final[1]], [*(one[step] for step in steps), final[0]]
    )
    exact = deterministic or not options.on_gpu
    note = (
        f"deterministic, {len(steps)} steps" if exact else f"not deterministic, {len(steps)} steps"
    )
    bound = 0.0 if exact else TOLERANCE
    rows.check("losses, resumed against uninterrupted", difference, at_most=bound, note=note)
