"""How a machine is best filled with the small runs of a study: tokens/s of real training steps, all told.

    python -m tests.benchmarks.throughput [--shapes d64-L1 d32-L16 ...] [--batch-tokens 256 1024]
        [--seq-len 64] [--vocab-size 512] [--rounds 5] [--seconds 1] [--seeds 4] [--json FILE]

On two cores: one process of 2 threads against two processes of 1 thread at once, each with a run of its own;
the ratio is two over one, within rounds.

On a GPU, where torch sees one, also ways to train `--seeds` runs of one shape in bf16: one after the other,
the same compiled into CUDA graphs (`reduce-overhead`), all at once in processes that share the device, and
all at once stacked into one model by torch.func. Graphs and stacks take the peers' plain step. This part has
not been run on a GPU; that a stacked step is the step of each of its models is tested on CPU.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from slm.run.spec import RunSpec
from tests.benchmarks.paired import (
    Measure,
    Result,
    Worker,
    describe_machine,
    median_ratio,
    print_machine,
    print_table,
    repeated,
    save,
    working,
)
from tests.benchmarks.peers import (
    Case,
    Mode,
    Step,
    contender,
    fixed_batch,
    initial_model,
    peer_step,
)

Start = Callable[[], Worker]
D_HEAD = 8
SHAPES = ("d64-L1", "d32-L4", "d64-L4", "d32-L16", "d128-L4", "d64-L16")
CPU_MODE, GPU_MODE = "fp32-eager", "bf16-eager"
WARMUP_STEPS = 5


def case_of(label: str, batch_tokens: int, arguments: argparse.Namespace, device: str) -> Case:
    d_model, n_layers = (int(part[1:]) for part in label.split("-"))
    overrides = (
        "model=tiny",
        f"model.d_model={d_model}",
        f"model.n_layers={n_layers}",
        f"model.n_heads={d_model // D_HEAD}",
        f"model.n_kv_heads={d_model // D_HEAD}",
        "model.d_ff=null",
        f"model.vocab_size={arguments.vocab_size}",
        f"model.seq_len={arguments.seq_len}",
        f"optimizer.global_batch_tokens={batch_tokens}",
    )
    return Case(overrides, device, Path())


def in_graphs(case: Case) -> tuple[Result, Measure]:
    """For a `Worker`: one model, compiled into CUDA graphs."""
    mode = Mode.named(GPU_MODE)
    spec = case.spec("slm", mode)
    model = initial_model(spec)
    model.compile(mode="reduce-overhead")
    step, _ = peer_step(model, spec, mode, case.device, lambda logits: logits)
    return {}, measured(step, spec.batch_tokens)


def stacked(case: Case, seeds: int) -> tuple[Result, Measure]:
    """For a `Worker`: the models of all seeds in one."""
    spec = case.spec("slm", Mode.named(GPU_MODE))
    return {}, measured(stacked_step(spec, seeds, case.device), seeds * spec.batch_tokens)


def measured(step: Step, tokens: int) -> Measure:
    for _ in range(WARMUP_STEPS):
        step()

    def measure(seconds: float) -> Result:
        steps, elapsed_seconds = repeated(step, seconds)
        return {"tokens_per_second": steps * tokens / elapsed_seconds}

    return measure


def stacked_step(spec: RunSpec, models: int, device: str) -> Step:
    """A step of several models on one batch each; it returns their losses (models,)."""
    config = spec.config.optimizer
    built = [initial_model(spec, seed).to(device) for seed in range(models)]
    params, buffers = stack_module_state(built)
    skeleton = built[0]  # whose own weights are not used; on `meta` a tied table would become two
    optimizer = torch.optim.AdamW(
        params.values(),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    batch = fixed_batch(spec, device)
    inputs, targets = (part.expand(models, *part.shape) for part in batch.unbind(1))

    def loss_of(
        params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> Tensor:
        logits = functional_call(skeleton, (dict(params), dict(buffers)), (inputs,))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def step() -> Tensor:
        bf16 = spec.config.trainer.precision == "bf16"
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            losses = vmap(loss_of)(params, buffers, inputs, targets)
        losses.sum().backward()
        clip_each(list(params.values()), config.grad_clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        return losses.detach()

    return step


@torch.no_grad()
def clip_each(params: Sequence[Tensor], limit: float) -> None:
    """Clip the global norm of each model; the first dimension of every tensor counts models."""
    grads = [parameter.grad for parameter in params if parameter.grad is not None]
    norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
    scales = (limit / (norms + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scales.view(-1, *[1] * (grad.ndim - 1)))


def compare(
    teams: Mapping[str, Sequence[Start]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Tokens/s of each team, whose workers run at the same time, in every round."""
    starts = {(name, i): start for name, team in teams.items() for i, start in enumerate(team)}
    rates: dict[str, list[float]] = {name: [] for name in teams}
    with working(starts) as workers:
        for _, name in itertools.product(range(rounds), teams):
            team = [worker for key, worker in workers.items() if key[0] == name]
            for worker in team:
                worker.ask(seconds)
            rates[name].append(sum(worker.answer()["tokens_per_second"] for worker in team))
    return rates


def cpu_teams(case: Case) -> dict[str, list[Start]]:
    def run(threads: int) -> Start:
        return partial(Worker, contender, "slm", CPU_MODE, case, threads=threads)

    return {"1 x 2 threads": [run(2)], "2 x 1 thread": [run(1), run(1)]}


def gpu_teams(case: Case, seeds: int) -> dict[str, list[Start]]:
    alone: Start = partial(Worker, contender, "slm", GPU_MODE, case, threads=1)
    return {
        "one process": [alone],
        f"{seeds} processes": [alone] * seeds,
        "reduce-overhead": [partial(Worker, in_graphs, case, threads=1)],
        f"{seeds} stacked": [partial(Worker, stacked, case, seeds, threads=1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--batch-tokens", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each way in a round")
    parser.add_argument("--seeds", type=int, default=4, help="runs at once on a GPU")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine = describe_machine(2)
    print_machine(machine)
    results: list[dict[str, Any]] = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        rows, names = [], []
        for label, batch_tokens in itertools.product(arguments.shapes, arguments.batch_tokens):
            case = case_of(label, batch_tokens, arguments, device)
            teams = cpu_teams(case) if device == "cpu" else gpu_teams(case, arguments.seeds)
            rates = compare(teams, arguments.rounds, arguments.seconds)
            results.append({"device": device, "shape": label, "batch_tokens": batch_tokens, "rates": rates})  # fmt: skip
            first, *others = names = list(rates)
            ratios = [f"{median_ratio(rates[name], rates[first]):.2f}" for name in others]
            medians = [f"{statistics.median(rates[name]):,.0f}" for name in names]
            rows.append([label, f"{batch_tokens}", *medians, *ratios])
        columns = [
            "shape",
            "tokens a step",
            *names,
            *(f"{name} / {names[0]}" for name in names[1:]),
        ]
        print_table(f"tokens/s of all runs together on {device}", columns, rows)
    save(arguments.json, machine, results)


if __name__ == "__main__":
    main()
