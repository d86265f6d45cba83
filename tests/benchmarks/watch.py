"""Refresh time and memory of `action=watch` on a synthetic study of 500 runs with 5,000 rows each.

    python -m tests.benchmarks.watch [--rows 5000] [--seconds 60] [--keep FOLDER]

Writes the run directories (0.6 GB), starts the server in a process of its own, polls it as a browser does until all
rows are read, appends to the running runs, and prints JSON: seconds of a refresh and of an answer, and the largest
resident memory of the server. Targets: below 1 s and 300 MB.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir

from slm.config.hydra import (
    CONF_DIR,
    Composer,
    convert_overrides,
    load_composed_config,
    register_schema,
)
from slm.files import write_json
from slm.studies.cells import Cell
from slm.studies.expand import cells_of
from slm.tracking import run_dir
from slm.tracking.lease import HeldLease
from slm.tracking.result import SCHEMA_VERSION, RunResult
from tests.conftest import ROOT

STUDY = (
    "study=demo",
    "study.name=synthetic",
    "study.sizes=[80k,100k,128k,160k,190k,220k,260k,300k,350k,400k]",
    "study.tokens_per_param=[2,4,8,16,32]",
    "study.seeds=[0,1,2,3,4]",
    "tracking=disabled",
)  # 2 families x 10 sizes x 5 budgets x 5 seeds
FAMILY_SHIFT = {"deep_thin": -0.02, "wide_shallow": 0.02}
DIVERGENCE = {"step": 120, "loss": 8.25, "grad_norm": "nan"}
URL = re.compile(r"http://\S+")


def study_cells(*overrides: str) -> list[Cell]:
    """Return the cells of a study as sweep.py makes them."""
    register_schema()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):

        def composed(more: Sequence[str]) -> Any:
            return compose("train", overrides=[*convert_overrides(list(overrides)), *more])

        config = load_composed_config(composed([]))
        return cells_of(config, Composer(composed))


def loss_of(cell: Cell, tokens: float) -> float:
    n = cell.spec.flops_per_token / 6
    shift = FAMILY_SHIFT.get(cell.family, 0.0) * (1 + 0.3 * math.log(n / 2e5))
    return 2.0 + 30 * n**-0.3 + 60 * (tokens + 1e5) ** -0.3 + shift


def write_run(
    cell: Cell,
    state: str,
    *,
    share: float = 1.0,
    rows: int = 200,
    error: str = "RuntimeError: <b>out of memory</b>",
) -> None:
    """Write the directory of a run in a state, after a share of its steps, with evenly spaced rows."""
    folder = cell.run.path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(metric_rows(cell, 0, round(share * rows), rows)))
    (folder / "log.txt").write_text(f"training {cell.spec.run_id}\nstep 1 of {cell.spec.steps}\n")
    status = {"state": state, "heartbeat": time.time(), "owner": {}}
    if state == "failed":
        status["failure"] = error
        text = f"Traceback (most recent call last):\n  File train.py, line 1\n{error}\n"
        (folder / "traceback.txt").write_text(text)
    write_json(folder / "status.json", status)
    if state in ("finished", "diverged"):
        write_json(folder / "result.json", vars(result_of(cell, state)))


def metric_rows(cell: Cell, first: int, end: int, rows: int) -> Iterator[str]:
    """Yield lines of metrics.jsonl: those numbered `first` to `end` of all rows of the run."""
    noise = np.random.default_rng([cell.spec.config.seed, first]).normal(0, 0.01, end - first)
    for number in range(first, end):
        step = max(1, round((number + 1) / rows * cell.spec.steps))
        tokens = step * cell.spec.batch_tokens
        row = {
            run_dir.STEP: step,
            run_dir.TOKENS: tokens,
            run_dir.FLOPS: tokens * cell.spec.flops_per_token,
            run_dir.TRAIN_LOSS: loss_of(cell, tokens) + noise[number - first],
            run_dir.LR: 0.004,
            run_dir.GRAD_NORM: 0.7403231859207153,
            run_dir.TOKENS_PER_SECOND: 18058.095092739033,
        }
        yield json.dumps(row) + "\n"


def result_of(cell: Cell, status: str = "finished") -> RunResult:
    spec = cell.spec
    seed_noise = float(np.random.default_rng([spec.config.seed, spec.steps]).normal(0, 0.003))
    loss = loss_of(cell, spec.tokens) + seed_noise if status == "finished" else None
    known = {
        "schema_version": SCHEMA_VERSION,
        "run_id": spec.run_id,
        "study": spec.config.study.name,
        "recipe_id": spec.recipe_id,
        "status": status,
        "family": cell.family,
        "size": spec.config.size,
        "rung": spec.rung,
        "shape": spec.shape.as_dict(),
        "parametrization": "completep",
        "params_total": spec.flops_per_token // 6,
        "params_non_embedding": spec.flops_per_token // 6,
        "params_embedding": 0,
        "flops_per_token": spec.flops_per_token,
        "flops_convention": "causal",
        "reference_flops_per_token": spec.reference_flops_per_token,
        "tokens_per_param": spec.tokens_per_param,
        "tokens": spec.tokens,
        "epochs": 0.5,
        "flops": spec.flops,
        "steps": spec.steps,
        "batch_tokens": spec.batch_tokens,
        "seed": spec.config.seed,
        "peak_lr": spec.config.optimizer.lr,
        "schedule": {"kind": "wsd"},
        "trunk_id": spec.trunk_id,
        "taken_over_steps": 0,
        "precision": "fp32",
        "val_loss_nats_per_token": loss,
        "val_bits_per_byte": None if loss is None else loss / 2,
        "val_perplexity": None if loss is None else math.exp(loss),
        "val_errors": None,
        "val_tokens": 262_144,
        "val_bytes": 900_000,
        "val_fingerprint": "v",
        "data_fingerprint": "d",
        "tokenizer_fingerprint": "t",
        "train_loss_nats_per_token": loss,
        "loss_spikes": [],
        "divergence": DIVERGENCE if status == "diverged" else None,
        "wall_seconds": spec.tokens / 18_000,
        "tokens_per_second": 18_000.0,
        "mfu": None,
        "peak_memory_bytes": 300_000_000,
        "commit": None,
        "wandb_id": None,
    }
    return RunResult(**known)  # type: ignore[arg-type]


def write_study(cells: Sequence[Cell], rows: int) -> list[HeldLease]:
    """Write most runs as finished, and some in every other state; return the leases of the running ones."""
    leases = []
    for number, cell in enumerate(cells):
        if number % 10 == 3:
            write_run(cell, "running", share=0.6, rows=rows)
            leases.append(cell.run.lease.take())
        elif number % 25 == 7:
            write_run(cell, "failed", share=0.3, rows=rows)
        elif number % 50 == 11:
            write_run(cell, "diverged", share=0.5, rows=rows)
        elif number % 50 == 12:
            write_run(cell, "interrupted", share=0.4, rows=rows)
        elif number % 10 != 9:  # every tenth is planned
            write_run(cell, "finished", rows=rows)
    return leases


@contextmanager
def served(*overrides: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start `sweep.py ... action=watch watch.port=0`, and yield its address and its process."""
    command = [sys.executable, "sweep.py", *overrides, "action=watch", "watch.port=0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next((line for line in process.stderr if "http://" in line), "")
        found = URL.search(line)
        assert found, f"the server ended with code {process.wait(10)}"
        yield found.group(), process
    finally:
        process.terminate()
        process.wait(30)


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def resident_mb(pid: int, key: str = "VmHWM") -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+)", text)[1]) / 1e3  # type: ignore[index]


