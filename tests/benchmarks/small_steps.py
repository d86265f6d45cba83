"""What compilation of the blocks saves in small steps: the shapes of `study=micro` on one core.

    python -m tests.benchmarks.small_steps [--cells 340k:4 340k:32 190k:2.7 89k:32] [--threads 1] [--rounds 5]
        [--seconds 2] [--json FILE]

A cell is a size and an aspect ratio. The time per step is the median over rounds; the ratio is taken within rounds.
`slm.run.compile_rule` has the thresholds that follow from it.
"""

from __future__ import annotations

import statistics
from functools import partial

import torch

from slm.config.hydra import compose_config
from slm.run.spec import RunSpec, resolve
from tests.benchmarks import engine
from tests.benchmarks.paired import (
    Measure,
    Result,
    Worker,
    measure_in_rounds,
    measuring_parser,
    median_ratio,
    parse_and_describe,
    print_table,
    run_for,
    started_workers,
    write_results,
)

CELLS = ("340k:4", "340k:32", "190k:2.7", "89k:32")
MODES = ("off", "on")
WARMUP_STEPS = 20


def spec_of(cell: str, mode: str, overrides: list[str]) -> RunSpec:
    """Return the shortest run of a cell, compiled or not."""
    size, aspect = cell.split(":")
    keys = [f"size={size}", "family=aspect", f"family.aspect_ratio={aspect}"]
    budget = ["budget.tokens_per_param=8", "tokenizer=ascii", f"trainer.compile={mode}"]
    return resolve(compose_config(["study=micro", *keys, *budget, *overrides]))


def build(cell: str, mode: str, overrides: list[str]) -> tuple[Result, Measure]:
    """Build a training step, and the function that measures its time."""
    spec = spec_of(cell, mode, overrides)
    step = engine.build_step(spec, "cpu")
    shape = spec.batch_sequences, 2, spec.shape.seq_len
    pairs = torch.randint(
        0, spec.shape.vocab_size, shape, generator=torch.Generator().manual_seed(0)
    )
    numbers = iter(range(10**9))
    take = partial(lambda: step.take(next(numbers) % spec.steps, pairs))
    for _ in range(WARMUP_STEPS):
        take()

    def measure(seconds: float) -> Result:
        steps, elapsed = run_for(take, seconds)
        return {"milliseconds": 1000 * elapsed / steps}

    return {"layers": spec.shape.depth, "shape": spec.shape.label}, measure


def main() -> None:
    parser = measuring_parser(__doc__.splitlines()[0], threads=1, rounds=5, seconds=2.0)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), metavar="SIZE:RATIO")
    arguments, machine = parse_and_describe(parser)
    rows, results = [], []
    for cell in arguments.cells:
        starts = {
            mode: partial(Worker, build, cell, mode, arguments.set, threads=arguments.threads)
            for mode in MODES
        }
        with started_workers(starts, concurrently=False) as workers:
            facts = workers["on"].facts
            found = measure_in_rounds(workers, arguments.rounds, arguments.seconds)
        eager, compiled = ([one["milliseconds"] for one in found[mode]] for mode in MODES)
        saved = statistics.median(a - b for a, b in zip(eager, compiled, strict=True))
        row = {
            "cell": cell,
            "shape": facts["shape"],
            "eager_milliseconds": statistics.median(eager),
            "compiled_milliseconds": statistics.median(compiled),
            "ratio": median_ratio(eager, compiled),
            "saved_milliseconds_per_block": saved / facts["layers"],
        }
        results.append(row)
        rows.append([str(v) if isinstance(v, str) else f"{v:.2f}" for v in row.values()])
    columns = ["cell", "shape", "eager, ms", "compiled, ms", "ratio", "saved per block, ms"]
    print_table("Time of a training step", columns, rows)
    write_results(arguments.json, machine, results)


if __name__ == "__main__":
    main()
