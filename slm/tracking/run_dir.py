"""The run directory: the interface between training and analysis. Torch-free.

    runs/<study>/<run_id>/
      config.yaml       resolved config, enough to run again  env.json      versions, commit, machine
      status.json       state, heartbeat, owner               metrics.jsonl one row per logged step
      result.json       RunResult, once finished              checkpoints/  last and previous
      log.txt           log lines of the run                  traceback.txt if the run failed
      tokenizer.json    data.json   what the run was trained on   lock      the lease            wandb/

A process holds the lease of the directory (`slm.tracking.lease`) while it works on the run. This
distinguishes a killed run from one that runs on another machine.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, TypeGuard

import yaml

from slm.config.load import load_config
from slm.data.tokenizers.hf_files import TOKENIZER_FILE
from slm.errors import ConfigError, DataError, Diverged, Interrupted, RunError
from slm.files import atomic_write, read_json, read_object, write_json, write_text
from slm.run.facts import saved_config
from slm.run.spec import RunSpec, resolve
from slm.tracking.lease import HeldLease, Lease
from slm.tracking.result import RunResult, State, result_from
from slm.tracking.submission import submission_id

TAIL_BYTES = 16_384
SUPERSEDED = ".superseded"
START_OVER = "start over with rerun=true (moves the old run to .superseded)"

# Keys of metrics.jsonl and of the W&B history.
STEP, TOKENS, FLOPS = "progress/step", "progress/tokens", "progress/flops"
TRAIN_LOSS, LR, GRAD_NORM = "train/loss", "optim/lr", "optim/grad_norm"
VAL_LOSS, VAL_BITS_PER_BYTE = "val/loss", "val/bits_per_byte"
VAL_ERROR = "val/error/"  # prefix of the group's name
TOKENS_PER_SECOND, MFU = "perf/tokens_per_second", "perf/mfu"
PEAK_MEMORY = "perf/peak_memory_bytes"
# Logged with a validation; the prefixes are followed by the name of a tensor group, or the number of a layer.
WEIGHT_NORM, UPDATE_RATIO = "weights/norm/", "weights/update_ratio/"
RESIDUAL_RMS = "residual/rms/"


class RunDirectory:
    """Directory of one run; call `claim` before writing to it."""

    def __init__(self, path: Path):
        self.path = path
        self._owner: dict[str, Any] = {}
        self._is_running = False
        self._failure = ""
        self._status_lock = threading.Lock()

    @classmethod
    def of(cls, spec: RunSpec) -> RunDirectory:
        return cls(Path(spec.config.runs_dir) / spec.config.study.name / spec.run_id)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def read_status(self) -> Any:
        """Return the content of status.json; None if it is missing or unreadable."""
        try:
            return read_json(self.path / "status.json")
        except (OSError, ValueError):
            return None

    def state(self) -> State:
        """Return the state of the run; "running" without a live owner means killed, so "interrupted"."""
        try:
            state = read_json(self.path / "status.json")["state"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return "planned"
        return "interrupted" if state == "running" and not self.is_in_use() else state

    @property
    def lease(self) -> Lease:
        return Lease(self.path / "lock")

    def failure(self) -> str:
        """Return the first line of the error that the run failed with; empty if it did not fail."""
        try:
            return str(read_json(self.path / "status.json").get("failure", ""))
        except (OSError, ValueError, AttributeError):
            return ""

    def is_of_submission(self, submission: str | None) -> bool:
        """Return whether the submitted job with this id was the last to work on the run."""
        try:
            return bool(self.read_status()["owner"]["submission"] == submission)
        except (KeyError, TypeError):
            return False

    def is_of_this_submission(self) -> bool:
        """Return whether an earlier start of the same submitted job was the last to work on the run."""
        return self.is_of_submission(submission_id())

    def is_in_use(self) -> bool:
        """Return whether a live process holds the run's lease."""
        return self.lease.owner() is not None

    def result(self) -> RunResult | None:
        """Return the result of a finished or diverged run, else None.

        Raises:
            RunError: if result.json exists and cannot be read (`result_from`).
        """
        path = self.path / "result.json"
        if not path.exists():
            return None
        saved = read_object(path, START_OVER, error=RunError)
        try:
            return result_from(saved)
        except DataError as error:
            raise RunError(f"{path}: not a readable result: {error}; {START_OVER}") from None

    def spec(self) -> RunSpec:
        """Resolve the run's config.yaml.

        Raises:
            RunError: if config.yaml cannot be read.
        """
        path = self.path / "config.yaml"
        try:
            text = path.read_text(encoding="utf-8")
            if not text.strip():
                raise RunError(f"{path}: the file is empty; {START_OVER}")
            config = load_config(yaml.safe_load(text))
            if config.tokenizer.kind == "file" and (self.path / TOKENIZER_FILE).is_file():
                # Use the run's copy: the original may have been moved.
                copied = replace(config.tokenizer, path=str(self.path / TOKENIZER_FILE))
                config = replace(config, tokenizer=copied)
            return resolve(config)
        except (OSError, yaml.YAMLError, ConfigError, UnicodeError) as error:
            raise RunError(f"{path}: not a readable config; {START_OVER}\n{error}") from None

    @contextmanager
    def claim(self, spec: RunSpec, *, rerun: bool = False) -> Iterator[None]:
        """Hold the lease of the run inside the `with` block, and record the state that the block ends in.

        With `rerun`, first move an existing run to .superseded. A new directory is removed again after a ConfigError,
        which is raised before the first step.

        Raises:
            InUse: if another live process holds the lease.
            RunError: if the directory contains a run of another config.
        """
        is_new, is_unused = not self.path.exists(), False
        self.path.mkdir(parents=True, exist_ok=True)
        held = self.lease.take(self._refresh_status)
        try:
            if rerun and (self.path / "status.json").exists():
                held = self._set_aside(held)
            self._check_config(spec)
            write_text(
                self.path / "config.yaml", yaml.safe_dump(saved_config(spec), sort_keys=False)
            )
            self._owner = {"host": socket.gethostname(), "pid": os.getpid()}
            if (submission := submission_id()) is not None:
                self._owner["submission"] = submission
            with self._recorded_state(held):
                yield
        except ConfigError:
            is_unused = is_new
            raise
        finally:
            if is_unused:
                self._delete_files()
            held.release()
            if is_unused:
                with suppress(OSError):  # another process has taken the lease meanwhile
                    self.path.rmdir()

    def _set_aside(self, held: HeldLease) -> HeldLease:
        """Move the whole directory to .superseded, and return the lease of a new, empty one."""
        self.move_aside(held)
        self.path.mkdir(exist_ok=True)
        return self.lease.take(self._refresh_status)

    def move_aside(self, held: HeldLease) -> Path:
        """Move the whole directory to .superseded, release its lease and return the new path."""
        parent = self.path.parent / SUPERSEDED
        parent.mkdir(exist_ok=True)
        numbers = [int(old.name.rpartition("-")[2]) for old in parent.glob(f"{self.path.name}-*")]
        aside = parent / f"{self.path.name}-{max(numbers, default=0) + 1}"
        held.stop_heartbeat()
        self.path.rename(aside)
        held.release()
        return aside

    def _delete_files(self) -> None:
        """Delete all files of the directory but the lock."""
        for path in self.path.iterdir():
            if path.is_file() and path != self.lease.path:
                path.unlink(missing_ok=True)

    def _check_config(self, spec: RunSpec) -> None:
        """Raise a RunError that lists the differing keys if the directory belongs to a run with another config."""
        if not (self.path / "config.yaml").exists():
            return
        saved = self.spec()
        try:
            is_other = saved.run_id != spec.run_id
        except DataError:
            return  # the saved path of the corpus is gone; the tokens' fingerprint is compared later
        if is_other:
            differing = ", ".join(_differing_keys(saved.identity, spec.identity))
            raise RunError(
                f"{self.path} belongs to a run with another config ({differing}); {START_OVER}"
            )

    @contextmanager
    def _recorded_state(self, held: HeldLease) -> Iterator[None]:
        self.write_status("running")
        self._is_running = True
        final_state: State = "failed"
        try:
            yield
            final_state = "finished"
        except (Interrupted, KeyboardInterrupt):
            final_state = "interrupted"
            raise
        except Diverged:
            final_state = "diverged"
            raise
        except ConfigError:  # raised before the first step, so the run can still start
            final_state = "planned"
            raise
        except BaseException as error:
            self._failure = _first_line(error)
            with suppress(OSError):  # a full disk must not hide the original error
                write_text(self.path / "traceback.txt", traceback.format_exc())
            raise
        finally:
            self._is_running = False
            held.stop_heartbeat()
            with suppress(OSError):  # if it cannot be written, the run counts as interrupted
                self.write_status(final_state)

    def _refresh_status(self) -> None:
        if self._is_running:
            self.write_status("running")

    def write_status(self, state: State) -> None:
        with self._status_lock:
            status: dict[str, Any] = {"state": state, "heartbeat": time.time()}
            status["owner"] = self._owner
            if state == "failed":
                status["failure"] = self._failure
            write_json(self.path / "status.json", status)

    def write_env(self, env: Mapping[str, Any]) -> None:
        write_json(self.path / "env.json", env)

    def write_result(self, result: RunResult) -> None:
        write_json(self.path / "result.json", asdict(result))

    def open_metrics(self) -> IO[str]:
        """Open metrics.jsonl for appending; first remove an incomplete last line, left by a kill."""
        path = self.path / "metrics.jsonl"
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            complete, newline, _ = path.read_bytes().rpartition(b"\n")
            with atomic_write(path) as temporary:
                temporary.write_bytes(complete + newline)
        return path.open("a", encoding="utf-8", buffering=1)

    def metrics_until(self, step: int) -> list[str]:
        """Return the lines of metrics.jsonl up to `step`, inclusive."""
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        return [line for line in lines if json.loads(line)[STEP] <= step]

    def last_metrics(self) -> dict[str, float]:
        """Return the newest finite value of each key in the last `TAIL_BYTES` of metrics.jsonl."""
        latest: dict[str, float] = {}
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return latest
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = stream.read().decode("utf-8", errors="replace").splitlines()
        for line in lines:
            with suppress(json.JSONDecodeError):  # the first or last line may be incomplete
                row = json.loads(line)
                if isinstance(row, dict):
                    latest.update({key: x for key, x in row.items() if is_finite_number(x)})
        return latest

    def read_metrics(self) -> list[dict[str, float]]:
        """Return one row per step, sorted; of values written twice, the last one counts."""
        path = self.path / "metrics.jsonl"
        rows: dict[int, dict[str, float]] = {}
        if not path.exists():
            return []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # incomplete last line of a running or killed run
            if isinstance(row, dict) and STEP in row:
                rows.setdefault(row[STEP], {}).update(row)
        return [rows[step] for step in sorted(rows)]


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Return whether a value of metrics.jsonl is a finite number; a damaged line may have anything."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _differing_keys(
    saved: Mapping[str, Any], requested: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    lines = []
    for key in sorted({*saved, *requested}):
        old, new = saved.get(key), requested.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _differing_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} saved, {new} requested")
    return lines
