"""Total training throughput of a machine for several small runs: which way of running them is fastest.

    python -m tests.benchmarks.throughput [--shapes d64-L1 d32-L16 ...] [--batch-tokens 256 1024]
        [--seq-len 64] [--vocab-size 512] [--rounds 5] [--seconds 1] [--seeds 4] [--json FILE]

On two CPU cores: one process with 2 threads, compared with two concurrent processes with 1 thread each and
separate runs. Ratios are taken within rounds.

If a GPU is available, also four ways to train `--seeds` runs of one shape in bf16: one process, one process
with CUDA graphs (`reduce-overhead`), concurrent processes that share the device, and all models stacked into
one by torch.func. Graphs and stacks use the plain step of the peers. This part has not been run on a GPU; a
test on CPU checks that a stacked step equals the steps of its models.
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
    run_for,
    started_workers,
    write_results,
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


def build_case(label: str, batch_tokens: int, arguments: argparse.Namespace, device: str) -> Case:
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


def cuda_graph_contender(case: Case) -> tuple[Result, Measure]:
    """Build a `Worker` contender: one model compiled into CUDA graphs."""
    mode = Mode.named(GPU_MODE)
    spec = case.spec("slm", mode)
    model = initial_model(spec)
    model.compile(mode="reduce-overhead")
    step, _ = peer_step(model, spec, mode, case.device, lambda logits: logits)
    return {}, throughput_measure(step, spec.batch_tokens)


def stacked_contender(case: Case, seeds: int) -> tuple[Result, Measure]:
    """Build a `Worker` contender: the models of all seeds stacked into one."""
    spec = case.spec("slm", Mode.named(GPU_MODE))
    step = stacked_step(spec, seeds, case.device)
    return {}, throughput_measure(step, seeds * spec.batch_tokens)


def throughput_measure(step: Step, tokens: int) -> Measure:
    """Warm the step up; return the function that measures its tokens/s."""
    for _ in range(WARMUP_STEPS):
        step()

    def measure(seconds: float) -> Result:
        steps, elapsed_seconds = run_for(step, seconds)
        return {"tokens_per_second": steps * tokens / elapsed_seconds}

    return measure


def stacked_step(spec: RunSpec, models: int, device: str) -> Step:
    """Build a step that trains `models` models on one batch each; it returns their losses (models,)."""
    config = spec.config.optimizer
    separate = [initial_model(spec, seed).to(device) for seed in range(models)]
    params, buffers = stack_module_state(separate)
    # functional_call replaces the weights of this model. A copy on `meta` would untie a tied table.
    skeleton = separate[0]
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
    """Clip the global gradient norm of each model; dimension 0 of every tensor is the model."""
    grads = [parameter.grad for parameter in params if parameter.grad is not None]
    norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
    scales = (limit / (norms + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scales.view(-1, *[1] * (grad.ndim - 1)))


def compare(
    groups: Mapping[str, Sequence[Start]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Measure the total tokens/s of each group of concurrent workers in every round."""
    starts = {(name, i): start for name, group in groups.items() for i, start in enumerate(group)}
    rates: dict[str, list[float]] = {name: [] for name in groups}
    with started_workers(starts) as workers:
        for _, name in itertools.product(range(rounds), groups):
            group = [worker for key, worker in workers.items() if key[0] == name]
            for worker in group:
                worker.request(seconds)
            rates[name].append(sum(worker.receive()["tokens_per_second"] for worker in group))
    return rates


def cpu_groups(case: Case) -> dict[str, list[Start]]:
    def run(threads: int) -> Start:
        return partial(Worker, contender, "slm", CPU_MODE, case, threads=threads)

    return {"1 x 2 threads": [run(2)], "2 x 1 thread": [run(1), run(1)]}


def gpu_groups(case: Case, seeds: int) -> dict[str, list[Start]]:
    single: Start = partial(Worker, contender, "slm", GPU_MODE, case, threads=1)
    return {
        "one process": [single],
        f"{seeds} processes": [single] * seeds,
        "reduce-overhead": [partial(Worker, cuda_graph_contender, case, threads=1)],
        f"{seeds} stacked": [partial(Worker, stacked_contender, case, seeds, threads=1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--batch-tokens", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="duration of one measurement in a round"
    )
    parser.add_argument("--seeds", type=int, default=4, help="concurrent runs on a GPU")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine = describe_machine(2)
    print_machine(machine)
    results: list[dict[str, Any]] = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        rows, names = [], []
        for label, batch_tokens in itertools.product(arguments.shapes, arguments.batch_tokens):
            case = build_case(label, batch_tokens, arguments, device)
            groups = cpu_groups(case) if device == "cpu" else gpu_groups(case, arguments.seeds)
            rates = compare(groups, arguments.rounds, arguments.seconds)
            result = {"device": device, "shape": label, "batch_tokens": batch_tokens}
            results.append({**result, "rates": rates})
            first, *others = names = list(rates)
            ratios = [f"{median_ratio(rates[name], rates[first]):.2f}" for name in others]
            medians = [f"{statistics.median(rates[name]):,.0f}" for name in names]
            rows.append([label, f"{batch_tokens}", *medians, *ratios])
        columns = [
            "shape",
            "tokens per step",
            *names,
            *(f"{name} / {names[0]}" for name in names[1:]),
        ]
        print_table(f"Total tokens/s of all concurrent runs on {device}", columns, rows)
    write_results(arguments.json, machine, results)


if __name__ == "__main__":
    main()
