"""Read runs of a W&B project, through its public API or from offline folders.

An offline run is one `run-ID.wandb` file: a 7-byte file header, then blocks of 32 KiB. A block contains chunks,
each with a 7-byte header (checksum, length, kind: whole, first, middle or last) and a payload; joined payloads
are protobuf records. The wandb package decodes the records, but has no public reader for the file.
"""

from __future__ import annotations

import json
import math
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.runs.files import flatten
from analysis.runs.tables import run_row
from slm.architecture.flops import flop_equivalent_params
from slm.errors import DataError
from slm.tracking.result import RunResult, result_from

BLOCK, HEADER = 32 * 1024, 7
WHOLE, FIRST, LAST = 1, 2, 4
RUNNING = "running"  # state of a run without an exit record
NO_RUN = "no run in it"  # why a file with a header only is unreadable
FRESH_SECONDS = 5.0  # since the last change of a file of the run
MAX_WAIT_SECONDS, POLL_SECONDS = 1.0, 0.02
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


Unreadable = Counter[str]
"""Number of unreadable files by reason."""


def online_runs(project: str) -> tuple[list[TrackedRun], Unreadable]:
    """Return the runs of `entity/project`.

    Raises:
        DataError: if wandb is not installed, the server is not reachable, or the project does not exist.
    """
    try:
        import wandb

        found = []
        for run in wandb.Api().runs(project, lazy=False):
            if run.job_type == REPORT_JOB:
                continue
            summary = dict(run.summary_metrics)
            if SCHEMA not in summary and FINAL_LOSS not in summary:  # an older run
                for row in run.scan_history(keys=[FINAL_LOSS]):
                    summary[FINAL_LOSS] = row[FINAL_LOSS]
            found.append(
                TrackedRun(
                    run.id, run.group or "", run.state, tuple(run.tags), dict(run.config), summary
                )
            )
        return found, Counter()
    except ImportError:
        raise DataError("wandb is not installed; run `pip install wandb`") from None
    except Exception as error:
        raise DataError(
            f"cannot read the W&B project {project!r}: {error}; pass ENTITY/PROJECT, and run `wandb login` "
            "if access is denied"
        ) from None


def offline_runs(folder: Path) -> tuple[list[TrackedRun], Unreadable]:
    """Return the runs of all `.wandb` files below a folder, except in hidden folders, which hold superseded runs.

    A resumed run has several files: their values are merged, and the latest one wins. Unreadable files are counted.

    W&B completes a file in another process, after `finish()` has returned. Files that are incomplete and fresh are read
    again, for at most `MAX_WAIT_SECONDS` in total.
    """
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    run_by_id: dict[str, TrackedRun] = {}
    unreadable: Unreadable = Counter()
    files = [
        file
        for file in folder.rglob("*.wandb")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    for file in sorted(files, key=lambda path: path.parent.name.removeprefix("offline-")):
        found = _read_or_reason(file)
        while (is_written := _is_being_written(file, found)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            found = _read_or_reason(file)
        if isinstance(found, str):
            reason = "still being written" if is_written else found
            unreadable[f"unreadable W&B file ({reason})"] += 1
            continue
        run = found
        earlier = run_by_id.get(run.run_id)
        if earlier is not None:
            config = {**earlier.config, **run.config}
            run = replace(run, config=config, summary={**earlier.summary, **run.summary})
        run_by_id[run.run_id] = run
    return list(run_by_id.values()), unreadable


def _read_or_reason(file: Path) -> TrackedRun | str:
    """Return the run of a file, or why it cannot be read."""
    try:
        return read_offline(file)
    except OSError as error:
        return error.strerror or type(error).__name__
    except DataError as error:
        return str(error)


def _is_being_written(file: Path, found: TrackedRun | str) -> bool:
    """Return whether a file is incomplete and W&B has changed a file of its run a few seconds ago.

    The file of a run may be older than its logs, because W&B buffers the records.
    """
    is_incomplete = found == NO_RUN if isinstance(found, str) else found.state == RUNNING
    if not is_incomplete:
        return False
    oldest = time.time() - FRESH_SECONDS
    try:
        return any(each.stat().st_mtime > oldest for each in (file, *file.parent.glob("logs/*")))
    except FileNotFoundError:  # a log was removed
        return False


def read_offline(file: Path) -> TrackedRun:
    """Read the run of one file, up to the last complete record.

    Raises:
        DataError: with the reason only, if the file is empty or damaged, or contains no run.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    run_id, study, state, tags = "", "", RUNNING, ()
    content = file.read_bytes()
    if not content:
        raise DataError("empty")
    try:
        for payload in _payloads(content):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run_id, study, tags = (
                    record.run.run_id,
                    record.run.run_group,
                    tuple(record.run.tags),
                )
                config |= {
                    item.key: json.loads(item.value_json) for item in record.run.config.update
                }
            elif kind == "summary":
                for item in record.summary.update:
                    key = item.key or "/".join(item.nested_key)
                    summary[key] = json.loads(item.value_json)
            elif kind == "exit":
                state = "finished" if record.exit.exit_code == 0 else "failed"
    except (DecodeError, ValueError, struct.error, RecursionError):
        raise DataError("damaged") from None
    if not run_id:
        raise DataError(NO_RUN)
    return TrackedRun(run_id, study, state, tags, config, summary)


def _payloads(content: bytes) -> Iterator[bytes]:
    """Yield the payloads of complete records, joined from their chunks.

    Raises:
        ValueError: if a checksum, a CRC-32 of kind and chunk, is wrong.
    """
    offset, joined = HEADER, b""
    while offset + HEADER <= len(content):
        remaining = BLOCK - offset % BLOCK
        if (
            remaining < HEADER
        ):  # the end of a block is padding if it is too short for a chunk header
            offset += remaining
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, offset)
        chunk = content[offset + HEADER : offset + HEADER + length]
        if len(chunk) < length:
            return  # truncated file: the run was killed during a write
        if zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError("wrong checksum")
        offset += HEADER + length
        joined = chunk if kind in (WHOLE, FIRST) else joined + chunk
        if kind in (WHOLE, LAST):
            yield joined


def is_foreign(run: TrackedRun) -> bool:
    """Return whether a run is one of another program."""
    return SCHEMA not in run.summary and "shape" not in run.config


def rows_of(runs: Sequence[TrackedRun]) -> pd.DataFrame:
    """Return the config and summary of runs of any program as rows; nested keys are joined with dots.

    A key of both is the summary's; that of the config is `config.KEY`. W&B's own keys, such as _step, are left out.
    """
    rows = []
    for run in runs:
        config, summary = (dict(flatten(values)) for values in (run.config, run.summary))
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        summary = {key: value for key, value in summary.items() if not key.startswith("_")}
        both = {f"config.{key}": config[key] for key in config.keys() & summary.keys()}
        rows.append({"run_id": run.run_id, "status": run.state, **config, **both, **summary})
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pd.DataFrame(
        {name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names}
    )
    return table.infer_objects().set_axis([f"run {run.run_id}" for run in runs], axis=0)


def finished_runs(
    runs: Sequence[TrackedRun],
) -> tuple[list[RunResult], pd.DataFrame, Counter[str]]:
    """Return the results of the finished runs, a table of those of older versions, and counts of the dropped runs.

    The summary of a run has the fields of its result; in older versions it had counts and the loss.
    """
    dropped: Counter[str] = Counter()
    results, older = [], []
    for run in runs:
        if SCHEMA in run.summary and run.state != RUNNING:
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
