"""The run directory: the contract between training and analysis. Torch-free.

    runs/<study>/<run_id>/
      config.yaml       resolved; enough to run it again      env.json      versions, commit, machine
      status.json       state, heartbeat, owner               metrics.jsonl one row a logged step
      result.json       a RunResult, once finished            checkpoints/  last and previous
      log.txt           what the run said                     traceback.txt if it failed

A process holds the lease of the directory (`slm.tracking.lease`) while it works on the run, so a killed
run is never mistaken for a live one, nor a live one on another machine for a dead one.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import yaml

from slm.config.load import load_config
from slm.config.schema import to_tree
from slm.data.tokenizers.hf_files import LIBRARY_FILE as TOKENIZER_FILE
from slm.errors import ConfigError, DataError, Diverged, Interrupted, RunError
from slm.files import atomic_write, read_json, write_json, write_text
from slm.run.spec import RunSpec, resolve
from slm.tracking.lease import HeldLease, Lease
from slm.tracking.result import RunResult, State, result_from

TAIL_BYTES = 16_384
SUPERSEDED = ".superseded"
START_OVER = "start over with rerun=true (the old run is kept aside)"

# Keys of metrics.jsonl and of the W&B history.
STEP, TOKENS, FLOPS = "progress/step", "progress/tokens", "progress/flops"
TRAIN_LOSS, LR, GRAD_NORM = "train/loss", "optim/lr", "optim/grad_norm"
VAL_LOSS, VAL_BITS_PER_BYTE = "val/loss", "val/bits_per_byte"
VAL_ERROR = "val/error/"  # and the group
TOKENS_PER_SECOND, MFU = "perf/tokens_per_second", "perf/mfu"


class RunDirectory:
    """One run's folder; `claim` it before writing."""

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

    def state(self) -> State:
        """What became of the run; one that claims to run but whose lock is free was killed."""
        try:
            state = read_json(self.path / "status.json")["state"]
        except (FileNotFoundError, json.JSONDecodeError, KeyError):
            return "planned"
        return "interrupted" if state == "running" and not self.is_busy() else state

    @property
    def lease(self) -> Lease:
        return Lease(self.path / "lock")

    def failure(self) -> str:
        """The error that the run failed with, in a line; empty if it did not fail."""
        try:
            return str(read_json(self.path / "status.json").get("failure", ""))
        except (OSError, json.JSONDecodeError):
            return ""

    def is_busy(self) -> bool:
        """Whether a live process holds the run."""
        return self.lease.owner() is not None

    def result(self) -> RunResult | None:
        """The result of a finished or diverged run.

        Raises:
            RunError: if result.json exists and cannot be read (`result_from`).
        """
        path = self.path / "result.json"
        if not path.exists():
            return None
        try:
            return result_from(read_json(path))
        except (json.JSONDecodeError, DataError) as error:
            raise RunError(f"{path}: not a readable result: {error}; {START_OVER}") from None

    def spec(self) -> RunSpec:
        """What the run's config.yaml asks for.

        Raises:
            RunError: if it cannot be read.
        """
        path = self.path / "config.yaml"
        try:
            config = load_config(yaml.safe_load(path.read_text(encoding="utf-8")))
            if config.tokenizer.kind == "file" and (self.path / TOKENIZER_FILE).is_file():
                # The run has its own copy, which stays when the original is moved.
                own = replace(config.tokenizer, path=str(self.path / TOKENIZER_FILE))
                config = replace(config, tokenizer=own)
            return resolve(config)
        except (OSError, yaml.YAMLError, ConfigError, AttributeError) as error:
            raise RunError(f"{path}: not a readable config; {START_OVER}\n{error}") from None

    @contextmanager
    def claim(self, spec: RunSpec, *, rerun: bool = False) -> Iterator[None]:
        """Hold the run while working on it; record how the work ended.

        Raises:
            InUse: if another live process holds it.
            RunError: if another config wrote it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        held = self.lease.take(self._beat)
        try:
            if rerun and (self.path / "status.json").exists():
                held = self._set_aside(held)
            self._check_config(spec)
            write_text(
                self.path / "config.yaml", yaml.safe_dump(to_tree(spec.config), sort_keys=False)
            )
            self._owner = {"host": socket.gethostname(), "pid": os.getpid()}
            with self._recorded_state(held):
                yield
        finally:
            held.release()

    def _set_aside(self, held: HeldLease) -> HeldLease:
        """Move the old run away, whole, and take the lease of a fresh folder in its place."""
        parent = self.path.parent / SUPERSEDED
        parent.mkdir(exist_ok=True)
        taken = [int(old.name.rpartition("-")[2]) for old in parent.glob(f"{self.path.name}-*")]
        attempt = max(taken, default=0) + 1
        held.stop_beating()
        self.path.rename(parent / f"{self.path.name}-{attempt}")
        held.release()
        self.path.mkdir(exist_ok=True)
        return self.lease.take(self._beat)

    def _check_config(self, spec: RunSpec) -> None:
        """A folder that another config wrote is refused, naming the keys that differ."""
        if not (self.path / "config.yaml").exists():
            return
        saved = self.spec()
        try:
            is_other = saved.run_id != spec.run_id
        except DataError:
            return  # the corpus was at another place then; the fingerprint of its tokens will tell
        if is_other:
            differing = ", ".join(_differing_keys(saved.identity, spec.identity))
            raise RunError(f"{self.path} was written by another config; {differing}; {START_OVER}")

    @contextmanager
    def _recorded_state(self, held: HeldLease) -> Iterator[None]:
        self.write_status("running")
        self._is_running = True
        ending: State = "failed"
        try:
            yield
            ending = "finished"
        except (Interrupted, KeyboardInterrupt):
            ending = "interrupted"
            raise
        except Diverged:
            ending = "diverged"
            raise
        except ConfigError:  # found late, before any step: nothing has failed
            ending = "planned"
            raise
        except BaseException as error:
            self._failure = _in_a_line(error)
            with suppress(OSError):  # what is to be told is the error itself, be the disk full
                write_text(self.path / "traceback.txt", traceback.format_exc())
            raise
        finally:
            self._is_running = False
            held.stop_beating()
            with suppress(OSError):  # without a state the run counts as interrupted
                self.write_status(ending)

    def _beat(self) -> None:
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
        """metrics.jsonl for appending; a line torn by a kill is cut off first."""
        path = self.path / "metrics.jsonl"
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            whole = path.read_bytes().rpartition(b"\n")
            with atomic_write(path) as temporary:
                temporary.write_bytes(whole[0] + whole[1])
        return path.open("a", encoding="utf-8", buffering=1)

    def metrics_until(self, step: int) -> list[str]:
        """The lines of metrics.jsonl up to a step."""
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        return [line for line in lines if json.loads(line)[STEP] <= step]

    def last_metrics(self) -> dict[str, float]:
        """The newest value of each key within the last rows, without reading all of a long record."""
        latest: dict[str, float] = {}
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return latest
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = stream.read().decode("utf-8", errors="replace").splitlines()
        for line in lines:
            with suppress(json.JSONDecodeError):  # the first was cut, the last is being written
                row = json.loads(line)
                if isinstance(row, dict):
                    latest.update(row)
        return latest

    def read_metrics(self) -> list[dict[str, float]]:
        """Rows by step; where a resumed run repeated a step, the last row wins."""
        path = self.path / "metrics.jsonl"
        rows: dict[int, dict[str, float]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that is being written or was killed
            rows.setdefault(row[STEP], {}).update(row)
        return [rows[step] for step in sorted(rows)]


def _in_a_line(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def _differing_keys(
    saved: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    lines = []
    for key in sorted({*saved, *asked}):
        old, new = saved.get(key), asked.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _differing_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} there, {new} here")
    return lines
