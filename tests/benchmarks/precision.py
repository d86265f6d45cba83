"""Validation losses of runs in fp32 and in bf16 on CPU, compared with the seed standard deviation.

    python -m tests.benchmarks.precision [--families deep_thin wide_shallow] [--seeds 5] [--runs DIR]
        [--set size=128k budget.tokens_per_param=3 ...] [--json FILE]

Trains every family with every seed on data=prose, once with trainer=cpu and once with trainer=cpu_bf16. Two
runs with one seed have the same initial weights and the same tokens in the same order, so they differ only in
arithmetic. Target: the mean difference is below the seed standard deviation in fp32. Finished runs under
--runs are not trained again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from slm.config.hydra import compose_config
from slm.cores import available_cores
from slm.run.spec import resolve
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory
from slm.training.execute import train_all
from tests.benchmarks.paired import (
    check_target,
    describe_machine,
    print_machine,
    print_table,
    write_results,
)

TRAINERS = ("cpu", "cpu_bf16")
SETTINGS = ("size=128k", "data=prose", "budget.tokens_per_param=3", "data.val_tokens=262144")
CACHE_DIR = Path(gettempdir()) / "slm-benchmarks"


@dataclass(frozen=True)
class FamilyResult:
    """Validation losses of one family by trainer and seed, in nats per token."""

    family: str
    shape: str
    losses: dict[str, list[float]]
    tokens_per_second: dict[str, float]

    @property
    def seed_sd(self) -> float:
        return statistics.stdev(self.losses["cpu"])

    @property
    def differences(self) -> list[float]:
        fp32, bf16 = (self.losses[trainer] for trainer in TRAINERS)
        return [b - a for a, b in zip(fp32, bf16, strict=True)]

    @property
    def standard_error(self) -> float:
        return statistics.stdev(self.differences) / len(self.differences) ** 0.5


def train_run(overrides: Sequence[str], runs_dir: Path) -> tuple[str, RunResult]:
    """Train a run unless it is finished; return the label of its shape and its result."""
    folders = [f"runs_dir={runs_dir}", f"cache_dir={CACHE_DIR}"]
    quiet = ["tracking=disabled", "trainer.progress=false"]
    config = compose_config([*SETTINGS, *quiet, *overrides, *folders])
    train_all(config)
    spec = resolve(config)
    result = RunDirectory.of(spec).result()
    assert result is not None
    return spec.shape.label, result


def compare(family: str, seeds: int, overrides: Sequence[str], runs_dir: Path) -> FamilyResult:
    losses: dict[str, list[float]] = {trainer: [] for trainer in TRAINERS}
    rates: dict[str, list[float]] = {trainer: [] for trainer in TRAINERS}
    for seed in range(seeds):
        for trainer in TRAINERS:
            run_overrides = [f"family={family}", f"seed={seed}", f"trainer={trainer}"]
            shape, result = train_run([*overrides, *run_overrides], runs_dir)
            assert result.val_loss_nats_per_token is not None
            losses[trainer].append(result.val_loss_nats_per_token)
            rates[trainer].append(result.tokens_per_second)
            print(f"{family} seed {seed} {trainer}: {losses[trainer][-1]:.4f}", flush=True)
    medians = {trainer: statistics.median(rate) for trainer, rate in rates.items()}
    return FamilyResult(family, shape, losses, medians)


def table_rows(results: Sequence[FamilyResult]) -> list[list[str]]:
    return [
        [
            result.family,
            result.shape,
            *(f"{statistics.mean(result.losses[trainer]):.4f}" for trainer in TRAINERS),
            f"{result.seed_sd:.4f}",
            f"{statistics.mean(result.differences):+.4f}",
            f"{result.standard_error:.4f}",
            check_target(
                abs(statistics.mean(result.differences)), round(result.seed_sd, 4), at_least=False
            ),
        ]
        for result in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=["deep_thin", "wide_shallow"])
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 100), metavar="N")
    parser.add_argument("--runs", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine = describe_machine(available_cores())
    with TemporaryDirectory() as temporary:
        runs_dir = arguments.runs or Path(temporary)
        results = [
            compare(family, arguments.seeds, arguments.overrides, runs_dir)
            for family in arguments.families
        ]
    print_machine(machine)
    columns = ["family", "shape", "fp32", "bf16", "seed SD", "bf16 - fp32", "SE", "target"]
    print_table("Validation loss in nats per token, mean over seeds", columns, table_rows(results))
    write_results(arguments.json, machine, [vars(result) for result in results])


if __name__ == "__main__":
    main()
