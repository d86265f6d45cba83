"""Run directories that are written by hand, without training."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from slm.config.load import load_config
from slm.config.schema import to_tree
from slm.tracking.results_file import read_results
from slm.tracking.run_dir import RunDirectory
from tests.conftest import ROOT, TINY, merged
from tests.in_process import run_here

EXAMPLE = next(
    iter(read_results(ROOT / "analysis" / "examples" / "micro_first" / "results.jsonl").values())
)
STATE_OF = {True: "finished", False: "interrupted"}


def make_run(
    study: Path,
    family: str = "deep_thin",
    size: int = 50_000,
    *,
    tokens: int = 20_480,
    seed: int = 0,
    loss: float | None = 2.5,
    state: str | None = None,
    result: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a run directory; without a loss the run has no result. `changes` are keys of the config."""
    fixed = {
        "family": {"name": family, "aspect_ratio": 4.0},
        "size": size,
        "seed": seed,
        "budget": {"tokens": tokens},
        "study": {"name": study.name},
        "model": {"n_layers": None, "d_model": None, "n_heads": None, "n_kv_heads": None},
    }
    tree = to_tree(load_config(merged(merged(TINY, fixed), changes)))
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]
    path = study / f"{family}-L4-d32-{tokens / 1e6:.3g}Mtok-s{seed}-{digest}"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    status = {"state": state or STATE_OF[loss is not None], "heartbeat": 0.0, "owner": {}}
    (path / "status.json").write_text(json.dumps(status))
    if loss is not None:
        facts = {
            "run_id": path.name,
            "study": study.name,
            "family": family,
            "size": size,
            "tokens": tokens,
            "flops": tokens * EXAMPLE.flops_per_token,
            "seed": seed,
            "val_loss_nats_per_token": loss,
        }
        saved = replace(EXAMPLE, **{**facts, **(result or {})})
        (path / "result.json").write_text(json.dumps(asdict(saved)))
    return path


def set_aside(run: Path) -> Path:
    """Move a run to .superseded, as rerun=true does."""
    directory = RunDirectory(run)
    return directory.move_aside(directory.lease.take())


def log_losses(run: Path, losses: Mapping[int, float | None], key: str = "train/loss") -> None:
    """Append rows to metrics.jsonl: step -> loss, with 1000 tokens per step."""
    with (run / "metrics.jsonl").open("a") as stream:
        for step, loss in losses.items():
            row = {
                "progress/step": step,
                "progress/tokens": 1000 * step,
                "progress/flops": 6e6 * step,
            }
            stream.write(json.dumps({**row, key: loss}) + "\n")


def slm(*words: object) -> subprocess.CompletedProcess[str]:
    return run_here(["python", "slm/__main__.py", *map(str, words)])
