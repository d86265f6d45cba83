"""Whether bf16 with `matmul` attention may stand in for fp32 on a CPU: losses of real runs, seed by seed.

    python -m tests.benchmarks.precision [--size 128k] [--tokens-per-param 3] [--seeds 3] [--json FILE]

Each family is trained on prose with `trainer=cpu` and with `trainer=cpu_bf16`, on the same tokens from the
same weights, two runs at once of one thread each. The difference that the arithmetic makes, seed by seed,
is set against the spread over seeds: it may be used where the first disappears in the second.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from slm.app import compose_config
from slm.run_spec import resolve
from slm.tracking.record import RunDirectory
from tests.benchmarks.paired import describe_machine, print_machine, print_table, save

FAMILIES = ("deep_thin", "wide_shallow")
TRAINERS = ("cpu", "cpu_bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="128k")
    parser.add_argument("--tokens-per-param", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    machine = describe_machine(threads=1)
    print_machine(machine)
    cases = list(product(FAMILIES, TRAINERS, range(given.seeds)))
    with TemporaryDirectory() as runs, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        asked = [
            [
                f"family={family}", f"trainer={trainer}", f"seed={seed}", f"size={given.size}",
                f"budget.tokens_per_param={given.tokens_per_param}", f"runs_dir={runs}",
            ]
            for family, trainer, seed in cases
        ]  # fmt: skip
        losses = dict(zip(cases, pool.map(final_loss, asked), strict=True))
    print_table(
        f"nats/token of {given.size} after {given.tokens_per_param:g} tokens per parameter",
        ("family", "fp32", "sd over seeds", "bf16 - fp32, by seed", "mean"),
        [_row(family, losses, given.seeds) for family in FAMILIES],
    )
    save(given.json, machine, {" ".join(map(str, case)): loss for case, loss in losses.items()})


def final_loss(overrides: Sequence[str]) -> float:
    """Of one run, trained in this process."""
    from slm.training.runner import train

    common = [
        "optimizer.global_batch_tokens=1024", "data.val_tokens=262144", "trainer.threads=1",
        "trainer.progress=false", "tracking=disabled",
        f"cache_dir={Path(gettempdir()) / 'slm-benchmarks'}",
    ]  # fmt: skip
    spec = resolve(compose_config([*common, *overrides]))
    run = RunDirectory.of(spec)
    with run.claim(spec):
        result = train(spec, run)
    assert result is not None and result.val_loss_nats_per_token is not None
    return result.val_loss_nats_per_token


def _row(family: str, losses: dict[tuple[str, str, int], float], seeds: int) -> list[str]:
    exact, rounded = ([losses[family, t, seed] for seed in range(seeds)] for t in TRAINERS)
    differences = [b - a for a, b in zip(exact, rounded, strict=True)]
    return [
        family,
        " ".join(f"{loss:.4f}" for loss in exact),
        f"{statistics.stdev(exact):.4f}",
        " ".join(f"{difference:+.4f}" for difference in differences),
        f"{statistics.mean(differences):+.4f}",
    ]


if __name__ == "__main__":
    main()
