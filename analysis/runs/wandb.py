"""Read runs of a W&B project, through its public API or from offline folders.

An offline run is one `run-ID.wandb` file: a 7-byte file header, then blocks of 32 KiB. A block contains chunks,
each with a 7-byte header (checksum, length, kind: whole, first, middle or last) and a payload; joined payloads
are protobuf records. The wandb package decodes the records, but has no public reader for the file.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.runs.tables import run_row
from slm.architecture.flops import flop_equivalent_params
from slm.errors import DataError
from slm.tracking.result import RunResult, result_from

BLOCK, HEADER = 32 * 1024, 7
WHOLE, FIRST, LAST = 1, 2, 4
FINAL_LOSS = "val/loss"
SCHEMA = "schema_version"  # a field of every result
REPORT_JOB = (
    "report"  # job_type of the W&B run with which action=dashboard uploads the charts of a study
)
# W&B drops the null fields of a summary.
NULLS = {field.name: None for field in fields(RunResult) if str(field.type).endswith("None")}


@dataclass(frozen=True)
class TrackedRun:
    """A run as recorded by W&B. `state` is W&B's word: `finished`, `running`, `failed`, `crashed`, ..."""

    run_id: str
    study: str
    state: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    summary: Mapping[str, Any]


def online_runs(project: str) -> Iterator[TrackedRun]:
    """Yield the runs of `entity/project`.

    Raises:
        DataError: if wandb is not installed, the server is not reachable, or the project does not exist.
    """
    try:
        import wandb

        for run in wandb.Api().runs(project, lazy=False):
            if run.job_type == REPORT_JOB:
                continue
            summary = dict(run.summary_metrics)
            if SCHEMA not in summary and FINAL_LOSS not in summary:  # an older run
                for row in run.scan_history(keys=[FINAL_LOSS]):
                    summary[FINAL_LOSS] = row[FINAL_LOSS]
            yield TrackedRun(
                run.id, run.group or "", run.state, tuple(run.tags), dict(run.config), summary
            )
    except ImportError:
        raise DataError("wandb is not installed; run `pip install wandb`") from None
    except Exception as error:
        raise DataError(
            f"cannot read the W&B project {project!r}: {error}; pass ENTITY/PROJECT, and run `wandb login` "
            "if access is denied"
        ) from None


def offline_runs(folder: Path) -> Iterator[TrackedRun]:
    """Yield the runs of all `.wandb` files below a folder, except in hidden folders, which hold superseded runs.

    A resumed run has several files: their values are merged, and the latest one wins.
    """
    run_by_id: dict[str, TrackedRun] = {}
    files = [
        file
        for file in folder.rglob("*.wandb")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    for file in sorted(files, key=lambda path: path.parent.name.removeprefix("offline-")):
        run = read_offline(file)
        if run is None:
            continue
        earlier = run_by_id.get(run.run_id)
        if earlier is not None:
            config = {**earlier.config, **run.config}
            run = replace(run, config=config, summary={**earlier.summary, **run.summary})
        run_by_id[run.run_id] = run
    yield from run_by_id.values()


def read_offline(file: Path) -> TrackedRun | None:
    """Read the run of one file, up to the last complete record; return None if there is no run record."""
    from wandb.proto import wandb_internal_pb2

    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    run_id, study, state, tags = "", "", "running", ()
    for payload in _payloads(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run_id, study, tags = record.run.run_id, record.run.run_group, tuple(record.run.tags)
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "summary":
            for item in record.summary.update:
                key = item.key or "/".join(item.nested_key)
                summary[key] = json.loads(item.value_json)
        elif kind == "exit":
            state = "finished" if record.exit.exit_code == 0 else "failed"
    return TrackedRun(run_id, study, state, tags, config, summary) if run_id else None


def _payloads(content: bytes) -> Iterator[bytes]:
    """Yield the payloads of complete records, joined from their chunks."""
    offset, joined = HEADER, b""
    while offset + HEADER <= len(content):
        remaining = BLOCK - offset % BLOCK
        if (
            remaining < HEADER
        ):  # the end of a block is padding if it is too short for a chunk header
            offset += remaining
            continue
        _, length, kind = struct.unpack_from("<IHB", content, offset)
        chunk = content[offset + HEADER : offset + HEADER + length]
        if len(chunk) < length:
            return  # truncated file: the run was killed during a write
        offset += HEADER + length
        joined = chunk if kind in (WHOLE, FIRST) else joined + chunk
        if kind in (WHOLE, LAST):
            yield joined


def finished_runs(
    runs: Iterable[TrackedRun],
) -> tuple[list[RunResult], pd.DataFrame, Counter[str]]:
    """Return the results of the finished runs, a table of those of older versions, and counts of the dropped runs.

    The summary of a run has the fields of its result; in older versions it had counts and the loss.
    """
    dropped: Counter[str] = Counter()
    results, older = [], []
    for run in runs:
        if SCHEMA in run.summary and run.state != "running":
            try:
                result = result_from({**NULLS, **run.summary})
            except DataError:
                dropped["unreadable result"] += 1
                continue
            if result.status == "finished":
                results.append(result)
            else:
                dropped[f"not finished ({result.status})"] += 1
        elif reason := _why_unusable(run):
            dropped[reason] += 1
        else:
            older.append(_row(run))
    return sorted(results, key=lambda result: result.run_id), pd.DataFrame(older), dropped


def _why_unusable(run: TrackedRun) -> str:
    """Return why a run of an older version has no row; empty if it has one."""
    if run.state != "finished":
        return f"not finished ({run.state})"
    if not isinstance(run.summary.get(FINAL_LOSS), (int, float)):
        return "no final loss"
    if not math.isfinite(run.summary[FINAL_LOSS]):
        return "diverged"
    if "shape" not in run.config or "flops_per_token" not in run.summary:
        return "not a run of slm"
    return ""


def _row(run: TrackedRun) -> dict[str, Any]:
    """Return the row of a run of an older version."""
    config, counts = run.config, run.summary
    sizes = [tag.removeprefix("size-") for tag in run.tags if tag.startswith("size-")]
    size = (
        int(sizes[0])
        if sizes
        else round(flop_equivalent_params(counts["reference_flops_per_token"]))
    )
    return {
        "run_id": run.run_id,
        "study": run.study,
        "family": config["family"],
        "rung": str(size),
        "size": size,
        **run_row(config["shape"], counts, config["schedule"]),
        "seed": config["seed"],
        "peak_lr": config["optimizer"]["lr"],
        "parametrization": config["parametrization"]["kind"],
        "loss_nats_per_token": counts[FINAL_LOSS],
        "val_fingerprint": json.dumps(
            [config.get("data"), config.get("tokenizer")], sort_keys=True
        ),
    }
