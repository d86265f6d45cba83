"""Cluster launchers: checks that need neither a cluster nor an extra."""

from __future__ import annotations

import pickle
import signal
import subprocess
from collections.abc import Callable
from importlib.util import find_spec

import pytest

from hydra_plugins.slm_study.ray import check_reachable
from slm.errors import ConfigError, Diverged, Interrupted, PeerFailed, Problem, RunError, SlmError

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    "error",
    [
        ConfigError([Problem("size", 3, "too small", "128k"), Problem("seed", None, "missing")]),
        Interrupted("stopped", signal.SIGTERM),
        Diverged("nan", {"step": 5}),
        PeerFailed("another", 3),
        RunError("busy"),
    ],
)
def test_errors_can_be_pickled(error: SlmError) -> None:
    error.was_shown = True
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error)
    assert vars(copy) == vars(error) and copy.exit_code == error.exit_code


@pytest.mark.parametrize(("launcher", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_error_names_the_missing_extra(launcher: str, module: str, cli: Cli) -> None:
    """action=plan works without the extra, action=run does not."""
    if find_spec(module) is not None:
        pytest.skip(f"the extra {launcher} is installed")
    study = ("sweep.py", "study=smoke", f"hydra/launcher={launcher}")
    plan, run = cli(*study, "action=plan"), cli(*study, "action=run")
    assert (plan.returncode, run.returncode) == (0, 2)
    assert f"pip install -e '.[{launcher}]'" in run.stderr and "Traceback" not in run.stderr


def test_unreachable_ray_cluster_is_reported() -> None:
    check_reachable(None)
    check_reachable("auto")
    with pytest.raises(RunError, match=r"127\.0\.0\.1:9"):
        check_reachable("127.0.0.1:9")
