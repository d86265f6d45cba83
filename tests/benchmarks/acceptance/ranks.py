"""DDP and FSDP: speed per GPU against one GPU, and the end of all ranks when one raises in a step."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import torch

from slm.config.hydra import compose_config
from slm.config.load import load_config
from slm.config.schema import to_tree
from slm.run.spec import RunSpec, resolve
from slm.tracking.run_dir import RunDirectory
from tests.benchmarks import engine
from tests.benchmarks.acceptance.corpus import corpus_overrides
from tests.benchmarks.acceptance.processes import POLL_SECONDS, alive, descendants, end_tree
from tests.benchmarks.acceptance.rows import ROOT, Options, Rows

EFFICIENCY_FLOOR = 0.9  # tokens/s of n GPUs / (n x tokens/s of one), batch per GPU constant
END_SECONDS = {"cuda": 60.0, "cpu": 30.0}  # from the error of rank 1 to the end of the last process
TRAIN_SECONDS = 240.0
STRATEGIES = ("ddp", "fsdp")
STEPS, RANK_TOKENS = 30, 32_768
QUICK_STEPS, QUICK_RANK_TOKENS = 12, 256
RAISE_BEFORE_STEP = 3
SHAPE = ("model=mobilellm_125m", "trainer.micro_batch_sequences=8")
QUICK = ("model=tiny", "model.n_layers=2", "model.seq_len=64")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def run(options: Options, rows: Rows) -> None:
    ranks = torch.cuda.device_count() if options.on_gpu else 2
    if ranks < 2:
        rows.skipped("ddp and fsdp", "needs two GPUs or more")
        return
    corpus = corpus_overrides(options.folder, documents=40, words=20_000)
    specs = {name: spec_of(options, corpus, name, ranks) for name in ("single", *STRATEGIES)}
    jobs = options.folder / "ranks.json"
    jobs.write_text(json.dumps([to_tree(specs[name].config) for name in STRATEGIES]))
    module = ["-m", "tests.benchmarks.acceptance.ranks", str(jobs)]
    command = [*TORCHRUN, f"--nproc-per-node={ranks}", *module]
    alone_rate = engine.rate_of(engine.train_run(specs["single"]))
    rows.measured("1 process", alone_rate, "tokens/s")
    code = subprocess.run(command, cwd=ROOT, timeout=TRAIN_SECONDS, check=False).returncode
    rows.holds("ddp and fsdp: exit code 0", code == 0, str(code))
    for strategy in STRATEGIES if code == 0 else ():
        rate = engine.rate_of(RunDirectory.of(specs[strategy]))
        efficiency, check = rate / alone_rate / ranks, f"{strategy}, {ranks} ranks: efficiency"
        note = f"{rate:,.0f} tokens/s"
        if options.on_gpu and not options.quick:
            rows.check(check, efficiency, at_least=EFFICIENCY_FLOOR, note=note)
        else:
            rows.measured(check, efficiency, note=f"{note}; no bound at toy size")
    for strategy in STRATEGIES[:1] if options.quick else STRATEGIES:
        _check_end(options, rows, [*_overrides(options, corpus, f"raise-{strategy}", ranks)], ranks)


def spec_of(options: Options, corpus: list[str], name: str, ranks: int) -> RunSpec:
    return resolve(compose_config(_overrides(options, corpus, name, ranks)))


def _overrides(options: Options, corpus: list[str], name: str, ranks: int) -> list[str]:
    """Return the overrides of one run: `single`, `ddp`, `fsdp`, or `raise-` and a strategy."""
    steps, tokens = (QUICK_STEPS, QUICK_RANK_TOKENS) if options.quick else (STEPS, RANK_TOKENS)
    strategy, processes = name.removeprefix("raise-"), 1 if name == "single" else ranks
    return [
        *(QUICK if options.quick else SHAPE),
        *corpus,
        f"runs_dir={options.folder / 'runs' / name}",
        f"trainer={options.accelerator}",
        f"trainer.strategy={strategy}",
        f"trainer.devices={processes}",
        "trainer.threads=1",
        "trainer.compile=off",
        "trainer.progress=false",
        f"trainer.log_every_steps={steps // 6}",
        f"optimizer.global_batch_tokens={processes * tokens}",
        "budget=tokens",
        f"budget.tokens={processes * tokens * steps}",
    ]


def _check_end(options: Options, rows: Rows, overrides: list[str], ranks: int) -> None:
    """Start train.py in torchrun, raise in rank 1 before a step, and time the end of all processes."""
    strategy = next(o.partition("=")[2] for o in overrides if o.startswith("trainer.strategy="))
    marker = options.folder / f"raised-{strategy}"
    module = ["-m", "tests.benchmarks.acceptance.failing_rank", str(marker), str(RAISE_BEFORE_STEP)]
    command = [*TORCHRUN, f"--nproc-per-node={ranks}", *module, *overrides]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    members: set[int] = set()
    deadline = time.monotonic() + TRAIN_SECONDS
    while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
        members |= descendants(process.pid)
        time.sleep(POLL_SECONDS)
    check = f"{strategy}: all ranks gone after rank 1 raised"
    if not marker.exists():
        end_tree(process.pid)
        rows.failed(check, f"rank 1 did not reach step {RAISE_BEFORE_STEP}")
        return
    seconds = _seconds_until_gone(process, members | descendants(process.pid), options)
    rows.check(check, seconds, "s", at_most=END_SECONDS[options.device])
    code = process.wait()
    rows.holds(f"{strategy}: torchrun reports the failure", code != 0, f"exit code {code}")


def _seconds_until_gone(
    process: subprocess.Popen[bytes], members: set[int], options: Options
) -> float:
    """Return the seconds until no process is left; infinity if some outlive the limit."""
    start_seconds = time.monotonic()
    while time.monotonic() - start_seconds < END_SECONDS[options.device]:
        if process.poll() is not None and not alive(members):
            return time.monotonic() - start_seconds
        time.sleep(POLL_SECONDS)
    for pid in alive({process.pid, *members}):
        end_tree(pid)
    return math.inf


if __name__ == "__main__":
    trees = json.loads(Path(sys.argv[1]).read_text())
    engine.train_in_ranks([resolve(load_config(tree)) for tree in trees])
