"""Fixtures: a cache of prepared prose for the whole session, and configs with steps of milliseconds."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm.config.load import load_config
from slm.config.schema import Config
from slm.data.tokens.prepare import prepare
from slm.data.tokens.shards import PreparedData
from slm.run.spec import RunSpec, resolve
from tests.in_process import OFFLINE, ROOT, run_here

Cli = Callable[..., subprocess.CompletedProcess[str]]
PATIENCE_SECONDS = 600  # the longest wait for a process: shared machines may be slow

TINY: dict[str, Any] = {
    "family": {"name": "tiny"},
    "model": {"n_layers": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "seq_len": 32},
    "data": {"val_tokens": 2048},
    "optimizer": {"global_batch_tokens": 256},
    "budget": {"tokens": 20 * 256},
    "trainer": {"threads": 1, "accelerator": "cpu", "progress": False, "log_every_steps": 1},
    "tracking": {"wandb": "disabled"},
}


def pytest_configure() -> None:
    """Restore SIGINT, which a shell ignores in background jobs: the tests of interruptions send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a tree with the changed keys, nested dicts merged."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, shared by all workers of pytest-xdist: `prepare` holds a lock while it writes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    return cache


@pytest.fixture
def tiny_config(tmp_path: Path, cache_dir: Path) -> Callable[..., Config]:
    """Return a function that builds a config of about 20 thousand parameters and 20 steps.

    Its keyword arguments change keys, as in tiny_config(model={"n_layers": 3}).
    """

    def make(**changes: Any) -> Config:
        folders = {"runs_dir": str(tmp_path / "runs"), "cache_dir": str(cache_dir)}
        return load_config(merged({**TINY, **folders}, changes))

    return make


@pytest.fixture
def tiny_spec(tiny_config: Callable[..., Config]) -> Callable[..., RunSpec]:
    return lambda **changes: resolve(tiny_config(**changes))


@pytest.fixture
def prose(tiny_config: Callable[..., Config]) -> PreparedData:
    return prepare(tiny_config())


@pytest.fixture
def cli(tmp_path: Path, cache_dir: Path) -> Cli:
    """Return a function that runs train.py or sweep.py in this process, with runs in tmp_path."""
    return lambda script, *words: run_here(cli_command(script, tmp_path, cache_dir, *words))


@pytest.fixture
def cli_process(tmp_path: Path, cache_dir: Path) -> Cli:
    """Return a function that runs train.py or sweep.py in a process of its own, with runs in tmp_path."""
    return lambda script, *words: run_process(cli_command(script, tmp_path, cache_dir, *words))


def run_process(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env=cli_env(),
        check=False,
    )


def cli_command(script: str, tmp_path: Path, cache_dir: Path, *arguments: str) -> list[str]:
    """Return a command whose runs_dir and cache_dir are temporary, unless the arguments set them."""
    folders = {"runs_dir": tmp_path / "runs", "cache_dir": cache_dir}
    given = {argument.partition("=")[0] for argument in arguments}
    temporary = [f"{key}={path}" for key, path in folders.items() if key not in given]
    return [sys.executable, script, *arguments, *temporary]


def cli_env() -> dict[str, str]:
    return {**os.environ, **OFFLINE}