def measure(folder: Path, rows: int, seconds: float) -> dict[str, Any]:
    overrides = (*STUDY, f"runs_dir={folder}")
    cells = study_cells(*overrides)
    leases = write_study(cells, rows)
    running = [cell for cell in cells if cell.run.state() == "running"]
    answers: dict[str, list[float]] = defaultdict(list)
    wall, cpu = [], []

    def get(name: str) -> Any:
        start = time.perf_counter()
        with urllib.request.urlopen(url + name, timeout=60) as answer:
            body = answer.read()
            timing = answer.headers.get("Server-Timing")
        answers[name].append(time.perf_counter() - start)
        if name == "state.json":
            milliseconds = [float(value) for value in re.findall(r"dur=(\d+)", timing)]
            wall.append(milliseconds[0] / 1e3)
            cpu.append(milliseconds[1] / 1e3)
        return json.loads(body) if name.endswith(".json") else None

    with served(*overrides) as (url, process):
        for name in ("", "page.css", "vega.js", "page.js"):
            get(name)
        start = time.monotonic()
        read_after = None
        written = round(0.6 * rows)
        while time.monotonic() < start + seconds:
            state = get("state.json")
            if state.get("summary"):
                if state["reading"] is None and read_after is None:
                    read_after = time.monotonic() - start
                get("curves.json")
                get("analysis.json")
            for cell in running:
                with (cell.run.path / "metrics.jsonl").open("a") as stream:
                    stream.writelines(metric_rows(cell, written, written + 5, rows))
            written += 5
            time.sleep(2)
        memory = {
            "peak_mb": resident_mb(process.pid),
            "now_mb": resident_mb(process.pid, "VmRSS"),
        }
    for lease in leases:
        lease.release()
    return {
        "runs": len(cells),
        "rows": rows,
        "running": len(running),
        "seconds_until_all_rows_are_read": read_after,
        "refresh_seconds": {"median": float(np.median(wall)), "largest": max(wall)},
        "refresh_cpu_seconds": {"median": float(np.median(cpu)), "largest": max(cpu)},
        "largest_answer_seconds": {name: max(each) for name, each in answers.items()},
        **memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--keep", type=Path, help="write the runs into this folder and keep them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        print(json.dumps(measure(folder, arguments.rows, arguments.seconds), indent=2))


if __name__ == "__main__":
    main()
