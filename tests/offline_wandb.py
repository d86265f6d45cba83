"""Reader of offline W&B files: the run, the rows of its history, and its exit code."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

from analysis.runs.wandb import _payloads
from slm.tracking.run_dir import RunDirectory


@dataclass
class OfflineRun:
    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)
    """The metric on the x axis, by glob of metrics."""
    artifacts: list[str] = field(default_factory=list)
    exit_code: int | None = None


def offline_files(run: RunDirectory) -> list[Path]:
    """Return the W&B files of a run directory, the oldest start first."""
    files = (run.path / "wandb").glob("*run-*/*.wandb")
    return sorted(files, key=lambda file: file.parent.name.removeprefix("offline-"))


def read_offline_run(file: Path) -> OfflineRun:
    found = OfflineRun()
    for payload in _payloads(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.id, found.name, found.group = run.run_id, run.display_name, run.run_group
            found.job_type, found.tags = run.job_type, list(run.tags)
            found.config |= {each.key: json.loads(each.value_json) for each in run.config.update}
        elif kind == "history":
            row = {
                each.key or each.nested_key[0]: json.loads(each.value_json)
                for each in record.history.item
            }
            found.rows.append(row)
        elif kind == "summary":
            for each in record.summary.update:
                found.summary[each.key or each.nested_key[0]] = json.loads(each.value_json)
        elif kind == "metric":
            found.step_metrics[record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            found.artifacts.append(record.artifact.name)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def assert_same_history(rows: list[dict[str, Any]], run: RunDirectory) -> None:
    """Assert that a W&B history has every row of metrics.jsonl once, in order, and no other."""
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    own = [{key: value for key, value in row.items() if key[0] != "_"} for row in rows]
    assert own == run.read_metrics()
