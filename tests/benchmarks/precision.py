"""Validation losses of real runs in fp32 and in bf16 on CPU: is their difference noise?

    python -m tests.benchmarks.precision [--families deep_thin wide_shallow] [--seeds 5] [--runs DIR]
        [--set size=128k budget.tokens_per_param=3 ...] [--json FILE]

Trains every family with every seed twice on data=prose, with trainer=cpu and with trainer=cpu_bf16. Runs
of a seed see the same tokens in the same order from the same weights, so arithmetic is all that tells
them apart. It is harmless if what it changes on average is less than what seeds change: their standard
deviation in fp32. Finished runs under --runs are taken as they are.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from slm.config.hydra import compose_config
from slm.run.spec import resolve
from slm.tracking.environment import available_cores
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory
from slm.training.execute import train_all
from tests.benchmarks.paired import describe_machine, print_machine, print_table, save, verdict

TRAINERS = ("cpu", "cpu_bf16")
SETTINGS = ("size=128k", "data=prose", "budget.tokens_per_param=3", "data.val_tokens=262144")
CACHE_DIR = Path(gettempdir()) / "slm-benchmarks"


@dataclass(frozen=True)
class Arithmetic:
    """Nats per token of one family, by seed."""

    family: str
    shape: str
    losses: dict[str, list[float]]
    tokens_per_second: dict[str, float]

    @property
    def seed_deviation(self) -> float:
        return statistics.stdev(self.losses["cpu"])

    @property
    def differences(self) -> list[float]:
        fp32, bf16 = (self.losses[trainer] for trainer in TRAINERS)
        return [b - a for a, b in zip(fp32, bf16, strict=True)]

    @property
    def standard_error(self) -> float:
        return statistics.stdev(self.differences) / len(self.differences) ** 0.5


def trained(overrides: Sequence[str], runs_dir: Path) -> tuple[str, RunResult]:
    places = [f"runs_dir={runs_dir}", f"cache_dir={CACHE_DIR}"]
    quiet = ["tracking=disabled", "trainer.progress=false"]
    config = compose_config([*SETTINGS, *quiet, *overrides, *places])
    train_all(config)
    spec = resolve(config)
    result = RunDirectory.of(spec).result()
    assert result is not None
    return spec.shape.label, result


def compare(family: str, seeds: int, overrides: Sequence[str], runs_dir: Path) -> Arithmetic:
    losses: dict[str, list[float]] = {trainer: [] for trainer in TRAINERS}
    rates: dict[str, list[float]] = {trainer: [] for trainer in TRAINERS}
    for seed in range(seeds):
        for trainer in TRAINERS:
            own = [f"family={family}", f"seed={seed}", f"trainer={trainer}"]
            shape, result = trained([*overrides, *own], runs_dir)
            assert result.val_loss_nats_per_token is not None
            losses[trainer].append(result.val_loss_nats_per_token)
            rates[trainer].append(result.tokens_per_second)
            print(f"{family} seed {seed} {trainer}: {losses[trainer][-1]:.4f}", flush=True)
    medians = {trainer: statistics.median(rate) for trainer, rate in rates.items()}
    return Arithmetic(family, shape, losses, medians)


def rows_of(measured: Sequence[Arithmetic]) -> list[list[str]]:
    return [
        [
            one.family,
            one.shape,
            *(f"{statistics.mean(one.losses[trainer]):.4f}" for trainer in TRAINERS),
            f"{one.seed_deviation:.4f}",
            f"{statistics.mean(one.differences):+.4f}",
            f"{one.standard_error:.4f}",
            verdict(
                abs(statistics.mean(one.differences)), round(one.seed_deviation, 4), at_least=False
            ),
        ]
        for one in measured
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=["deep_thin", "wide_shallow"])
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 100), metavar="N")
    parser.add_argument("--runs", type=Path, help="where runs are kept; nowhere without it")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    machine = describe_machine(available_cores())
    with TemporaryDirectory() as temporary:
        runs_dir = asked.runs or Path(temporary)
        measured = [
            compare(family, asked.seeds, asked.overrides, runs_dir) for family in asked.families
        ]
    print_machine(machine)
    columns = [
        "family", "shape", "fp32", "bf16", "sd of seeds", "bf16 - fp32", "se", "within sd",
    ]  # fmt: skip
    print_table("Validation loss, nats per token, means over seeds", columns, rows_of(measured))
    save(asked.json, machine, [vars(one) for one in measured])


if __name__ == "__main__":
    main()
