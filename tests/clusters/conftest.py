"""Fixtures: a Slurm cluster, a Ray cluster, and reference studies that run without a cluster."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.clusters.slurm import Slurm, missing, one_node_slurm
from tests.clusters.sweeping import PAIR, SMOKE, Sweep

CORES = 2
MakeSweep = Callable[..., Sweep]


@pytest.fixture
def sweep(tmp_path: Path, cache_dir: Path) -> MakeSweep:
    """sweep(arguments, launcher arguments..., env={...}) -> a Sweep in the folder of the test."""

    def make(arguments: tuple[str, ...], *more: str, env: dict[str, str] | None = None) -> Sweep:
        return Sweep(tmp_path, cache_dir, (*arguments, *more), env or {})

    return make


@pytest.fixture(scope="session")
def basic_smoke(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Sweep:
    """study=smoke, with all runs in one process, one after the other."""
    folder = tmp_path_factory.mktemp("basic")
    finished = Sweep(folder, cache_dir, (*SMOKE, "hydra/launcher=basic"), {})
    assert finished.run_here() == 0, finished.output
    return finished


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Sweep:
    """The two runs of PAIR, trained in one process without an interruption."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    finished = Sweep(folder, cache_dir, (*PAIR, "hydra/launcher=basic"), {})
    assert finished.run_here() == 0, finished.output
    return finished


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    reason = missing()
    if not reason and find_spec("submitit") is None:
        reason = "pip install -e '.[slurm]'"
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)  # munged requires a folder that all users can enter
        with one_node_slurm(Path(folder), CORES) as running:
            yield running


@pytest.fixture(scope="session")
def ray_env() -> dict[str, str]:
    """Environment variables for access to the Ray cluster of the tests."""
    if find_spec("ray") is None:
        pytest.skip("pip install -e '.[ray]'")
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as on those systems, Ray then listens on loopback only
    }


@pytest.fixture(scope="session")
def ray_address(ray_env: dict[str, str]) -> Iterator[str]:
    """Address of a Ray cluster that was started outside of the sweep's folder."""
    head_script = str(Path(__file__).with_name("ray_head.py"))
    with tempfile.TemporaryDirectory(
        prefix="ray-"
    ) as folder:  # a short path, because Ray puts sockets into it
        head = subprocess.Popen(
            [sys.executable, head_script, folder, str(CORES)],
            cwd=folder,
            env={**os.environ, **ray_env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert head.stdin is not None and head.stdout is not None
        try:
            yield head.stdout.readline().strip()
        finally:
            head.stdin.close()
            head.wait(timeout=60)
